"""Shared by the measurements: cases, synthetic streams, the bare loop, timing in turn and the command line."""

import argparse
import contextlib
import datetime
import io
import json
import math
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import plain
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

import modelzoo
from datasets import STREAMS
from datasets.config import DataConfig
from datasets.images.stream import ImageDataset, ImagePreprocess, Images, Label, image_stream
from datasets.images.views import permutation
from datasets.task import TaskStream
from net import build_net, settings_class
from net.multihead import MultiHead
from records.invocation import parse
from training.optimizers import make_optimizer
from training.recipe import Recipe
from utils.compute import Compute, describe_device, keep_freed_memory, pick_device

TASKS, CLASSES, BATCH, DROPOUT = 5, 2, 16, 0.2
HEADS = dict.fromkeys(range(1, TASKS + 1), CLASSES)
T = TypeVar("T")
Step = Callable[[], Tensor]  # a training step, which returns the loss


class Case(NamedTuple):
    """A network, and the shape and number of synthetic images like those of a benchmark."""

    name: str
    model: str
    shape: tuple[int, int, int]
    preprocess: ImagePreprocess
    train: int  # images, over all tasks
    test: int


DIGITS = Case("digits, conv", "conv", (1, 8, 8), ImagePreprocess(1, flip=False), 1440, 360)
MNIST = Case("MNIST, conv", "conv", (1, 28, 28), ImagePreprocess(4, flip=False), 960, 160)
CIFAR = Case("CIFAR, conv", "conv", (3, 32, 32), ImagePreprocess(4, flip=True), 800, 160)
CIFAR_WRN = Case("CIFAR, WRN-16-4", "wrn16_4", (3, 32, 32), ImagePreprocess(4, flip=True), 80, 16)
CASES = [DIGITS, MNIST, CIFAR, CIFAR_WRN]


def options(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line: an option for each name, with its default; a device is picked. `doc` is the help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"(default: {default})")
    keep_freed_memory()
    given = parser.parse_args()
    if "device" in given:
        given.device = pick_device(given.device)
    return given


def network(case: Case) -> MultiHead:
    """The project's network of a case, with a head for each task."""
    return build_net(case.model, case.shape, settings_class(case.model)(dropout=DROPOUT), HEADS)


def random_images(case: Case, count: int) -> Images:
    """Images of noise, balanced over classes, the same every time."""
    rng = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, *case.shape), generator=rng, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % (TASKS * CLASSES))


def use(folder: Path, case: Case, tasks: Sequence[Sequence[int]]) -> list[str]:
    """Make a case the dataset `perf`; the options of modelzoo.py for these tasks, whose files are written to `folder`.

    Label 10x + y is class y with the x-th permutation of the pixels.
    """

    def build(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
        names = [str(number) for number in range(TASKS * CLASSES)]
        data = ImageDataset(
            random_images(case, case.train), lambda: random_images(case, case.test), names, case.preprocess,
            lambda entry: Label(entry % 10, entry // 10), partial(permutation, math.prod(case.shape)),
        )  # fmt: skip
        return image_stream(config, data, seed, device)

    STREAMS["perf"] = build
    data, hyper = folder / "perf.yaml", folder / "net.yaml"
    data.write_text(yaml.safe_dump({"dataset": "perf", "tasks": [list(task) for task in tasks]}))
    hyper.write_text(yaml.safe_dump({"model": case.model, "batch": BATCH, "dropout": DROPOUT}))
    return ["--data_config", str(data), "--hp_config", str(hyper)]


FIVE_TASKS = [range(start, start + CLASSES) for start in range(0, TASKS * CLASSES, CLASSES)]


def run(case: Case, epochs: int, device: str, tasks: Sequence[Sequence[int]] = FIVE_TASKS) -> dict[str, Any]:
    """Train one member on all tasks as the command line does; its summary.json."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*use(Path(folder), case, tasks), "--rounds", "1", "--epochs", str(epochs), "--device", device]
        return json.loads((modelzoo_run([*options, "--run_dir", f"{folder}/run"]) / "summary.json").read_text())


def silent() -> contextlib.AbstractContextManager[object]:
    """Without what programs print."""
    return contextlib.redirect_stdout(io.StringIO())


def modelzoo_run(arguments: Sequence[str]) -> Path:
    """Run modelzoo.py in this process, without its output; the run directory."""
    with silent():
        return modelzoo.run(parse([*arguments, "--quiet"]))


def step_of(
    net: nn.Module, case: Case, device: torch.device, *, fused: bool = True, channels_last: bool = True
) -> Step:
    """Forward, backward and optimizer step on one fixed batch and nothing else; bf16 on a GPU.

    SGD is that of the project (fused), or updates one parameter after the other.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device).to(memory_format=layout).train()  # type: ignore[call-overload]
    images = case.preprocess(random_images(case, BATCH).pixels.to(device)).contiguous(memory_format=layout)
    numbers = torch.arange(BATCH, device=device)
    targets, task_ids = numbers % CLASSES, numbers % TASKS + 1
    optimizer = make_optimizer(net, Recipe(batch=BATCH), 0.01) if fused else plain.optimizer(net, one_by_one=True)  # type: ignore[arg-type]
    compute = Compute(device, bf16=images.is_cuda)

    def step() -> Tensor:
        with compute.autocast():
            outputs = net(images, task_ids)
        loss = F.cross_entropy(outputs.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def captured(step: Step) -> Step:
    """The step as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with Compute(torch.device("cuda")).training_stream():
        for _ in range(3):
            step()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def seconds_a_call(operation: Callable[[], object], device: torch.device, seconds: float = 1.5) -> float:
    """Mean time of one call, measured for about so many seconds after a first one."""
    operation()
    begin, calls, spent = time.perf_counter(), 0, 0.0
    while spent < seconds:
        for _ in range(10):
            operation()
        if device.type == "cuda":
            torch.cuda.synchronize()
        calls += 10
        spent = time.perf_counter() - begin
    return spent / calls


def rate(step: Step, device: torch.device, seconds: float = 1.5) -> float:
    """Images per second of steps on batches of BATCH."""
    return BATCH / seconds_a_call(step, device, seconds)


def in_turn(measures: Sequence[Callable[[], T]], repeats: int) -> list[list[T]]:
    """Take all measurements in turn, so that changes of the machine's speed affect all; a list per measure."""
    rounds = [[measure() for measure in measures] for _ in range(repeats)]
    return [list(column) for column in zip(*rounds, strict=True)]


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median ratio of measurements that were taken one after the other."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def line(name: object, *cells: str) -> None:
    """Print a line of a table."""
    print(f"{name:<36}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def title(device: torch.device) -> str:
    """Device, processor, torch version and date, for the title of a table."""
    return f"{describe_device(device)}, {_processor()}, torch {torch.__version__}, {datetime.date.today()}"


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return found[1] if found else platform.processor() or platform.machine()
