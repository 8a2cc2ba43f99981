"""Many seeds of a toy model of superposition: 100 as one computation against one, and against a bare loop.

    python perf/superposition.py [--repeats 3]

Autoencoders of six features in two hidden values, on the CPU with one thread. *training*: seconds inside the training
loop of train_task.py; *command*: of everything, 20 checkpoints and 20 evaluations with `geometry` included. *bare*:
the same arithmetic for one seed in a plain loop that draws its examples too.
"""

import statistics
import tempfile
import time
from functools import partial
from typing import NamedTuple

import common
import torch
from torch import nn

import train_task
from records.run import Run
from records.task_invocation import configure

SEEDS, STEPS, TABLE = 100, 10_000, 1000


class Workload(NamedTuple):
    """An optimizer, and the batch: so many fresh examples, or all examples of a table."""

    optimizer: str
    batch: int | str


CASES = (Workload("sgd", 64), Workload("adam", 64), Workload("sgd", "full"))


def run(case: Workload, seeds: int) -> tuple[float, float]:
    """Seconds in the training loop of train_task.py, and of the whole command."""
    fresh = case.batch != "full"
    changes = {"hp.optimizer": case.optimizer, "hp.batch": case.batch, "data.fresh": fresh, "hp.lr": 0.01,
               "data.train_examples": TABLE}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        invocation = configure(
            data_config="config/dataset/superposition.yaml", hp_config="config/hyperparam/autoencoder.yaml",
            set=changes, steps=STEPS, seeds=seeds, checkpoints="log:20", evaluate_at="log:20", evaluate="geometry",
            run_dir=f"{folder}/run", quiet=True, device="cpu", threads=1,
        )  # fmt: skip
        begin = time.perf_counter()
        with common.silent():
            paths = train_task.run(invocation)
        return float(Run.load(paths[0]).summary["train_seconds"]), time.perf_counter() - begin


def bare(case: Workload) -> tuple[float, float]:
    """Seconds of as many steps of one seed in a plain loop, which writes nothing: twice the same."""
    weights, bias = nn.Parameter(torch.rand(2, 6) - 0.5), nn.Parameter(torch.zeros(6))
    kind = torch.optim.SGD if case.optimizer == "sgd" else torch.optim.Adam
    optimizer = kind([weights, bias], 0.01, fused=True)  # type: ignore[operator]
    table = drawn(TABLE)
    begin = time.perf_counter()
    for _ in range(STEPS):
        inputs = table if case.batch == "full" else drawn(int(case.batch))
        outputs = torch.addmm(bias, inputs @ weights.T, weights).relu()
        loss = (outputs - inputs).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - begin
    return seconds, seconds


def drawn(count: int) -> torch.Tensor:
    """Examples with one feature each, [count, 6]."""
    return torch.zeros(count, 6).scatter_(1, torch.randint(6, (count, 1)), torch.rand(count, 1))


def main() -> None:
    options = common.options(__doc__, repeats=3)
    torch.set_num_threads(1)
    run(CASES[0], 2)  # what is loaded and cached once
    print(f"Superposition: {STEPS:,} steps. {common.title(torch.device('cpu'))}")
    for case in CASES:
        measures = [partial(bare, case), partial(run, case, 1), partial(run, case, SEEDS)]
        columns = common.in_turn(measures, options.repeats)
        common.line(f"{case.optimizer}, batch {case.batch}", "training, s", "command, s")
        for name, found in zip(("bare, one seed", "one seed", f"{SEEDS} seeds"), columns, strict=True):
            seconds = [f"{statistics.median(column):.2f}" for column in zip(*found, strict=True)]
            common.line(f"  {name}", *(seconds[:1] if name.startswith("bare") else seconds))
        plain, one, many = (list(zip(*found, strict=True)) for found in columns)
        ratios = [f"{common.ratio(*pair):.2f}" for pair in zip(many, one, strict=True)]
        common.line(f"  cost of {SEEDS} over cost of one", *ratios)
        common.line("  throughput of one seed over bare", f"{common.ratio(plain[0], one[0]):.2f}")


if __name__ == "__main__":
    main()
