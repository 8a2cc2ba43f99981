"""A student learns from what its run has kept, and from nothing else; its figures are those of the files."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score

import distill
import export
import modelzoo
import predict
import report
from datasets import build_stream
from datasets.mixture import Mixture
from datasets.objectives import CrossEntropy
from datasets.task import Table
from net import build_net, settings_class
from records.monitor import RunMonitor
from tests.tables import read_metrics
from tests.test_resume import options, results, start, stop_after, write_configs
from tests.toys import CPU, run_toy, toy_config, toy_stream
from training.prediction import predict_examples
from utils.errors import UserError
from zoo import Zoo
from zoo.distillation import EPOCHS, LABELS, Imitation, kept_examples, lesson, middle_task

KEPT = ("--hold_out", "0.25", "--memory_per_class", "2")
TASKS = (1, 2, 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three tasks, with heads of two widths: a zoo that keeps two examples a class, isolated networks, a student."""
    folder = tmp_path_factory.mktemp("distill")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_configs()
        assert start("zoo", *options("zoo"), *KEPT) == 0
        # A name is not part of a task.
        named = "--set=data.tasks=[{name: zero, classes: [0, 1]}, [10, 11, 12], [22, 23]]"
        assert start("isolated", *options("isolated"), *KEPT[:2], named) == 0
        assert teach("zoo", "--isolated", "isolated", "--budget", "1") == 0
    return folder


@pytest.fixture(autouse=True)
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)


@pytest.fixture(scope="module")
def zoo(runs):
    return Zoo.load(runs / "zoo", "cpu")


@pytest.fixture(scope="module")
def stream(zoo):
    return build_stream(zoo.config.data, zoo.config.seed, CPU.device)


def teach(run, *more):
    return distill.main([run, "--threads", "1", "--device", "cpu", "--quiet", *more])


def images(examples):
    return Mixture([(0, examples)]).inputs(slice(None))


def saved(run, number):
    return load_file(f"{run}/predictions/{number}.safetensors")


# What is learned.


@pytest.mark.parametrize("widths", [(3, 3), (3, 2)])
def test_the_loss_is_the_cross_entropy_of_a_plain_loop(widths):
    """An output beside a narrower head is -inf, and its target 0."""
    outputs, targets = torch.randn(2, 3), torch.zeros(2, 3)
    for row, width in enumerate(widths):
        outputs[row, width:] = -torch.inf
        targets[row, :width] = torch.rand(width).softmax(0)
    expected = 0.0
    for z, q in zip(outputs.double().tolist(), targets.double().tolist(), strict=True):
        own = [c for c in range(3) if z[c] > -math.inf]
        normaliser = math.log(sum(math.exp(z[c]) for c in own))
        expected -= sum(q[c] * (z[c] - normaliser) for c in own) / len(widths)
    assert Imitation().loss(outputs, targets).item() == pytest.approx(expected, rel=1e-5)


def test_of_certain_targets_the_loss_is_that_of_class_numbers_and_so_are_the_gradients():
    targets = torch.tensor([0, 1, 1, 0, 2])
    wide = torch.randn(5, 3)
    wide[:4, 2] = -torch.inf
    soft, hard = wide.clone().requires_grad_(), wide.clone().requires_grad_()
    one, other = Imitation().loss(soft, F.one_hot(targets, 3).float()), CrossEntropy().loss(hard, targets)
    torch.testing.assert_close(one, other)
    one.backward()
    other.backward()
    assert soft.grad.isfinite().all()
    torch.testing.assert_close(soft.grad, hard.grad)


@pytest.mark.parametrize("combination", [{}, {"combine": "stacked", "temperature": "task"}])
def test_targets_are_what_the_zoo_says_to_the_kept_examples_and_their_classes(zoo, stream, combination):
    teacher = zoo.combined(**combination)
    for labels in (0.0, LABELS):
        for task in lesson(teacher, stream, labels).tasks:
            examples, kept = task.train.epoch(None), task.train_eval
            assert torch.equal(images(examples), images(kept))
            said = teacher.predict(images(kept), task.id).probabilities
            expected = (1 - labels) * said + labels * F.one_hot(kept.targets, task.num_outputs)
            torch.testing.assert_close(examples.targets[:, : task.num_outputs], expected, rtol=1e-6, atol=1e-7)
            assert not examples.targets[:, task.num_outputs :].any()
            assert examples.targets.shape[1] == 3


def test_the_kept_examples_are_those_on_which_the_run_has_measured_its_fit(zoo, stream):
    fits = read_metrics("zoo").query("split == 'train' and episode == 3")
    assert fits.task.tolist() == list(TASKS)
    for task, row in zip(lesson(zoo, stream, labels=0.0).tasks, fits.itertuples(), strict=True):
        kept, said = task.train_eval, task.train.epoch(None).targets
        assert len(kept) == row.n == 2 * task.num_outputs
        score = CrossEntropy().evaluate(said, kept.targets)
        for name in ("loss", "accuracy"):
            assert score[name].value == pytest.approx(getattr(row, name), rel=1e-5)


@pytest.mark.parametrize(
    "limit",
    [
        {},
        {"memory": 9},
        {"replay_frac": 0.25},
        {"continual": False, "rounds": 3},
        {"method": "er", "memory": 9, "settings": {"buffer": "reservoir"}},
    ],
)
def test_what_was_kept_is_what_the_method_holds_when_it_has_learned_all(limit):
    config, stream = toy_config(**limit), toy_stream(3)
    method, _, _ = run_toy(config, stream)
    found = kept_examples(SimpleNamespace(config=config, path="run"), stream)
    assert set(found) == {1, 2, 3}
    for task, kept in found.items():
        assert torch.equal(kept.rows, method.memory.examples(task).rows)


def destroyed(stream, kept):
    """The stream with noise in place of all training images but the kept ones, and of all held-out ones."""

    def noise(examples, but=()):
        store = torch.randint_like(examples.store, 256)
        for row in but:
            store[row] = examples.store[row]
        return replace(examples, store=store)

    tasks = []
    for task in stream.tasks:
        train = noise(task.train_eval, kept[task.id].rows.tolist())
        tasks.append(replace(task, train=Table(train)).with_splits(train=train, held_out=noise(task.held_out)))
    return replace(stream, tasks=tuple(tasks))


def test_the_student_never_sees_an_example_that_was_not_kept_or_was_held_out(zoo, stream, monkeypatch):
    monkeypatch.setattr(distill, "stream_of", lambda *_: destroyed(stream, kept_examples(zoo, stream)))
    assert teach("zoo", "--run_dir", "destroyed") == 0
    for name in ("members/member_000.safetensors", "members/member_000.json", "metrics.csv"):
        assert Path("destroyed", name).read_bytes() == Path("zoo-student", name).read_bytes()
    for name, said in saved("destroyed", "member_000").items():
        assert torch.equal(said, saved("zoo-student", "member_000")[name]) == name.endswith("/test")


def test_the_same_command_gives_the_same_bits_and_another_seed_others():
    assert teach("zoo", "--run_dir", "again") == 0
    assert results("again") == results("zoo-student")
    assert teach("zoo", "--run_dir", "again", "--overwrite", "--seed", "5") == 0
    other, first = (load_file(f"{run}/members/member_000.safetensors") for run in ("again", "zoo-student"))
    assert not torch.equal(other["weight"], first["weight"])


def test_the_student_comes_to_agree_with_the_zoo(zoo, stream):
    """On the kept examples, when it is taught nothing but what the zoo says."""
    taught = lesson(zoo, stream, labels=0.0)
    config = distill.student_config(zoo.config, distill.arguments(["zoo", "--epochs", "60"]))
    student, _, _ = distill.teach(taught, config, CPU, RunMonitor())
    (member,) = student.new_members
    untrained = build_net("conv", (1, 8, 8), settings_class("conv")(dropout=0.0), member.net.head_sizes)
    distances = []
    for task in taught.tasks:
        right = zoo.predict(images(task.train_eval), task.id).probabilities
        said = [predict_examples(net, task.id, task.train_eval, stream.spec, CPU) for net in (member.net, untrained)]
        distances.append([(p - right).abs().sum(-1).mean() for p in said])
    trained, before = torch.tensor(distances).mean(0)
    assert trained < before / 2


# What is written.


def test_the_directory_is_a_run(stream, tmp_path, capsys, undrawn):
    assert modelzoo.main(["--verify", "zoo-student"]) == 0
    assert {path.name for path in Path("zoo-student").iterdir()} == {
        "config.yaml", "episodes.csv", "manifest.json", "members", "metrics.csv", "predictions", "summary.json",
    }  # fmt: skip
    config = yaml.safe_load(Path("zoo-student/config.yaml").read_text())
    teacher = yaml.safe_load(Path("zoo/config.yaml").read_text())
    assert config["distilled_from"] == str(Path("zoo").absolute())
    assert config["teacher"] == {"combine": "mean", "temperature": "none"}
    assert config["hp"].pop("epochs") == EPOCHS * teacher["hp"].pop("epochs")
    same = teacher.keys() - {"method", "continual", "compared_with", "uncommitted_changes", "commit"}
    assert {key: config[key] for key in same} == {key: teacher[key] for key in same}
    summary = json.loads(Path("zoo-student/summary.json").read_text())
    assert (config["method"], summary["method"], summary["episodes"]) == ("student", "student", 1)
    rows = read_metrics("zoo-student")
    assert set(rows.query("episode == 1").scenario) == {
        "task-incremental", "routed-class", "task-identification",
    }  # fmt: skip
    last = rows.query("scenario == 'task-incremental' and episode == 1")
    assert last.task.tolist() == list(TASKS)
    assert summary["avg_acc_final"] == pytest.approx(last.accuracy.mean())
    isolated = json.loads(Path("isolated/summary.json").read_text())["per_task_acc"]
    assert summary["gain_isolated"] == pytest.approx(last.accuracy.mean() - np.mean(isolated))

    student = Zoo.load("zoo-student", "cpu")
    assert [task.name for task in student.tasks] == [task.name for task in stream.tasks]
    (member,) = student.members
    assert member.tasks == TASKS
    for task in stream.tasks:
        said = student.predict(images(task.test), task.id).probabilities
        torch.testing.assert_close(said, saved("zoo-student", "member_000")[f"task_{task.id}/test"])
    student.combined("stacked", "task")  # its held-out predictions are there to be fitted on

    Image.fromarray(images(stream.tasks[1].test)[0, 0].numpy()).save(tmp_path / "digit.png")
    capsys.readouterr()
    assert predict.main(["zoo-student", str(tmp_path / "digit.png"), "--task", "2", "--threads", "1"]) == 0
    assert f"digit.png: 2 {stream.tasks[1].name}: " in capsys.readouterr().out
    assert export.main(["zoo-student", "--out", str(tmp_path / "shipped"), "--format", "torch"]) == 0
    assert "| method | student |" in (tmp_path / "shipped/README.md").read_text()
    assert report.main(["zoo-student", "--out", str(tmp_path)]) == 0
    assert "student" in (tmp_path / "report.html").read_text()
    capsys.readouterr()
    assert report.main(["zoo", "zoo-student", "isolated", "--format", "md"]) == 0
    assert re.findall(r"^\| (zoo|student|isolated) +\| 0", capsys.readouterr().out, re.M) == [
        "zoo",
        "student",
        "isolated",
    ]


def cells(printed):
    """Of the table: name -> numbers."""
    header, *lines = printed.strip("\n").splitlines()
    assert header.split("  ")[0] == ""
    assert re.split(r"  +", header.strip()) == ["accuracy", "parameters a task", "parameters", "ms an image"]
    split = [re.split(r"  +", line) for line in lines]
    return {name: [float(number.replace(",", "")) for number in numbers] for name, *numbers in split}


def mean_accuracy(run, chosen):
    """Of weighted means of the saved predictions; `chosen`: task -> members."""
    targets, found = saved(run, "targets"), []
    for task, members in chosen.items():
        name, mean = f"task_{task}/test", 0.0
        for member in members:
            facts = json.loads(Path(run, f"members/member_{member:03d}.json").read_text())
            weight = facts["weights"][facts["tasks"].index(task)]
            mean = mean + weight * saved(run, f"member_{member:03d}")[name].double()
        found.append(accuracy_score(targets[name], mean.argmax(1)))
    return np.mean(found)


def test_the_table_follows_from_the_run_directories(zoo, capsys):
    compare = ["--isolated", "isolated", "--budget", "1", "--epochs", "1", "--run_dir", "short", "--overwrite"]
    assert teach("zoo", *compare) == 0
    rows = cells(capsys.readouterr().out)
    pruned = zoo.combined(budget=1)
    assert list(rows) == ["zoo", "zoo, at most 1", "isolated", "student"]
    asked = {
        "zoo": {task: [m.number for m in zoo.members_for(task)] for task in TASKS},
        "zoo, at most 1": {task: pruned.combinations[task].members for task in TASKS},
        "student": {task: [0] for task in TASKS},
        "isolated": {task: [task - 1] for task in TASKS},
    }
    directory = {"zoo": "zoo", "zoo, at most 1": "zoo", "student": "short", "isolated": "isolated"}
    for name, chosen in asked.items():
        accuracy, answering, parameters, milliseconds = rows[name]
        assert accuracy == pytest.approx(mean_accuracy(directory[name], chosen), abs=5e-5)
        summary = json.loads(Path(directory[name], "summary.json").read_text())
        if directory[name] == name or name == "student":
            assert accuracy == pytest.approx(summary["avg_acc_final"], abs=5e-5)
            assert answering == pytest.approx(summary["parameters_per_prediction"], abs=0.5)
        members = sorted(set().union(*chosen.values()))
        tensors = [load_file(f"{directory[name]}/members/member_{number:03d}.safetensors") for number in members]
        trained = [t for found in tensors for key, t in found.items() if "running" not in key and "num_b" not in key]
        assert parameters == sum(tensor.numel() for tensor in trained)
        assert milliseconds > 0
    assert rows["zoo, at most 1"][1] == pytest.approx(rows["isolated"][1], abs=1)
    assert teach("zoo", "--epochs", "1", "--run_dir", "short", "--overwrite") == 0
    assert list(cells(capsys.readouterr().out)) == ["zoo", "student"]


def test_the_task_on_which_the_time_is_taken_has_a_usual_number_of_members(zoo):
    counts = sorted(len(zoo.members_for(task)) for task in TASKS)
    assert counts == [1, 2, 2]
    assert len(zoo.members_for(middle_task(zoo))) == 2


# What is refused.


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["nowhere"], "nowhere is not the directory of a run (it has no config.yaml)"),
        (["isolated"], "isolated has kept no training examples (--method isolated), so that a student has none to"),
        (["zoo-student"], "zoo-student/config.yaml: method: unknown method 'student' (known: "),
        (["zoo"], "zoo-student already holds a run; replace it with --overwrite, or name another directory"),
        (["zoo", "--run_dir", "zoo", "--overwrite"], "--run_dir zoo is a run that is read here; name another"),
        (["zoo", "--run_dir", "isolated", "--isolated", "isolated", "--overwrite"], "--run_dir isolated is a run that"),
        (["zoo", "--run_dir", "beside", "--overwrite"], "--run_dir beside is not empty and not a run"),
        (["zoo", "--isolated", "zoo", "--run_dir", "x"], "--isolated zoo is a run of --method zoo; it must be one of"),
        (["zoo", "--epochs", "0"], "--epochs is 0; it must be a whole number at least 1 and at most 1e+06"),
        (["zoo", "--budget", "few"], "--budget is 'few'; it must be a whole number at least 1"),
        (["zoo", "--combine", "meen", "--run_dir", "x"], "unknown way to combine 'meen'; did you mean 'mean'?"),
        (["zoo", "--temperature", "hot", "--run_dir", "x"], "unknown temperature 'hot'"),
        (["zoo", "--device", "tpu", "--run_dir", "x"], "--device: unknown device 'tpu'"),
        (["zoo", "--epoch", "3"], "unknown option --epoch; did you mean --epochs?"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_wrong_input_is_one_line_and_changes_nothing(command, told, capsys):
    Path("beside").mkdir(exist_ok=True)
    Path("beside/notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    assert distill.main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("distill.py: ")
    assert told in printed.err
    assert printed.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()} == before


def test_a_run_without_held_out_examples_has_nothing_to_prune_on(capsys):
    assert start("whole", *options("zoo"), "--epochs", "1") == 0
    capsys.readouterr()
    assert teach("whole", "--budget", "1") == 2
    assert "whole has no held-out examples, on which this is fitted" in capsys.readouterr().err


def test_other_data_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(distill, "build_stream", lambda config, seed, device: build_stream(config, 7, device))
    assert teach("zoo", "--run_dir", "x") == 2
    assert "data: the data are not those that zoo was trained on (data_sha256 in its" in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_refused(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 14)
        assert start("stopped", *options("zoo"), *KEPT) == 143
    assert teach("stopped", "--run_dir", "x") == 2
    assert "stopped is not finished; resume it first (modelzoo.py --resume)" in capsys.readouterr().err


def test_a_task_that_nothing_was_kept_of_or_no_member_has_learned_is_refused(zoo, stream):
    few = replace(zoo.config, memory_per_class=None, memory=2)
    with pytest.raises(UserError, match="has kept no training examples of task 3 'third'"):
        kept_examples(SimpleNamespace(config=few, path="zoo"), renamed(stream, 3, "third"))
    lacking = SimpleNamespace(config=zoo.config, path="zoo", combinations={1: None, 2: None})
    with pytest.raises(UserError, match="no member of zoo has learned task 3 "):
        lesson(lacking, stream)


def renamed(stream, number, name):
    return replace(stream, tasks=tuple(replace(t, name=name) if t.id == number else t for t in stream.tasks))


def test_a_student_that_diverges_leaves_the_one_before(monkeypatch, capsys):
    before = results(shutil.copytree("zoo-student", "old"))
    usual = distill.student_config

    def hot(config, options):
        made = usual(config, options)
        return replace(made, hp=replace(made.hp, lr=1e30))

    monkeypatch.setattr(distill, "student_config", hot)
    assert teach("zoo", "--run_dir", "old", "--overwrite") == 1
    assert "is not finite in epoch" in capsys.readouterr().err
    assert results("old") == before
    assert modelzoo.main(["--verify", "old"]) == 0


@pytest.mark.parametrize("moment", ["methods.ensemble.Training", "distill.save_members", "distill.RunDirectory.finish"])
@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_student_answers_nothing_and_the_same_command_makes_it(moment, monkeypatch, capsys):
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    shutil.rmtree("halfway", ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr(moment, interrupted)
        assert teach("zoo", "--run_dir", "halfway") == 130
    assert capsys.readouterr().err == "distill.py: interrupted; repeat the command\n"
    if moment == "methods.ensemble.Training":
        assert not list(Path("halfway").glob("*"))
    else:
        told = "halfway is half-made (a student of zoo): repeat the command that was stopped"
        with pytest.raises(UserError, match=re.escape(told)):
            Zoo.load("halfway")
        assert modelzoo.main(["--resume", "--run_dir", "halfway"]) == 2
        assert told in capsys.readouterr().err
    assert teach("zoo", "--run_dir", "halfway") == 0
    assert results("halfway") == results("zoo-student")
