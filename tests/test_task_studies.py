"""Studies with train_task.py: several learning rates at once, grids, tables beside published ones, task affinity."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

import benchmark
import modelzoo
import train_task
from records.run import Run
from records.task_invocation import parse
from reporting.affinity import loss_affinity
from studies.grid import load_grid
from studies.study_file import note_failure
from tests.test_benchmark import seal
from utils.errors import UserError

PROJECT = Path(__file__).parent.parent
RNN, MEDIAN, SECOND = "config/hyperparam/rnn.yaml", "config/dataset/median.yaml", "config/dataset/2nd_argmax.yaml"
FEW = {"data.dev_examples": 512, "data.test_examples": 1024, "data.epoch_examples": 1024}
GRID = {
    "program": "train_task",
    "streams": [{"stream": SECOND, "vary": {"data.length": [2, 3], "net.hidden_size": [2, 4]}}],
    "hyperparams": [RNN],
    "seeds": 2,
    "examples": "2^13",
    **FEW,
}
PUBLISHED = {"source": "A paper", "rows": "net.hidden_size", "columns": "data.length", "values": {4: {2: 100.0}}}
TINY = [*(f"--set={key}={value}" for key, value in FEW.items()), "--set=data.length=3", "--set=net.hidden_size=4"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_grid(**changes):
    grid = {key: value for key, value in {**GRID, **changes}.items() if value is not None}
    Path("grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    return load_grid("grid.yaml", Path("store"))


def summary_of(path):
    return json.loads(Path(path, "summary.json").read_text())


# Several learning rates.


def test_runs_at_several_rates_are_those_of_each_rate_alone(capsys):
    command = [*TINY, "--examples=2^14", "--quiet"]
    assert train_task.main([*command, "--rates=0.02,0.2", "--seeds=2", "--run_dir=many"]) == 0
    shown = capsys.readouterr().out
    for rate in (0.02, 0.2):
        assert train_task.main([*command, f"--set=hp.lr={rate}", "--seed=1", f"--run_dir=alone{rate}"]) == 0
        together, alone = Path(f"many/lr{rate}/seed1"), Path(f"alone{rate}")
        config = yaml.safe_load((together / "config.yaml").read_text())
        assert (config["hp"]["lr"], config["seed"]) == (rate, 1)
        values = [pd.read_csv(path / "metrics.csv").query("metric == 'loss'").value for path in (together, alone)]
        np.testing.assert_allclose(*values, rtol=1e-3)
    assert len(list(Path("many").glob("lr*/seed*/summary.json"))) == 4
    runs = {(rate, seed): summary_of(f"many/lr{rate}/seed{seed}") for rate in (0.02, 0.2) for seed in (0, 1)}
    rate, seed = max(runs, key=lambda key: runs[key]["dev"])
    assert f"best seed on the development examples: {seed} at lr {rate:g}, test accuracy" in shown


def test_one_rate_has_the_directories_of_no_rate():
    assert list(parse(["--rates=0.02", "--seeds=2", "--run_dir=x"]).runs) == [Path("x/seed0"), Path("x/seed1")]
    ((path, config),) = parse(["--rates=0.02", "--run_dir=x"]).runs.items()
    assert (path, config.hp.lr) == (Path("x"), 0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rates=0.1,high"], "--rates is '0.1,high'; it must be learning rates"),
        (["--rates="], "--rates is ''"),
        (["--rates=0.1,-1"], "--rates is -1.0; it must be a number above 0"),
        (["--rates=0.1", "--set=hp.lr=0.2"], "--rates and --set hp.lr are two ways"),
    ],
)
def test_bad_rates(options, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        parse(options)


# Grids.


@pytest.mark.parametrize("rates", [None, [0.01], [0.01, 0.03]])
@pytest.mark.parametrize("seeds", [1, 2, [3, 4, 5]])
def test_a_process_makes_the_runs_of_its_cell(seeds, rates):
    vary = {"data.length": [2, 3], **({"hp.lr": rates} if rates else {})}
    grid = write_grid(streams=[{"stream": SECOND, "vary": vary}], seeds=seeds, checkpoints="every:4")
    assert len(grid.jobs) == 2
    for job, length in zip(grid.jobs, (2, 3), strict=True):
        assert parse(job.arguments).runs == {run.directory: run.config for run in job.runs}
        for run in job.runs:
            assert parse(run.arguments).runs == {run.directory: run.config}
            assert (run.config.data.settings.length, run.config.hp.examples) == (length, 2**13)
            assert run.config.checkpoints == "every:4"
        pairs = [(run.config.hp.lr, run.config.seed) for run in job.runs]
        numbers = list(range(seeds)) if isinstance(seeds, int) else seeds
        assert pairs == [(rate, seed) for rate in rates or [0.04] for seed in numbers]


def test_streams_have_their_own_cells_networks_and_options():
    streams = [
        {"stream": SECOND, "vary": {"data.length": [3, 4], "net.hidden_size": [2, 4, 8]}},
        {"stream": "config/dataset/longest_cycle.yaml", "hyperparams": ["config/hyperparam/attention_only.yaml"],
         "vary": {"net.width": [4]}, "data.length": 3, "examples": "2^12"},
        MEDIAN,
    ]  # fmt: skip
    grid = write_grid(streams=streams, seeds=1)
    found = [(run.config.stream, run.net, run.label, run.config.hp.examples) for run in grid.runs]
    second = [("2nd_argmax", "rnn", f"length {n}, hidden_size {h}", 2**13) for n in (3, 4) for h in (2, 4, 8)]
    others = [("longest_cycle", "attention_only", "width 4", 2**12), ("median", "rnn", "rnn", 2**13)]
    assert found == [*second, *others]
    assert grid.runs[6].config.data.settings.length == 3


def test_a_sweep_of_networks_widths_lengths_and_rates():
    """Lengths and batches change together; one network has other widths, rates and evaluations."""
    attention = {
        "hp_config": "config/hyperparam/attention_only.yaml", "vary": {"net.width": [4]}, "rates": [1e-3],
        "evaluate_at": "log:3",
    }  # fmt: skip
    together = [{"data.length": 3, "hp.batch": 64}, {"data.length": 5, "hp.batch": 32}]
    grid = write_grid(
        streams=["config/dataset/longest_cycle.yaml"], together=together, seeds=2,
        hyperparams=[{"hp_config": attention["hp_config"], "vary": {"net.width": [8, 16]}}, attention],
        vary={"net.layers": [1, 2]}, rates=[1e-4, 3e-3],
    )  # fmt: skip
    found = [
        (config.data.settings.length, config.hp.batch, config.net.settings.layers, config.net.settings.width,
         config.hp.lr, config.seed, config.evaluate_at)
        for config in (run.config for run in grid.runs)
    ]  # fmt: skip
    assert found == [
        (length, batch, layers, width, rate, seed, when)
        for widths, rates, when in (([8, 16], [1e-4, 3e-3], "checkpoints"), ([4], [1e-3], "log:3"))
        for length, batch in ((3, 64), (5, 32)) for layers in (1, 2) for width in widths for rate in rates
        for seed in (0, 1)
    ]  # fmt: skip
    assert len(grid.jobs) == 8 + 4
    for job in grid.jobs:
        assert parse(job.arguments).runs == {run.directory: run.config for run in job.runs}


def test_a_stream_of_a_grid_of_modelzoo_can_have_its_own_options():
    streams = [SECOND, {"stream": MEDIAN, "vary": {"hp.lr": [0.1, 0.2]}, "data.length": 3}]
    runs = write_grid(program=None, streams=streams, methods=["zoo", "joint"], seeds=1).runs
    assert [(run.config.stream, run.label, run.config.data.settings.length) for run in runs] == [
        ("2nd_argmax", "zoo", 10), ("2nd_argmax", "joint", 10), ("median", "zoo, lr 0.1", 3),
        ("median", "zoo, lr 0.2", 3), ("median", "joint, lr 0.1", 3), ("median", "joint, lr 0.2", 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"program": "train_tsk"}, ["program", "did you mean 'train_task'"]),
        ({"methods": ["zoo"]}, ["unknown key 'methods'"]),
        ({"seeds": [1, 3]}, ["seeds is [1, 3]", "follow each other"]),
        ({"exampels": 5}, ["unknown key 'exampels'", "did you mean 'examples'"]),
        ({"examples": 0}, ["examples is 0"]),
        ({"rates": "0.1"}, ["rates is '0.1'; it must be a list of learning rates"]),
        ({"rates": [0.1, 0]}, ["rates is 0; it must be a number above 0"]),
        ({"program": "modelzoo", "methods": ["zoo"], "rates": [0.1]}, ["unknown key 'rates'"]),
        ({"streams": [{"stream": SECOND, "rates": [0.1], "vary": {"hp.lr": [0.1]}}]}, ["rates and hp.lr are two ways"]),
        ({"together": {"data.length": [3]}}, ["together must list mappings with the same keys"]),
        ({"together": [{"data.length": 3}, {"hp.batch": 64}]}, ["together must list mappings with the same keys"]),
        ({"together": [{"data.length": 3}]}, ["data.length stands in vary and in together"]),
        ({"together": [{"exampels": 3}]}, ["together: unknown key 'exampels'"]),
        ({"hyperparams": [{"vary": {"net.hidden_size": [2]}}]}, ["hyperparams", "has no key 'hp_config'"]),
        ({"hyperparams": [{"hp_config": RNN, "exampels": 5}]}, ["hyperparams: unknown key 'exampels'"]),
        ({"streams": [{"vary": {}}]}, ["no key 'stream'"]),
        ({"streams": [{"stream": SECOND, "vary": {"net.hiden": [1]}}]}, ["unknown key 'hiden'"]),
        ({"streams": [{"stream": SECOND, "vary": {"hp.lr": [0]}}]}, ["lr 0", "hp.lr is 0"]),
        ({"streams": [SECOND, SECOND]}, ["two runs would be"]),
        ({"published": {"median": PUBLISHED}}, ["published: unknown stream 'median'"]),
        ({"published": {"2nd_argmax": {**PUBLISHED, "rows": "net.h"}}}, ["no setting 'net.h'"]),
        ({"published": {"2nd_argmax": {**PUBLISHED, "values": [1]}}}, ["values is [1]"]),
        ({"published": {"2nd_argmax": {**PUBLISHED, "values": {1: {2: "x"}}}}}, ["values: 1: 2 is 'x'"]),
    ],
)
def test_a_bad_grid_is_one_line_and_nothing_is_written(capsys, changes, words):
    Path("grid.yaml").write_text(yaml.safe_dump({**GRID, **changes}))
    assert benchmark.main(["--config=grid.yaml", "--store=store"]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert [word for word in ["benchmark.py: grid.yaml", *words] if word not in error] == []
    assert not Path("store").exists()


def test_a_grid_from_runs_to_tables(request, capsys):
    """Two processes: one cell, and one with two learning rates; then only what is missing."""
    streams = [
        {"stream": SECOND, "vary": {"data.length": [2], "net.hidden_size": [4]}},
        {"stream": MEDIAN, "data.length": 2, "vary": {"net.hidden_size": [4], "hp.lr": [0.02, 0.1]}},
    ]
    published = {
        "2nd_argmax": {**PUBLISHED, "scale": 100},
        "median": {**PUBLISHED, "metric": "rmse", "tolerance": 0.005, "values": {4: {2: 5.0}}},
    }
    grid = write_grid(streams=streams, published=published, evaluate="dormant")
    command = ["--config=grid.yaml", "--store=store", "--jobs=2"]
    assert benchmark.main(command) == 0
    assert "6 runs, 6 of them to do" in capsys.readouterr().out

    found = {run.name: summary_of(run.directory) for run in grid.runs}
    with open("store/results.csv", newline="") as file:
        rows = {row["directory"]: row for row in csv.DictReader(file)}
    assert rows.keys() == found.keys()
    for name, summary in found.items():
        assert float(rows[name]["dev"]) == summary["dev"]
        assert float(rows[name]["test"]) == summary[f"avg_{'rmse' if 'median' in name else 'acc'}_final"]
        asked = pd.read_csv(f"store/{name}/metrics.csv").query("scenario == 'dormant'")
        assert float(rows[name]["dormant: dormant_share"]) == pytest.approx(asked.value.iloc[-1], abs=1e-6)
    lines = Path("store/table.md").read_text().splitlines()
    classes = [summary for name, summary in found.items() if name.startswith("2nd")]
    best = max(classes, key=lambda summary: summary["dev"])
    test, error = 100 * best["avg_acc_final"], 100 * best["test_stderr"]
    assert f"{test:.2f} ± {error:.2f} † (100)" in lines[4]  # nothing that has seen 2^13 examples is within half a point
    median = np.median([100 * summary["avg_acc_final"] for summary in classes])
    assert any(line.split("|")[2].strip() == f"{median:.2f}" for line in lines if line.startswith("| 4 "))
    (cell,) = [line for line in lines if line.startswith("| length 2, hidden_size 4 ")]
    assert f"| {test - 100:+.2f} " in " ".join(cell.split())
    assert "## median: evaluations of the best run of each cell" in lines
    numbers = [summary for name, summary in found.items() if name.startswith("median")]
    lowest = min(numbers, key=lambda summary: summary["dev"])
    assert f"{lowest['avg_rmse_final']:.4f} ± {lowest['test_stderr']:.4f} (5)" in "\n".join(lines)  # better: no mark

    kept = {path: path.stat().st_mtime_ns for path in Path("store").glob("*/**/summary.json")}
    gone = grid.runs[1].directory
    for path in sorted(gone.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    request.getfixturevalue("in_process")
    assert benchmark.main(command) == 0
    assert "6 runs, 1 of them to do" in capsys.readouterr().out
    assert {path for path, time in kept.items() if path.stat().st_mtime_ns != time} == {gone / "summary.json"}
    again = summary_of(gone)
    assert again["dev"] == pytest.approx(found[grid.runs[1].name]["dev"], abs=0.02)

    other = write_grid(streams=streams, examples="2^12", evaluate="dormant")
    assert {run.name for run in other.runs}.isdisjoint(run.name for run in grid.runs)


def test_lists_of_mixers_in_a_table(in_process, capsys):
    recall = {
        "data.length": 8,
        "data.pairs": 1,
        "data.vocabulary": 16,
        "data.dev_examples": 20,
        "data.test_examples": 20,
    }
    mixers = [[{"mixer": "base_conv", "kernel": 2}, "attention"], ["attention"]]
    stream = {"stream": "config/dataset/mqar.yaml", "hyperparams": ["config/hyperparam/conv_attention.yaml"],
              "vary": {"net.width": [4], "net.mixers": mixers}, **recall}  # fmt: skip
    write_grid(streams=[stream], seeds=1, examples=64, checkpoints="none")
    assert benchmark.main(["--config=grid.yaml", "--store=store"]) == 0
    first = Path("store/table.md").read_text().split("##")[1]
    assert [line.split("|")[1].strip() for line in first.splitlines() if line.startswith("| ")][2:] == [
        "base_conv kernel 2 + attention", "attention"]  # fmt: skip


# Task affinity.


def test_affinity_is_the_loss_of_members_of_two_tasks_against_those_of_one(capsys):
    files = [f"--data_config={PROJECT / 'config/dataset/alg_stream.yaml'}", f"--hp_config={PROJECT / RNN}"]
    options = [*files, "--examples=2^13", "--quiet"]
    small = [*(f"--set={key}={value}" for key, value in FEW.items()), "--set=data.train_examples=1024", "--continual"]
    for method, seed in (("zoo", 0), ("zoo", 1), ("isolated", 0)):
        more = ["--tasks_per_round=2"] if method == "zoo" else []
        where = [f"--method={method}", f"--seed={seed}", f"--run_dir={method}{seed}"]
        assert modelzoo.main([*options, *small, *more, *where]) == 0
    paths = [Path("zoo0"), Path("zoo1"), Path("isolated0")]
    ratios = []  # of each member on each of its tasks: task, its tasks, loss over ln 5
    for path in paths:
        targets = load_file(path / "predictions/targets.safetensors")
        for file in sorted(path.glob("members/*.json")):
            tasks = json.loads(file.read_text())["tasks"]
            predictions = load_file(path / "predictions" / f"{file.stem}.safetensors")
            for task in tasks:
                p, y = predictions[f"task_{task}/test"].astype(float), targets[f"task_{task}/test"]
                ratios.append((task, set(tasks), -np.log(p[np.arange(len(y)), y]).mean() / np.log(5)))
    table = loss_affinity([Run.load(path) for path in paths])
    names = Run.load("zoo0").task_labels
    expected = {}
    for i in range(1, 5):
        for j in set(range(1, 5)) - {i}:
            both = [ratio for task, tasks, ratio in ratios if task == i and j in tasks]
            alone = [ratio for task, tasks, ratio in ratios if task == i and tasks == {i}]
            if both:
                expected[names[i - 1], names[j - 1]] = (np.mean(both), np.mean(alone), len(both), len(alone))
    found = {
        (row[1], row[2]): (row.together, row.alone, row.members_together, row.members_alone)
        for row in table.itertuples()
    }
    assert found.keys() == expected.keys()
    for pair, values in expected.items():
        assert found[pair] == pytest.approx(values, rel=1e-4)
    assert (table.difference == table.together - table.alone).all()
    capsys.readouterr()


def test_of_a_failed_cell_only_the_unfinished_runs_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid, store = write_grid(seeds=2), Path("store")
    cell = grid.jobs[0]
    done, other = cell.runs[:2]
    done.directory.mkdir(parents=True)
    for name in ("config.yaml", "summary.json"):
        (done.directory / name).write_text("{}")
    seal(done.directory)
    (store / "logs").mkdir()
    note_failure(store, cell.name, "exit code 1")
    missing, left = benchmark.to_do(grid, store, again=False)
    assert left == {run.name: "exit code 1" for run in cell.runs if run is not done}
    assert other.name in left
    assert cell.name not in {job.name for job in missing}
    missing, left = benchmark.to_do(grid, store, again=True)
    assert left == {}
    assert cell.name in {job.name for job in missing}
