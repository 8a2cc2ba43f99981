"""A run directory as a zoo: it answers as the run did, from what is on the disk."""

import copy
import hashlib
import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

import distill
import forget
from datasets.mixture import Mixture
from methods import METHODS
from modelzoo import main
from records import Run, members
from records.manifest import Entry, read_manifest
from tests.standins import write_image_folder
from tests.test_scenarios import streamed
from utils.errors import UserError
from utils.files import tensor_bytes
from zoo import Zoo, saved
from zoo.combine import Combination, MemberPredictions, fitted, stacked, weighted, weighted_mean

# One of each way to answer: ensembles, one network for all tasks, one with something of its own for each task.
ANSWERING = ("zoo", "isolated", "isolated_ensemble", "joint", "cumulative", "er", "packnet", "wsn")
TASKS = "[[0, 1], {name: middle, classes: [2, 3, 4]}, [5, 6]]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The path of a finished run of a method; made once."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "d.yaml").write_text(f"dataset: digits\ntasks: {TASKS}\n")
    (folder / "hp.yaml").write_text("model: conv\nepochs: 2\nbatch: 8\n")

    def made(method="zoo", *more):
        run = folder / "-".join([method, *more]).replace("/", "_")
        if not run.exists():
            given = ["--data_config", str(folder / "d.yaml"), "--hp_config", str(folder / "hp.yaml"), "--samples", "10"]
            continual = ["--continual"] if "continual" in METHODS[method].modes else []
            assert main([*given, *continual, "--method", method, "--quiet", "--run_dir", str(run), *more]) == 0
        return run

    return made


def images_of(task):
    """Test images as the network sees them, uint8 [N, C, H, W]."""
    return Mixture([(task.id, task.test)]).inputs(slice(0, len(task.test)))


@pytest.mark.parametrize("method", ANSWERING)
def test_a_loaded_zoo_says_what_the_run_said(method, runs):
    """The weighted mean of the cached predictions, by numpy."""
    zoo = Zoo.load(runs(method), "cpu")
    assert [(task.number, task.name) for task in zoo.tasks] == [(1, "0/1"), (2, "middle"), (3, "5/6")]
    for task in streamed(zoo.path):
        found = zoo.predict(images_of(task), task=task.name)
        cached, weights = [], []
        for member in zoo.members_for(task.name):
            facts = json.loads((zoo.path / f"members/member_{member.number:03d}.json").read_text())
            weights.append(facts["weights"][facts["tasks"].index(task.id)])
            file = load_file(zoo.path / f"predictions/member_{member.number:03d}.safetensors")
            cached.append(file[f"task_{task.id}/test"].double().numpy())
        expected = np.average(cached, 0, weights)
        np.testing.assert_allclose(found.probabilities.numpy(), expected, atol=2e-6)
        assert found.classes == task.classes
        assert found.labels == [task.classes[i] for i in expected.argmax(1)]
        assert {task.number for task in found.tasks} == {task.id}
        summary = json.loads((zoo.path / "summary.json").read_text())
        accuracy = np.mean(found.chosen.numpy() == task.test.targets.numpy())
        assert accuracy == pytest.approx(summary["per_task_acc"][task.id - 1], abs=1e-9)


@pytest.mark.parametrize("method", ["zoo", "packnet"])
def test_a_run_in_bf16_answers_in_bf16(method, runs):
    """As its saved predictions, on which temperatures are fitted; in float32 answers differ."""
    zoo = Zoo.load(runs(method, "--precision", "bf16", "--hold_out", "0.3"), "cpu")
    task = streamed(zoo.path)[1]
    saved = zoo.saved_predictions("held_out")[task.id]
    images = Mixture([(task.id, task.held_out)]).inputs(slice(0, len(task.held_out)))
    for one in (zoo, zoo.combined("mean", "task")):
        expected = saved.of(one.combinations[task.id])
        torch.testing.assert_close(one.predict(images, task.name).probabilities, expected, atol=2e-6, rtol=0)
        assert (one.in_fp32().predict(images, task.name).probabilities - expected).abs().max() > 1e-4


def test_tensors_that_share_memory_can_be_saved():
    weight = torch.rand(3)
    made = safetensors.torch.load(tensor_bytes({"a": weight, "b": weight, "c": weight + 1}))
    assert made["a"].equal(weight) and made["b"].equal(weight) and made["c"].equal(weight + 1)  # noqa: PT018


def test_only_the_members_that_are_asked_are_read(runs, monkeypatch):
    read, run = [], runs("zoo", "--tasks_per_round", "2")
    checked = members.checked
    monkeypatch.setattr(
        members, "checked", lambda path, manifest, name: read.append(name) or checked(path, manifest, name)
    )
    zoo = Zoo.load(run, "cpu")
    assert not [name for name in read if name.endswith("safetensors")]
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    for _ in range(2):
        zoo.predict(image, task="5/6")
    expected = [f"members/member_{m.number:03d}.safetensors" for m in zoo.members_for("5/6")]
    assert [name for name in read if name.endswith("safetensors")] == expected
    assert len(expected) < len(zoo.members) == 3


def test_images_come_in_many_forms(runs):
    zoo = Zoo.load(runs(), "cpu")
    images = images_of(streamed(zoo.path)[0])[:5]
    expected = zoo.predict(images, 1).probabilities
    plain = images[:, 0].numpy()
    for form in (
        images.numpy(), plain, plain[..., None], images / 255, (plain / 255).astype("f8"), torch.from_numpy(plain),
        np.asfortranarray(plain), images.half() / 255,
    ):  # fmt: skip
        tolerance = 2e-3 if getattr(form, "dtype", None) == torch.float16 else 1e-6
        torch.testing.assert_close(zoo.predict(form, 1).probabilities, expected, atol=tolerance, rtol=0)
    for one in (images[0], plain[0], plain[0][..., None]):
        torch.testing.assert_close(zoo.predict(one, 1).probabilities, expected[:1])
    plain.flags.writeable = False  # as numpy.asarray gives an image of Pillow
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(zoo.predict(plain, 1).probabilities, expected)
    torch.set_warn_always(False)
    assert zoo.predict(images[:0], 1).probabilities.shape == (0, 2)
    assert zoo.predict(images[:0], "auto").probabilities.shape == (0, 7)
    for wrong, words in [
        (plain[:, :7], r"shape \[5, 7, 8\] do not fit: .* trained on 1 x 8 x 8"),
        (images.int(), "torch.int32 do not fit"),
        (images.float(), "values from 0 to 255: give floats from 0 to 1"),
        (images / 255 - 0.1, "values from -0.1 to"),
        (torch.full((1, 8, 8), float("nan")), "values from nan"),
        (torch.zeros(2, 3, 8, 8), r"shape \[2, 3, 8, 8\]"),
        (torch.zeros(()), r"shape \[\]"),
    ]:
        with pytest.raises(UserError, match=words):
            zoo.predict(wrong, 1)


def test_without_the_task_every_head_is_asked(runs):
    """The rules, from the answers for each task alone."""
    zoo = Zoo.load(runs(), "cpu")
    images = torch.cat([images_of(task)[:20] for task in streamed(zoo.path)])
    told = [zoo.predict(images, number).probabilities.double().numpy() for number in (1, 2, 3)]
    for rule, speaks in {
        # Of 2, 3 and 2 classes: as shares of log 2 and log 3, in units of the larger one.
        "entropy": [(p * np.log(p)).sum(1) * np.log(3) / np.log(p.shape[1]) for p in told],
        "confidence": [np.log(p.max(1)) * np.log(3) / np.log(p.shape[1]) for p in told],
    }.items():
        found = zoo.predict(images, "auto", rule)
        task = np.argmax(speaks, 0)
        assert [known.number - 1 for known in found.tasks] == task.tolist()
        names = [("0", "1"), ("2", "3", "4"), ("5", "6")]
        assert found.labels == [names[t][told[t][i].argmax()] for i, t in enumerate(task)]
        both = softmax(speaks, 0)
        expected = np.concatenate([both[t][:, None] * told[t] for t in range(3)], 1)
        np.testing.assert_allclose(found.probabilities.numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    assert [name for _, name in found.outputs] == [name for group in names for name in group]
    with pytest.raises(UserError, match="--routing: unknown rule 'vote'"):
        zoo.predict(images, "auto", "vote")


def test_tasks_go_by_name_or_number(runs):
    zoo = Zoo.load(runs(), "cpu")
    assert zoo.task(2) == zoo.task("2") == zoo.task("middle")
    with pytest.raises(UserError, match=r"'midle'; did you mean 'middle'\? \(known: 1 [^,]+, 2 middle, 3 [^,]+\)"):
        zoo.task("midle")
    many = copy.copy(zoo)
    many.tasks = tuple(saved.SavedTask(number, "same", ("a", "b")) for number in range(1, 201))
    with pytest.raises(UserError, match=r"unknown task '201' \(known: 1 same, \.\.\., 200 same\)"):
        many.task("201")
    twice = copy.copy(zoo)
    twice.tasks = (*zoo.tasks, saved.SavedTask(4, "middle", ("a", "b")))
    with pytest.raises(UserError, match="'middle' may be several tasks; write number=2 for 2 'middle' or number=4 for"):
        twice.task("middle")
    assert twice.task("number=4").number == twice.task(4).number == 4


def test_names_are_labels_and_a_number_stays_a_number(runs):
    """Tasks 1, 2 and 3 are named 2, 1 and auto."""
    zoo, ran = copy.copy(Zoo.load(runs(), "cpu")), Run.load(runs())
    names = {1: "2", 2: "1", 3: "auto"}
    zoo.tasks = tuple(replace(task, name=names[task.number]) for task in zoo.tasks)
    ran = replace(ran, rows=[replace(row, task_name=names[row.task]) for row in ran.rows])
    for asked, number in [(1, 1), ("number=1", 1), ("name=1", 2), ("name=2", 1), ("3", 3), ("auto", 3)]:
        assert zoo.task(asked).number == number
        np.testing.assert_array_equal(ran.targets_of(asked), ran.targets[number])
    for asked in ("1", "2"):
        with pytest.raises(
            UserError, match=f"'{asked}' may be several tasks; write number=1 for 1 '2' or number=2 for 2"
        ):
            zoo.task(asked)
        with pytest.raises(UserError, match="may be several tasks"):
            ran.predictions(asked)
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    with pytest.raises(UserError, match="has a task named auto; write name=auto for it, or number=auto to find it"):
        zoo.predict(image, "auto")
    assert len(zoo.predict(image, "name=auto").classes) == 2
    assert len(zoo.predict(image, "number=auto").classes) == 7


def test_a_foreign_or_damaged_directory_is_one_error(runs, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.yaml").write_text("model: gpt\n")
    for path, words in [(tmp_path, "is not the directory of a run"), (tmp_path / "foreign", "no episode is complete")]:
        with pytest.raises(UserError, match=words):
            Zoo.load(path)
    run = runs()
    for name in ["config.yaml", "members/member_001.json", "members/member_001.safetensors", "manifest.json"]:
        broken = tmp_path / "broken"
        shutil.copytree(run, broken)
        content = bytearray((broken / name).read_bytes())
        content[len(content) // 2] ^= 1
        (broken / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{re.escape(str(broken / name))} is damaged"):
            Zoo.load(broken, "cpu").predict(np.zeros((8, 8), np.uint8), 2)
        shutil.rmtree(broken)


def rewritten(run, name, content):
    """A file of a run changed, and the checksums with it."""
    (run / name).write_bytes(content)
    manifest = read_manifest(run)
    files = {**manifest.files, name: Entry(len(content), hashlib.sha256(content).hexdigest())}
    replace(manifest, files=files).write(run)


def test_a_member_that_cannot_be_of_the_run_is_one_error(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs(), run)
    name = "members/member_000.json"
    facts = json.loads((run / name).read_text())
    del facts["episode"]
    rewritten(run, name, json.dumps(facts).encode())
    with pytest.raises(UserError, match=f"{re.escape(str(run / name))} is damaged .*'episode'"):
        Zoo.load(run, "cpu")


# How members become one answer.


def random_held_out(members=3, classes=4, count=40, seed=0, noise=(0.5, 1.0, 3.0)):
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=count)
    logits = {
        m: 2 * np.eye(classes)[targets] + noise[m] * rng.standard_normal((count, classes)) for m in range(members)
    }
    return MemberPredictions(
        {m: torch.from_numpy(log_softmax(z, -1)) for m, z in logits.items()}, torch.from_numpy(targets)
    )


PLAIN = Combination((0, 1, 2), (1.0, 1.0, 1.0))


def test_a_combination_is_its_formula():
    held = random_held_out()
    p = np.stack([np.exp(held.log_probabilities[m].numpy()) for m in range(3)])
    z = [held.log_probabilities[m] for m in range(3)]
    np.testing.assert_allclose(Combination((0, 1, 2), (1, 2, 5))(z), np.average(p, 0, (1, 2, 5)), atol=1e-6)
    hot = Combination((0, 1, 2), (1, 1, 2), temperatures=(0.5, 2, 3), temperature=1.7)
    inner = np.average([softmax(np.log(q) / t, -1) for q, t in zip(p, (0.5, 2, 3), strict=True)], 0, (1, 1, 2))
    np.testing.assert_allclose(hot(z), softmax(np.log(inner) / 1.7, -1), atol=1e-6)
    pooled = Combination((0, 1, 2), (0.2, 0.5, -0.1), biases=(0.1, 0, 0, -0.3))
    scores = np.tensordot(np.array([0.2, 0.5, -0.1]), np.log(p), 1) + np.array([0.1, 0, 0, -0.3])
    np.testing.assert_allclose(pooled(z), softmax(scores, -1), atol=1e-6)
    np.testing.assert_allclose(weighted_mean([torch.from_numpy(q) for q in p], (3, 1, 2)), np.average(p, 0, (3, 1, 2)))


def nll(combination, held):
    p = held.of(combination).double().numpy()
    return log_loss(held.targets, p / p.sum(-1, keepdims=True), labels=range(4))


def test_what_is_fitted_fits_better_and_trusts_better_members():
    held, other = random_held_out(count=400), random_held_out(count=4000, seed=1)
    fit = weighted(PLAIN, held)
    assert sum(fit.weights) == pytest.approx(1)
    assert fit.weights[0] > fit.weights[1] > fit.weights[2]
    for better in (fit, stacked(PLAIN, held), fitted({1: PLAIN}, {1: held}, "mean", "task")[1]):
        assert nll(better, held) < nll(PLAIN, held)
        assert nll(better, other) < nll(PLAIN, other)


def test_weights_are_where_the_posterior_is_largest():
    """Against every direction: moving weight from one member to another lowers it."""
    held = random_held_out(count=60)
    weights = np.array(weighted(PLAIN, held).weights)
    right = np.stack([held.log_probabilities[m].exp().numpy()[range(60), held.targets] for m in range(3)], -1)

    def posterior(w):
        return np.log(right @ w).sum() + 10 / 3 * np.log(w).sum()

    for gain in range(3):
        for loss in set(range(3)) - {gain}:
            moved = weights.copy()
            moved[gain] += 1e-3
            moved[loss] -= 1e-3
            assert posterior(moved) < posterior(weights) + 1e-6


def test_temperatures_follow_the_definition():
    """Of one task: the least of the loss and of the distance to the common one; that of many equal tasks is Guo's."""
    held = random_held_out(count=300)
    many = dict.fromkeys(range(30), held)
    made = fitted(dict.fromkeys(many, PLAIN), many, "mean", "task")
    logs = held.of(PLAIN).log().double().numpy()
    plain = minimize_scalar(lambda x: log_loss(held.targets, softmax(logs / np.exp(x), -1)), bounds=(-3, 3)).x
    assert made[0].temperature == pytest.approx(np.exp(plain), rel=0.01)
    members = fitted({1: PLAIN}, {1: held}, "mean", "member")[1].temperatures
    assert members[0] < members[1] < members[2]  # the noisier, the less sure


def test_few_examples_that_are_all_right_make_no_one_sure():
    targets = torch.arange(4).repeat(3)
    sure = MemberPredictions({0: (3 * torch.eye(4)[targets]).log_softmax(-1)}, targets)
    made = fitted({1: Combination((0,), (1.0,))}, {1: sure}, "mean", "task")[1]
    assert 0.1 < made.temperature < 1


def test_members_are_chosen_greedily():
    held = random_held_out(members=3, count=80)
    right = np.stack([held.log_probabilities[m].exp().numpy()[range(80), held.targets] for m in range(3)])
    chosen = []
    while len(chosen) < 3:
        left = [m for m in range(3) if m not in chosen]
        chosen.append(min(left, key=lambda m: -np.log(right[[*chosen, m]].mean(0)).sum()))
    for budget in (1, 2, 3):
        cut = fitted({1: PLAIN}, {1: held}, "mean", "none", budget)[1]
        assert sorted(cut.members) == sorted(chosen[:budget])
    assert fitted({1: PLAIN}, {1: held}, "mean", "none", budget=9)[1] == PLAIN


def test_a_zoo_is_combined_from_its_held_out_examples_alone(runs):
    """Noise in place of the test predictions and their targets changes nothing."""
    run = runs("zoo", "--hold_out", "0.3")
    zoo = Zoo.load(run, "cpu")
    for combine, temperature, budget in [("weighted", "none", None), ("stacked", "task", 2), ("mean", "member", 1)]:
        other = zoo.combined(combine, temperature, budget)
        for task in streamed(run):
            members = zoo.members_for(task.name)
            said = {}
            for member in members:
                file = load_file(run / f"predictions/member_{member.number:03d}.safetensors")
                said[member.number] = file[f"task_{task.id}/held_out"].clamp_min(1e-12).log()
            held = zoo.held_out[task.id]
            assert held.targets.equal(task.held_out.targets)
            assert all(held.log_probabilities[number].equal(logs) for number, logs in said.items())
            answer = other.predict(images_of(task), task.name).probabilities
            assert (answer.sum(1) - 1).abs().max() < 1e-5
            if budget:
                assert len(other.combinations[task.id].members) == min(budget, len(members))
    assert zoo.combined().combinations == zoo.combinations
    for wrong in ({"combine": "vote"}, {"temperature": "room"}):
        with pytest.raises(UserError, match="unknown"):
            zoo.combined(**wrong)
    with pytest.raises(UserError, match=r"no held-out examples, on which this is fitted; train with --hold_out 0\.1"):
        Zoo.load(runs(), "cpu").combined("weighted")


def test_saved_predictions_name_their_files(tmp_path, monkeypatch):
    """Each row is what the zoo says to the file of that name: also after an extension, without a task, of a student."""
    monkeypatch.chdir(tmp_path)
    write_image_folder(Path("data/mine"), "abcdef", side=16)
    settings = "dataset: image_folder\nroot: mine\nimage_size: 16\n"
    Path("d.yaml").write_text(settings + "tasks: [[d, a], [b, c]]\n")
    Path("more.yaml").write_text(settings + "tasks: [[f, e]]\n")
    given = ["--data_config", "d.yaml", "--continual", "--tasks_per_round", "1", "--hold_out", "0.3"]
    assert main([*given, "--epochs", "1", "--quiet", "--run_dir", "run"]) == 0
    assert main(["--extend", "run", "--data_config", "more.yaml", "--quiet"]) == 0
    assert forget.main(["run-extended", "--task", "1", "--quiet", "--run_dir", "less"]) == 0
    assert distill.main(["run", "--quiet", "--epochs", "1", "--run_dir", "student"]) == 0
    for path, tasks in [("run", (1, 2)), ("run-extended", (1, 2, 3)), ("less", (2, 3)), ("student", (1, 2))]:
        assert main(["--verify", path]) == 0
        run, zoo = Run.load(path), Zoo.load(path, "cpu")
        names = json.loads(Path(path, "predictions/names.json").read_text())
        assert set(names) == {f"task_{task}/{split}" for task in tasks for split in ("test", "held_out")}
        for task in tasks:
            for split in ("test", "held_out"):
                files = run.names_of(task, split)
                said = zoo.predict([Path("data/mine", file) for file in files], task).probabilities
                np.testing.assert_allclose(said, run.predictions(task, split), atol=2e-6)
                right = [zoo.task(task).classes[i] for i in run.targets_of(task, split)]
                assert right == [Path(file).parent.name for file in files]
    with pytest.raises(UserError, match="has no names for task 1 on split 'train'"):
        Run.load("run").names_of(1, "train")
