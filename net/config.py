"""Which network, and its settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from utils.settings import NoSettings, setting


@dataclass(frozen=True)
class NetConfig:
    """A trunk by name, with the settings that it declares."""

    model: str = setting(str, "name of the network")
    path: str = setting(str, "the hyperparameter YAML", default="", machine=True)
    settings: Any = field(default_factory=NoSettings)
