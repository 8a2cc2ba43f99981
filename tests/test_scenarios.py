"""Answers for which the task was not told, against plain loops."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy import stats
from scipy.special import logsumexp

from datasets import build_stream
from datasets.objectives import CrossEntropy
from evaluation.accuracy import MIXED_EXAMPLES, mixed_examples
from evaluation.scenarios import ROUTINGS, Answer, answer_of, score_without_task, task_log_probabilities
from methods import METHODS
from modelzoo import main
from records.configuration import saved_config
from records.directory import read_config
from tests.standins import stream
from tests.tables import read_metrics
from tests.test_objectives import plain_calibration_error
from tests.toys import toy_stream
from zoo import Zoo
from zoo.inputs import as_stored

SCENARIOS = {"task-incremental", "routed-class", "task-identification"}


def random_outputs(seed, count, widths):
    rng = np.random.default_rng(seed)
    return [3 * rng.standard_normal((count, width)).astype("f4") for width in widths]


def spoken_for(rule, outputs, widest):
    """What one head's outputs for one input say for its task, by the definition of the rule."""
    p = np.exp(outputs - logsumexp(outputs))
    if rule == "energy":
        return math.log(np.exp(outputs).mean())
    return {"confidence": math.log(p.max()), "entropy": -stats.entropy(p)}[rule] * math.log(widest) / math.log(len(p))


@pytest.mark.parametrize("rule", ROUTINGS)
@given(seed=st.integers(0, 10**6), same=st.booleans())
@example(seed=155685, same=True)
@settings(max_examples=10, deadline=None)
def test_scores_are_those_of_a_loop(rule, seed, same):
    rng = np.random.default_rng(seed)
    widths = [3] * 4 if same else rng.integers(2, 5, 4).tolist()
    numbers = [2, 3, 5, 7]
    tasks = rng.choice([2, 3, 5, 7, 8], 60)  # nothing is known of task 8
    targets = np.array([rng.integers(widths[numbers.index(t)]) if t != 8 else 0 for t in tasks])
    outputs = random_outputs(seed, len(tasks), widths)
    answers = {n: answer_of(torch.from_numpy(z), CrossEntropy()) for n, z in zip(numbers, outputs, strict=True)}
    found = score_without_task(
        answers, torch.from_numpy(tasks), torch.from_numpy(targets), same_classes=same, rule=rule
    )
    expected = {}
    for i, (task, target) in enumerate(zip(tasks.tolist(), targets.tolist(), strict=True)):
        if task == 8:
            continue
        speaks = np.array([spoken_for(rule, z[i].astype("f8"), max(widths)) for z in outputs])
        p_task = np.exp(speaks - logsumexp(speaks))
        p_class = [np.exp(z[i].astype("f8") - logsumexp(z[i].astype("f8"))) for z in outputs]
        right, best = numbers.index(task), int(p_task.argmax())
        inside = int(p_class[best].argmax())
        cases = {
            "task-identification": (p_task[right], p_task[best], best == right),
            "routed-class": (p_task[right] * p_class[right][target], p_task[best] * p_class[best][inside],
                                  best == right and inside == target),
        }  # fmt: skip
        if same:
            p_any = sum(a * b for a, b in zip(p_task, p_class, strict=True))
            cases["routed-domain"] = p_class[best][target], p_class[best].max(), inside == target
            cases["routed-domain-sum"] = p_any[target], p_any.max(), int(p_any.argmax()) == target
        for scenario, case in cases.items():
            expected.setdefault((scenario, task), []).append(case)
    assert {(scenario, task) for scenario, by_task in found.items() for task in by_task} == set(expected)
    for (scenario, task), cases in expected.items():
        p, sure, hits = zip(*cases, strict=True)
        score = found[scenario][task]
        assert score["loss"].value == pytest.approx(-np.mean(np.log(p)), rel=1e-4)
        assert score["accuracy"].value == np.mean(hits)
        if np.diff(sorted(sure)).min(initial=1.0) > 1e-6:  # else rounding to float32 may decide which bin one is in
            assert score["ece"].value == pytest.approx(plain_calibration_error(list(sure), list(hits)), abs=1e-4)


def answers_of(*probabilities):
    """The answers of one network to one input, by task."""
    rows = [torch.tensor([row]) for row in probabilities]
    return {task: answer_of(row.log(), CrossEntropy()) for task, row in enumerate(rows, 1)}


@pytest.mark.parametrize("rule", ROUTINGS)
def test_a_task_is_not_likelier_for_its_number_of_classes(rule):
    """Heads that know nothing of an input are level, and one that knows more wins, whichever has fewer classes."""
    lost = [[1 / classes] * classes for classes in (2, 3, 5, 10)]
    p = task_log_probabilities([answer_of(torch.zeros(1, len(row)), CrossEntropy()) for row in lost], rule).exp()
    torch.testing.assert_close(p, torch.full((1, 4), 0.25, dtype=torch.float64))
    if rule != "energy":  # of outputs, which the probabilities do not tell
        # By plain entropy, 0.65 against 1.44 nats, and plain confidence, 0.65 against 0.64, the first one wins.
        unsure, sure = [0.65, 0.35], [0.64] + [0.04] * 9
        for order, right in (((unsure, sure), 1), ((sure, unsure), 0)):
            assert task_log_probabilities(list(answers_of(*order).values()), rule).argmax() == right


def test_with_as_many_classes_the_default_rule_is_the_plain_entropy():
    p = torch.randn(50, 3, 7).softmax(-1)
    answers = [Answer(p[:, task], torch.zeros(50)) for task in range(3)]
    expected = torch.stack([torch.special.xlogy(q, q).sum(-1) for q in p.unbind(1)], -1).double().log_softmax(-1)
    assert torch.equal(task_log_probabilities(answers), expected)


def test_the_class_alone_is_that_of_the_chosen_task_or_of_the_sum_over_tasks():
    """Task 1 is the surest and says class 0; the others, together, say class 1. Task 2, class 0 is right."""
    answers = answers_of([0.8, 0.2], [0.3, 0.7], [0.25, 0.75])
    found = score_without_task(answers, torch.tensor([2]), torch.tensor([0]), same_classes=True)
    accuracy = {scenario: of_task[2]["accuracy"].value for scenario, of_task in found.items()}
    assert accuracy == {
        "task-identification": 0, "routed-class": 0, "routed-domain": 1, "routed-domain-sum": 0,
    }  # fmt: skip


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_class_alone_is_right_wherever_task_and_class_are(seed):
    answers = {
        n: answer_of(torch.from_numpy(z), CrossEntropy()) for n, z in enumerate(random_outputs(seed, 60, [3] * 5))
    }
    rng = torch.Generator().manual_seed(seed)
    tasks, targets = torch.randint(5, (60,), generator=rng), torch.randint(3, (60,), generator=rng)
    found = score_without_task(answers, tasks, targets, same_classes=True)
    for task, score in found["routed-class"].items():
        assert found["routed-domain"][task]["accuracy"].value >= score["accuracy"].value


def test_a_task_that_no_member_has_learned_is_never_chosen():
    known = answer_of(torch.randn(50, 3), CrossEntropy())
    nothing = Answer(torch.full((50, 2), 0.5), torch.full((50,), -math.inf))
    for rule in ("energy", "confidence"):
        assert (task_log_probabilities([known, nothing], rule).exp().sum(-1) - 1).abs().max() < 1e-9
    assert (task_log_probabilities([known, nothing], "energy").argmax(-1) == 0).all()


def test_as_many_examples_of_each_task_are_mixed_however_many_tasks_there_are():
    tasks = toy_stream(3).tasks
    parts = mixed_examples(tasks, 0)
    assert [(task, len(part)) for task, part in parts] == [(task.id, len(task.test)) for task in tasks]
    many = mixed_examples([tasks[0]] * 400, 0)
    assert {len(part) for _, part in many} == {MIXED_EXAMPLES // 400}
    assert len(mixed_examples([tasks[0]] * 3000, 0)[-1][1]) == 1


@pytest.fixture
def configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").write_text("dataset: digits\ntasks: [[0, 1], [2, 3, 4], [5, 6]]\n")
    Path("hp.yaml").write_text("model: conv\nepochs: 1\nbatch: 8\n")


def learn(run, *more):
    given = ["--data_config", "d.yaml", "--hp_config", "hp.yaml", "--samples", "6", "--quiet", "--run_dir", run]
    assert main([*given, *more]) == 0
    return read_metrics(run)


@pytest.mark.parametrize("method", ["zoo", "isolated", "joint", "cumulative", "er", "lwf", "packnet", "gpm"])
def test_methods_are_measured_without_the_task_as_its_saved_networks_answer(method, configs):
    """The rows of the last episode, from the networks on the disk, image by image through Zoo."""
    continual = ["--continual"] if "continual" in METHODS[method].modes else []
    rows = learn("run", "--method", method, *continual)
    assert set(rows.scenario) == SCENARIOS
    last = rows[(rows.episode == rows.episode.max()) & (rows.split == "test")].set_index(["scenario", "task"])
    zoo, all_tasks = Zoo.load("run", "cpu"), streamed("run")
    images = as_stored(torch.cat([task.test.store[task.test.rows] for task in all_tasks]), zoo.input_shape)
    tasks = torch.cat([torch.full((len(task.test),), task.id) for task in all_tasks])
    answers = zoo.answers(images, [1, 2, 3])
    scores = score_without_task(answers, tasks, torch.cat([t.test.targets for t in all_tasks]), same_classes=False)
    for scenario, by_task in scores.items():
        for task, score in by_task.items():
            row = last.loc[(scenario, task)]
            assert row.n == (tasks == task).sum()
            assert row.accuracy == pytest.approx(score["accuracy"].value, abs=1e-9)
            assert row.loss == pytest.approx(score["loss"].value, rel=1e-3)


def streamed(run):
    config = saved_config("config.yaml", read_config(Path(run)))
    return build_stream(config.data, config.seed, torch.device("cpu")).tasks


def test_no_future_task_is_looked_at(configs):
    """Another third task: nothing measured before its episode changes."""
    rows = learn("run", "--continual")
    Path("d.yaml").write_text("dataset: digits\ntasks: [[0, 1], [2, 3, 4], [8, 9, 7]]\n")
    other = learn("other", "--continual")
    before, same = (table[table.episode < 3].reset_index(drop=True) for table in (rows, other))
    pd.testing.assert_frame_equal(before, same)
    assert not rows[rows.episode == 3].equals(other[other.episode == 3])


def test_what_is_held_out_is_balanced_and_nothing_is_trained_on_it(configs):
    learn("run", "--continual", "--hold_out", "0.34")
    for task in streamed("run"):
        held = {tuple(image.flatten().tolist()) for image in task.held_out.store[task.held_out.rows]}
        trained = {tuple(image.flatten().tolist()) for image in task.train_eval.store[task.train_eval.rows]}
        assert not held & trained
        assert task.held_out.targets.bincount().tolist() == [2] * task.num_outputs
        assert task.train_eval.targets.bincount().tolist() == [4] * task.num_outputs
        assert task.train.epoch(torch.Generator()) is task.train_eval


@pytest.mark.parametrize("samples", [None, 6, 40])
@pytest.mark.parametrize("share", [0.1, 0.34, 0.9])
def test_no_task_is_trained_on_what_another_one_holds_out(samples, share):
    """Ten rotations of the same images: of each class, none that is held out anywhere is trained on anywhere."""
    tasks = [[10 * turn + digit for digit in range(10)] for turn in range(4)]
    found = stream("rotated_digits", tasks, samples=samples, hold_out=share).tasks
    held = {row for task in found for row in task.held_out.rows.tolist()}
    trained = {row for task in found for row in task.train_eval.rows.tolist()}
    assert held
    assert trained
    assert not held & trained
    for task in found:
        sizes = task.held_out.targets.bincount(), task.train_eval.targets.bincount()
        whole = sizes[0] + sizes[1]
        if samples is not None:
            assert whole.tolist() == [samples] * 10
        assert ((share * whole).round() - sizes[0]).abs().max() <= 0.5 + 1e-6
        assert len(set(task.train_eval.rows.tolist())) == len(task.train_eval)


def test_held_out_images_can_be_anything(configs, monkeypatch):
    """Replaced by noise they change what was predicted on them and nothing else."""
    rows = learn("run", "--continual", "--hold_out", "0.34")
    build = build_stream

    def noisy(config, seed, device):
        stream = build(config, seed, device)
        for task in stream.tasks:
            rng = torch.Generator().manual_seed(1)
            shape = task.held_out.store[task.held_out.rows].shape
            task.held_out.store[task.held_out.rows] = torch.randint(256, shape, generator=rng, dtype=torch.uint8)
        return stream

    monkeypatch.setattr("training.features.build_stream", noisy)
    pd.testing.assert_frame_equal(rows, learn("other", "--continual", "--hold_out", "0.34"))
    for name in ("member_000", "member_001", "member_002"):
        first, second = (load_file(f"{run}/predictions/{name}.safetensors") for run in ("run", "other"))
        assert all(first[key].equal(second[key]) != key.endswith("held_out") for key in first)


def test_a_class_with_one_example_cannot_be_held_out(configs, capsys):
    assert main(["--data_config", "d.yaml", "--samples", "1", "--hold_out", "0.5", "--run_dir", "run"]) == 2
    assert "--hold_out 0.5 leaves no training image of class '0' of task 1" in capsys.readouterr().err
    assert main(["--hold_out", "0.95"]) == 2
    assert "--hold_out is 0.95; it must be a number at least 0 and at most 0.9" in capsys.readouterr().err
