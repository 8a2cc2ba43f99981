"""The settings of a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from utils.settings import NoSettings, setting


@dataclass(frozen=True)
class NetConfig:
    """The name of a trunk and its settings."""

    model: str = setting(str, "name of the network")
    path: str = setting(str, "the hyperparameter YAML", default="", machine=True)
    settings: Any = field(default_factory=NoSettings)
