"""The settings of a network."""

from dataclasses import dataclass, field
from typing import Any

from utils.settings import NoSettings, Range, setting


@dataclass(frozen=True)
class NetConfig:
    """The name of a trunk and its settings."""

    model: str = setting(str, "name of the network")
    path: str = setting(str, "the hyperparameter YAML", default="", machine=True, internal=True)
    settings: Any = field(default_factory=NoSettings)


@dataclass(frozen=True)
class DropoutSettings:
    """Settings of a trunk with dropout; trunks with more settings derive their class from this one."""

    dropout: float = setting(
        Range(0, 1, whole=False, open_high=True), "share of activations dropped in training", default=0.2
    )
