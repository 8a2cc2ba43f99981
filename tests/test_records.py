"""A run directory as an object, and runs whose scores are not accuracies."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, root_mean_squared_error

import datasets
import modelzoo
import report
from datasets.objectives import CrossEntropy, RealNumbers, Scored
from datasets.task import Table, Task, TaskStream
from evaluation.accuracy import Evaluation
from evaluation.measurements import TRAINED, Measurement
from methods import build_method
from methods.base import Context
from records import Run
from records.invocation import configure
from records.members import SavedMember
from records.summary import figure, final_table, signed, summarize
from records.tables import header, metric_lines, read_metrics
from studies.tables import share
from tests import tables
from tests.toys import CPU, toy_config, toy_stream
from training.monitor import Monitor
from utils.errors import UserError
from utils.files import GrowingFile

DIGITS = ["--set", "net.width=16", "--samples", "4", "--epochs", "1", "--quiet"]
NUMBERS = ["--data_config", "numbers.yaml", "--epochs", "40", "--quiet"]


def numbers(config, seed, device):
    """Three tasks: where the bright row of an image is, as an angle's sine and cosine."""
    stream = toy_stream(3, count=40)

    def measured(examples):
        angles = examples.targets * math.tau / 8
        return replace(examples, targets=torch.stack([angles.sin(), angles.cos()], -1))

    tasks = []
    for task in stream.tasks:
        splits = {"train": measured(task.train_eval), "test": measured(task.test)}
        tasks.append(Task(task.id, task.name, 2, Table(splits["train"]), splits, ("sine", "cosine")))
    return TaskStream(replace(stream.spec, objective=RealNumbers()), tuple(tasks))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A zoo on digits; a zoo and isolated networks on numbers; what the console has told of the last one."""
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as told:
        patch.chdir(folder)
        patch.setitem(datasets.STREAMS, "numbers", numbers)
        Path("numbers.yaml").write_text("dataset: numbers\ntasks: [[0, 1], [0, 1], [0, 1]]\n")
        for name, given in {
            "digits": [*DIGITS, "--hold_out", "0.25", "--replay_frac", "0.5"],
            "alone": [*NUMBERS, "--method", "isolated"],
            "numbers": [*NUMBERS[:-1], "--isolated", "alone"],
            "er": [*NUMBERS, "--method", "er"],
        }.items():
            assert modelzoo.main([*given, "--continual", "--run_dir", name]) == 0
    (folder / "told").write_text(told.getvalue())
    return folder


# Run.load.


def test_a_run_is_what_its_files_say(runs):
    run = Run.load(runs / "digits")
    assert run.config == yaml.safe_load((runs / "digits/config.yaml").read_text())
    assert run.summary == json.loads((runs / "digits/summary.json").read_text())
    wide = tables.read_metrics(runs / "digits").query(
        "split == 'test' and scenario == 'task-incremental' and episode > 0"
    )
    R = wide.pivot(index="episode", columns="task", values="accuracy").to_numpy()
    np.testing.assert_array_equal(run.accuracy_matrix, R)
    lines = pd.read_csv(runs / "digits/metrics.csv", float_precision="round_trip")
    assert list(run.metrics.columns) == list(lines.columns)
    for column in ("episode", "metric", "value", "stderr", "task_name"):
        pd.testing.assert_series_equal(run.metrics[column], lines[column])
    assert [member.tasks for member in run.members] == [
        tuple(json.loads(path.read_text())["tasks"]) for path in sorted((runs / "digits/members").glob("*.json"))
    ]


@pytest.mark.parametrize("split", ["test", "held_out"])
def test_predictions_are_the_weighted_mean_of_the_members(split, runs):
    run = Run.load(runs / "digits")
    total, weight = 0, 0.0
    for member in run.members:
        saved = load_file(runs / f"digits/predictions/member_{member.number:03d}.safetensors")
        if 1 in member.tasks:
            mine = member.weights[member.tasks.index(1)]
            total, weight = total + mine * saved[f"task_1/{split}"].astype(float), weight + mine
    np.testing.assert_allclose(run.predictions(1, split), total / weight)
    np.testing.assert_allclose(run.predictions("0/1", split), total / weight)
    if split == "test":
        found = accuracy_score(run.targets_of(1), run.predictions(1).argmax(1))
        assert found == run.summary["per_task_acc"][0]


def test_a_renumbered_run_has_only_the_tasks_that_were_measured(runs):
    """Tasks 1 and 2 have no member left, task 3 is called 1."""
    run = Run.load(runs / "digits")
    left = dataclasses.replace(run, places={3: 1})
    assert left.targets.keys() == left.test_predictions.keys() == {1}
    np.testing.assert_array_equal(left.targets[1], run.targets[3])


def test_a_run_of_one_network_is_answered_by_the_newest(runs):
    run = Run.load(runs / "er")
    newest = load_file(runs / "er/predictions/member_002.safetensors")
    np.testing.assert_allclose(run.predictions(1), newest["task_1/test"])


@pytest.mark.parametrize("asked", [(9, "test"), ("none", "test"), (1, "dev")])
def test_what_a_run_has_not_is_one_error(asked, runs):
    with pytest.raises(UserError, match="task"):
        Run.load(runs / "digits").predictions(*asked)
    with pytest.raises(UserError, match="is not the directory of a run"):
        Run.load(runs)


# Scores that are not accuracies.


def test_the_main_metric_of_real_numbers_follows_from_the_predictions(runs):
    run = Run.load(runs / "numbers")
    assert (run.summary["metric"], run.summary["higher_is_better"]) == ("rmse", False)
    assert set(run.metrics.metric) == {"rmse", "loss"}
    assert set(run.metrics.scenario) == {TRAINED["task"]}
    for task in (1, 2, 3):
        expected = root_mean_squared_error(run.targets_of(task).ravel(), run.predictions(task).ravel())
        assert run.accuracy_matrix[-1, task - 1] == pytest.approx(expected, rel=1e-5)
    R, alone = run.accuracy_matrix, Run.load(runs / "alone").accuracy_matrix[-1]
    summary = run.summary
    assert summary["avg_rmse_final"] == pytest.approx(R[-1].mean())
    assert summary["worst_task_rmse"] == R[-1].max()
    assert summary["bwt"] == pytest.approx(np.mean([R[t, t] - R[2, t] for t in range(2)]))  # positive: it has fallen
    assert summary["gain_isolated"] == pytest.approx((alone - R[-1]).mean())
    assert summary["forgetting_chaudhry"] == pytest.approx(np.mean([R[2, t] - R[t:2, t].min() for t in range(2)]))
    assert all(summary[key] is None for key in ("avg_acc_final", "per_task_acc", "routed_class_acc"))


def test_the_network_has_learned_the_numbers(runs):
    """Better than the mean of the targets, whose root mean squared error is their standard deviation."""
    run = Run.load(runs / "numbers")
    uninformed = [np.sqrt(np.var(run.targets_of(task), axis=0).mean()) for task in (1, 2, 3)]
    assert (run.accuracy_matrix[-1] < 0.8 * np.array(uninformed)).all()


def test_console_and_table_name_the_metric_and_its_direction(runs):
    told = (runs / "told").read_text()
    assert re.search(r"^metric +rmse, lower is better$", told, re.MULTILINE)
    assert re.search(r"^episode 3/3  rmse 0\.\d{4} on tasks seen \(3\)", told, re.MULTILINE)
    shown = final_table(Run.load(runs / "numbers").summary)
    assert "rmse on the test examples, lower is better" in shown
    assert "fall of the rmse on a task" in shown
    assert "accuracy" not in shown


def test_a_report_names_the_metric(runs, capsys, undrawn):
    for asked in (["numbers"], ["numbers", "er", "--out", "both"], ["numbers", "er", "--format", "md"]):
        with contextlib.chdir(runs):
            assert report.main(asked) == 0
    page = (runs / "numbers/report.html").read_text()
    assert "Test rmse on each task, lower is better" in page
    assert "final accuracy" not in page
    assert not (runs / "numbers/figures/reliability.png").exists()
    assert "final rmse" in (runs / "both/report.html").read_text()
    assert "`avg_rmse_final`" in capsys.readouterr().out


def row(task, value, episode=2):
    scores = {"rmse": Scored(value, None, 5)}
    return Measurement(episode, 8, 64, task, f"task {task}", "test", "", TRAINED["task"], scores)


def test_a_figure_is_found_whatever_the_metric_is_called():
    summary = summarize([row(1, 0.5, 1), row(1, 0.75), row(3, 0.25)], True, None, higher_is_better=False)
    assert figure(summary, "per_task_acc") == [0.75, 0.25]
    assert summary["task_numbers"] == [1, 3]
    assert summary["bwt"] == -0.25
    with pytest.raises(KeyError):
        figure(summary, "per_task_no_such_acc")


# Splits and slices.


def test_further_splits_and_slices_are_measured_as_the_members_answer():
    """A split "dev" with a slice, from the predictions of the members averaged by hand."""
    odd, plain = torch.arange(1, 24, 2), toy_stream(2)
    dev = {task.id: replace(task.train_eval, slices={"odd": odd}) for task in plain.tasks}
    stream = replace(plain, tasks=tuple(task.with_splits(dev=dev[task.id]) for task in plain.tasks))
    method = build_method(Context(toy_config(replay_frac=0.5), stream.spec, CPU))
    evaluation, members = Evaluation(stream, method, 0), []
    for episode in stream.continual():
        learned = method.learn(episode, Monitor())
        rows = evaluation.after(episode, learned, stream.tasks[: episode.number])
        members += method.new_members
    found = {(r.task, r.split, r.slice): r for r in rows if r.scenario == TRAINED["task"]}
    said = sum(m.predictions[1, "dev"] * w for m, w in zip(members, (2, 1), strict=True)) / 3
    for name, part in {"": torch.arange(24), "odd": odd}.items():
        expected = CrossEntropy().evaluate(said[part], dev[1].targets[part])
        scored = found[1, "dev", name].scores
        assert scored["loss"].value == pytest.approx(expected["loss"].value, rel=1e-6)
        assert scored["accuracy"].n == len(part)
    assert (1, "test", "odd") not in found


@pytest.mark.parametrize(("method", "saved"), [("finetune", [0, 0, 0]), ("isolated", [0, 4, 2])])
def test_a_single_network_saves_no_answers_for_each_task(method, saved):
    """It is asked again after an interruption; several save two each, once: of a split and of the mixed examples."""
    plain = toy_stream(3)
    stream = replace(plain, tasks=tuple(task.with_splits(dev=task.train_eval) for task in plain.tasks))
    learner = build_method(Context(toy_config(method=method), stream.spec, CPU))
    evaluation, found = Evaluation(stream, learner, 0), []
    for episode in stream.continual():
        evaluation.after(episode, learner.learn(episode, Monitor()), stream.tasks[: episode.number])
        found.append(sum(part is not None for part in evaluation.state_dict().values()))
    assert found == saved


def test_a_run_says_which_examples_it_kept_and_their_targets(tmp_path):
    """With noisy labels and a memory in which later tasks displace examples of earlier ones."""
    path = tmp_path / "noisy.yaml"
    path.write_text("dataset: digits\ntasks: [{classes: [0, 1], label_noise: 0.4}, [2, 3], [4, 5]]\n")
    given = configure(data_config=str(path), continual=True, memory=24, epochs=1, samples=20, quiet=True, seed=1,
                      run_dir=str(tmp_path / "run"))  # fmt: skip
    run, stream = Run.load(modelzoo.run(given)), datasets.build_stream(given.config.data, 1, torch.device("cpu"))
    for task in stream.tasks:
        for episode in range(task.id, 4):
            positions, targets = run.kept(task.id, episode)
            assert len(np.unique(positions)) == len(positions) == 24 // episode
            assert targets.tolist() == task.train_eval.targets[positions].tolist()


def test_the_clock_counts_steps_and_examples_of_the_whole_run(runs):
    episodes = pd.read_csv(runs / "digits/episodes.csv")
    last = tables.read_metrics(runs / "digits").groupby("episode")[["step", "examples"]].agg(["min", "max"])
    for name, counted in {"step": episodes.steps.cumsum(), "examples": episodes.images.cumsum()}.items():
        assert last[name]["min"].tolist() == last[name]["max"].tolist() == [0, *counted]


# Files.


figures = st.builds(
    Scored, st.floats(allow_nan=False, allow_infinity=False), st.none() | st.floats(0, 1e9), st.integers(0, 10**9)
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
rows = st.builds(
    Measurement, *[st.integers(0, 10**6)] * 4, texts, texts, texts, texts,
    st.dictionaries(st.sampled_from(["accuracy", "loss", "rmse"]), figures, min_size=1),
)  # fmt: skip


@given(st.lists(rows, max_size=5, unique_by=lambda r: (r.episode, r.task)))
def test_measurements_come_back_as_they_were_written(written):
    """Whatever the names of tasks are: quotation marks, commas, line ends, formulas."""
    text = header("metrics.csv").decode() + metric_lines(written).decode()
    assert read_metrics(text) == written


@pytest.mark.parametrize(
    "change", [("value", "score"), ("\n1,", "\nx,"), (",5,\n", ",\n")], ids=str
)  # fmt: skip
def test_a_table_that_is_none_is_refused(change):
    text = (header("metrics.csv") + metric_lines([row(1, 0.5, 1)])).decode()
    assert change[0] in text
    with pytest.raises((KeyError, ValueError, TypeError)):
        read_metrics(text.replace(*change))


def test_a_member_comes_back_as_it_was_written():
    member = SavedMember(
        3, 4, True, (1, 2), (1.0, 0.5), ("a", "b"), (("x", "y"), ("z",)), {"model": "conv"}, (1, 8, 8), 99
    )
    assert SavedMember.from_json(json.loads(json.dumps(member.to_json()))) == member
    assert member.weight(2) == 0.5
    assert member.on([2]) == replace(member, tasks=(2,), weights=(0.5,), task_names=("b",), classes=(("z",),))


def test_a_growing_file_reads_nothing_again(tmp_path, monkeypatch):
    """A thousand commits cost a thousand times one: neither what was written is written nor hashed again."""
    hashed, written = [0], [0]
    real = hashlib.sha256

    class Counting:
        def __init__(self, content=b""):
            self.inner = real(content)
            hashed[0] += len(content)

        def update(self, content):
            self.inner.update(content)
            hashed[0] += len(content)

        def hexdigest(self):
            return self.inner.hexdigest()

    monkeypatch.setattr("utils.files.hashlib.sha256", Counting)
    file = GrowingFile(tmp_path / "x")
    for number in range(1000):
        file.write(b"%06d\n" % number)
        written[0] += 7
        size, digest = file.sum()
    content = (tmp_path / "x").read_bytes()
    assert (size, digest) == (len(content), real(content).hexdigest()) == (written[0], digest)
    assert hashed[0] == written[0]
    again = GrowingFile(tmp_path / "x", content[:70])
    again.write(b"end")
    assert (tmp_path / "x").read_bytes() == content[:70] + b"end"
    assert again.sum() == (73, real(content[:70] + b"end").hexdigest())


@pytest.mark.parametrize("value", [0.0, -0.0, -4e-5, 4e-5])
def test_a_change_or_share_that_is_rounded_to_zero_has_no_minus(value):
    assert (signed(value), signed(10 * value, 2), share(value)) == ("+0.0000", "+0.00", "0.0000")
    assert (signed(-0.0001), share(-0.0001)) == ("-0.0001", "-0.0001")
