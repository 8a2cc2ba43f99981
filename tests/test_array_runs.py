"""Runs on files of arrays: scores, resuming, and answers to other files."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from sklearn.metrics import root_mean_squared_error

import export
import forget
import modelzoo
import predict
from records import Run
from reporting.affinity import loss_affinity
from tests.test_arrays import LABELS, PROJECT, TASKS, configured, drawn, here, rows_of, stream, write  # noqa: F401
from tests.test_resume import same_as, stop_after
from zoo import Zoo


def test_a_run_of_numbers_is_scored_in_their_unit():
    X = drawn()
    write(X, 100 * X[:, 1] + 1000)
    done = Run.load(modelzoo.run(configured(epochs=30, run_dir="run", set={"hp.lr": 0.05})))
    for task in (1, 2, 3):
        found = root_mean_squared_error(done.targets[task], done.predictions(task, "test"))
        assert done.accuracy_matrix[-1, task - 1] == pytest.approx(found, rel=1e-4)
    assert done.accuracy_matrix[-1].max() < 0.7 * 1000  # the standard deviation of the targets is 1000
    # What tasks gain from each other, as reports show it: errors as a share of the variance of the targets.
    found = loss_affinity([done]).set_index(["task", "with"]).loc[(done.task_labels[0], done.task_labels[1])]
    alone = done.test_predictions[1][0]  # of the first member, which learned this task only
    assert found.alone == pytest.approx(np.mean((alone - done.targets[1]) ** 2) / done.targets[1].var(), rel=1e-3)


@pytest.mark.parametrize("scale", ["true", "false"])
def test_numbers_are_answered_to_columns_in_any_order(scale, capsys):
    """In the unit of the targets, as the run has saved them; the columns are found by their names."""
    frame = pandas.DataFrame(drawn(), columns=["a", "b", "c", "d"]).assign(task=TASKS)
    frame["y"] = 100 * frame.b + 1000
    frame.to_csv("a.csv", index=False)
    Path("d.yaml").write_text(f"{{dataset: arrays, file: a.csv, scale: {scale}}}")
    rate = 0.01 if scale == "true" else 1e-9  # unscaled targets of thousands need small steps
    done = Run.load(modelzoo.run(configured(run_dir="run", replay_frac=0.5, set={"hp.lr": rate})))
    test = frame.iloc[rows_of(stream().tasks[1], "test")]
    test.assign(extra="no number", y=np.nan)[["d", "extra", "b", "y", "c", "a"]].to_csv("new.csv", index=False)
    expected = done.predictions("name=1")
    np.testing.assert_allclose(Zoo.load("run").numbers(test[list("abcd")].to_numpy(), "name=1"), expected, rtol=1e-4)
    given = ["run", "--data", "new.csv", "--task", "name=1"]
    assert predict.main([*given, "--out", "p.csv"]) == 0
    answers = pandas.read_csv("p.csv")
    assert [*answers.columns] == ["row", "task", "value"]
    assert answers.row.tolist() == [*range(len(test))]
    np.testing.assert_allclose(answers[["value"]], expected, rtol=1e-4)
    capsys.readouterr()
    assert predict.main(given) == 0
    assert capsys.readouterr().out.startswith(f"0: 2 1: {answers.value[0]:.6g}\n1: 2 1: ")
    frame.rename(columns={"b": "B"}).to_csv("other.csv", index=False)
    for options, line in (
        (["--data", "other.csv", "--task", "name=1"], "other.csv: unknown column 'b' (known: B, a, c, d"),
        (["--data", "new.csv", "--task", "auto"], "run was trained with ScaledNumbers, and this needs classes"),
        (["--data", "new.csv", "--task", "name=1", "--combine", "stacked"], "and this needs classes"),
    ):
        assert predict.main(["run", *options]) == 2
        told = capsys.readouterr().err
        assert line in told
        assert told.count("\n") == 1


def test_a_zoo_of_a_table_is_shipped_and_forgets(monkeypatch, capsys):
    """Its rows need not be in the file any more; that the first task gave the scale is said."""
    frame = pandas.DataFrame(drawn(), columns=["a", "b", "c", "d"]).assign(task=TASKS, y=LABELS)
    frame.to_csv("a.csv", index=False)
    Path("d.yaml").write_text("{dataset: arrays, file: a.csv}")
    modelzoo.run(configured(run_dir="run", hold_out=0.2))
    monkeypatch.setattr("zoo.exporting.exported", lambda *given: {})  # the networks, which are slow to write
    assert export.main(["run", "--out", "out", "--format", "torch"]) == 0
    assert json.loads(Path("out/tasks.json").read_text())["input"]["columns"] == ["a", "b", "c", "d"]
    assert "in this order: a, b, c, d." in Path("out/README.md").read_text()
    for number, name in ((2, "1"), (1, "0")):
        (frame[frame.task != 1] if number == 2 else frame).to_csv("a.csv", index=False)
        given = ["run", "--task", f"name={name}", "--retrain", "--quiet", "--run_dir", "less", "--overwrite"]
        assert forget.main(given) == 0, capsys.readouterr().err
        limits = " ".join(json.loads(Path("less/certificate.json").read_text())["limits"])
        assert ("Inputs are scaled by mean and standard deviation of the forgotten" in limits) == (number == 1)


def test_a_stopped_run_goes_on_and_files_are_answered(monkeypatch, capsys):
    X = drawn()
    write(X)
    given = ["--data_config", "d.yaml", "--hp_config", str(PROJECT / "config/hyperparam/mlp.yaml"), "--data_dir", ".",
             "--set", "net.widths=[8]", "--epochs", "4", "--continual", "--threads", "1", "--quiet"]  # fmt: skip
    assert modelzoo.main([*given, "--run_dir", "whole"]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 15)
        assert modelzoo.main([*given, "--run_dir", "run"]) == 143
    assert modelzoo.main([*given, "--resume", "--run_dir", "run"]) == 0
    same_as("run", "whole")
    # The test examples from the raw file: the answers that the run has saved.
    test = stream().tasks[1].test
    np.savez("new.npz", X=X[test.rows])
    monkeypatch.setattr(predict, "CHUNK_BYTES", 64)  # of a few rows
    assert predict.main(["run", "--data", "new.npz", "--task", "name=1", "--out", "p.csv"]) == 0
    with open("p.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["row", "task", "class", "probability", "p(0)", "p(1)"]
    assert [line[0] for line in lines] == [str(row) for row in range(len(test))]
    named = {task.name: task.number for task in Zoo.load("run").tasks}
    np.testing.assert_allclose(
        np.array([line[4:] for line in lines], float), Run.load("run").predictions(named["1"], "test"), atol=1e-5
    )
    assert predict.main(["run", "--data", "new.npz", "--task", "2", "image.png"]) == 2
    assert "image.png" in capsys.readouterr().err
