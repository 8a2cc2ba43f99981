"""Continual-learning methods: the zoo and what it is compared with.

To add a method: one file with a class (see Method in base.py) and one line in METHODS; if it has settings, a
file config/method/<name>.yaml.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from methods.agem import AGEM, MEGA
from methods.base import Method, Setting
from methods.der import DER, DERpp
from methods.er import ER
from methods.ewc import EWC, OnlineEWC
from methods.finetune import Finetune
from methods.gem import GEM
from methods.gpm import GPM
from methods.isolated import Isolated, IsolatedEnsemble
from methods.joint import Cumulative, Joint
from methods.lwf import LwF
from methods.packnet import PackNet
from methods.si import SI
from methods.stable_sgd import StableSGD
from methods.wsn import WSN
from methods.zoo import ModelZoo
from utils.config import Range, RunConfig, check_settings, load_settings
from utils.errors import UserError, unknown

METHODS: dict[str, type[Method]] = {
    "zoo": ModelZoo,
    "isolated": Isolated,
    "isolated_ensemble": IsolatedEnsemble,
    "joint": Joint,
    "cumulative": Cumulative,
    "finetune": Finetune,
    "stable_sgd": StableSGD,
    "ewc": EWC,
    "ewc_online": OnlineEWC,
    "si": SI,
    "lwf": LwF,
    "er": ER,
    "der": DER,
    "derpp": DERpp,
    "gem": GEM,
    "agem": AGEM,
    "mega": MEGA,
    "packnet": PackNet,
    "wsn": WSN,
    "gpm": GPM,
}
METHOD_OPTIONS = frozenset().union(*(method.options for method in METHODS.values()))
# What tells runs of a grid from each other, what matters most first, and of which kind it is.
_HYPERPARAMETERS: dict[str, type | tuple[str, ...]] = {
    "method": tuple(METHODS), "stream": str, "model": str, "seed": float, "epochs": float, "samples": float,
    "hold_out": float, "memory": float, "memory_per_class": float, "replay_frac": float, "tasks_per_round": float,
    "batch": float, "lr": float, "l2_reg": float, "dropout": float, "continual": bool, "rounds": float,
    "warm_start": bool,
    "selection": ("boosting", "uniform"), "augment": bool,
}  # fmt: skip
_CONFIGS = Path(__file__).resolve().parent.parent / "config" / "method"


def check_method(config: RunConfig, given: Iterable[str]) -> None:
    """Check a method's name, its mode, and that it reads the method options that were given.

    Raises:
        UserError: there is no such method, it has no such mode, or an option belongs to another one.
    """
    name = config.method
    if name not in METHODS:
        raise UserError(f"--method: {unknown('method', name, METHODS)}")
    for option in given:
        if option in METHOD_OPTIONS and option not in METHODS[name].options:
            users = [other for other in METHODS if option in METHODS[other].options]
            raise UserError(f"--{option} is for --method {' or '.join(users)}; {name} does not use it")
    if config.continual and "continual" not in METHODS[name].modes:
        raise UserError(f"--method {name} learns all tasks at once; leave --continual out")
    if not config.continual and "multi-task" not in METHODS[name].modes:
        raise UserError(f"--method {name} learns tasks one after another; add --continual")


def with_settings(config: RunConfig, path: str | None = None) -> RunConfig:
    """The configuration with the settings of its method, from config/method/<name>.yaml or another file.

    Raises:
        UserError: names the file and the key; or the method has no settings.
    """
    known = METHODS[config.method].settings
    if not known:
        if path is not None:
            raise UserError(f"--method_config {path}: --method {config.method} has no settings; leave it out")
        return config
    path = path or str(_CONFIGS / f"{config.method}.yaml")
    settings = load_settings(path, known, config.stream)
    if settings.get("buffer") == "reservoir" and config.memory is None:
        raise UserError(f"{path}: key 'buffer' is 'reservoir', which has a total: add --memory, or make it 'balanced'")
    return replace(config, settings=settings)


def hyperparameters(config: RunConfig) -> dict[str, bool | float | str]:
    """What tells a run from others, without the options that its method does not read and those that are not set."""
    every = {**vars(config.hyper), **vars(config), "stream": config.stream}
    unread = METHOD_OPTIONS - METHODS[config.method].options
    values = {name: every[name] for name in _HYPERPARAMETERS if name not in unread}
    values |= {f"settings.{name}": value for name, value in config.settings.items()}
    return {name: value for name, value in values.items() if value is not None}


def hyperparameter_kinds() -> dict[str, type | tuple[str, ...]]:
    """All that `hyperparameters` can hold, for any method: bool, float (also whole numbers), str or some words."""
    settings: dict[str, type] = {}
    words: dict[str, tuple[str, ...]] = {}
    for method in METHODS.values():
        for setting, accepted in method.settings.items():
            name = f"settings.{setting}"
            if isinstance(accepted, Range):
                settings[name] = float
            else:
                words[name] = tuple(dict.fromkeys((*words.get(name, ()), *accepted)))
    return _HYPERPARAMETERS | settings | words


def check_saved(config: RunConfig, path: Path) -> None:
    """Check what an interrupted run has in its config.yaml.

    Raises:
        UserError: there is no such method, or it has other settings.
    """
    if config.method not in METHODS:
        raise UserError(f"{path}: method: {unknown('method', config.method, METHODS)}")
    check_settings(str(path), dict(config.settings), METHODS[config.method].settings)


def build_method(setting: Setting) -> Method:
    """The method that the command line names."""
    return METHODS[setting.config.method](setting)
