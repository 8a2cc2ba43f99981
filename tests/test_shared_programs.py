"""Runs whose tasks share a head, through every program: each works, or says in one line why not."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import benchmark
import distill
import export
import forget
import modelzoo
import predict
import report
from records import Run
from tests.tables import read_metrics
from tests.test_scenarios import streamed
from zoo import Zoo

TASKS = [[0, 1], [2, 3], [4, 5]]
CLASSES = {"class": tuple("012345"), "domain": ("0/2/4", "1/3/5")}
SCENARIOS = list(CLASSES)


def write(folder):
    (folder / "d.yaml").write_text(yaml.safe_dump({"dataset": "digits", "tasks": TASKS}))
    (folder / "hp.yaml").write_text("{model: mlp, widths: [32], lr: 0.05, epochs: 2, batch: 8}")


def learn(folder, scenario, method, name):
    options = {
        "data_config": folder / "d.yaml", "hp_config": folder / "hp.yaml", "samples": 20, "method": method,
        "scenario": scenario, "run_dir": folder / name,
    }  # fmt: skip
    return modelzoo.main(["--continual", "--quiet", *(f"--{key}={value}" for key, value in options.items())])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    write(folder)
    for scenario in SCENARIOS:
        for method in ("er", "cumulative"):
            assert learn(folder, scenario, method, f"{method}_{scenario}") == 0
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    for run in [path for path in made.iterdir() if path.is_dir()]:
        shutil.copytree(run, run.name)


def refused(program, given, capsys):
    """The one line with which a program refuses."""
    capsys.readouterr()
    assert program.main(given) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def test_a_run_says_how_the_task_is_told(here, capsys, undrawn):
    for scenario in SCENARIOS:
        zero_shot = {"zero-shot"} if scenario == "domain" else set()  # the next task, before its episode
        assert set(read_metrics(f"er_{scenario}").scenario) == {f"{scenario}-incremental", *zero_shot}
        summary = json.loads(Path(f"er_{scenario}/summary.json").read_text())
        assert summary["scenario"] == f"{scenario}-incremental"
        assert summary["routed_class_acc"] is summary["task_identification_acc"] is None
        assert report.main([f"er_{scenario}"]) == 0
        page = " ".join(Path(f"er_{scenario}/report.html").read_text().split())
        assert f"as {scenario}-incremental learning: the task is not told" in page
        assert "task-trained heads" not in page
    assert modelzoo.main(["--data_config=d.yaml", "--hp_config=hp.yaml", "--samples=9", "--continual",
                          "--scenario=class", "--method=finetune", "--run_dir=loud"]) == 0  # fmt: skip
    told = capsys.readouterr().out
    assert "3 tasks, continual, class-incremental" in told
    assert "parameters and one head of the classes seen" in told
    assert "task not told" not in told


def test_task_trained_heads_are_never_called_class_incremental(here, capsys, undrawn):
    assert learn(Path(), "task", "er", "told") == 0
    told = capsys.readouterr().out
    assert "task not told" in told
    assert "heads trained with the task told" in told
    assert report.main(["told"]) == 0
    assert report.main(["told", "er_class", "--out", "both"]) == 0
    page = Path("told/report.html").read_text()
    assert "Accuracy where the task is not told (task-trained heads)" in page
    for text in (told, Path("both/report.html").read_text()):
        assert "class-incremental accuracy" not in text
    assert json.loads(Path("told/summary.json").read_text())["scenario"] == "task-incremental"


@pytest.mark.parametrize("method", ["er", "cumulative"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_image_needs_no_task(scenario, method, here, capsys):
    run = f"{method}_{scenario}"
    zoo, tasks = Zoo.load(run, "cpu"), streamed_as(run)
    images = torch.cat([task.test.store[task.test.rows] for task in tasks])
    found, as_last = zoo.predict(images, "auto"), zoo.predict(images, 3)
    assert found.classes == CLASSES[scenario]
    torch.testing.assert_close(found.probabilities, as_last.probabilities)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(len(images)))
    assert found.chosen.tolist() == found.probabilities.argmax(1).tolist()
    assert {task.name for task in found.tasks} == {"all tasks"}
    right = (found.chosen == torch.cat([task.test.targets for task in tasks])).double()
    measured = [float(part.mean()) for part in right.split([len(task.test) for task in tasks])]
    assert measured == pytest.approx(Run.load(run).accuracy_matrix[-1].tolist())
    Image.fromarray(images[0, 0].numpy()).save("a.png")
    capsys.readouterr()
    assert predict.main([run, "a.png", "--task", "auto", "--top", "1"]) == 0
    assert capsys.readouterr().out == f"a.png: all tasks: {found.labels[0]} {found.probabilities[0].max():.4f}\n"
    assert predict.main([run, "a.png", "--task", "auto", "--out", "a.csv"]) == 0
    with open("a.csv", newline="") as file:
        header, row = csv.reader(file)
    assert header == ["file", "task", "class", "probability", *(f"p({name})" for name in CLASSES[scenario])]
    assert row[1:3] == ["all tasks", found.labels[0]]


def streamed_as(run):
    """The tasks of a run; those of digits, with the targets of its scenario."""
    tasks = streamed(run)
    assert [task.num_outputs for task in tasks] == ([2, 4, 6] if "class" in run else [2, 2, 2])
    return tasks


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_is_exported_as_it_answers(scenario, here):
    run = f"er_{scenario}"
    assert export.main([run, "--out", "out", "--format", "torch"]) == 0
    images = streamed_as(run)[1].test.store[:9]
    answers = torch.export.load("out/model.pt2").module()(images.float() / 255)
    expected = Zoo.load(run, "cpu").predict(images, "auto").probabilities
    for answer in answers.values():
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-4)
    card = " ".join(Path("out/README.md").read_text().split())
    assert "from one head for all tasks; nothing was trained on them" in card
    assert "with the task told" not in card


@pytest.mark.parametrize("method", ["er", "cumulative"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_student_has_one_head_as_well(scenario, method, here):
    assert distill.main([f"{method}_{scenario}", "--quiet", "--run_dir", "student"]) == 0
    assert modelzoo.main(["--verify", "student"]) == 0
    assert Zoo.load("student", "cpu").predict(torch.zeros(1, 1, 8, 8), "auto").classes == CLASSES[scenario]
    assert Run.load("student").summary["avg_acc_final"] > 0.5


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_task_is_taken_out_of_a_head_that_all_share(scenario, here, capsys):
    told = refused(forget, ["er_" + scenario, "--task", "1", "--retrain"], capsys)
    assert "one network that saw every task: train it again without" in told
    told = refused(forget, ["cumulative_" + scenario, "--task", "1", "--retrain"], capsys)
    assert f"is of --scenario {scenario}: all its tasks share a head; train it again without" in told


@pytest.mark.parametrize("method", ["er", "cumulative"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_extended_is_the_run_of_all_tasks(scenario, method, here):
    run = f"{method}_{scenario}"
    Path("more.yaml").write_text("{dataset: digits, tasks: [[1, 6]]}")  # one class is known
    assert modelzoo.main(["--extend", run, "--data_config", "more.yaml", "--quiet", "--run_dir", "longer"]) == 0
    assert modelzoo.main(["--verify", "longer"]) == 0
    Path("d.yaml").write_text(yaml.safe_dump({"dataset": "digits", "tasks": [*TASKS, [1, 6]]}))
    assert learn(Path(), scenario, method, "whole") == 0
    # What a shared head knows of a task before its episode is not known of the task that joins.
    longer, whole = (rows[(rows.scenario != "zero-shot") & (rows.episode > 0)].reset_index(drop=True)
                     for rows in map(read_metrics, ("longer", "whole")))  # fmt: skip
    assert longer.drop(columns="task_name").equals(whole.drop(columns="task_name"))
    if scenario == "class":
        assert Zoo.load("longer", "cpu").tasks[-1].classes == tuple("0123456")


def test_an_extension_that_would_number_classes_anew_is_refused(here, capsys):
    """Two tasks with the same classes have four outputs; with a third of other classes they would have two."""
    Path("d.yaml").write_text("{dataset: digits, tasks: [[0, 1], [0, 1]]}")
    assert learn(Path(), "class", "finetune", "two") == 0
    Path("more.yaml").write_text("{dataset: digits, tasks: [[2, 3]]}")
    told = refused(modelzoo, ["--extend", "two", "--data_config", "more.yaml", "--quiet"], capsys)
    assert "the data are not those that two was trained on" in told


def test_a_benchmark_runs_a_scenario_and_refuses_methods_that_have_none(here, in_process, capsys):
    grid = {
        "streams": ["d.yaml"], "hyperparams": ["hp.yaml"], "seeds": 1, "samples": 4, "epochs": 1, "scenario": "class",
        "methods": ["finetune", {"method": "er", "memory_per_class": 2}, "joint"],
    }  # fmt: skip
    Path("grid.yaml").write_text(yaml.safe_dump(grid))
    assert benchmark.main(["--config", "grid.yaml", "--store", "store", "--jobs", "1"]) == 0
    runs = [Run.load(path) for path in Path("store").rglob("manifest.json") for path in [path.parent]]
    assert {run.summary["scenario"] for run in runs} == {"class-incremental"}
    assert len(runs) == 3
    Path("grid.yaml").write_text(yaml.safe_dump({**grid, "methods": ["zoo"]}))
    told = refused(benchmark, ["--config", "grid.yaml", "--store", "other"], capsys)
    assert "scenario class: method zoo has a head for each task" in told


def test_isolated_networks_are_no_reference_for_a_shared_head(here, capsys):
    assert learn(Path(), "task", "isolated", "alone") == 0
    given = ["--data_config=d.yaml", "--hp_config=hp.yaml", "--samples=20", "--continual", "--method=er"]
    told = refused(modelzoo, [*given, "--scenario=class", "--isolated=alone", "--run_dir=x"], capsys)
    assert "alone was run with another 'data.scenario'" in told
