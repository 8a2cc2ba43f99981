"""A stream of superposition tasks with importances of their own: methods, reports, and what networks reuse."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import modelzoo
import report
from datasets import build_stream
from datasets.synthetic.superposition import Law, importances
from evaluation.landscape import polygon_weights
from evaluation.reuse import important, represented, similarity
from methods import METHODS
from records.configuration import saved_config
from records.directory import read_config
from records.run import Run
from reporting.groups import compare
from reporting.reuse import reuse_table
from tests.test_resume import same_as, start, stop_after

TASKS = [
    {"name": "first", "importances": [1, 1, 1, 1, 0, 0], "probability": 0.2},
    {"name": "second", "importances": [0, 0, 1, 1, 1, 1]},
]
SIZES = {"train_examples": 64, "dev_examples": 64, "test_examples": 256, "epoch_examples": 1024}
NET = {"model": "autoencoder", "hidden": 2, "batch": 64, "lr": 0.5, "steps": 8}
GIVEN = ["--data_config", "d.yaml", "--hp_config", "hp.yaml", "--quiet", "--threads", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data()
    Path("hp.yaml").write_text(yaml.safe_dump(NET))


def data(**more):
    """The dataset YAML."""
    content = {"dataset": "superposition", "features": 6, "probability": 0.1, "tasks": TASKS, **SIZES, **more}
    Path("d.yaml").write_text(yaml.safe_dump(content))


def mode(method):
    return ["--method", method, *(["--continual"] if "continual" in METHODS[method].modes else [])]


# The tasks


def test_a_task_weighs_the_errors_of_the_features_that_it_needs():
    assert importances(Law(features=3, importances=(2, 0, 1))).tolist() == [2, 0, 1]
    assert importances(Law(features=4, importances=(1, 0, 0, 1), averaged=True)).tolist() == [0.25, 0, 0, 0.25]
    assert start("run", *GIVEN, *mode("isolated")) == 0
    run = Run.load("run")
    for task, given in enumerate(TASKS, 1):
        values, weights = run.targets[task][:, 0], run.targets[task][:, 1]
        assert (weights == given["importances"]).all()
        expected = (given["importances"] * (run.predictions(task) - values) ** 2).sum(1).mean()
        assert run.accuracy_matrix[-1, task - 1] == pytest.approx(expected, rel=1e-5)
    content = read_config(Path("run"))
    again = saved_config("run/config.yaml", content)
    assert build_stream(again.data, again.seed, torch.device("cpu")).fingerprints() == content["data_sha256"]


@pytest.mark.parametrize(("more", "said"), [
    ({"tasks": [{"importances": [1, 1]}]}, "task 1: importances are given for 2 features; there are 6"),
    ({"tasks": TASKS, "decay": 0.5}, "task 1: importances and decay are given; leave one out"),
    ({"tasks": [{"importances": [0] * 6}]}, "task 1: importances is [0, 0, 0, 0, 0, 0]; it must be a number for each"),
    ({"tasks": [{"importances": [1, 1, 1, 1, 1, -1]}]}, "task 1: importances is -1; it must be a number at least 0"),
    ({"tasks": [{"importances": 1}]}, "task 1: importances is 1; it must be a number for each feature"),
])  # fmt: skip
def test_wrong_importances_are_one_line(more, said, capsys):
    data(**more)
    assert modelzoo.main([*GIVEN, "--continual", "--run_dir", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("run").exists()


# Methods


@pytest.mark.parametrize("method", list(METHODS))
def test_a_method_learns_the_stream_or_says_in_one_line_why_not(method, capsys):
    memory = ["--memory_per_task", "16"] if method == "er" else []
    found = modelzoo.main([*GIVEN, *mode(method), *memory, "--evaluate", "geometry", "--run_dir", "run"])
    if found:
        (line,) = capsys.readouterr().err.splitlines()
        assert found == 2
        assert "needs targets that are classes" in line or "needs a network with layers" in line
        return
    run = Run.load("run")
    assert (run.metric, run.config["higher_is_better"]) == ("loss", False)
    R = run.accuracy_matrix
    if run.continual:
        assert run.summary["bwt"] == pytest.approx(R[0, 0] - R[1, 0])  # above 0 where the loss has fallen
    last = run.metrics.query("scenario == 'geometry' and metric == 'represented'")
    assert set(last.value) <= set(range(7))
    assert not last.empty


@pytest.mark.parametrize("method", ["zoo", "er"])
def test_a_stream_that_was_stopped_goes_on_to_the_same_bits(method, monkeypatch):
    given = [*GIVEN, *mode(method), "--memory_per_task", "16", "--evaluate", "geometry"]
    assert start("whole", *given) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert start("run", *given) != 0
    assert start("run", "--resume", *given) == 0
    same_as("run", "whole")


# Reuse


def test_similarity_is_that_of_the_angles_between_vectors():
    rng = torch.Generator().manual_seed(0)
    pentagon = polygon_weights(5, 6, 1.2, 0.0, 0.0)[0]
    turn = torch.linalg.qr(torch.randn(2, 2, generator=rng, dtype=pentagon.dtype))[0]
    every = range(6)
    assert similarity([(pentagon, turn @ pentagon, every)]) == pytest.approx(1)
    assert similarity([(pentagon, torch.cat([pentagon, torch.zeros(1, 6)]), every)]) == pytest.approx(1)
    one, other = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64)
    for lengths in (False, True):
        entries = [(i, j) for i in (0, 2, 3) for j in (0, 2, 3) if lengths or i != j]
        G, H = (np.array([float(W[:, i] @ W[:, j]) for i, j in entries]) for W in (one, other))
        expected = G @ H / math.sqrt((G @ G) * (H @ H))
        assert similarity([(one, other, [0, 2, 3])], lengths=lengths) == pytest.approx(expected)


def test_similarity_of_pairs_of_opposite_features_is_the_share_that_both_have():
    axes = torch.eye(3)
    one = torch.stack([axes[0], -axes[0], axes[1], -axes[1], axes[2], -axes[2]], 1)
    other = torch.stack([axes[0], -axes[0], axes[1], axes[2], -axes[1], -axes[2]], 1)
    assert similarity([(one, other, range(6))]) == pytest.approx(1 / 3)
    assert similarity([(one, other, range(6)), (one, one, range(6))]) == pytest.approx(2 / 3)
    assert math.isnan(similarity([(one, other, [0, 2])]))  # no two that share a direction


def test_which_features_are_important_and_represented():
    assert important(torch.tensor([2.0, 1.0, 0.9, 0.0])) == [0, 1]
    vectors = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 0.6]])
    assert represented(vectors, [0, 1, 2]) == pytest.approx(2 / 3)
    assert math.isnan(represented(vectors, []))


def test_the_report_says_what_is_carried_over(capsys):
    for method in ("isolated", "finetune", "zoo", "er"):
        assert modelzoo.main([*GIVEN, *mode(method), "--run_dir", f"runs/{method}"]) == 0
    (comparison,) = compare(sorted(Path("runs").iterdir()))
    found = reuse_table(comparison.groups).data.set_index("method")
    W = {(method, k): encoder(f"runs/{method}", k) for method in found.index for k in range(2)}
    for method in found.index:  # features 2 and 3 are important to both tasks
        assert found.loc[method, "carried over"] == pytest.approx(
            math.copysign(1, dot(W[method, 0]) * dot(W[method, 1]))
        )
    final, first = W["finetune", 1], W["finetune", 0]
    assert found.loc["finetune", "kept"] == pytest.approx(similarity([(first, final, range(4))]))
    assert math.isnan(found.loc["zoo", "kept"])
    singles = [(W["isolated", 0], range(4)), (W["isolated", 1], range(2, 6))]
    members = [(0, [0]), (1, [0, 1])]  # the zoo's members, and their tasks
    own = [(W["zoo", k], singles[t][0], singles[t][1]) for k, tasks in members for t in tasks]
    assert found.loc["zoo", "as isolated"] == pytest.approx(similarity(own))
    assert found.loc["zoo", "as others"] == pytest.approx(similarity([(W["zoo", 0], *singles[1])]))
    assert found.loc["finetune", "newest task"] == represented(final, range(2, 6))
    assert found.loc["finetune", "past tasks"] == represented(final, range(2))
    assert found.loc["isolated", "no task"] == pytest.approx(
        (represented(W["isolated", 0], [4, 5]) + represented(W["isolated", 1], [0, 1])) / 2
    )
    run = Run.load("runs/er")
    ratios = []
    for task in (1, 2):
        values, weights = run.targets[task][:, 0].astype(float), run.targets[task][0, 1]
        ratios.append(run.accuracy_matrix[-1, task - 1] / (weights * values.var(0)).sum())
    assert found.loc["er", "loss / uninformed"] == pytest.approx(np.mean(ratios), rel=1e-4)
    assert report.main(["runs", "--out", "page"]) == 0
    assert report.main(["runs/finetune", "--out", "single"]) == 0
    for page in ("page", "single"):
        text = Path(page, "report.html").read_text()
        assert "Reuse of geometry" in text
        assert "Accuracy" not in text


def encoder(run, member):
    return load_file(f"{run}/members/member_{member:03d}.safetensors")["trunk.encoder"].double()


def dot(vectors):
    """Of features 2 and 3."""
    return float(vectors[:, 2] @ vectors[:, 3])
