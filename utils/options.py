"""The command line of modelzoo.py -> RunConfig and what concerns only this invocation."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from utils.config import RANGES, RunConfig, check_range, load_dataset_config, load_hyper_config
from utils.errors import UserError, unknown
from utils.files import beside

_PROJECT = Path(__file__).resolve().parent.parent
_DATA_CONFIG = _PROJECT / "config" / "dataset" / "split_digits.yaml"
_HP_CONFIG = _PROJECT / "config" / "hyperparam" / "conv.yaml"
_HP_KEYS = ("model", "batch", "lr", "l2_reg", "dropout")
KEPT = ("memory", "memory_per_class", "replay_frac")  # three ways to say how many examples are kept
CHOICES = {"selection": ("boosting", "uniform"), "precision": ("auto", "fp32", "bf16")}


@dataclass(frozen=True)
class Invocation:
    """A run, and how this command carries it out."""

    config: RunConfig
    given: frozenset[str]  # the options that stand on the command line
    run_dir: Path
    overwrite: bool
    resume: bool
    extend: Path | None  # a finished run that more tasks join
    verify: Path | None  # a run directory that is to be checked, and nothing else done
    checkpoint_minutes: float
    quiet: bool
    isolated: Path | None
    method_config: str | None


class Parser(argparse.ArgumentParser):
    """One line instead of the usage, and the nearest option for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_known(
        self, argv: Sequence[str] | None, keys: Container[str] = _HP_KEYS, of: str = "the --hp_config YAML"
    ) -> argparse.Namespace:
        """The options; `keys` are no options, but could be taken for some."""
        options, extra = self.parse_known_args(argv)
        if extra:
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(extra[0].split("=")[0], known, n=1, cutoff=0.7)
            key = extra[0].split("=")[0].lstrip("-")
            if key in keys:
                raise UserError(f"unknown option {extra[0]}; {key} is a key of {of}")
            raise UserError(f"unknown option {extra[0]}" + (f"; did you mean {near[0]}?" if near else "; -h lists all"))
        return options


def _what_is_learned(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is learned").add_argument
    add("--data_config", metavar="YAML",
        help="which tasks, in which order (default: split_digits, which needs no download)")  # fmt: skip
    add("--hp_config", metavar="YAML", help="which network and how it is trained (default: conv.yaml)")
    add("--samples", metavar="N", help="keep only N training examples per class (default: all)")
    add("--hold_out", metavar="F",
        help="share of each class's training examples that nothing is trained on, 0 to 0.9: to calibrate and combine "
        "members on (default: 0)")  # fmt: skip
    add("--data_dir", metavar="DIR",
        help="where the data lies or is downloaded to, torchvision's root (default: ./data)")  # fmt: skip


def _how(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how").add_argument
    add("--method", metavar="NAME", help="zoo, or a baseline; an unknown name lists them (default: zoo)")
    add("--method_config", metavar="YAML", help="settings of the method (default: config/method/<method>.yaml)")
    add("--continual", action="store_const", const=True,
        help="tasks arrive one after another (default: multi-task, all are known from the start)")  # fmt: skip
    add("--tasks_per_round", metavar="N", help="tasks that a member is trained on, the new one included (default: 5)")
    add("--replay_frac", metavar="F",
        help="share of each past task's training examples that the zoo keeps, 0 to 1; "
        "needs --continual (default: 1.0)")  # fmt: skip
    add("--memory", metavar="N",
        help="training examples of past tasks that are kept in total, instead of a share or a number per class; "
        "needs --continual (default: see the method)")  # fmt: skip
    add("--memory_per_class", metavar="N", help="the same for each class of each past task (default: see the method)")
    add("--selection", metavar="NAME",
        help="how tasks are drawn: boosting, the worse fitted the likelier, or uniform "
        "(default: boosting)")  # fmt: skip
    add("--rounds", metavar="N", help="members to train; not with --continual (default: as many as tasks)")
    add("--warm_start", action="store_const", const=True,
        help="first train one more member on all tasks; not with --continual (default: no)")  # fmt: skip
    add("--epochs", metavar="N",
        help="epochs per member; with 1 images are not augmented (default: from the YAML, else 100)")  # fmt: skip
    add("--no_augment", action="store_const", const=True, help="train without random crops and flips (default: with)")
    add("--seed", metavar="N", help="of all random choices (default: 0)")


def _where_to(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("where to").add_argument
    add("--run_dir", metavar="DIR", help="where results go (default: runs/<stream>-<net>-<method>-seed<N>)")
    add("--overwrite", action="store_const", const=True, help="replace the run that is in --run_dir (default: refuse)")
    add("--resume", action="store_const", const=True,
        help="go on with the run in --run_dir where it was interrupted, with its options; "
        "begin it if there is none (default: refuse)")  # fmt: skip
    add("--extend", metavar="RUN",
        help="the tasks of --data_config join a finished --continual run as further episodes, with its options, in "
        "--run_dir (default RUN-extended); RUN stays as it is (default: begin with the first task)")  # fmt: skip
    add("--checkpoint_minutes", metavar="M",
        help="save training that is under way every M minutes; 0 is every epoch (default: 10)")  # fmt: skip
    add(
        "--verify",
        metavar="RUN",
        help="check all files of a run against their checksums, and do nothing else (default: run)",
    )
    add("--isolated", metavar="RUN",
        help="finished run of --method isolated, same options: measures forward transfer (default: none)")  # fmt: skip
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps (default: auto: a GPU if there is one)")
    add("--precision", metavar="NAME", help="fp32, bf16, or auto: bf16 on a CUDA GPU, else fp32 (default: auto)")
    add("--threads", metavar="N", help="CPU threads, for a shared machine (default: as many as there are cores)")
    add("--quiet", action="store_const", const=True,
        help="print only the final table (default: progress, a line per episode)")  # fmt: skip


def _parser() -> Parser:
    parser = Parser(
        prog="modelzoo.py", allow_abbrev=False,
        description="Train a continual learner on a stream of tasks. The command line wins over the "
        "hyperparameter YAML, which wins over the defaults.",
    )  # fmt: skip
    _what_is_learned(parser)
    _how(parser)
    _where_to(parser)
    return parser


def driver_options() -> dict[str, bool]:
    """Every option of modelzoo.py by name, and whether it is a switch, which takes no value."""
    return {action.dest: action.nargs == 0 for action in _parser()._actions if action.dest != "help"}


def parse(argv: Sequence[str] | None) -> Invocation:
    """Everything resolved, every value checked that can be checked without loading data.

    Raises:
        UserError: names the option, or the file and key.
    """
    options = vars(_parser().parse_known(argv))
    given = {name: value for name, value in options.items() if value is not None}
    numbers: dict[str, Any] = {name: _number(name, value) for name, value in given.items() if name in RANGES}
    for name, choices in CHOICES.items():
        if name in given and given[name] not in choices:
            raise UserError(f"--{name}: {unknown(name, given[name], choices)}")
    minutes = numbers.pop("checkpoint_minutes", 10.0)
    if "resume" in given and "overwrite" in given:
        raise UserError("--resume and --overwrite contradict each other; leave one out")
    if "extend" in given:
        if "resume" in given:
            raise UserError("--extend and --resume contradict each other; --resume alone goes on with an extension too")
        if "data_config" not in given:
            raise UserError("--extend needs --data_config with the tasks that are to join")
    if "verify" in given and len(given) > 1:
        other = next(name for name in given if name != "verify")
        raise UserError(f"--verify only checks a run; leave --{other} out")
    if "resume" not in given and "extend" not in given:
        check_contradictions(given)
    check_text("--data_dir", given.get("data_dir"))
    dataset = load_dataset_config(given.get("data_config", str(_DATA_CONFIG)))
    hyper = load_hyper_config(given.get("hp_config", str(_HP_CONFIG)), {"epochs": numbers.pop("epochs", None)})
    texts: dict[str, Any] = {
        name: given[name]
        for name in ("method", "continual", "warm_start", "selection", "device", "precision")
        if name in given
    }
    # After one epoch every image has been seen once: nothing to be gained from seeing it shifted.
    augment = "no_augment" not in given and hyper.epochs > 1
    config = RunConfig(
        dataset, hyper, augment=augment, data_dir=Path(given.get("data_dir", "data")), **texts, **numbers
    )
    extend = Path(given["extend"]) if "extend" in given else None
    name = f"{config.stream}-{hyper.model.replace('/', '_')}-{config.method}-seed{config.seed}"
    return Invocation(
        config,
        frozenset(given),
        Path(given.get("run_dir", Path("runs") / name if extend is None else beside(extend, "-extended"))),
        "overwrite" in given,
        "resume" in given,
        extend,
        Path(given["verify"]) if "verify" in given else None,
        minutes,
        "quiet" in given,
        Path(given["isolated"]) if "isolated" in given else None,
        given.get("method_config"),
    )


def _number(name: str, text: str) -> int | float:
    try:
        value = int(text) if RANGES[name].whole else float(text)
    except ValueError:
        raise UserError(f"--{name} is {text!r}; it must be {RANGES[name].describe()}") from None
    return check_range(f"--{name}", name, value)  # type: ignore[no-any-return]


def check_text(option: str, value: str | None) -> None:
    """Names of files may be bytes that are no text; config.yaml is one.

    Raises:
        UserError: it could not be written down.
    """
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise UserError(f"{option} {value} is no text, and could not be kept in config.yaml; rename it") from None


def check_contradictions(given: Collection[str]) -> None:
    """Of a run that is begun; one that is gone on with has been checked.

    Raises:
        UserError: two options do not go together.
    """
    kept = [name for name in KEPT if name in given]
    if len(kept) > 1:
        raise UserError(f"--{kept[0]} and --{kept[1]} are two ways to say the same; leave one out")
    if "continual" in given:
        for name in ("rounds", "warm_start"):
            if name in given:
                raise UserError(f"--{name} is for the multi-task mode; leave it or --continual out")
    elif kept:
        raise UserError(f"--{kept[0]} is for past tasks, which only --continual has; add --continual or leave it out")
