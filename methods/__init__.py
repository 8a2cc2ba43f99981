"""Continual-learning methods: the zoo and what it is compared with.

To add a method: one file with a class (see Method in base.py), one line in METHODS and, if it has settings, a file
config/method/<name>.yaml.
"""

from collections.abc import Iterable

from methods.agem import AGEM, MEGA
from methods.base import Context, Method
from methods.bounds import Cumulative, Finetune, Isolated, IsolatedEnsemble, Joint
from methods.closed_form import ClosedForm
from methods.cls_er import CLSER
from methods.config import RunConfig
from methods.der import DER, DERpp
from methods.er import ER
from methods.ewc import EWC, OnlineEWC
from methods.gdumb import GDumb
from methods.gem import GEM
from methods.gpm import GPM
from methods.lwf import LwF
from methods.memory.replay import SLOTS
from methods.mir import MIR
from methods.packnet import PackNet
from methods.si import SI
from methods.stable_sgd import StableSGD
from methods.wsn import WSN
from methods.zoo import ModelZoo
from utils.errors import UserError, unknown

METHODS: dict[str, type[Method]] = {
    "zoo": ModelZoo,
    "isolated": Isolated,
    "isolated_ensemble": IsolatedEnsemble,
    "joint": Joint,
    "cumulative": Cumulative,
    "closed_form": ClosedForm,
    "gdumb": GDumb,
    "finetune": Finetune,
    "stable_sgd": StableSGD,
    "ewc": EWC,
    "ewc_online": OnlineEWC,
    "si": SI,
    "lwf": LwF,
    "er": ER,
    "mir": MIR,
    "der": DER,
    "derpp": DERpp,
    "cls_er": CLSER,
    "gem": GEM,
    "agem": AGEM,
    "mega": MEGA,
    "packnet": PackNet,
    "wsn": WSN,
    "gpm": GPM,
}
METHOD_OPTIONS = frozenset().union(*(method.options for method in METHODS.values()))


def check_name(name: str, where: str = "--method: ") -> None:
    """UserError, which `where` opens, if there is no such method."""
    if name not in METHODS:
        raise UserError(f"{where}{unknown('method', name, METHODS)}")


def check_method(config: RunConfig, given: Iterable[str]) -> None:
    """UserError if there is no such method, it has no such mode, or one of the given options belongs to another."""
    name = config.method
    check_name(name)
    for option in given:
        if option in METHOD_OPTIONS and option not in METHODS[name].options:
            users = [other for other in METHODS if option in METHODS[other].options]
            if 2 * len(users) > len(METHODS):
                raise UserError(f"--{option} means nothing to --method {name}; leave it out")
            raise UserError(f"--{option} is for --method {' or '.join(users)}; {name} does not use it")
    if config.continual and "continual" not in METHODS[name].modes:
        raise UserError(f"--method {name} learns all tasks at once; leave --continual out")
    if not config.continual and "multi-task" not in METHODS[name].modes:
        raise UserError(f"--method {name} learns tasks one after another; add --continual")
    if config.data.scenario not in METHODS[name].scenarios:
        raise UserError(
            f"--scenario {config.data.scenario}: --method {name} has a head for each task; leave --scenario out: how "
            "well it does where the task is not told is measured anyway"
        )
    if config.data.scenario != "task" and getattr(config.settings, "bn", "") == "per_task":
        raise UserError(
            f"--scenario {config.data.scenario}: --method {name} with bn: per_task would have to be told the task"
        )
    buffer = getattr(config.settings, "buffer", "")
    if buffer in SLOTS and config.memory is None:
        raise UserError(
            f"--method {name}: its setting buffer is {buffer!r}, which has a total: add --memory, or make it 'balanced'"
        )
    if getattr(config.settings, "fill", "") == "during" and buffer not in SLOTS:
        raise UserError(
            f"--method {name}: with fill: during the setting buffer must be {' or '.join(SLOTS)}, not {buffer}"
        )
    if getattr(config.settings, "fill", "") == "during" and getattr(config.settings, "mixed", False):
        raise UserError(f"--method {name}: mixed: true takes the kept examples as they are when a task begins; leave "
                        "fill: during out")  # fmt: skip


def build_method(context: Context) -> Method:
    """The method that the configuration names."""
    return METHODS[context.config.method](context)
