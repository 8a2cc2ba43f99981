"""Mutated YAML files and command lines, and inputs in which nothing is mutated."""

import pickle
import random
from collections.abc import Sequence

from tests.fuzz.cases import CANARY, Case, Folder
from tests.fuzz.inputs import (
    CONTINUAL,
    GRID,
    METHODS,
    OPTIONS,
    TINY,
    YAML,
    cifar_batch,
    idx_files,
    image_files,
    mini_part,
)
from tests.fuzz.values import TEXTS, text_or_tree
from tests.test_bad_input import (
    CIFAR,
    MINI,
)


def valid(rng: random.Random) -> Case:
    """Nothing is mutated: all of these are accepted."""
    data = {"cifar": pickle.dumps(cifar_batch(), protocol=2), "mini": pickle.dumps(mini_part(), protocol=2)}
    names = [f"{CIFAR}/{name}" for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6)))]
    files = {**TINY, "m.yaml": METHODS["er"], "g.yaml": GRID, "d.yaml": YAML["digits"], "run": Folder()}
    files |= {**dict.fromkeys(names, data["cifar"]), **idx_files(), **image_files()}
    files |= {f"{MINI}-{part}.pkl": data["mini"] for part in ("train", "val", "test")}
    what = rng.choice([*YAML, *METHODS, "grid"])
    told = f"{what}, not mutated"
    if what == "grid":
        return Case("", 0, ["collect", "--config", "g.yaml", "--store", "run"], files, "benchmark", told)
    arguments = [*CONTINUAL, "--samples", "1" if what in YAML and what not in ("digits", "rotated") else "4"]
    if what in METHODS:
        files["m.yaml"] = METHODS[what]
        return Case("", 0, [*arguments, "--method", what, "--method_config", "m.yaml"], files, told=told)
    return Case("", 0, arguments, {**files, "d.yaml": YAML[what]}, told=told)


def dataset_yaml(rng: random.Random) -> Case:
    which = rng.choice(["digits", "rotated", "mnist", "images"])
    content, told = text_or_tree(YAML[which], rng)
    files = {**TINY, "d.yaml": content, **(idx_files() if which == "mnist" else image_files())}
    arguments = rng.choice([CONTINUAL, OPTIONS]) + ["--samples", "2"] * (rng.random() < 0.7)
    return Case("", 0, arguments, files, told=f"d.yaml ({which}): {told}")


def hyper_yaml(rng: random.Random) -> Case:
    content, told = text_or_tree(TINY["h.yaml"], rng)
    files = {"h.yaml": content, "d.yaml": YAML["digits"]}
    return Case("", 0, [*rng.choice([CONTINUAL, OPTIONS]), "--samples", "4"], files, told=f"h.yaml: {told}")


def method_yaml(rng: random.Random) -> Case:
    name = rng.choice(list(METHODS))
    content, told = text_or_tree(METHODS[name], rng)
    files = {**TINY, "d.yaml": YAML["digits"], "m.yaml": content}
    arguments = [*CONTINUAL, "--samples", "4", "--method", name, "--method_config", "m.yaml"]
    return Case("", 0, arguments, files, told=f"m.yaml ({name}): {told}")


def grid_yaml(rng: random.Random) -> Case:
    content, told = text_or_tree(GRID, rng)
    files = {**TINY, "d.yaml": YAML["digits"], "m.yaml": METHODS["er"], "g.yaml": content, "run": Folder()}
    return Case("", 0, ["collect", "--config", "g.yaml", "--store", "run"], files, "benchmark", f"g.yaml: {told}")


VALUED = [
    "--data_config", "--hp_config", "--samples", "--data_dir", "--method", "--method_config", "--tasks_per_round",
    "--replay_frac", "--memory", "--memory_per_class", "--selection", "--rounds", "--epochs", "--seed", "--run_dir",
    "--checkpoint_minutes", "--verify", "--isolated", "--device", "--precision", "--threads",
]  # fmt: skip
SWITCHES = ["--continual", "--warm_start", "--no_augment", "--overwrite", "--resume", "--quiet", "-h", "--", "-", "-x"]
VALUES = [
    "d.yaml", "h.yaml", "m.yaml", "run", ".", "missing", "data", "zoo", "er", "finetune", "joint", "packnet", "auto",
    "cpu", "bf16", "fp32", "uniform", "0", "1", "2", "7", "-1", "1.5", "1e3", "1e400", "nan", "inf", "9" * 19, "9" * 30,
    "9" * 4000, "9" * 5000, "1_0", "٣", " 1 ", "0x10", "", "\udcff", "\udc80x", "é", "日本", "x" * 255, "x" * 256,
    "x" * 5000,
    "a\nb", "\x1b[2J", "d.yaml/x", "run/", "run/x/y", "../run", "/dev/null", "/dev/zero", "/dev/stdin",
    "/proc/self/mem",
    "/proc/self/environ", "/nonexistent", "/", "~", "$(touch canary)", "d.yaml\0", "a\0b", "4611686018427387904",
    "9223372036854775807", "100000", "65536", "-0", "+1", "--", "fifo",
]  # fmt: skip


def command_line(rng: random.Random) -> Case:
    arguments = [*CONTINUAL, "--samples", "4"]
    told = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        how = rng.choice(["value", "value", "value", "switch", "remove", "replace", "equals", "text"])
        at = rng.randrange(len(arguments) + 1)
        option, value = rng.choice(VALUED), rng.choice(VALUES + TEXTS[:30])
        if option in ("--run_dir", "--data_dir") and value.startswith("/"):
            value = "run" + value.replace("/dev", "").rstrip("/")  # nothing outside is to be written, were it valid
        if how == "value":
            arguments += [option, value]
        elif how == "equals":
            arguments.append(f"{option}={value}")
        elif how == "switch":
            arguments.append(rng.choice(SWITCHES))
        elif how == "text":
            arguments.insert(at, rng.choice(VALUES))
        elif arguments:
            at %= len(arguments)
            if how == "remove":
                del arguments[at]
            else:
                arguments[at] = rng.choice([v for v in VALUES if not v.startswith("/")])
        told.append(how)
    files = {**TINY, "d.yaml": YAML["digits"], "m.yaml": METHODS["er"]}
    return Case("", 0, arguments, files, told=", ".join(told))


def odd_options(rng: random.Random, arguments: list[str], options: Sequence[str]) -> tuple[list[str], str]:
    """A command line with something wrong in it. What it writes is below the current folder, whatever is asked for."""
    made, told = list(arguments), []
    for _ in range(rng.choice([1, 1, 2])):
        how = rng.choice(["value", "value", "value", "equals", "switch", "remove", "text"])
        option, value = rng.choice(options), rng.choice(VALUES + TEXTS[:30])
        if option in ("--run_dir", "--out") and (value.startswith("/") or value == "../run" or CANARY in value):
            value = "made"
        if how == "value":
            made += [option, value]
        elif how == "equals":
            made.append(f"{option}={value}")
        elif how == "switch":
            made.append(rng.choice([*SWITCHES, "--retrain", "--overwrite"]))
        elif how == "remove":
            del made[rng.randrange(len(made))]
        else:
            made.insert(rng.randrange(len(made) + 1), rng.choice([v for v in VALUES if v[:1] != "/"]))
        told.append(f"{how} {option} {value!r:.30}")
    return made, ", ".join(told)
