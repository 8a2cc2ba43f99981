"""Shared by the measurements: cases, synthetic streams, the bare loop, timing in turn and the command line."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

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
from utils.compute import describe_device

TASKS, CLASSES, BATCH, DROPOUT = 5, 2, 16, 0.2
HEADS = dict.fromkeys(range(1, TASKS + 1), CLASSES)
Measure = Callable[[], float]


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


def parser(doc: str | None, repeats: int | None = 3, device: bool = True) -> argparse.ArgumentParser:
    """A command line with --repeats (unless None) and --device; the help is the script's docstring `doc`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeats is not None:
        made.add_argument("--repeats", type=int, default=repeats, help=f"rounds of measurements (default: {repeats})")
    if device:
        made.add_argument("--device", default="auto", help="as for modelzoo.py (default: auto)")
    return made


def network(case: Case, dropout: float = DROPOUT) -> MultiHead:
    """The project's network of a case, with a head for each task."""
    return build_net(case.model, case.shape, settings_class(case.model)(dropout=dropout), HEADS)


def random_images(case: Case) -> tuple[Images, Images]:
    """Training and test images of noise, balanced over classes, the same every time."""
    rng = torch.Generator().manual_seed(0)
    splits = []
    for count in (case.train, case.test):
        pixels = torch.randint(0, 256, (count, *case.shape), generator=rng, dtype=torch.uint8)
        splits.append(Images(pixels, torch.arange(count) % (TASKS * CLASSES)))
    return splits[0], splits[1]


def use(case: Case, permuted: bool = False) -> None:
    """Register this case as the dataset `perf`; label 10x + y is class y with the x-th permutation of the pixels."""

    def decode(entry: int) -> Label:
        return Label(entry % 10, entry // 10) if permuted else Label(entry)

    def views(x: int) -> Tensor | None:
        return permutation(case.shape[0] * case.shape[1] * case.shape[2], x) if permuted else None

    def build(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
        names = [str(number) for number in range(TASKS * CLASSES)]
        data = ImageDataset(*random_images(case), names, case.preprocess, decode, views)
        return image_stream(config, data, seed, device)

    STREAMS["perf"] = build


def write_configs(folder: Path, case: Case, tasks: Sequence[Sequence[int]]) -> list[str]:
    """Write the YAML files of a case to `folder`; the options of modelzoo.py that name them."""
    data, hyper = folder / "perf.yaml", folder / "net.yaml"
    data.write_text(yaml.safe_dump({"dataset": "perf", "tasks": [list(task) for task in tasks]}))
    hyper.write_text(yaml.safe_dump({"model": case.model, "batch": BATCH, "dropout": DROPOUT}))
    return ["--data_config", str(data), "--hp_config", str(hyper)]


FIVE_TASKS = [range(start, start + CLASSES) for start in range(0, TASKS * CLASSES, CLASSES)]


def run(case: Case, epochs: int, device: str, tasks: Sequence[Sequence[int]] = FIVE_TASKS) -> dict[str, Any]:
    """Train one member on all tasks through the command line; its summary.json."""
    use(case)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*write_configs(Path(folder), case, tasks), "--rounds", "1", "--epochs", str(epochs), "--quiet"]
        modelzoo_run([*arguments, "--device", device, "--run_dir", f"{folder}/run"])
        return json.loads(Path(folder, "run", "summary.json").read_text())


def modelzoo_run(arguments: Sequence[str]) -> None:
    """Run modelzoo.py in this process, without its output."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = modelzoo.main([*arguments])
    if code:
        raise SystemExit(code)


def fixed_batch(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and task ids of one batch on the device."""
    pixels = random_images(case)[0].pixels[:BATCH].to(device)
    targets = torch.arange(BATCH, device=device) % CLASSES
    return case.preprocess(pixels), targets, torch.arange(BATCH, device=device) % TASKS + 1


def bare_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor], bf16: bool = False
) -> Callable[[], Tensor]:
    """A function that does forward, backward and optimizer step on this batch and nothing else."""
    images, targets, task_ids = batch
    net.train()

    def step() -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = net(images, task_ids)
        loss = F.cross_entropy(outputs.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            loss = step()
    torch.cuda.current_stream().wait_stream(side)

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def rate(step: Callable[[], Tensor], seconds: float = 1.5) -> float:
    """Images per second of steps on batches of BATCH, measured for about so many seconds."""
    for _ in range(2):
        step().item()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        for _ in range(10):
            loss = step()
        loss.item()
        steps += 10
    return steps * BATCH / (time.perf_counter() - begin)


def in_turn(measures: Sequence[Measure], repeats: int) -> list[list[float]]:
    """Take all measurements in turn, so that changes of the machine's speed affect all; a list per measure."""
    rounds = [[measure() for measure in measures] for _ in range(repeats)]
    return [list(column) for column in zip(*rounds, strict=True)]


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median ratio of measurements that were taken one after the other."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def title(device: torch.device) -> str:
    """Device, processor, torch version and date, for the title of a table."""
    return f"{describe_device(device)}, {_processor()}, torch {torch.__version__}, {datetime.date.today()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
