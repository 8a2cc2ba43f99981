"""A zoo without a task: what saw it is gone, the rest is as it was."""

import hashlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import distill
import forget
import predict
import report
import training.features
from datasets import build_stream
from modelzoo import main
from records import Run
from records.manifest import read_manifest
from tests.standins import write_image
from tests.tables import read_metrics
from tests.test_saved import images_of, runs  # noqa: F401
from tests.test_scenarios import streamed
from utils.errors import UserError
from zoo import Zoo

TWO = ["--tasks_per_round", "2"]


@pytest.fixture
def run(runs, tmp_path, monkeypatch):  # noqa: F811
    """A function that copies a finished run into this folder, as run/."""
    monkeypatch.chdir(tmp_path)

    def made(*given):
        shutil.copytree(runs(*given), "run")
        return Zoo.load("run", "cpu")

    return made


def sum_of(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_members_that_saw_the_task_are_dropped(run, capsys):
    """Everything that is left answers to the bit as before; nothing of the task is in any file but the certificate."""
    zoo = run("zoo", *TWO, "--hold_out", "0.3")
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert forget.main(["run", "--task", "middle"]) == 0
    said = capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert main(["--verify", "run-without-2"]) == 0
    left = Zoo.load("run-without-2", "cpu")
    keep = [member for member in zoo.members if 2 not in member.tasks]
    assert 0 < len(keep) < len(zoo.members)
    assert [(m.tasks, m.weights, m.episode) for m in left.members] == [(m.tasks, m.weights, m.episode) for m in keep]
    tensors = set()
    for member, old in zip(left.members, keep, strict=True):
        for folder in ("members", "predictions"):
            new = f"run-without-2/{folder}/member_{member.number:03d}.safetensors"
            assert Path(new).read_bytes() == Path(f"run/{folder}/member_{old.number:03d}.safetensors").read_bytes()
            tensors |= set(load_file(new))
    assert not any(name.startswith("task_2/") for name in tensors)
    assert set(load_file("run-without-2/predictions/targets.safetensors")) == {
        f"task_{task}/{split}" for task in (1, 3) for split in ("test", "held_out")
    }
    assert 2 not in read_metrics("run-without-2").task.tolist()
    assert list(Run.load("run-without-2").config["data_sha256"]) == [1, 3]
    for task in streamed("run"):
        if task.id != 2:
            members = [m.number for m in keep if task.id in m.tasks]
            counts = f"{len(zoo.members_for(task.id)):>2} -> {len(members):<2}"
            line = next(line for line in said.splitlines() if line.startswith(f"{task.id} {task.name}"))
            assert counts in line
            if not members:
                assert "no member is left" in line
                continue
            cached = [load_file(f"run/predictions/member_{m:03d}.safetensors")[f"task_{task.id}/test"] for m in members]
            accuracy = (torch.stack(cached).double().mean(0).argmax(1) == task.test.targets).double().mean().item()
            found = left.predict(images_of(task), task.id)
            assert (found.chosen == task.test.targets).double().mean().item() == pytest.approx(accuracy)
            assert line.endswith(f"-> {accuracy:.4f}")
    assert "run still holds the task" in said


def test_the_certificate_says_which_weights_saw_the_task(run):
    zoo = run("zoo", *TWO)
    assert forget.main(["run", "--task", "2", "--retrain", "--quiet"]) == 0
    certificate = json.loads(Path("run-without-2/certificate.json").read_text())
    assert certificate["forgotten"] == {"task": 2, "name": "middle", "classes": ["2", "3", "4"]}
    assert certificate["from_manifest_sha256"] == sum_of("run/manifest.json")
    assert [entry["member"] for entry in certificate["members"]] == [member.number for member in zoo.members]
    now = set()
    for entry, member in zip(certificate["members"], zoo.members, strict=True):
        file = f"members/member_{member.number:03d}.safetensors"
        assert entry["weights_sha256"] == sum_of(f"run/{file}") == read_manifest(Path("run")).files[file].sha256
        assert entry["trained_on"] == list(member.tasks)
        assert entry["saw_the_task"] == (2 in member.tasks)
        others = [task for task in member.tasks if task != 2]
        if not entry["saw_the_task"]:
            assert entry["what_became_of_it"] == "kept"
            assert entry["weights_sha256_now"] == entry["weights_sha256"]
        elif others:
            assert entry["what_became_of_it"] == "dropped, trained again without the task"
            assert entry["weights_sha256_now"] != entry["weights_sha256"]
        else:
            assert (entry["what_became_of_it"], entry["member_now"]) == ("dropped", None)
            continue
        assert entry["trained_on_now"] == others
        place = entry["member_now"]
        assert entry["weights_sha256_now"] == sum_of(f"run-without-2/members/member_{place:03d}.safetensors")
        now.add(place)
    assert now == set(range(len(Zoo.load("run-without-2", "cpu").members)))
    assert len(certificate["limits"]) == 4


def test_retrained_members_never_see_the_task_nor_more_than_was_kept(run, monkeypatch):
    """Other images in the task, and in what was neither kept nor tested: the same bits."""
    run("zoo", "--replay_frac", "0.5", "--hold_out", "0.2")
    assert forget.main(["run", "--task", "middle", "--retrain", "--quiet", "--run_dir", "one"]) == 0
    import zoo.forgetting

    kept = distill_kept("run")
    build = training.features.build_stream

    def changed(config, seed, device):
        stream = build(config, seed, device)
        assert [task.id for task in stream.tasks] == [1, 3]
        for task in stream.tasks:
            store = task.train_eval.store
            mine = set(kept[task.id].rows.tolist()) | set(task.held_out.rows.tolist())
            others = torch.tensor([row for row in task.train_eval.rows.tolist() if row not in mine])
            assert len(others)
            store[others] = 255 - store[others]
        return stream

    monkeypatch.setattr(training.features, "build_stream", changed)
    monkeypatch.setattr(zoo.forgetting, "check_same_data", lambda *given: None)  # it would see the change
    assert forget.main(["run", "--task", "middle", "--retrain", "--quiet", "--run_dir", "two"]) == 0
    files = sorted(path.relative_to("one") for path in Path("one").rglob("*.safetensors"))
    assert len(files) > 4
    for file in files:
        assert (Path("one") / file).read_bytes() == (Path("two") / file).read_bytes(), file
    monkeypatch.setattr(zoo.forgetting, "derive_seed", lambda seed, *names: seed)  # as when the task was learned
    assert forget.main(["run", "--task", "middle", "--retrain", "--quiet", "--run_dir", "three"]) == 0
    assert any((Path("one") / file).read_bytes() != (Path("three") / file).read_bytes() for file in files)


def distill_kept(path):
    from zoo.distillation import kept_examples

    loaded = Zoo.load(path, "cpu")
    return kept_examples(loaded, build_stream(loaded.config.data, loaded.config.seed, torch.device("cpu")))


def test_a_retrained_zoo_learns_what_is_left(run, capsys):
    zoo = run("zoo")
    assert forget.main(["run/", "--task", "0/1", "--retrain"]) == 0
    left = Zoo.load("run-without-1", "cpu")
    assert [len(left.members_for(task)) for task in (2, 3)] == [len(zoo.members_for(task)) for task in (2, 3)]
    for task in streamed("run")[1:]:
        hits = left.predict(images_of(task), task.id).chosen == task.test.targets
        assert hits.double().mean() > 0.6
        cached = [load_file(f"run-without-1/predictions/member_{m.number:03d}.safetensors")[f"task_{task.id}/test"]
                  for m in left.members_for(task.id)]  # fmt: skip
        np.testing.assert_allclose(left.predict(images_of(task), task.id).probabilities,
                                   torch.stack(cached).mean(0), atol=2e-6)  # fmt: skip


def test_what_is_left_is_a_run_like_others(run, capsys, undrawn):
    run("zoo", "--hold_out", "0.3")
    assert forget.main(["run", "--task", "middle", "--retrain", "--quiet"]) == 0
    assert main(["--verify", "run-without-2"]) == 0
    summary = json.loads(Path("run-without-2/summary.json").read_text())
    left = Zoo.load("run-without-2", "cpu")
    held = load_file("run-without-2/predictions/targets.safetensors")
    assert summary["held_out_examples"] == sum(len(held[f"task_{task}/held_out"]) for task in (1, 3))
    asked = [left.net(m)[0] for task in (1, 3) for m in left.members_for(task)]
    heads = sum(2 * (net.weight.shape[1] + 1) for net in asked)
    trunks = sum(p.numel() for net in asked for p in net.trunk.parameters())
    assert summary["parameters_per_prediction"] == (trunks + heads) / 2
    capsys.readouterr()
    assert main(["--resume", "--run_dir", "run-without-2/"]) == 0
    assert "3 5/6" in capsys.readouterr().out
    assert report.main(["run-without-2"]) == 0
    page = Path("run-without-2/report.html").read_text()
    assert "run without task 2, middle" in page
    assert re.search("2 5/6", page)
    assert distill.main(["run-without-2", "--quiet", "--epochs", "1"]) == 0
    assert [task.number for task in Zoo.load("run-without-2-student").tasks] == [1, 3]
    assert forget.main(["run-without-2", "--task", "0/1", "--retrain", "--quiet"]) == 0
    assert [task.number for task in Zoo.load("run-without-2-without-1").tasks] == [3]
    Path("p.png").write_bytes(b"")
    capsys.readouterr()
    assert predict.main(["run-without-2", "--task", "middle", "p.png"]) == 2
    assert "unknown task 'middle'" in capsys.readouterr().err
    assert main(["--extend", "run-without-2", "--data_config", "x.yaml"]) == 2
    assert main(["--resume", "--run_dir", "run-without-2"]) == 0


def test_a_head_in_closed_form_is_taken_out(run, capsys):
    """The other heads are to the bit as before, and no weight that was computed from the task is left."""
    zoo = run("closed_form", "--hold_out", "0.3")
    assert forget.main(["run", "--task", "middle"]) == 0
    left = Zoo.load("run-without-2", "cpu")
    assert main(["--verify", "run-without-2"]) == 0
    (new,), (old,) = ([one.net(member)[0] for member in one.members] for one in (left, zoo))
    assert [task.number for task in left.tasks] == [1, 3]
    assert new.weight.shape[0] == old.weight.shape[0] - 3
    for task in (1, 3):
        images = images_of(streamed("run")[task - 1])
        assert torch.equal(new.weight[new.rows(task)], old.weight[old.rows(task)])
        found, before = (one.predict(images, task).probabilities for one in (left, zoo))
        torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-6)
    (line,) = json.loads(Path("run-without-2/certificate.json").read_text())["members"]
    assert line["what_became_of_it"].startswith("kept without the head of the task")
    assert forget.main(["run", "--task", "1", "--retrain"]) == 2
    assert "no head was computed from the examples of another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "given", "words"),
    [
        ([], ["run"], "arguments are required: --task"),
        ([], ["nowhere", "--task", "1"], "nowhere is not the directory of a run"),
        ([], ["run", "--task", "midle"], "unknown task 'midle'; did you mean 'middle'?"),
        ([], ["run", "--task", "1"], "every member of run has learned 0/1: nothing would be left; add --retrain"),
        (["er"], ["run", "--task", "1"], "run is of --method er, one network that saw every task: train it again"),
        (["zoo", *TWO], ["run", "--task", "2", "--run_dir", "run"], "--run_dir run is a run that is read here"),
        ([], ["run", "--task", "2", "--run_dir", "run", "--overwrite"], "--run_dir run is a run that is read here"),
        (["zoo", "--memory", "9"], ["run", "--task", "1", "--retrain"], "run shares --memory 9 between tasks"),
        ([], ["run", "--task", "1", "--retrian"], "unknown option --retrian; did you mean --retrain?"),
        ([], ["run", "--task", "1", "--threads", "-1"], "--threads is -1; it must be a whole number at least 1"),
    ],
)
def test_wrong_input_is_one_line(made, given, words, run, capsys):
    run(*(made or ["zoo", "--tasks_per_round", "3"]))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    assert forget.main(given) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert err.startswith("forget.py: ")
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_other_data_are_refused(run, monkeypatch, capsys):
    run("zoo")

    build = training.features.build_stream

    def changed(config, seed, device):
        stream = build(config, seed, device)
        stream.tasks[0].test.targets[:] = 0
        return stream

    monkeypatch.setattr(training.features, "build_stream", changed)
    assert forget.main(["run", "--task", "2", "--retrain", "--quiet"]) == 2
    assert "the data are not those that run was trained on" in capsys.readouterr().err
    assert not Path("run-without-2").exists()


# Killed or stopped while training, after config.yaml, and between the commit and the end.
@pytest.mark.parametrize(
    "moment",
    ["methods.ensemble.Training", "zoo.forgetting.RunDirectory.add_member", "zoo.forgetting.RunDirectory.finish"],
)
@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_zoo_answers_nothing_and_the_same_command_makes_it(moment, run, monkeypatch, capsys):
    run("zoo", *TWO)
    command = ["run", "--task", "middle", "--retrain", "--quiet"]
    assert forget.main([*command, "--run_dir", "whole"]) == 0

    def stopped(*given, **named):
        os.kill(os.getpid(), signal.SIGTERM)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(moment, stopped)
        assert forget.main(command) == 143
    assert capsys.readouterr().err == "forget.py: stopped by SIGTERM; repeat the command\n"
    if moment != "methods.ensemble.Training":
        told = "run-without-2 is half-made (run without task 2, middle): repeat the command that was stopped"
        with pytest.raises(UserError, match=re.escape(told)):
            Zoo.load("run-without-2")
        assert main(["--resume", "--run_dir", "run-without-2"]) == 2
        assert told in capsys.readouterr().err
    assert forget.main(command) == 0
    for path in Path("whole").rglob("*.safetensors"):
        assert (Path("run-without-2") / path.relative_to("whole")).read_bytes() == path.read_bytes()
    assert main(["--verify", "run-without-2"]) == 0


def test_what_was_not_measured_is_left_empty(run, undrawn):
    """Without --retrain nothing is trained: no loss and no speed, instead of zeros."""
    run("zoo", *TWO)
    assert forget.main(["run", "--task", "2", "--quiet"]) == 0
    episode = pd.read_csv("run-without-2/episodes.csv").iloc[0]
    assert np.isnan(episode.train_loss)
    assert np.isnan(episode.images_per_second)
    assert (episode.images, episode.steps, episode.train_seconds) == (0, 0, 0)
    assert episode.seconds > 0
    assert json.loads(Path("run-without-2/summary.json").read_text())["images_per_second"] is None
    assert np.isnan(Run.load("run-without-2").episodes[0].train_loss)
    assert report.main(["run-without-2"]) == 0
    assert "nothing was trained" in Path("run-without-2/report.html").read_text()


def test_a_task_is_not_taken_for_another_one_of_that_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").write_text("dataset: digits\ntasks: [{name: '2', classes: [0, 1]}, {name: '1', classes: [2, 3]}]\n")
    given = ["--data_config", "d.yaml", "--continual", "--samples", "4", "--epochs", "1", "--quiet", "--run_dir", "run"]
    assert main([*given, "--tasks_per_round", "1"]) == 0
    capsys.readouterr()
    assert forget.main(["run", "--task", "1"]) == 2
    assert "'1' may be several tasks; write number=1 for 1 '2' or number=2 for 2 '1'" in capsys.readouterr().err
    assert forget.main(["run", "--task", "name=1"]) == 0
    assert [(task.number, task.name) for task in Zoo.load("run-without-2").tasks] == [(1, "2")]


def test_classes_may_be_removed_and_added_beside_what_is_held_out(tmp_path, monkeypatch):
    """Retrained members never see what the others hold out, though a class before it is gone; then another joins."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(256, size=(4, 12, 3, 8, 8), dtype=np.uint8)
    for name, part in zip(("b\u00e9", *"dfh"), images, strict=True):
        for number, pixels in enumerate(part):
            for split in ("train", "test"):
                write_image(Path("data/mine", split, name, f"{number}.png"), pixels)
    yaml = "dataset: image_folder\nroot: mine\nimage_size: 8\ntasks: "
    Path("d.yaml").write_text(yaml + "[[b\u00e9, d], [d, f], [f, h]]\n")
    Path("more.yaml").write_text(yaml + "[[a, c]]\n")
    given = ["--continual", "--hold_out", "0.3", "--epochs", "1", "--threads", "1", "--quiet"]
    assert main(["--data_config", "d.yaml", *given, "--run_dir", "run"]) == 0

    def held_out(run):
        return {task.id: task.held_out.store[task.held_out.rows] for task in streamed(run)}

    before = held_out("run")
    for split in ("train", "test"):
        Path("data/mine", split, "b\u00e9").rename(f"{split}-b")
    assert forget.main(["run", "--task", "be\u0301/d", "--retrain", "--quiet"]) == 0
    after = held_out("run-without-1")
    assert after.keys() == {2, 3}
    assert all(torch.equal(before[task], after[task]) for task in after)
    for split in ("train", "test"):
        for name in ("a", "b\u00e9", "c"):
            shutil.copytree(f"{split}-b", Path("data/mine", split, name))
    assert main(["--extend", "run", "--data_config", "more.yaml", "--quiet"]) == 0
    extended = held_out("run-extended")
    assert all(torch.equal(before[task], extended[task]) for task in before)
