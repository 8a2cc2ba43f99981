"""How many examples of a generated task there are."""

from dataclasses import dataclass

from datasets.task import DEV, TEST, TRAIN
from utils.settings import Range, counts, setting

COUNT = counts(Range(1, 10**8))


@dataclass(frozen=True)
class Amounts:
    """Settings of all generated streams; the settings of a stream derive from these."""

    fresh: bool = setting(bool, "train on fresh examples; false: on the frozen training examples", default=True)
    train_examples: int = setting(COUNT, "frozen training examples of a task", default=1 << 14)
    dev_examples: int = setting(COUNT, "development examples of a task", default=1 << 10)
    test_examples: int = setting(COUNT, "test examples of a task", default=3000)
    epoch_examples: int = setting(COUNT, "fresh examples that are drawn at once", default=1 << 14)

    @property
    def splits(self) -> dict[str, int]:
        """The number of examples of each split."""
        return {TRAIN: self.train_examples, DEV: self.dev_examples, TEST: self.test_examples}
