"""Multi-query associative recall and languages: how fast examples are drawn, and with how much memory.

    python perf/recall.py [--examples 100000] [--repeats 3]

Length 64, 4 pairs, vocabulary 8192, with noise, on the CPU. Examples a second.
drawn: as a training loop draws an epoch of them.
usual: keys, values and slots of each example by numpy.random.choice without replacement, from a copy of all keys for
each example; of a fiftieth of the examples.
memory: what the process grew by at most while all were drawn, over what they take.
Then the seconds for 16,384 documents of each language, with the settings of its YAML file.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable

import common
import numpy as np
import torch

from datasets import build_stream
from datasets.task import Generator
from records.invocation import configure
from utils.seeding import generator

LENGTH, PAIRS, VOCABULARY, POWER = 64, 4, 8192, 0.01


LANGUAGES = ("associative_recall", "treecall", "treecall_medium", "treecall_wide")
DOCUMENTS = 16_384


def source(name: str = "mqar") -> Generator:
    """The generator of a stream of the project."""
    changes = {} if name in LANGUAGES else {
        "data.length": LENGTH, "data.pairs": PAIRS, "data.vocabulary": VOCABULARY, "data.power": POWER,
        "data.train_examples": 64, "data.dev_examples": 64, "data.test_examples": 64,
    }  # fmt: skip
    config = configure(data_config=str(common.PROJECT / f"config/dataset/{name}.yaml"), set=changes).config
    (task,) = build_stream(config.data, 0, torch.device("cpu")).tasks
    assert isinstance(task.train, Generator)
    return task.train


def usual(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and answers at every position, -100 where nothing is asked, one example after the other."""

    def chosen(numbers: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        every = np.tile(numbers, (count, 1))
        return np.stack([np.random.choice(row, PAIRS, replace=False, p=weights) for row in every])

    keys = chosen(np.arange(1, VOCABULARY // 2))
    values = chosen(np.arange(VOCABULARY // 2, VOCABULARY))
    number = (LENGTH - 2 * PAIRS) // 2
    weights = POWER * np.arange(1, number + 1) ** (POWER - 1)
    slots = chosen(np.arange(number), weights / weights.sum())
    inputs, answers = np.zeros((count, LENGTH), np.int64), np.full((count, LENGTH), -100)
    inputs[:, 0 : 2 * PAIRS : 2], inputs[:, 1 : 2 * PAIRS : 2] = keys, values
    np.put_along_axis(inputs, 2 * PAIRS + 2 * slots, keys, 1)
    np.put_along_axis(answers, 2 * PAIRS + 2 * slots, values, 1)
    blank = inputs == 0
    inputs[blank] = np.random.randint(VOCABULARY, size=int(blank.sum()))
    return inputs, answers


def rate(draw: Callable[[], object], count: int) -> float:
    """Examples a second of drawing so many of them once."""
    begin = time.perf_counter()
    draw()
    return count / (time.perf_counter() - begin)


def peak() -> int:
    """The most bytes that this process ever had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    options, drawer, rng = common.options(__doc__, examples=100_000, repeats=3), source(), generator(0, "perf")
    print(f"Drawing recall: examples/s. {common.title(torch.device('cpu'))}")
    drawer.draw(100, rng)
    before = peak()
    taken = drawer.draw(options.examples, rng).nbytes
    growth = (peak() - before) / taken
    few = max(1, options.examples // 50)
    measures = [
        lambda: rate(lambda: drawer.draw(options.examples, rng), options.examples),
        lambda: rate(lambda: usual(few), few),
    ]
    ours, theirs = common.in_turn(measures, options.repeats)
    common.line("", "examples/s", "over usual")
    common.line("usual", f"{statistics.median(theirs):,.0f}")
    common.line("drawn", f"{statistics.median(ours):,.0f}", f"{common.ratio(ours, theirs):.0f}")
    common.line("memory over that of the examples", f"{growth:.2f}")
    common.line("", "seconds")
    for name in LANGUAGES:
        documents = source(name)
        documents.draw(100, rng)
        rates = [rate(lambda: documents.draw(DOCUMENTS, rng), DOCUMENTS) for _ in range(options.repeats)]  # noqa: B023
        common.line(name, f"{DOCUMENTS / statistics.median(rates):.3f}")


if __name__ == "__main__":
    main()
