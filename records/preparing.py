"""What comes before a run of either program: device and process, whether the network fits, and how errors are told."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from datasets.task import TaskStream
from evaluation.questions import check_evaluations
from methods.base import new_network
from methods.config import BaseConfig, RunConfig
from net import input_dtype
from net.multihead import MultiHead
from records.manifest import verify
from records.task_config import TaskRunConfig
from training.loop import check_batch
from training.optimizers import recipe_for
from utils.compute import keep_freed_memory, make_reproducible, pick_device
from utils.errors import SignalError, TrainingError, UserError, one_line
from utils.seeding import seeded


def prepared(config: BaseConfig) -> torch.device:
    """Set up the process for a run, and return its device."""
    device = pick_device(config.device)
    make_reproducible()
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return device


def trial_network(config: RunConfig | TaskRunConfig, stream: TaskStream) -> MultiHead:
    """A network that shows, before anything is written, whether the model fits the inputs and batches (UserError)."""
    tasks = stream.tasks[:1] if config.continual else stream.tasks
    with seeded(config.seed, "trial"):
        try:
            net = new_network(config, stream.spec, {task.id: task.num_outputs for task in tasks})
            check_batch(net, recipe_for(net, config.hp), len(tasks[0].train))
            kind, takes = stream.spec.preprocess(tasks[0].test.store[:1]).dtype, input_dtype(net.trunk)
            if kind != takes:
                raise UserError(f"model: {config.net.model} takes numbers of {takes}; the inputs are {kind}")
        except UserError as error:
            raise UserError(f"{config.net.path}: {error}") from None
    check_evaluations(config.evaluate, config.ask, net, tasks[0])
    if isinstance(config, RunConfig):
        for text in config.evaluate:
            if ":" in text:
                name = text.partition(":")[0]
                raise UserError(f"--evaluate {text}: modelzoo.py asks after every episode; write {name}")
    return net


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn an unexpected error of a resumed or extended run into a UserError: maybe its saved state does not fit."""
    try:
        yield
    except (UserError, TrainingError, SignalError, OSError, MemoryError, ImportError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} cannot continue from its saved state ({reason}); check it with --verify") from None


def verify_run(path: Path) -> None:
    """Check all files of a run against their checksums, and print the result."""
    wrong, others = verify(path)
    for line in [*(f"not part of the run: {path / name}" for name in others), *wrong[1:]]:
        print(one_line(line))
    if wrong:
        raise UserError(wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    print(f"{one_line(path)}: all files are as they were written")


@contextmanager
def writable(path: Path, command: str = "") -> Iterator[None]:
    """Turn the errors of writing a run directory into one line, with the command that resumes the run."""
    command = command or resuming_command(path)
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or path} cannot be written: {error.strerror or error}"
        raise TrainingError(f"{reason}; when it can, resume with: {command}") from None


def resuming_command(path: Path, program: str = "modelzoo.py") -> str:
    """The command that resumes a run, for people to copy."""
    return f"python {program} --resume --run_dir {shlex.quote(str(path))}"
