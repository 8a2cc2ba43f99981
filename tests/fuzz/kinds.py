"""The kinds of inputs: each takes a random generator and returns a case without kind and seed."""

import random
from collections.abc import Callable

from tests.fuzz.cases import Case
from tests.fuzz.configurations import command_line, dataset_yaml, grid_yaml, hyper_yaml, method_yaml, valid
from tests.fuzz.images import idx_file, image_cache, image_file
from tests.fuzz.pickles import cifar_pickle, mini_pickle
from tests.fuzz.runs import (
    hostile_manifest,
    hostile_run,
    links,
    member_file,
    report_of_run,
    run_directory,
    state_file,
    store,
)
from tests.fuzz.saved import distill_case, export_case, extend_case, forget_case, predict_case

KINDS: dict[str, Callable[[random.Random], Case]] = {
    "valid": valid,
    "dataset": dataset_yaml,
    "hyperparam": hyper_yaml,
    "method": method_yaml,
    "grid": grid_yaml,
    "argv": command_line,
    "cifar": cifar_pickle,
    "mini": mini_pickle,
    "idx": idx_file,
    "image": image_file,
    "cache": image_cache,
    "state": state_file,
    "member": member_file,
    "run": run_directory,
    "hostile_run": hostile_run,
    "manifest": hostile_manifest,
    "links": links,
    "store": store,
    "report": report_of_run,
    "predict": predict_case,
    "export": export_case,
    "distill": distill_case,
    "forget": forget_case,
    "extend": extend_case,
}


def case(kind: str, seed: int) -> Case:
    """The same for the same kind and seed, but for what a prepared run says of its times."""
    made = KINDS[kind](random.Random(f"{kind}/{seed}"))
    made.kind, made.seed = kind, seed
    return made
