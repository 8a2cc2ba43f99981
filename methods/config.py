"""The configuration of a run of modelzoo.py: everything that determines its result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets.config import DataConfig
from evaluation.questions import EVALUATIONS, EvaluationNames
from methods.selection import SELECTORS
from net.config import NetConfig
from training.recipe import Recipe
from utils.settings import NoSettings, Range, setting

_HOW, _WHERE = "how", "where to"
# The options that limit how many examples are kept, and what they are called in Budget.
KEPT = {"memory": "total", "memory_per_class": "per_class", "memory_per_task": "per_task"}


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """What determines a run of either program: the data, the network, how it is trained, and where."""

    data: DataConfig
    net: NetConfig
    hp: Recipe
    seed: int = setting(Range(0, 2**63 - 1), "of all random choices (default: 0)", default=0, option="seed", group=_HOW)
    evaluate: tuple[str, ...] = setting(
        EvaluationNames, "what else is asked of every new network, names with commas between: "
        f"{', '.join(EVALUATIONS)}; in train_task.py NAME:N asks it at each N-th evaluation, NAME:end at the end "
        "(default: nothing)", default=(), option="evaluate", metavar="NAMES", group=_HOW,
    )  # fmt: skip
    device: str = setting(
        str, "auto, cpu, cuda, cuda:N or mps (default: auto: a GPU if there is one)",
        default="auto", option="device", metavar="NAME", group=_WHERE, machine=True,
    )  # fmt: skip
    precision: str = setting(
        ("auto", "fp32", "bf16"), "fp32, bf16, or auto: bf16 on a CUDA GPU, else fp32 (default: auto)",
        default="auto", option="precision", metavar="NAME", group=_WHERE, machine=True,
    )  # fmt: skip
    threads: int | None = setting(
        Range(1, 1024), "CPU threads (default: as many as the work of a training step is worth, at most the cores)",
        default=None, option="threads", group=_WHERE, free=True, machine=True,
    )  # fmt: skip

    ask: Mapping[str, Any] = field(default_factory=dict)  # settings of the evaluations that are asked, by name

    @property
    def stream(self) -> str:
        """The stream's name: that of its YAML file."""
        return self.data.stream


@dataclass(frozen=True, kw_only=True)
class RunConfig(BaseConfig):
    """Everything that determines a run; written to config.yaml with every default filled in."""

    method: str = setting(
        str, "zoo, or a baseline; an unknown name lists them (default: zoo)",
        default="zoo", option="method", metavar="NAME", group=_HOW,
    )  # fmt: skip
    continual: bool = setting(
        bool, "tasks arrive one after another (default: multi-task, all are known from the start)",
        default=False, option="continual", group=_HOW,
    )  # fmt: skip
    tasks_per_round: int = setting(
        Range(1), "tasks that a member is trained on, the new one included (default: 5)",
        default=5, option="tasks_per_round", group=_HOW,
    )  # fmt: skip
    replay_frac: float = setting(
        Range(0, 1, whole=False), "share of each past task's training examples that the zoo keeps, 0 to 1; needs "
        "--continual (default: 1.0)", default=1.0, option="replay_frac", metavar="F", group=_HOW,
    )  # fmt: skip
    memory: int | None = setting(
        Range(1), "training examples of past tasks that are kept in total, instead of a share or a number per class; "
        "needs --continual (default: see the method)", default=None, option="memory", group=_HOW,
    )  # fmt: skip
    memory_per_class: int | None = setting(
        Range(1), "the same for each class of each past task (default: see the method)",
        default=None, option="memory_per_class", group=_HOW,
    )  # fmt: skip
    memory_per_task: int | None = setting(
        Range(1), "the same for each past task (default: see the method)", default=None, option="memory_per_task",
        group=_HOW,
    )  # fmt: skip
    selection: str = setting(
        tuple(SELECTORS), "which past tasks are the likelier to be drawn: boosting, the worse fitted; progress, those "
        "whose loss has fallen lately; gain, those that gained when they were drawn; above_floor, those farther above "
        "their noise floor; uniform, none (default: boosting)",
        default="boosting", option="selection", metavar="NAME", group=_HOW,
    )  # fmt: skip
    rounds: int | None = setting(
        Range(1, 10**6), "members to train; not with --continual (default: as many as tasks)",
        default=None, option="rounds", group=_HOW,
    )  # fmt: skip
    warm_start: bool = setting(
        bool, "first train one more member on all tasks; not with --continual (default: no)",
        default=False, option="warm_start", group=_HOW,
    )  # fmt: skip
    evaluate_every: int | None = setting(
        Range(1), "ask about every task seen after every so many steps of an episode, too (default: "
        "only when an episode ends)", default=None, option="evaluate_every", group=_HOW,
    )  # fmt: skip
    settings: Any = field(default_factory=NoSettings)  # of the method, see config/method/
