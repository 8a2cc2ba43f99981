"""The settings of a network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.settings import NoSettings, Range, plain, setting


@dataclass(frozen=True)
class NetConfig:
    """The name of a trunk and its settings."""

    model: str = setting(str, "name of the network")
    path: str = setting(str, "the hyperparameter YAML", default="", machine=True, internal=True)
    settings: Any = field(default_factory=NoSettings)

    @property
    def title(self) -> str:
        """What tells it from other networks: its model or, if it is made of sequence mixers, these."""
        return network_title({"model": self.model, **plain(self.settings)})


def network_title(net: Mapping[str, Any]) -> str:
    """`NetConfig.title` of plain values, as in config.yaml."""
    mixers = [layer["mixer"] for layer in net.get("mixers", ())]
    return "+".join(dict.fromkeys(mixers)) if mixers else str(net["model"])


@dataclass(frozen=True)
class DropoutSettings:
    """Settings of a trunk with dropout; trunks with more settings derive their class from this one."""

    dropout: float = setting(
        Range(0, 1, whole=False, open_high=True), "share of activations dropped in training", default=0.2
    )
