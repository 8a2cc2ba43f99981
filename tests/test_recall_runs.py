"""Streams of recall through modelzoo.py: every method on a network without heads that answers where it is asked."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import distill
import export
import forget
import modelzoo
import predict
from methods import METHODS
from methods.mir import MostInterfered
from methods.single import NormRule
from records.run import Run
from report import main as report
from reporting.groups import compare
from reporting.page import examples_table
from studies.grid import load_grid
from studies.grid_file import PROJECT
from tests.recalling import made
from tests.test_resume import same_as, start, stop_after
from tests.toys import configured, run_toy, toy_config
from training.batches import Batch
from utils.errors import UserError

VOCABULARY, PAIRS = 12, (1, 2)
TASKS = [{"task": "mqar", "pairs": pairs} for pairs in PAIRS]
SIZES = {"length": 8, "vocabulary": VOCABULARY, "noise": False, "train_examples": 96, "dev_examples": 16,
         "test_examples": 64, "epoch_examples": 96}  # fmt: skip
NET = {"width": 16, "mixers": [{"mixer": "base_conv", "kernel": 3}, "attention"], "state_mixer": "norm"}
REFUSED = {
    **dict.fromkeys(
        ("closed_form", "ewc", "ewc_online", "lwf", "der", "derpp", "cls_er"),
        "targets that are classes; Tokens has none",
    ),
    **dict.fromkeys(("packnet", "wsn", "gpm"), "a head for each task; this network has identity heads"),
}


@pytest.fixture(scope="module")
def stream():
    return made(TASKS, **SIZES)


def config_of(method, steps=30):
    recipe = {"epochs": None, "steps": steps, "batch": 32, "l2_reg": 0.0}
    recipe |= {"lr": 0.3} if method in ("si", "gpm") else {"optimizer": "adamw", "lr": 0.02}
    kept = {"memory_per_task": 20} if "memory_per_task" in METHODS[method].options else {}
    kept |= {"rounds": 1} if method == "joint" else {}
    config = toy_config(method=method, hp=recipe, continual="continual" in METHODS[method].modes, **kept)
    return replace(config, net=configured("sequence", **NET))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_to_recall_or_is_refused(method, stream):
    """The newest task is learned about as well as by a network that knows which tokens are values, log 6, or better."""
    if method in REFUSED:
        with pytest.raises(UserError, match=f"the method .* needs {REFUSED[method]}"):
            run_toy(config_of(method), stream, episodes=1)
        return
    _, history, predictions = run_toy(config_of(method), stream)
    for task, pairs in zip(stream.tasks, PAIRS, strict=True):
        said, asked = predictions[-1][task.id], task.test.targets >= 0
        assert said.shape == (64, max(PAIRS), VOCABULARY)
        assert asked.sum() == 64 * pairs
        torch.testing.assert_close(said.sum(-1), torch.ones(64, max(PAIRS)))
    right = said[asked].gather(1, task.test.targets[asked][:, None])
    assert -right.log().mean() < math.log(7)
    networks = 2 if method == "isolated_ensemble" else 1
    assert [learned.stats.steps for learned in history] == [30, 30 * networks][: len(history)]


def test_most_interfered_examples_are_found_where_fewer_questions_are_asked(stream):
    """The loss of a kept example is the mean over its own questions, whatever else is asked elsewhere."""
    learner, _, _ = run_toy(config_of("mir", steps=5), stream)
    first, second = stream.tasks
    net = learner.network([1, 2]).eval()
    inputs = torch.cat([second.test.store[:6], first.test.store[:3], second.test.store[6:9]])
    targets = torch.cat([second.test.targets[:6], first.test.targets[:3], second.test.targets[6:9]])
    batch = Batch(inputs, targets, torch.tensor([2] * 6 + [1] * 3 + [2] * 3), 6)
    rule = MostInterfered(NormRule(), 2)
    rule.rate = 0.1
    values = dict(net.named_parameters())
    trained = {name: value for name, value in values.items() if value.requires_grad}

    def loss(weights, part):
        outputs = functional_call(net, weights, (inputs[part], batch.task_ids[part]))
        asked = targets[part] >= 0
        return cross_entropy(outputs[asked], targets[part][asked])

    gradient = torch.autograd.grad(loss(values, slice(6)), list(trained.values()))
    moved = values | {name: v - 0.1 * g for (name, v), g in zip(trained.items(), gradient, strict=True)}
    with torch.no_grad():
        each = [slice(k, k + 1) for k in range(6, 12)]
        expected = torch.stack([loss(moved, one) - loss(values, one) for one in each])
    torch.testing.assert_close(rule.scores(net, batch, stream.spec.objective), expected, rtol=1e-3, atol=1e-6)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The options of a short run in this folder."""
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").write_text(yaml.safe_dump({"dataset": "sequences", "tasks": TASKS, **SIZES}))
    recipe = {"batch": 32, "steps": 7, "optimizer": "adamw", "lr": 0.01, "decayed": "weights"}
    Path("hp.yaml").write_text(yaml.safe_dump({"model": "sequence", **recipe, **NET, "dropout": 0.1}))
    return ["--data_config", "d.yaml", "--hp_config", "hp.yaml", "--quiet", "--continual"]


@pytest.mark.parametrize("method", [name for name in METHODS if name in REFUSED])
def test_a_refused_method_leaves_no_run(method, here, capsys):
    assert modelzoo.main([*here, "--method", method, "--run_dir", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert REFUSED[method] in line or "optimizer" in line
    assert not Path("run").exists()


@pytest.mark.parametrize("method", ["zoo", "er"])
def test_a_run_stopped_by_signals_goes_on_to_the_same_bits(method, here, monkeypatch):
    """Fresh sequences, dropout, replay and what is asked on the way go on as if nothing had happened."""
    given = [*here, "--method", method, "--memory_per_task", "20", "--evaluate_every", "2"]
    assert start("whole", *given) == 0
    for stops in range(9):
        with monkeypatch.context() as patch:
            stop_after(patch, 5)
            if start("run", *(["--resume"] if stops else []), *given) == 0:
                break
    assert stops == 2
    same_as("run", "whole")
    found = Run.load("run").examples_to(0)
    assert found.examples.tolist() == [64, 64]  # two steps
    assert report(["run", "whole"]) == 2  # the same run twice
    assert report(["run"]) == 0


def test_programs_of_classes_refuse_a_zoo_of_recall_in_one_line(here, capsys):
    assert modelzoo.main([*here, "--run_dir", "run"]) == 0
    for program, given in (
        (predict, ["a.png", "--task", "1"]),
        (export, ["--out", "out", "--format", "torch"]),
        (distill, ["--quiet", "--run_dir", "student"]),
        (forget, ["--task", "1", "--retrain", "--quiet", "--run_dir", "less"]),
    ):
        capsys.readouterr()
        assert program.main(["run", *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "run was trained with Tokens" in line
        assert "read this run with Run.load" in line
    assert modelzoo.main(["--extend", "run", "--data_config", "d.yaml", "--quiet", "--run_dir", "more"]) == 0
    assert len(Run.load("more").task_names) == 4


def test_the_table_of_examples_has_means_over_the_seeds_that_came_so_far(here, monkeypatch):
    monkeypatch.setattr("reporting.page._GOOD", 0.2)
    runs = {(method, seed): f"{method}-{seed}" for method in ("isolated", "finetune") for seed in ("0", "1")}
    for (method, seed), path in runs.items():
        assert start(path, *here, "--method", method, "--evaluate_every", "3", "--seed", seed) == 0
    (comparison,) = compare([Path(path) for path in runs.values()])
    expected = []
    for method in ("isolated", "finetune"):
        both = [Run.load(f"{method}-{seed}").examples_to(0.2).examples for seed in (0, 1)]
        cells = []
        for task in (0, 1):
            known = [column[task] for column in both if not pd.isna(column[task])]
            cells.append(f"{sum(known) / len(known):,.0f}{' (1 of 2 seeds)' * (len(known) == 1)}" if known else "never")
        expected.append([method, *cells])
    assert examples_table(comparison, "").rows == expected
    assert expected[0] == ["isolated", "never", "never"]
    assert "seeds)" in expected[1][2]
    assert report([*runs.values(), "--out", "both"]) == 0
    assert "Training examples until the accuracy is 0.2" in Path("both/report.html").read_text()
    monkeypatch.setattr("reporting.page._GOOD", 1.0)
    assert examples_table(comparison, "") is None


@pytest.mark.parametrize("name", ["recall_ladder", "recall_ladder_small"])
def test_all_methods_of_the_ladder_train_on_as_many_examples(name, tmp_path):
    grid = load_grid(str(PROJECT / f"config/benchmark/{name}.yaml"), tmp_path)
    together = {"joint": 1}  # trainings in a run; else one for each task
    assert len({run.config.hp.examples * together.get(run.label, 4) for run in grid.runs}) == 1
    assert {run.label for run in grid.runs if not run.config.continual} == {"joint"}
