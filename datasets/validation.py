"""Validation: training examples that take the place of the test examples, which are then not read.

Loaders get test examples from `real_test`, and draw those of generated tasks by `random_stream`. With
`data.validation` the first refuses; the seed of the run decides which training examples are taken instead.
"""

from collections.abc import Callable
from typing import TypeVar

from datasets.config import DataConfig
from datasets.task import TEST, TRAIN, TaskStream
from utils.errors import UserError

VALIDATION = "validation"
NOTICE = "test examples were not read: their place is taken by training examples that nothing was trained on"
T = TypeVar("T")


class TestExamplesError(RuntimeError):
    """Code asked for the test examples of a run that must not read them."""

    __test__ = False  # no class of tests


def real_test(config: DataConfig, read: Callable[[], T]) -> T:
    """The test examples, which `read` returns; TestExamplesError where data.validation takes their place."""
    if config.validation:
        raise TestExamplesError(
            f"{config.path}: the test examples of {config.dataset} are asked for, but data.validation is "
            f"{config.validation:g}: they must not be read"
        )
    return read()


def random_stream(config: DataConfig, split: str, seed: int) -> tuple[int, str]:
    """The seed and name of the random stream of a split of a generated task.

    Training examples depend on the seed of the run, others are the same in all runs, but for validation examples: with
    data.validation they are the split "test", drawn like training examples of their own.
    """
    if split == TEST and config.validation:
        return seed, VALIDATION
    return seed if split == TRAIN else 0, split


def check_validated(config: DataConfig, stream: TaskStream) -> None:
    """Refuse a stream whose function has no validation; UserError."""
    if config.validation and not stream.validated:
        raise UserError(f"--validation {config.validation:g}: {config.dataset} has no such examples; leave it out")


def taken(share: float, count: int) -> int:
    """How many of `count` examples are set aside: at least one, and one stays; 0 of a single one."""
    return min(count - 1, max(1, round(share * count)))
