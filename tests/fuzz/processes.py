"""Cases in processes forked from one that has everything imported."""

import contextlib
import gc
import importlib
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image

import export
import utils.compute
from tests.fuzz.attempts import BYTES, SECONDS, attempt
from tests.fuzz.cases import Answer
from tests.fuzz.kinds import case
from tests.fuzz.prepared import MADE_WITH, PREPARED, SAVED, keep, prepare, prepare_and_tell
from tests.test_bad_input import (
    NOTHING_THERE,
)

BATCH = 50  # cases in one process


def limit_memory() -> None:
    """For what is allocated from now on, twice over: an input that needs more is to be found out, not to be hidden."""
    data = int(re.search(r"VmData:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    resource.setrlimit(resource.RLIMIT_DATA, (data + BYTES + (1 << 30),) * 2)


def in_child(work: Callable[[Callable[[object], None]], None]) -> tuple[int, int]:
    """Fork: `work` gets a function that sends a line to the parent. Returns process and descriptor to read from."""
    read, written = os.pipe()
    process = os.fork()
    if process:
        os.close(written)
        return process, read
    try:
        os.close(read)
        work(lambda message: (os.write(written, json.dumps(message).encode() + b"\n"), None)[1])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)


def run_batch(todo: Sequence[tuple[str, int]], folder: Path) -> Iterable[Answer]:
    """Some cases in one process, which is given up at the first that hangs or kills it."""

    def work(send: Callable[[object], None]) -> None:
        limit_memory()
        for kind, seed in todo:
            root = folder / f"{kind}-{seed}"
            made = case(kind, seed)
            send(["begin", kind, seed])
            answer = attempt(made, root)
            shutil.rmtree(root, ignore_errors=True)
            send(["end", [answer.kind, answer.seed, answer.code, answer.wrong and f"{made.told}: {answer.wrong}",
                          answer.seconds, answer.bytes, answer.line]])  # fmt: skip
            if answer.bytes > BYTES // 2 or answer.wrong:
                return

    process, pipe = in_child(work)
    buffer, begun, ended = b"", None, 0
    limit = time.monotonic() + SECONDS * 3
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0, limit - time.monotonic()))
        part = os.read(pipe, 1 << 16) if ready else b""
        if not part:
            break
        buffer += part
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            what, *rest = json.loads(line)
            if what == "begin":
                begun, limit = tuple(rest), time.monotonic() + SECONDS + 2
            else:
                limit, begun, ended = time.monotonic() + SECONDS * 3, None, ended + 1
                yield Answer(*rest[0])
    os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    os.close(pipe)
    if begun is not None:
        how = f"hangs for more than {SECONDS} s" if not ready else f"ended by signal {status & 127}"
        yield Answer(*begun, "none", how, SECONDS)  # type: ignore[misc,call-arg]


def warm_up(folder: Path) -> None:
    """Import what a run would, prepare the runs, and see that what is not mutated is accepted."""
    os.environ.update(NOTHING_THERE)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.fsync = lambda *_: None  # type: ignore[assignment]
    utils.compute._git = lambda *_: None  # type: ignore[assignment]
    from utils.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    for name in (
        "timm", "torchvision.datasets", "torchvision.transforms.functional", "sklearn.datasets",
        "sklearn.model_selection", "tensorboard.compat.proto.event_pb2", "tensorboard.plugins.custom_scalar.layout_pb2",
        "tensorboard.plugins.hparams.plugin_data_pb2", "reporting.page",
    ):  # fmt: skip
        importlib.import_module(name)
    Image.init()

    def work(send: Callable[[object], None]) -> None:
        before = set(sys.modules)
        for name in (*MADE_WITH, *SAVED):
            (folder / name).mkdir()
            os.chdir(folder / name)
            process, pipe = in_child(partial(prepare_and_tell, name))
            if not os.read(pipe, 100):
                return
            os.waitpid(process, 0)
            os.close(pipe)
        (folder / "imports").mkdir()
        os.chdir(folder / "imports")
        prepare("finished")
        export.main(["run", "--out", "exported", "--format", "torch"])
        send(sorted(set(sys.modules) - before))

    stdout, silent = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    process, pipe = in_child(work)
    with open(pipe, "rb") as answer:
        modules = answer.read()
    os.waitpid(process, 0)
    os.dup2(stdout, 1)
    if not modules:
        raise RuntimeError("the runs could not be prepared")
    for name in json.loads(modules):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for name in (*MADE_WITH, *SAVED):
        keep(name, folder / name / "run")


def run_each(todo: Sequence[tuple[str, int]], report: Callable[[Answer], None] = lambda answer: None) -> list[Answer]:
    """These cases; those that fail are run again, alone, and count if they fail again."""
    failures = []
    with tempfile.TemporaryDirectory() as name:
        folder, here = Path(name), Path.cwd()
        if not PREPARED:
            warm_up(folder)
        os.chdir(here)
        rest = list(todo)
        while rest:
            done = 0
            for answer in run_batch(rest[:BATCH], folder / f"{len(rest)}"):
                done += 1
                if answer.wrong:
                    for again in run_batch([(answer.kind, answer.seed)], folder / f"{len(rest)}-alone"):
                        answer = again
                    if answer.wrong:
                        failures.append(answer)
                report(answer)
            if not done:
                raise RuntimeError(f"the process for {rest[0]} ended before it began")
            rest = rest[done:]
    return failures
