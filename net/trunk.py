"""What every trunk has: settings of its own, declared beside it."""

from __future__ import annotations

from dataclasses import dataclass

from utils.settings import Range, setting


@dataclass(frozen=True)
class DropoutSettings:
    """Settings of a trunk with dropout; trunks with more settings add them in a class derived from this one."""

    dropout: float = setting(
        Range(0, 1, whole=False, open_high=True), "share of the activations that is dropped in training", default=0.2
    )
