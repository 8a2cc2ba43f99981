"""Networks of sequence mixers on recall: how much of training is their arithmetic.

    OMP_NUM_THREADS=1 python perf/mixers.py [--repeats 3] [--seconds 2.0]

Multi-query associative recall of 64 tokens with each published preset, on the CPU; tokens a second.
run: inside the training loop of train_task.py.
bare: the same network, optimizer and loss in a plain loop that draws its examples too, DRAWN batches at a time.
"""

import statistics
import tempfile
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor

import train_task
from datasets import build_stream
from datasets.task import Generator, TaskStream
from methods.base import new_network
from net import count_parameters
from records.run import Run
from records.task_invocation import configure
from training.optimizers import make_optimizer
from utils.seeding import generator

PRESETS = (
    "attention", "conv_attention", "sliding_attention", "based", "base_conv", "hyena", "h3", "mamba", "mamba2", "gla",
    "delta_net", "gated_delta_net", "rwkv7",
)  # fmt: skip
DRAWN, EVALUATED = 64, 64
CPU = torch.device("cpu")


def options_of(preset: str, **more: Any) -> dict[str, Any]:
    """The options of train_task.py for a preset."""
    config = common.PROJECT / "config"
    return {
        "data_config": str(config / "dataset/mqar.yaml"), "hp_config": str(config / f"hyperparam/{preset}.yaml"),
        "set": {"data.dev_examples": EVALUATED, "data.test_examples": EVALUATED}, "device": "cpu", **more,
    }  # fmt: skip


class Bare:
    """The plain loop of a preset."""

    def __init__(self, preset: str) -> None:
        config = configure(**options_of(preset)).config
        self.stream: TaskStream = build_stream(config.data, 0, CPU)
        (task,) = self.stream.tasks
        assert isinstance(task.train, Generator)
        self.net = new_network(config, self.stream.spec, {task.id: task.num_outputs}).train()
        self.batch, self._source, self._rng = int(config.hp.batch), task.train, generator(0, "perf")
        self._optimizer = make_optimizer(self.net, config.hp, config.hp.lr)
        self._pending: list[tuple[Tensor, Tensor]] = []

    @property
    def tokens(self) -> int:
        """Of a batch."""
        return self.batch * int(self.net.trunk.length)  # type: ignore[arg-type]

    def step(self) -> None:
        if not self._pending:
            drawn = self._source.draw(DRAWN * self.batch, self._rng)
            parts = drawn.store.split(self.batch), drawn.targets.split(self.batch)
            self._pending.extend(zip(*parts, strict=True))
        inputs, answers = self._pending.pop()
        loss = F.cross_entropy(self.net.trunk(inputs).flatten(0, 1), answers.flatten(), ignore_index=-1)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def run(preset: str, steps: int, tokens: int) -> float:
    """Tokens a second in the training loop of train_task.py."""
    with tempfile.TemporaryDirectory() as folder:
        more = options_of(preset, steps=steps, checkpoints="none", run_dir=f"{folder}/run", quiet=True)
        with common.silent():
            paths = train_task.run(configure(**more))
        return steps * tokens / float(Run.load(paths[0]).summary["train_seconds"])


def measured(preset: str, repeats: int, seconds: float) -> None:
    """A line of the table."""
    bare = Bare(preset)
    steps = max(20, round(seconds / common.seconds_a_call(bare.step, CPU, seconds / 4)))
    measures = [
        lambda: run(preset, steps, bare.tokens),
        lambda: bare.tokens / common.seconds_a_call(bare.step, CPU, seconds),
    ]
    columns = common.in_turn(measures, repeats)
    medians = (f"{statistics.median(column):,.0f}" for column in columns)
    common.line(preset, f"{count_parameters(bare.net):,}", *medians, f"{common.ratio(*columns):.2f}")


def main() -> None:
    options = common.options(__doc__, repeats=3, seconds=2.0)
    print(f"Sequence mixers on recall: tokens/s. {common.title(CPU)}")
    common.line("", "parameters", "run", "bare", "run/bare")
    for preset in PRESETS:
        measured(preset, options.repeats, options.seconds)


if __name__ == "__main__":
    main()
