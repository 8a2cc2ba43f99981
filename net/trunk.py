"""Settings that trunks share."""

from __future__ import annotations

from dataclasses import dataclass

from utils.settings import Range, setting


@dataclass(frozen=True)
class DropoutSettings:
    """Settings of a trunk with dropout; trunks with more settings derive their class from this one."""

    dropout: float = setting(
        Range(0, 1, whole=False, open_high=True), "share of activations dropped in training", default=0.2
    )
