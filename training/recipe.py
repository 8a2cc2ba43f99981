"""How one network is trained: length, batches, optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from utils.settings import Range, setting


@dataclass(frozen=True)
class Recipe:
    """How one network is trained."""

    epochs: int = setting(
        Range(1, 10**6), "epochs per member; with 1 images are not augmented (default: from the YAML, else 100)",
        default=100, option="epochs", group="how"
    )  # fmt: skip
    batch: int = setting(Range(2, 65536), "examples of a gradient step", default=16)
    lr: float = setting(Range(0, 1000, whole=False, open_low=True), "learning rate", default=0.01)
    l2_reg: float = setting(Range(0, 1000, whole=False), "weight decay", default=1e-5)
    augment: bool | None = setting(
        bool, "train without random crops and flips (default: with)", default=None, option="no_augment", group="how"
    )
