"""Grids, runs and tables: what is refused, what is run when, what is told and what is written."""

import csv
import errno
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from scipy import stats

import benchmark
import modelzoo
from benchmark import main
from datasets.arrangement import arranged
from records.configuration import plain_config
from records.invocation import parse, with_settings
from records.lock import locked
from records.manifest import TARGETS, Entry, Manifest
from reporting.commands import COMMANDS
from reporting.groups import compare
from studies.grid import AXES, load_grid
from studies.planned import chosen
from studies.schedule import TRIES
from studies.tables import ComparisonTable, latex, markdown, readable
from utils.errors import UserError

PROJECT = Path(__file__).parent.parent
GRID: dict[str, Any] = {
    "streams": ["config/dataset/split_digits.yaml"],
    "hyperparams": ["config/hyperparam/conv.yaml"],
    "methods": ["isolated", "finetune"],
    "seeds": 2,
    "samples": 2,
    "epochs": 1,
}
DEV_ROWS = ("dev", "", "accuracy")
# Stands in for modelzoo.py: does what the first word of orders/<run> says, then has the results prepared for it.
PROGRAM = """
import os, pathlib, shutil, sys, time
directory = pathlib.Path(next(a for a in sys.argv if a.startswith("--run_dir=")).partition("=")[2])
order = pathlib.Path("orders", directory.name)
order = order.read_text().split() if order.exists() else ["finish"]
with open("started", "a") as file:
    file.write(f"{os.getpid()} {' '.join(sys.argv[1:])} OMP={os.environ['OMP_NUM_THREADS']}\\n")
if order[0] == "together":  # ends when so many have started
    end = time.monotonic() + 60
    while len(open("started").readlines()) < int(order[1]) and time.monotonic() < end:
        time.sleep(0.02)
    if time.monotonic() >= end:
        sys.exit(1)
if order[0] == "sleep":
    print("asleep", flush=True)
    time.sleep(float(order[1]))
if order[0] == "fail":
    print("modelzoo.py: " + " ".join(order[1:]), file=sys.stderr)
    sys.exit(2)
if order[0] == "die":
    os.kill(os.getpid(), 9)
if order[0] != "nothing":
    shutil.copytree(pathlib.Path("prepared", directory.name), directory, dirs_exist_ok="--resume" in sys.argv)
"""


def write_grid(**changes):
    grid = {key: value for key, value in {**GRID, **changes}.items() if value is not None}
    Path("grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    return load_grid("grid.yaml", Path("store"))


def command(*more):
    return main(["--config", "grid.yaml", "--store", "store", *more])


def collect():
    return main(["collect", "--config", "grid.yaml", "--store", "store"])


def finish(run, folder="store", final=(0.5, 0.75), learned=(0.75, 0.75), **summary):
    """A directory as modelzoo.py would leave it."""
    directory = Path(folder, run.name)
    directory.mkdir(parents=True)
    facts = {"commit": "c" * 40, "uncommitted_changes": False, "versions": {"python": "3.12.0", "torch": "2.0.0"}}
    config = json.loads(json.dumps(plain_config(run.config), default=str)) | {
        "device": "cpu",
        "threads": 1,
        "precision": "fp32",
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config | facts, sort_keys=False))
    values = {
        "task_numbers": [1, 2], "per_task_acc": list(final),
        "per_task_learning_acc": None if learned is None else list(learned),
        "avg_acc_final": float(np.mean(final)), "learning_acc": None if learned is None else float(np.mean(learned)),
        "bwt": None, "forgetting_chaudhry": None, "stored_examples": 0, "stored_bytes": 0, "parameters_total": 117050,
        "parameters_per_prediction": 116402.0, "sample_gradients": 20, "train_seconds": 12.5, "metric": "accuracy",
        "higher_is_better": True, **summary,
    }  # fmt: skip
    (directory / "summary.json").write_text(json.dumps(values))
    seal(directory)


def seal(directory):
    """A manifest of what lies there; no episode, so that there is nothing to draw in a report."""
    files = {name: Path(directory, name).read_bytes() for name in ("config.yaml", "summary.json")}
    entries = {name: Entry(len(text), hashlib.sha256(text).hexdigest()) for name, text in files.items()}
    Manifest(files=entries).write(directory)


def prepare(grid):
    for run in grid.runs:
        finish(run, "prepared")


def order(run, words):
    Path("orders", run.name).write_text(words)


def wait_for(condition):
    """Up to a minute: the machine may be busy."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def started():
    """Names of the runs that were started, in this order."""
    lines = Path("started").read_text().splitlines() if Path("started").exists() else []
    return [line.partition("--run_dir=store/")[2].split()[0] for line in lines]


def results():
    with open("store/results.csv", newline="") as file:
        return {row["directory"]: row for row in csv.DictReader(file)}


# The real thing.


def test_a_benchmark_from_grid_to_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid = write_grid()
    for run in grid.runs[1:]:  # by hand; the benchmark keeps them
        assert modelzoo.main([*run.arguments, "--quiet"]) == 0
    assert command("--jobs", "2") == 0
    out = capsys.readouterr().out.splitlines()
    assert "4 runs, 1 of them to do" in out
    summaries = {run.name: json.loads(Path(run.directory, "summary.json").read_text()) for run in grid.runs}
    told = {line.partition(":")[0]: line for line in out}
    for run in grid.runs[:1]:
        assert f"accuracy {summaries[run.name]['avg_acc_final']:.4f}" in told[run.name]
        assert "backward transfer" in Path("store/logs", f"{run.name}.log").read_text()  # its final table
    for name, summary in summaries.items():
        assert {key: results()[name][key] for key in ("status", "method")} == {
            "status": "finished",
            "method": summary["method"],
        }
        assert float(results()[name]["bwt"]) == summary["bwt"]
        assert yaml.safe_load(Path("store", name, "config.yaml").read_text())["threads"] >= 1
    gains, names = [], {(run.label, run.config.seed): run.name for run in grid.runs}
    for seed in (0, 1):
        R, alone = (np.array(summaries[names[m, seed]]["per_task_acc"]) for m in ("finetune", "isolated"))
        gains.append((R - alone).mean())
        assert float(results()[names["finetune", seed]]["gain_isolated"]) == pytest.approx(gains[-1])
    half = stats.t.ppf(0.975, 1) * np.std(gains, ddof=1) / math.sqrt(2)
    assert f"{np.mean(gains):+.4f} ± {half:.4f}" in Path("store/table.md").read_text()

    assert "the report is store/report.html" in out
    page = Path("store/report.html").read_text()
    assert f"{np.mean(gains):+.4f} ± {half:.4f}" in page
    assert Path("store/figures/accuracy_against_cost.png").exists()

    before = Path("store/table.md").read_bytes()
    assert command() == 0  # what modelzoo.py has written down is what the grid asks for
    assert "4 runs, 0 of them to do" in capsys.readouterr().out
    assert Path("store/table.md").read_bytes() == before

    write_grid(methods=["isolated", "finetune", {"method": "finetune", "label": "the same"}])
    assert command() == 0  # two rows, and one curve
    assert "| the same " in Path("store/table.md").read_text()
    assert "finetune = the same" in Path("store/report.html").read_text()


# Which runs.


def test_the_runs_of_a_grid(here):
    methods = ["joint", "er", {"method": "zoo", "label": "zoo, half kept!", "replay_frac": 0.5}]
    grid = write_grid(methods=methods, seeds=[3, 1], memory_per_class=7, tasks_per_round=2)
    assert [run.name[:-11] for run in grid.runs] == [
        f"split_digits-conv-{label}-seed{seed}" for seed in (3, 1) for label in ("joint", "er", "zoo_half_kept_")
    ]
    joint, er, zoo = (run.config for run in grid.runs[:3])
    assert [config.continual for config in (joint, er, zoo)] == [False, True, True]
    assert [config.data.samples for config in (joint, er, zoo)] == [2, 2, 2]
    assert (joint.memory_per_class, er.memory_per_class, zoo.memory_per_class) == (None, 7, None)
    assert (er.tasks_per_round, zoo.tasks_per_round, zoo.replay_frac) == (5, 2, 0.5)
    assert er.settings.replay_batch == 16
    assert [config.seed for config in (joint, er, zoo)] == [3, 3, 3]


def test_a_run_is_what_modelzoo_makes_of_its_arguments(here):
    grid = write_grid(methods=["er", "joint"], no_augment=True, epochs=3, data_dir="elsewhere")
    for run in grid.runs:
        invocation = parse(run.arguments)
        assert with_settings(invocation) == run.config
        assert invocation.run_dir == run.directory
        assert not run.config.hp.augment
        assert run.config.data.data_dir == Path("elsewhere")


def test_settings_are_varied_by_their_dotted_keys(here):
    """Every combination is a run of its own, whose command line makes the same configuration."""
    vary = {"hp.lr": [0.1, 0.01], "net.width": [8, 16], "hp.batch": [4]}
    runs = write_grid(methods=["zoo", {"method": "er", "settings.replay_batch": 3}], seeds=1, vary=vary).runs
    found = {(r.config.method, r.config.hp.lr, r.config.net.settings.width, r.config.hp.batch) for r in runs}
    assert found == {(m, lr, width, 4) for m in ("zoo", "er") for lr in (0.1, 0.01) for width in (8, 16)}
    assert len({run.name for run in runs}) == len(runs) == 8
    assert {run.label for run in runs} >= {"zoo, lr 0.1, width 8, batch 4"}
    assert all(run.config.settings.replay_batch == 3 for run in runs if run.config.method == "er")
    for run in runs:
        assert with_settings(parse(run.arguments)) == run.config
    several = write_grid(hyperparams=["config/hyperparam/mlp.yaml"], seeds=1, vary={"net.widths": [[8], [16, 8]]}).runs
    assert {run.config.net.settings.widths for run in several} == {(8,), (16, 8)}
    assert len({run.name for run in several}) == len(several)
    assert {run.config.hp.lr for run in write_grid(**{"hp.lr": 0.5}).runs} == {0.5}


def test_classes_in_a_grid_keep_their_written_text(here):
    """YAML 1.1 reads 010 as 8 and 0_2 as 2."""
    write_grid()
    with Path("grid.yaml").open("a") as file:
        file.write("vary: {data.tasks: [[[01, 010]], [[0_2, 3]]]}\n")
    runs = load_grid("grid.yaml", Path("store")).runs
    assert {run.config.data.tasks[0].classes for run in runs} == {("01", "010"), ("0_2", 3)}


def test_everything_in_the_multitask_mode(here):
    assert not any(run.config.continual for run in write_grid(continual=False, methods=["zoo", "joint"]).runs)
    methods = [{"method": "zoo", "continual": True}, {"method": "zoo", "label": "rounds", "rounds": 2}]
    runs = write_grid(continual=False, methods=methods, seeds=1).runs
    assert [(run.config.continual, run.config.rounds) for run in runs] == [(True, None), (False, 2)]


def test_files_of_the_current_directory_come_before_those_of_the_project(here):
    Path("config/hyperparam").mkdir(parents=True)
    Path("config/hyperparam/conv.yaml").write_text("{model: conv, lr: 0.5}")
    assert write_grid().runs[0].config.hp.lr == 0.5
    assert write_grid().runs[0].config.data.path == str(PROJECT / "config/dataset/split_digits.yaml")


GRIDS = [path for path in sorted((PROJECT / "config/benchmark").glob("*.yaml")) if not path.stem.startswith("search")]


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_grids_of_the_project_are_good(path):
    grid = load_grid(str(path), Path("store"))
    assert len({run.name for run in grid.runs}) == len(grid.runs)
    reference = grid.program == "train_task" or grid.against
    assert reference or {"isolated", "zoo"} <= {run.config.method for run in grid.runs}


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"validation": 0.2}, "say test, read validation: test examples were not read"),
        ({"methods": ["isolated", {"method": "finetune", "validation": 0.2}]},
         "say test, read validation of finetune (split_digits, conv): test examples were not read"),
        ({}, ""),
    ],
)  # fmt: skip
def test_tables_say_which_runs_read_no_test_examples(here, own, words):
    grid = write_grid(seeds=1, **own)
    for run in grid.runs:
        finish(run)
    benchmark.tables(None, grid, Path("store"), {}, "benchmark.py")
    text = Path("store/table.md").read_text()
    assert words in text
    assert ("read validation" in text) == bool(words)


# Orders of tasks.


def test_every_method_learns_the_tasks_in_every_order_with_every_seed(here):
    grid = write_grid(seeds=2, task_orders=3)
    found = {(run.config.method, run.config.seed, run.config.data.task_order): run for run in grid.runs}
    assert set(found) == set(itertools.product(GRID["methods"], range(2), range(3)))
    assert found["finetune", 1, 2].name[:-11] == "split_digits-conv-finetune-order2-seed1"
    for run in grid.runs:
        assert with_settings(parse(run.arguments)) == run.config


@pytest.mark.parametrize(
    ("tasks", "number", "first"),
    [(3, 6, None), (4, 8, None), (4, 4, 1)],  # of four tasks 0 and 7 draw the same order
)
def test_as_many_orders_differ_as_are_asked_for(here, tasks, number, first):
    """In the tasks that arrive, as the data set is read."""
    own = {"methods": ["finetune"], "seeds": 1, "first_tasks": first, "task_orders": number}
    grid = write_grid(**own, **{"data.tasks": [[0, n + 1] for n in range(tasks)]})
    assert len({arranged(run.config.data, 0).tasks[:first] for run in grid.runs}) == len(grid.runs) == number


def test_tables_are_over_seeds_and_orders_and_pair_over_both(here):
    """Differences from `isolated`: what the order adds cancels in pairs."""
    grid = write_grid(seeds=2, task_orders=[3, 5], against="isolated")
    finals = {}
    for run in grid.runs:
        seed, order, better = run.config.seed, run.config.data.task_order, run.config.method == "finetune"
        finals[run.name] = 0.25 * (order == 5) + 0.125 * seed + 0.0625 * better + 0.03125 * (better and seed)
        finish(run, final=[finals[run.name]] * 2)
    assert collect() == 0
    text = Path("store/table.md").read_text()
    difference = np.array([0.0625, 0.0625, 0.09375, 0.09375])
    half = stats.t.ppf(0.975, 3) * stats.sem(difference)
    assert f"{difference.mean():+.4f} ± {half:.4f}" in text
    assert text.count("## split_digits, conv") == 1
    assert "2 seeds × 2 task orders, 4 runs taken as independent." in text
    assert {(row["seed"], row["task_order"]) for row in results().values()} == {
        (seed, order) for seed in "01" for order in "35"
    }
    assert {name: float(row["avg_acc_final"]) for name, row in results().items()} == finals


def test_runs_in_several_orders_are_repetitions_in_tables_and_report(here):
    """Each order arrives alike for all methods, so that gains over isolated networks pair tasks."""
    own = {"hyperparams": ["config/hyperparam/mlp.yaml"], "data.tasks": [[0, 1], [2, 3], [4, 5]]}
    grid = write_grid(task_orders=2, seeds=1, **own)
    for run in grid.runs:
        assert modelzoo.main([*run.arguments, "--quiet"]) == 0
    benchmark.tables(None, grid, Path("store"), {}, "benchmark.py")
    rows = {(row["method"], row["task_order"]): row for row in results().values()}
    final = {key: np.array(json.loads(Path("store", row["directory"], "summary.json").read_text())["per_task_acc"])
             for key, row in rows.items()}  # fmt: skip
    gains = [(final["finetune", order] - final["isolated", order]).mean() for order in "01"]
    assert [float(rows["finetune", order]["gain_isolated"]) for order in "01"] == pytest.approx(gains)
    shown = f"{np.mean(gains):+.4f} ± {stats.t.ppf(0.975, 1) * stats.sem(gains):.4f}"
    assert shown in Path("store/table.md").read_text()
    (comparison,) = compare([run.directory for run in grid.runs])
    assert {group.label: [each.order for each in group.runs] for group in comparison.groups} == {
        method: [0, 1] for method in GRID["methods"]
    }
    assert shown in markdown([comparison.table()], [], "report.py")


# Settings chosen on development examples.


def held_out_accuracy(run):
    """Of isolated networks, of which each has a task of its own, from the files of their predictions."""
    targets = load_file(run.directory / TARGETS)
    found = [
        np.mean(answers.argmax(1) == targets[place])
        for path in (run.directory / "predictions").glob("member_*")
        for place, answers in load_file(path).items()
        if place.endswith("held_out")
    ]
    assert len(found) == len(run.config.data.tasks)
    return np.mean(found)


def test_a_varied_rate_is_chosen_on_held_out_examples_and_reported_on_test_examples(here):
    rates = {"hp.lr": [0.0001, 0.03], "data.samples": [20]}
    own = {"hyperparams": ["config/hyperparam/mlp.yaml"], "data.tasks": [[0, 1], [2, 3]]}
    grid = write_grid(methods=["isolated"], samples=None, hold_out=0.3, vary=rates, **own)
    for run in grid.runs:
        assert modelzoo.main([*run.arguments, "--quiet"]) == 0
    benchmark.tables(None, grid, Path("store"), {}, "benchmark.py")
    scores = {
        rate: [held_out_accuracy(run) for run in grid.runs if run.config.hp.lr == rate] for rate in rates["hp.lr"]
    }
    best = max(scores, key=lambda rate: np.mean(scores[rate]))
    tests = [run.summary["avg_acc_final"] for run in grid.runs if run.config.hp.lr == best]
    first = int(np.argmax(scores[best]))
    text = Path("store/table.md").read_text()
    assert text.startswith("## Chosen on development examples\n")
    row = [cell.strip() for cell in text.splitlines()[4].split("|")[1:-1]]
    half = stats.t.ppf(0.975, 1) * stats.sem(tests)
    assert row[1:3] == ["isolated, samples 20", f"lr {best}"]
    assert row[3].split(" ± ")[0] == f"{np.mean(scores[best]):.4f}"
    assert row[4:] == [f"{np.mean(tests):.4f} ± {half:.4f}", f"{scores[best][first]:.4f}", f"{tests[first]:.4f}"]


def test_the_split_of_development_examples_chooses_where_a_stream_has_one(here):
    few = {"data.train_examples": 32, "data.dev_examples": 64, "data.test_examples": 64, "data.fresh": False}
    own = {
        "streams": ["config/dataset/alg_stream.yaml"],
        "hyperparams": ["config/hyperparam/mlp.yaml"],
        "samples": None,
    }
    grid = write_grid(methods=["finetune"], seeds=1, vary={"hp.lr": [0.00001, 0.1]}, **own, **few)
    scores = {}
    for run in grid.runs:
        assert modelzoo.main([*run.arguments, "--quiet"]) == 0
        with open(run.directory / "metrics.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row["split"], row["slice"], row["metric"]) == DEV_ROWS]
        scores[run.config.hp.lr] = np.mean([float(row["value"]) for row in rows if row["episode"] == "4"])
    benchmark.tables(None, grid, Path("store"), {}, "benchmark.py")
    row = [cell.strip() for cell in Path("store/table.md").read_text().splitlines()[4].split("|")[1:-1]]
    assert row[1:4] == ["finetune", f"lr {max(scores, key=scores.get)}", f"{max(scores.values()):.4f}"]


BAD: dict[str, Any] = {
    "no orders": ({"task_orders": 0}, "task_orders is 0", "at least 1"),
    "order drawn twice": (
        {"task_orders": 2, "data.task_order": "seed"}, "task_orders draws", "isolated has task_order: seed already",
    ),
    "more orders than there are": (
        {"task_orders": 7, "data.tasks": [[0, 1], [2, 3], [4, 5]]}, "task_orders has 7 orders", "have 6",
    ),
    "numbers of one order": (
        {"task_orders": [0, 1, 7], "data.tasks": [[0, 1], [2, 3], [4, 5], [6, 7]]}, "0 and 7 draw the same order",
    ),
    "a search": ({"space": {"hp.lr": [0.1]}}, "space makes it a search", "benchmark.py search --config grid.yaml"),
    "unknown key": ({"sample": 3}, "unknown key 'sample'", "did you mean 'samples'"),
    "own key": ({"run_dir": "x"}, "unknown key 'run_dir'"),
    "key missing": ({"streams": None}, "key 'streams' is missing"),
    "seeds missing": ({"seeds": None}, "key 'seeds' is missing"),
    "empty list": ({"hyperparams": []}, "hyperparams is []", "at least one entry"),
    "no list": ({"methods": "zoo"}, "methods is 'zoo'", "must be a list"),
    "no seeds": ({"seeds": 0}, "seeds is 0", "at least 1"),
    "no number of seeds": ({"seeds": "five"}, "seeds is 'five'", "a whole number"),
    "seed twice": ({"seeds": [1, 2, 1]}, "two runs would be", "isolated, seed 1"),
    "negative seed": ({"seeds": [-1]}, "seeds is -1", "at least 0"),
    "unknown method": ({"methods": ["zooo"]}, "methods: unknown method 'zooo'", "did you mean 'zoo'"),
    "method of a wrong type": ({"methods": [["zoo"]]}, "methods: unknown method"),
    "entry without method": ({"methods": [{"label": "x"}]}, "has no key 'method'"),
    "label twice": ({"methods": ["er", "er"]}, "two runs would be", "er, seed 0", "rename"),
    "label of a wrong type": ({"methods": [{"method": "er", "label": 3}]}, "label is 3"),
    "label of two lines": ({"methods": [{"method": "er", "label": "a\nb"}]}, "label is 'a\\nb'", "a line of text"),
    "stream twice": ({"streams": GRID["streams"] * 2}, "two runs would be", "split_digits, conv, isolated, seed 0"),
    "file missing": ({"streams": ["config/dataset/nope.yaml"]}, "streams: config/dataset/nope.yaml does not exist"),
    "path of a wrong type": ({"streams": [5]}, "streams: 5 is not the path"),
    "bad stream": ({"streams": ["bad.yaml"]}, "streams: bad.yaml", "key 'dataset' is missing"),
    "unknown data set": ({"streams": ["data.yaml"]}, "grid.yaml: streams: data.yaml: dataset: unknown dataset 'nope'"),
    "unknown network": (
        {"hyperparams": ["net.yaml"]}, "grid.yaml: hyperparams: net.yaml: model: unknown model", "mean 'conv'",
    ),
    "option out of range": ({"epochs": 0}, "grid.yaml: epochs is 0", "at least 1"),
    "option of a wrong type": ({"samples": "many"}, "grid.yaml: samples is 'many'"),
    "fraction for a number": ({"samples": 1.5}, "grid.yaml: samples is 1.5", "a whole number"),
    "unknown choice": ({"selection": "boost", "methods": ["zoo"]}, "selection: unknown", "did you mean 'boosting'"),
    "text for a switch": ({"no_augment": "yes please"}, "no_augment is 'yes please'", "true or false"),
    "list for a text": ({"data_dir": ["a"]}, "data_dir is ['a']", "a text"),
    "unknown device": ({"device": "gpu"}, "grid.yaml: device", "unknown device 'gpu'"),
    "option that no method reads": ({"memory": 5}, "memory is not used by any method"),
    "option not read by the method": (
        {"methods": [{"method": "ewc", "memory": 5}]}, "methods: ewc: memory is for", "ewc does not use it",
    ),
    "unknown option of a method": ({"methods": [{"method": "er", "memry": 5}]}, "methods: er: unknown key 'memry'"),
    "option of a method out of range": ({"methods": [{"method": "er", "memory": 0}]}, "methods: er: memory is 0"),
    "options that contradict": (
        {"methods": [{"method": "er", "memory": 5, "memory_per_class": 5}]}, "methods: er: memory and memory_per_class",
    ),
    "rounds with continual": ({"methods": ["zoo"], "rounds": 3}, "methods: zoo: rounds is for the multi-task mode"),
    "no multi-task mode": ({"continual": False}, "methods: finetune: method finetune", "one after another"),
    "no continual mode": (
        {"methods": [{"method": "joint", "continual": True}]}, "methods: joint: method joint", "all tasks at once",
    ),
    "setting that no network has": ({"vary": {"net.depth": [2]}}, "unknown key 'depth'"),
    "setting out of range": ({"hp.lr": -1}, "hp.lr is -1", "a number above 0"),
    "nothing to vary": ({"vary": {"hp.lr": []}}, "vary must map settings to lists of values"),
    "settings for all": ({"method_config": "net.yaml"}, "methods: isolated: method_config net.yaml", "has no settings"),
    "settings missing": (
        {"methods": [{"method": "er", "method_config": "nope.yaml"}]}, "methods: er: nope.yaml does not exist",
    ),
    "settings without method settings": (
        {"methods": [{"method": "joint", "method_config": "net.yaml"}]}, "methods: joint", "has no settings",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_grid_is_one_line_and_nothing_is_written(here, capsys, name):
    changes, *words = BAD[name]
    Path("bad.yaml").write_text("tasks: [[0, 1]]")
    Path("data.yaml").write_text("{dataset: nope, tasks: [[0, 1]]}")
    Path("net.yaml").write_text("model: convv")
    content = {key: value for key, value in {**GRID, **changes}.items() if value is not None}
    Path("grid.yaml").write_text(yaml.safe_dump(content))
    refused(capsys, *words)


@pytest.mark.parametrize("text", ["[zoo, er]", "", "streams: [", "streams: [a]\nstreams: [b]"])
def test_a_grid_that_is_no_mapping(here, capsys, text):
    Path("grid.yaml").write_text(text)
    refused(capsys, "grid.yaml")


def refused(capsys, *words, more=()):
    assert command(*more) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("benchmark.py: ")
    assert error.count("\n") == 1
    assert [word for word in words if word not in error] == []
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--job", "2"], ["unknown option --job", "did you mean --jobs?"]),
        (["--epochs", "2"], ["unknown option --epochs", "epochs is a key of the --config YAML"]),
        (["--jobs", "0"], ["--jobs is 0", "at least 1"]),
        (["--jobs", "two"], ["--jobs is 'two'"]),
        (["--rerun", "all"], ["--rerun is 'all'", "must be failed"]),
        (["--only", "zoom"], ["--only: unknown label 'zoom'", "isolated"]),
        (["--engine", "slurmy"], ["--engine: unknown engine 'slurmy'"]),
        (["--gpus", "0;1"], ["--gpus is '0;1'"]),
        (["--gpus", "1000"], ["--gpus: there is no GPU 1000", "this machine has"]),
        (["--jobs_per_gpu", "2"], ["--jobs_per_gpu needs --gpus"]),
        (["--address", "auto"], ["--address is for --engine ray"]),
        (["--slurm", "gpu"], ["--slurm is 'gpu'", "KEY=VALUE"]),
    ],
)
def test_bad_options(here, capsys, options, words):
    write_grid()
    refused(capsys, *words, more=options)


def test_a_command_that_does_not_exist(here, capsys):
    assert main(["statuss", "--store", "store"]) == 2
    assert capsys.readouterr().err.startswith("benchmark.py: unknown command 'statuss'; did you mean 'status'?")


def test_what_must_be_given(here, capsys):
    assert main([]) == 2
    assert main(["--config", "grid.yaml"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "benchmark.py: --config is missing; give one, such as --config config/benchmark/digits.yaml",
        "benchmark.py: --store is missing; give one, such as --store runs/digits",
    ]


def test_help_explains_every_option(here, capsys):
    with pytest.raises(SystemExit) as done:
        main(["-h"])
    assert done.value.code == 0
    told = capsys.readouterr().out
    for word in ("--config", "--store", "--jobs", "--engine", *AXES, *COMMANDS, "results.csv", "exit code"):
        assert word in told
    assert "%%" not in told


# When they run.


def test_runs_of_one_seed_come_first_and_finished_ones_are_kept(here, capsys):
    grid = write_grid()
    prepare(grid)
    finish(grid.runs[1])
    assert command() == 0
    assert started() == [grid.runs[i].name for i in (0, 2, 3)]
    assert "4 runs, 3 of them to do" in capsys.readouterr().out
    assert command() == 0
    assert len(started()) == 3


def test_runs_are_chosen_by_label_and_by_name(here):
    grid = write_grid()
    assert chosen(grid, ["isol*"]).runs == tuple(run for run in grid.runs if run.label == "isolated")
    assert chosen(grid, [grid.runs[2].name, "*-finetune-seed1-*"]).runs == grid.runs[2:]
    assert chosen(grid, []).runs == grid.runs


def test_a_line_for_each_run(here, capsys):
    grid = write_grid(seeds=1)
    prepare(grid)
    assert command() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("split_digits")]
    assert [line.split(",")[0] for line in lines] == [f"{run.name}: accuracy 0.6250" for run in grid.runs]
    assert ["1 remain, about" in lines[0], "0 remain" in lines[1]] == [True, True]


def test_runs_share_the_cores(here, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    prepare(write_grid(seeds=1))
    assert command("--jobs", "2") == 0
    for line in Path("started").read_text().splitlines():
        assert {"--quiet", "OMP=3"} < set(line.split())
        assert "--threads" not in line  # each run takes as many of them as its network is worth


def test_threads_of_the_grid(here):
    prepare(write_grid(seeds=1, threads=5))
    assert command() == 0
    for line in Path("started").read_text().splitlines():
        assert line.count("--threads") == 1
        assert {"--threads=5", "OMP=5"} < set(line.split())


def test_as_many_at_a_time_as_jobs(here):
    grid = write_grid(methods=["isolated"], seeds=4)
    prepare(grid)
    for run in grid.runs:
        order(run, "together 4")
    assert command("--jobs", "4") == 0


def test_on_a_terminal_a_line_for_each_run_that_is_under_way(here, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    grid = write_grid(seeds=1)
    prepare(grid)
    order(grid.runs[0], "sleep 2.5")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert command() == 0
    shown = sys.stderr.getvalue()
    assert f"{grid.runs[0].name}: 0 of 5 episodes" in shown
    assert "0 of 2 runs ended" in shown
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("split_digits")]) == 2


def test_how_far_a_run_is(here):
    methods = ["zoo", "joint", {"method": "er", "memory_per_class": 2}]
    jobs = write_grid(methods=methods, seeds=1).jobs
    assert [benchmark.progress_of(job) for job in jobs] == [(0, total, "episodes") for total in (5, 1, 5)]
    directory = jobs[0].runs[0].directory
    directory.mkdir(parents=True)
    Manifest(episode=3).write(directory)
    assert benchmark.progress_of(jobs[0]) == (3, 5, "episodes")
    rounds = write_grid(methods=["zoo"], seeds=1, continual=False, rounds=7, warm_start=True).jobs
    assert benchmark.progress_of(rounds[0]) == (0, 8, "episodes")


def test_a_failure_is_told_and_the_rest_goes_on(here, capsys):
    grid = write_grid()
    prepare(grid)
    order(grid.runs[0], "fail no such data")
    order(grid.runs[1], "die")
    order(grid.runs[2], "nothing")
    assert command() == 1
    out, error = capsys.readouterr()
    assert set(error.splitlines()) == {
        f"failed: {grid.runs[0].name}: exit code 2: modelzoo.py: no such data",
        f"failed: {grid.runs[1].name}: ended by signal 9",
        f"failed: {grid.runs[2].name}: it ended without a summary.json",
    }
    assert started().count(grid.runs[1].name) == TRIES  # it may have been killed for want of memory
    assert f"{grid.runs[0].name}: failed" in out
    assert [results()[run.name]["status"] for run in grid.runs] == ["failed", "failed", "failed", "finished"]
    assert "modelzoo.py: no such data" in Path("store/logs", f"{grid.runs[0].name}.log").read_text()
    for run in grid.runs:
        order(run, "finish")
    before = len(started())
    assert command("--dry_run", "--pilot_seconds", "0") == 0
    out = capsys.readouterr().out
    assert "4 runs, 0 of them to do in store" in out
    assert "3 failed before and are left" in out
    again = ["--rerun", "failed", "--gpus", "0,1", "--jobs_per_gpu", "3"]
    assert command("--dry_run", "--pilot_seconds", "0", *again) == 0
    out = capsys.readouterr().out
    assert "4 runs, 3 of them to do in store" in out
    assert "with 6 at a time" in out
    assert command() == 1
    assert "3 failed before and were left; --rerun failed runs them again" in capsys.readouterr().err
    assert len(started()) == before
    assert command("--rerun", "failed") == 0
    assert started()[before:] == [run.name for run in grid.runs[:3]]
    assert command() == 0


def test_an_interrupted_run_is_gone_on_with(here):
    grid = write_grid(seeds=1)
    prepare(grid)
    grid.runs[0].directory.mkdir(parents=True)
    shutil.copy(Path("prepared", grid.runs[0].name, "config.yaml"), grid.runs[0].directory)
    assert command() == 0
    assert all("--resume" in line.split() for line in Path("started").read_text().splitlines())
    assert results()[grid.runs[0].name]["status"] == "finished"


def test_ctrl_c_ends_the_runs_and_the_next_command_goes_on(here, capsys):
    grid = write_grid()
    prepare(grid)
    order(grid.runs[1], "sleep 60")

    def interrupt():
        log = Path("store/logs", f"{grid.runs[1].name}.log")
        wait_for(lambda: log.exists() and "asleep" in log.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert command() == 130
    assert capsys.readouterr().err == "benchmark.py: interrupted; the same command continues with the remaining runs\n"
    sleeper = int(Path("started").read_text().splitlines()[1].split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(sleeper, 0)
    assert [results()[run.name]["status"] for run in grid.runs] == ["finished", *["missing"] * 3]
    order(grid.runs[1], "finish")
    assert command() == 0
    assert started()[2:] == [run.name for run in grid.runs[1:]]


def test_a_run_that_another_process_works_on_is_waited_for(here, capsys):
    """Such as one that a killed study has left behind: it is not begun again, and is one of --jobs."""
    grid = write_grid(seeds=1)
    prepare(grid)
    work = f"""
import shutil, time
from pathlib import Path
from records.lock import locked
with locked(Path({str(grid.runs[0].directory)!r})):
    print("locked", flush=True)
    while not Path("started").exists() and not Path("go on").exists():
        time.sleep(0.02)
    shutil.copytree({str(Path("prepared", grid.runs[0].name))!r}, {str(grid.runs[0].directory)!r}, dirs_exist_ok=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen([sys.executable, "-c", work], env=environment, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        threading.Timer(1.0, Path("go on").touch).start()
        assert command() == 0
    assert started() == [grid.runs[1].name]
    out = capsys.readouterr().out
    assert out.index(grid.runs[0].name) < out.index(grid.runs[1].name)  # one at a time


def test_a_run_that_another_process_had_begun_and_left_is_begun_again(here):
    grid = write_grid(seeds=1)
    prepare(grid)
    with pytest.raises(UserError) as refusal, locked(Path("busy")), locked(Path("busy")):
        pass
    order(grid.runs[0], f"fail {refusal.value}")

    def leave():
        wait_for(lambda: started() == [grid.runs[0].name])
        order(grid.runs[0], "finish")

    threading.Thread(target=leave, daemon=True).start()
    assert command() == 0
    assert started().count(grid.runs[0].name) >= 2


def test_a_study_ends_when_it_is_cancelled(here, capsys):
    grid = write_grid(seeds=1)
    prepare(grid)
    order(grid.runs[0], "sleep 60")
    log = Path("store/logs", f"{grid.runs[0].name}.log")

    def cancel():
        wait_for(lambda: log.exists() and "asleep" in log.read_text())
        Path("store/cancel").touch()
        os.kill(int(Path("started").read_text().split()[0]), signal.SIGTERM)  # as `benchmark.py cancel` does at once

    threading.Thread(target=cancel, daemon=True).start()
    assert command() == 130
    assert "the same command continues" in capsys.readouterr().err
    order(grid.runs[0], "finish")
    time.sleep(0.05)  # the clock of a disk lags some milliseconds
    assert command() == 0  # which takes the wish back, and finds no failed run
    assert not Path("store/cancel").exists()


def test_a_study_is_cancelled_while_its_command_still_looks_at_the_data(here, monkeypatch):
    grid = write_grid(seeds=1)
    prepare(grid)
    Path("store").mkdir()
    monkeypatch.setattr(benchmark, "check_data", lambda *_: Path("store/cancel").touch())
    order(grid.runs[0], "sleep 60")
    assert command() == 130


def test_failed_runs_are_listed_when_the_tables_cannot_be_written(here, capsys):
    grid = write_grid(seeds=1)
    prepare(grid)
    order(grid.runs[0], "fail too few examples")
    Path("store/results.csv").mkdir(parents=True)
    assert command() == 2
    failed, told = capsys.readouterr().err.splitlines()
    assert failed == f"failed: {grid.runs[0].name}: exit code 2: modelzoo.py: too few examples"
    assert told == "benchmark.py: store/results.csv cannot be read or written: Is a directory"


def test_a_run_that_cannot_be_started_is_one_line_after_the_failed_ones(here, capsys, monkeypatch):
    grid = write_grid(seeds=1)
    prepare(grid)
    order(grid.runs[0], "fail too few examples")
    start, started = subprocess.Popen, []

    def full(command, **how):
        started.append(command)
        if len(started) == 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return start(command, **how)

    monkeypatch.setattr("studies.engines.local.subprocess.Popen", full)
    assert command() == 1
    failed, told = capsys.readouterr().err.splitlines()
    assert failed.startswith(f"failed: {grid.runs[0].name}: exit code 2")
    assert told == "benchmark.py: Resource temporarily unavailable"
    assert {line["status"] for line in results().values()} == {"failed", "missing"}


def test_a_store_from_elsewhere_leads_to_no_other_file(here, capsys):
    grid = write_grid(seeds=1)
    prepare(grid)
    Path("mine").write_text("mine")
    Path("store/logs").mkdir(parents=True)
    for name in ("results.csv", "results.csv.partial", "study.json", f"logs/{grid.runs[0].name}.log"):
        Path("store", name).symlink_to(Path("mine").resolve())
    assert command() == 0
    assert Path("mine").read_text() == "mine"
    shutil.move("store/logs", "logs")
    Path("store/logs").symlink_to(Path("logs").resolve())
    assert command() == 2
    assert "store/logs is a link" in capsys.readouterr().err


# What is already there.


def test_other_settings_and_other_tasks_are_other_runs(here):
    """Runs are known by what determines their results: whatever else changes, those that are there are kept."""
    Path("er.yaml").write_text((PROJECT / "config/method/er.yaml").read_text())
    Path("stream.yaml").write_text("{dataset: digits, tasks: [[0, 1], [2, 3]]}")
    grid = {"streams": ["stream.yaml"], "methods": [{"method": "er", "method_config": "er.yaml"}], "seeds": 1}
    names = [write_grid(**grid, **changes).runs[0].name for changes in ({}, {"samples": 3}, {"epochs": 5})]
    Path("er.yaml").write_text(Path("er.yaml").read_text().replace("replay_batch: 16", "replay_batch: 8"))
    names.append(write_grid(**grid).runs[0].name)
    Path("er.yaml").write_text((PROJECT / "config/method/er.yaml").read_text())
    Path("stream.yaml").write_text("{dataset: digits, tasks: [[0, 1], [2, 4]]}")
    names.append(write_grid(**grid).runs[0].name)
    assert len(set(names)) == 5
    assert {name[:-10] for name in names} == {"stream-conv-er-seed0-"}


def test_a_run_of_another_label_is_the_same_run(here, capsys):
    finish(write_grid(methods=["er"], seeds=1).runs[0])
    grid = write_grid(methods=[{"method": "er", "label": "mine"}, {"method": "er", "label": "mine too"}], seeds=2)
    assert [run.name[:-11] for run in grid.runs] == [
        f"split_digits-conv-{label}" for label in ("er-seed0", "er-seed0", "mine-seed1", "mine-seed1")
    ]
    finish(grid.runs[2])
    assert command() == 0
    assert "2 runs, 0 of them to do" in capsys.readouterr().out
    assert not Path("started").exists()
    assert "| mine too " in Path("store/table.md").read_text()


def test_where_and_how_fast_may_differ(here):
    grid = write_grid(seeds=1)
    for run in grid.runs:
        finish(run)
    write_grid(seeds=1, device="cpu", threads=2, precision="fp32", data_dir="elsewhere")
    assert command() == 0
    assert not Path("started").exists()


def test_the_runs_of_a_row_have_one_precision(here, capsys):
    """A store that was begun on a GPU, where auto is bf16, and is resumed without one."""
    grid = write_grid(seeds=2)
    finish(grid.runs[0])
    config = Path(grid.runs[0].directory, "config.yaml")
    config.write_text(config.read_text().replace("precision: fp32", "precision: bf16"))
    seal(grid.runs[0].directory)
    assert command() == 2
    words = f"some runs of {grid.runs[0].label} are in bf16, others would be in fp32; add precision: bf16"
    assert words in capsys.readouterr().err
    assert not Path("started").exists()
    assert collect() == 0


def test_a_damaged_run_is_named(here, capsys):
    run = write_grid().runs[0]
    finish(run)
    Path(run.directory, "summary.json").write_text("{")
    assert command() == 2
    assert f"{run.directory}/summary.json is damaged" in capsys.readouterr().err


def test_a_directory_that_is_no_run_is_not_replaced(here, capsys):
    run = write_grid().runs[0]
    run.directory.mkdir(parents=True)
    Path(run.directory, "thesis.txt").write_text("years of work")
    assert command() == 2
    assert "is not empty and not a run" in capsys.readouterr().err
    assert Path(run.directory, "thesis.txt").exists()


def test_other_directories_of_the_store_are_left_alone(here):
    grid = write_grid(methods=["isolated", "er"])
    for run in grid.runs:
        finish(run)
    write_grid(methods=["isolated"])
    assert command() == 0
    assert len(results()) == 2
    assert "| er " not in Path("store/table.md").read_text()
    assert all(run.finished for run in grid.runs)


# What is written.


def test_results_have_every_run_and_every_figure(here):
    grid = write_grid(methods=["isolated", "er", "joint"])
    isolated, er, joint = grid.runs[:3]
    finish(isolated, final=(0.5, 0.25), learned=(0.5, 0.25))
    finish(er, final=(0.75, 0.75), learned=(1.0, 0.5), bwt=-0.25, stored_bytes=1440, stored_examples=20)
    finish(joint, final=(1.0, 1.0), learned=None)
    assert collect() == 0
    assert not Path("started").exists()
    rows = results()
    assert list(rows) == [run.name for run in grid.runs]
    assert [row["status"] for row in rows.values()] == ["finished"] * 3 + ["missing"] * 3
    row = rows[er.name]
    assert (row["label"], row["method"], row["stream"], row["net"], row["seed"]) == (
        "er",
        "er",
        "split_digits",
        "conv",
        "0",
    )
    assert float(row["gain_isolated"]) == (0.25 + 0.5) / 2
    assert float(row["fwt_isolated"]) == 0.5 - 0.25  # the second task only
    assert (float(row["bwt"]), row["stored_bytes"], row["stored_examples"]) == (-0.25, "1440", "20")
    assert float(rows[joint.name]["gain_isolated"]) == (0.5 + 0.75) / 2
    assert rows[joint.name]["fwt_isolated"] == rows[joint.name]["bwt"] == ""


def test_isolated_runs_are_a_reference_for_the_same_recipe_only(here):
    grid = write_grid(methods=["isolated", "er", {"method": "er", "label": "longer", "epochs": 3}], seeds=1)
    for run in grid.runs:
        finish(run)
    assert collect() == 0
    assert [results()[run.name]["gain_isolated"] for run in grid.runs] == ["0.0", "0.0", ""]


def test_notes_below_the_tables(here):
    grid = write_grid(methods=["isolated", "joint", {"method": "er", "label": "small", "memory_per_class": 1}])
    for run in grid.runs[:3]:
        finish(run)
    finish(grid.runs[3])
    for day, run in enumerate((grid.runs[0], grid.runs[3], *grid.runs[1:3])):
        noon = datetime(2026, 2, 3 - day % 3, 12).timestamp()
        os.utime(run.directory / "summary.json", (noon, noon))
    assert collect() == 0
    text = Path("store/table.md").read_text()
    assert "2 seeds; fewer finished: joint 1, small 1." in text
    options = "samples 2; epochs 1; small: memory_per_class 1; joint: all tasks at once"
    assert f"Options, each for the methods that use it: {options}." in text
    assert "Made with: device cpu, precision fp32, threads 1, python 3.12.0, torch 2.0.0, commit cccccccccccc." in text
    assert "`python benchmark.py --config grid.yaml --store store`" in text
    assert "Newest run: 2026-02-03." in text


def test_a_table_of_differences_comes_first_where_the_grid_has_a_reference(here):
    """Final accuracies 0.625 and 0.75, or 0.625 and 0.875: the mean difference is 0.1875, its sd is 0.0884."""
    grid = write_grid(against="isolated")
    for run in grid.runs:
        final = (0.5, 0.75) if run.label == "isolated" else (0.75, 0.75 + 0.25 * run.config.seed)
        finish(run, final=final, images_trained=10 if run.label == "isolated" else 15, selection_entropy=None)
    assert collect() == 0
    text = Path("store/table.md").read_text()
    assert text.startswith("## Differences from isolated\n")
    (row,) = (line for line in text.splitlines() if line.startswith("| split_digits, conv | finetune"))
    half, p = stats.t.ppf(0.975, 1) * 0.0625, 2 * stats.t.sf(3, 1)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["2", f"+0.1875 ± {half:.4f}", f"{p:.3f}", f"{p:.3f}", "n/a", "1.50"]


def test_a_table_for_each_stream_and_network(here):
    streams = [f"config/dataset/{name}.yaml" for name in ("split_digits", "rotated_digits")]
    grid = write_grid(streams=streams, hyperparams=["config/hyperparam/conv.yaml", "config/hyperparam/wrn.yaml"])
    for number, run in enumerate(grid.runs):
        finish(run, final=(number / 16, number / 16))
    assert collect() == 0
    ranked, *parts = Path("store/table.md").read_text().split("## ")[1:]
    assert re.findall(r"\| (\w+) +\| +([12])\.00 ", ranked) == [("finetune", "1"), ("isolated", "2")]
    assert [part.partition("\n")[0] for part in parts] == [
        "split_digits, conv", "split_digits, wrn", "rotated_digits, conv", "rotated_digits, wrn",
    ]  # fmt: skip
    for number, part in enumerate(parts):  # runs 2 n and 2 n + 1 with seed 0, and 8 more with seed 1
        isolated, finetune = (line for line in part.splitlines() if line.startswith(("| isolated", "| finetune")))
        assert f"**{(2 * number + 4) / 16:.4f} ± " not in isolated
        assert f" {(2 * number + 4) / 16:.4f} ± " in isolated
        assert f"**{(2 * number + 5) / 16:.4f} ± " in finetune
        assert "**+0.0625 ± 0.0000**" in finetune
    assert Path("store/table.tex").read_text().count(r"\begin{table}") == 4


@pytest.mark.parametrize(
    ("entries", "titles"),
    [
        ([{}, {"scenario": "class"}], ["scenario task", "scenario class"]),
        ([{}, {"hold_out": 0.5}], ["", "hold_out 0.5"]),
        ([{"data.tasks": [[0, 1]]}, {"data.tasks": [[0, 1], [2, 3]]}], ["1 task", "2 tasks"]),
        ([{"data.tasks": [[0, 1]]}, {"data.tasks": [[2, 3]]}], ["data 1", "data 2"]),
        (
            [{"samples": 3}, {"data.tasks": [[2, 3]]}, {"data.tasks": [[4, 5]]}, {}],
            ["5 tasks, samples 3", "data 1, 1 task, samples 2", "data 2, 1 task, samples 2", "5 tasks, samples 2"],
        ),
    ],
)
def test_titles_say_once_how_data_of_one_name_differ(here, entries, titles):
    methods = [{"method": "er", "label": f"er {number}", **entry} for number, entry in enumerate(entries)]
    for run in write_grid(methods=methods, seeds=1).runs:
        finish(run)
    assert collect() == 0
    headings = [line for line in Path("store/table.md").read_text().splitlines() if line.startswith("## ")]
    assert headings == [", ".join(["## split_digits, conv", *filter(None, [title])]) for title in titles]


def runs(*columns):
    """Seed -> values; what is not given is 0."""
    keys = ("avg_acc_final", "forgetting_chaudhry", "bwt", "learning_acc", "fwt_isolated", "gain_isolated",
            "routed_class_acc")  # fmt: skip
    ledger = (
        "stored_examples", "stored_bytes", "parameters_total", "parameters_per_prediction", "sample_gradients",
        "train_seconds",
    )  # fmt: skip
    return {seed: {**dict.fromkeys((*keys, *ledger), 0.0), **values} for seed, values in enumerate(columns)}


EXAMPLE = ComparisonTable("tiny_stream, conv", 3, {
    "good": runs({"avg_acc_final": 0.8, "forgetting_chaudhry": 0.1, "bwt": None, "stored_bytes": 2_345_678},
                 {"avg_acc_final": 0.9, "forgetting_chaudhry": 0.1, "bwt": None, "stored_bytes": 2_345_678},
                 {"avg_acc_final": 1.0, "forgetting_chaudhry": 0.1, "bwt": None, "stored_bytes": 2_345_678}),
    "near": runs({"avg_acc_final": 0.8, "forgetting_chaudhry": 0.0, "bwt": -0.25, "parameters_total": 1_162_400},
                 {"avg_acc_final": 0.9, "forgetting_chaudhry": 0.0, "bwt": -0.25, "parameters_total": 1_162_400},
                 {"avg_acc_final": 0.7, "forgetting_chaudhry": 0.0, "bwt": None, "parameters_total": 1_162_400}),
    "50% & worse_|": runs({"avg_acc_final": 0.7, "train_seconds": 1234.56}, {"avg_acc_final": 0.8},
                          {"avg_acc_final": 0.9}),
    "once": runs({"avg_acc_final": 1.0}),
    "never": {},
})  # fmt: skip


def test_a_markdown_table_by_hand():
    """0.8, 0.9, 1.0: s = 0.1 and t = 4.3027 for 2 degrees of freedom, 0.2484. `near` differs by (0, 0, -0.3), p = 0.42;
    the third by -0.1 in each seed."""
    lines = markdown([EXAMPLE], [], "python").splitlines()
    assert lines[0] == "## tiny_stream, conv"
    table = [[cell.strip() for cell in line.replace("\\|", "¦").split("|")[1:-1]] for line in lines[2:9]]
    assert {len(row) for row in table} == {14}
    assert len({len(line) for line in lines[2:9]}) == 1  # aligned
    assert table[0][:2] == ["method", "final accuracy `avg_acc_final`"]
    rows = {row[0]: dict(zip(table[0], row, strict=True)) for row in table[2:]}
    assert list(rows) == ["good", "near", "50% & worse_¦", "once", "never"]
    accuracy, forgetting, bwt = table[0][1:4]
    assert [row[accuracy] for row in rows.values()] == [
        "**0.9000 ± 0.2484**", "**0.8000 ± 0.2484**", "0.8000 ± 0.2484", "1.0000", "n/a",
    ]  # fmt: skip
    assert [row[forgetting] for row in rows.values()][:2] == ["+0.1000 ± 0.0000", "**+0.0000 ± 0.0000**"]
    assert [row[bwt] for row in rows.values()][:2] == ["n/a", "-0.2500 ± 0.0000 (n = 2)"]
    assert rows["good"]["stored MB `stored_bytes`"] == "2.35"
    assert rows["near"]["parameters stored `parameters_total`"] == "1.16 M"
    assert rows["50% & worse_¦"]["seconds of training `train_seconds`"] == "411.5"
    assert "3 seeds; fewer finished: once 1, never 0." in lines


def test_a_latex_table_has_the_same_cells():
    text = latex([EXAMPLE], ["a_b at 5 %"], "python --store c_d")
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    assert [len(row) for row in rows] == [8] * 7 + [7] * 7
    assert rows[0][:2] == ["method", "final accuracy"]
    assert rows[1][:2] == ["", r"{\tiny\texttt{avg\_acc\_final}}"]
    assert rows[2][:2] == ["good", r"\textbf{0.9000 $\pm$ 0.2484}"]
    assert rows[3][3] == r"$-$0.2500 $\pm$ 0.0000 (n = 2)"
    assert rows[4][0] == r"50\% \& worse\_|"
    assert rows[10][3] == "1.16 M"
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 2
    assert r"\caption{tiny\_stream, conv: 3 seeds; fewer finished: once 1, never 0.}" in text
    assert r"a\_b at 5 \%" in text
    assert r"\texttt{python --store c\_d}" in text


@pytest.mark.parametrize("write", [latex, markdown])
def test_tables_in_files_have_no_control_characters(write):
    text = write([ComparisonTable("title\x1b[2J", 1, {"label\u202e": {}})], ["note\r"], "command\x9b")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_latex_escapes():
    label = r"\a{b}$#_^~<>[x]*%&"
    text = latex([ComparisonTable("t", 1, {label: {}})], [], "c")
    assert r"\textbackslash{}a\{b\}\$\#\_\textasciicircum{}\textasciitilde{}$<$$>${[}x]{*}\%\& & n/a" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (0.00072, "0.00072"), (12.34, "12.3"), (999, "999"), (999.6, "1 k"), (35_000, "35 k"),
        (116_402, "116 k"), (999_600, "1 M"), (1_162_400, "1.16 M"), (2.5e9, "2.5 G"), (3e12, "3 T"),
    ],
)  # fmt: skip
def test_large_numbers_can_be_read(number, text):
    assert readable(number) == text
