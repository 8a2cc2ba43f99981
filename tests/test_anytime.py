"""Scores within episodes and before a task is learned, against predictions made at that moment by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from datasets import build_stream
from datasets.objectives import Scored
from datasets.scenarios import in_scenario
from datasets.task import TaskStream
from evaluation.anytime import Anytime
from evaluation.measurements import Measurement
from methods import METHODS, build_method
from methods.base import Context
from modelzoo import main
from net import build_net
from records.configuration import saved_config
from records.directory import read_config
from records.run import Run
from records.summary import examples_to, summarize
from report import main as report
from tests.tables import read_metrics
from tests.test_resume import options, same_as, start, stop_after, untimed, write_configs
from tests.toys import CPU, draw, run_toy, table, toy_config, toy_stream
from training.loop import Training
from training.monitor import Monitor
from training.prediction import predict_examples
from utils.errors import UserError
from utils.seeding import generator, seeded

ASKED = [name for name, method in METHODS.items() if "evaluate_every" in method.options]
WHERE = ["episode", "step", "task"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs()
    tasks = [[0, 1], [10, 11], [22, 23]]
    Path("same.yaml").write_text(yaml.safe_dump({"dataset": "rotated_digits", "tasks": tasks}))


def summary_of(run):
    return json.loads(Path(run, "summary.json").read_text())


DURING = ["--method", "er", "--set", "settings.fill=during", "--set", "settings.buffer=reservoir", "--memory", "9"]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *((name, []) for name in ASKED if name != "isolated_ensemble"),
        ("derpp", ["--scenario", "class"]),
        ("finetune", DURING),
    ],
)
def test_a_run_is_the_same_to_the_bit_with_and_without_the_option(method, more):
    given = [*options(method), "--epochs", "2", *more]
    assert start("without", *given) == start("asked", *given, "--evaluate_every", "2") == 0
    for folder in ("members", "predictions"):
        for path in Path("without", folder).iterdir():
            assert path.read_bytes() == Path("asked", folder, path.name).read_bytes(), path
    assert untimed("without") == untimed("asked")
    asked, without = Path("asked/metrics.csv").read_text().splitlines(), Path("without/metrics.csv").read_text()
    assert [line for line in asked if ",anytime," not in line] == without.splitlines()
    rows = read_metrics("asked")
    within = rows[rows.scenario == "anytime"]
    ends = pd.read_csv("asked/episodes.csv").steps.cumsum().tolist()
    expected = {
        (episode, step, task)
        for episode, (begin, end) in enumerate(zip([0, *ends], ends, strict=False), 1)
        for step in [*range(begin + 2, end, 2), end] for task in range(1, (3 if method == "joint" else episode) + 1)
    }  # fmt: skip
    assert set(within[WHERE].itertuples(index=False, name=None)) == expected
    last = within[within.step == ends[-1]].set_index("task")
    R = rows[
        rows.scenario.str.endswith("-incremental") & (rows.split == "test") & (rows.episode == len(ends))
    ].set_index("task")
    assert last.accuracy.to_dict() == R.accuracy.to_dict()  # there are fewer than 1,000 test examples


class Alone:
    """What a method has learned of the first task, and its training on the second one, done by hand."""

    def __init__(self, stream, config):
        self.stream, self.task = stream, stream.tasks[1]
        self.learner, _, _ = run_toy(config, stream, episodes=1)
        with seeded(config.seed, "member", 1):
            self.net = self.learner.network(self.learner.old_heads(), {2: self.task.num_outputs})
            self.rule = self.learner.rule()
            if config.settings.outputs == "new":
                self.net.restrict(2, self.task.train_eval.targets.unique())
            sources = self.learner.sources(self.task)
            training = Training(
                self.net, sources, stream.spec, config.hp, CPU, config.seed, ("member", 1), rule=self.rule
            )
            training.advance(3)
        self.net.restrict(2, None)

    def loss(self, task, net=None, head=None, weights=None):
        """-log p of the right answers on a task; `head`: the task whose head answers, `weights` those of the trunk."""
        net, test = net or self.net, self.stream.tasks[task - 1].test
        with net.for_task(weights or {}):
            answers = predict_examples(net, head or task, test, self.stream.spec, CPU)
        return float(-answers[torch.arange(len(test)), test.targets].log().mean())


def losses(stream, config):
    """By step of the second episode: the loss on both tasks that is measured with evaluate_every 3."""
    method = build_method(Context(config, stream.spec, CPU))
    method.anytime = Anytime(stream, 3, config.seed)
    for episode in list(stream.continual())[:2]:
        learned = method.learn(episode, Monitor())
    return {m.step: {task: scores["loss"].value for task, scores in m.scores.items()} for m in learned.moments}


HP = {"epochs": None, "steps": 7, "lr": 0.05}


@pytest.mark.parametrize(
    ("method", "settings"),
    [("finetune", {"bn": "shared"}), ("finetune", {"bn": "per_task"}), ("lwf", {}), ("wsn", {}), ("packnet", {})],
)
def test_each_task_is_answered_with_its_own_head_and_weights(method, settings):
    stream, config = toy_stream(2), toy_config(method=method, settings=settings, hp=HP)
    alone = Alone(stream, config)
    old, own = alone.learner.network([1]), alone.learner.task_weights(1)
    if method == "lwf":  # the old head is trained, too
        old = alone.net
    new = alone.rule.masks() if method == "wsn" else {}
    expected = {1: alone.loss(1, old, weights=own), 2: alone.loss(2, weights=new)}
    found = losses(stream, config)
    assert list(found) == [3, 6, 7]
    assert found[3] == pytest.approx(expected, rel=1e-5)
    assert found[6][2] != pytest.approx(found[3][2], rel=1e-3)


@pytest.mark.parametrize("outputs", ["seen", "new"])
def test_with_a_growing_head_all_classes_seen_compete(outputs):
    first, second = toy_stream(2, classes=2).tasks
    names = {1: ("a", "b", "c"), 2: ("d", "e")}
    tasks = tuple(replace(task, classes=names[task.id]) for task in (first, second))
    stream = in_scenario(TaskStream(toy_stream(1).spec, tasks), "class")
    config = toy_config(method="finetune", settings={"outputs": outputs}, hp=HP)
    alone = Alone(stream, config)
    found = losses(stream, config)
    assert found[3] == pytest.approx({1: alone.loss(1, head=2), 2: alone.loss(2)}, rel=1e-5)


@pytest.mark.parametrize(("method", "every"), [("er", "1"), ("wsn", "4"), ("lwf", "1"), ("isolated_ensemble", "2")])
def test_a_run_stopped_by_signals_goes_on(method, every, monkeypatch, capsys):
    given = [*options(method), "--evaluate_every", every]
    assert start("whole", *given) == 0
    for stops in range(30):
        with monkeypatch.context() as patch:
            stop_after(patch, 4)
            code = start("run", *(["--resume"] if stops else []), *given)
        if code == 0:
            break
        assert code == 143
    assert stops >= 3
    same_as("run", "whole")
    capsys.readouterr()


@pytest.mark.parametrize("method", sorted(METHODS.keys() - ASKED))
def test_methods_without_gradient_steps_refuse_the_option_in_one_line(method, capsys):
    assert method == "closed_form"
    assert main([*options(method), "--evaluate_every", "3", "--run_dir", "run"]) == 2
    told = f"modelzoo.py: --evaluate_every means nothing to --method {method}; leave it out\n"
    assert capsys.readouterr().err == told
    assert not Path("run").exists()


def test_a_zoo_answers_on_the_way_with_the_member_in_training():
    """The member of the second episode, trained by hand for three steps: alone on its new task, with the first member
    on the task of both, and the task that it does not learn is answered as before."""
    stream = toy_stream(3)
    config = toy_config(method="zoo", tasks_per_round=2, hp=HP)
    learner, _, _ = run_toy(config, stream, episodes=2)
    method = build_method(Context(config, stream.spec, CPU))
    method.anytime = Anytime(stream, 3, config.seed)
    *_, learned = (method.learn(episode, Monitor()) for episode in stream.continual())
    (drawn,), (idle,) = {1, 2} & set(learned.tasks), {1, 2} - set(learned.tasks)
    sizes = {task.id: task.num_outputs for task in stream.tasks}
    with seeded(config.seed, "member", 2):
        net = learner.new_network({drawn: sizes[drawn], 3: sizes[3]})
        sources = [(drawn, learner.memory.source(drawn, 2)), (3, stream.tasks[2].train)]
        training = Training(net, sources, stream.spec, config.hp, CPU, config.seed, ("member", 2))
        training.advance(3)
    before = {task.id: learner.predict(task) for task in stream.tasks[:2]}
    now = {task: predict_examples(net, task, stream.tasks[task - 1].test, stream.spec, CPU) for task in (drawn, 3)}
    others = 1 if drawn == 2 else 2  # the second member was trained on both tasks
    found = {m.step: {task: scores["loss"].value for task, scores in m.scores.items()} for m in learned.moments}
    assert list(found) == [3, 6, 7]
    assert [m.examples for m in learned.moments] == [24, 48, 56]
    answers = {idle: before[idle], drawn: (now[drawn] + others * before[drawn]) / (1 + others), 3: now[3]}
    expected = {task: mean_loss(given, stream.tasks[task - 1]) for task, given in answers.items()}
    assert found[3] == pytest.approx(expected, rel=1e-5)
    assert found[3][3] != pytest.approx(found[6][3], rel=1e-3)


def mean_loss(answers, task):
    """-log p of the right answers."""
    return float(-answers[torch.arange(len(task.test)), task.test.targets].log().mean())


def test_moments_of_several_networks_of_an_episode_follow_each_other():
    stream, config = toy_stream(2), toy_config(method="isolated_ensemble", hp=HP)
    method = build_method(Context(config, stream.spec, CPU))
    method.anytime = Anytime(stream, 3, config.seed)
    first, second = (method.learn(episode, Monitor()).moments for episode in stream.continual())
    assert [moment.step for moment in first] == [3, 6, 7]
    assert [moment.step for moment in second] == [3, 6, 7, 10, 13, 14]
    assert [moment.examples for moment in second] == [8 * step for step in (3, 6, 7, 10, 13, 14)]
    assert all(moment.scores[1] == first[-1].scores[1] for moment in second)


@pytest.mark.parametrize("continual", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_examples_until_a_level_are_those_of_the_episode_of_the_task(continual, sign):
    values = {  # episode, examples of the run -> main metric by task
        (1, 10): [0.5], (1, 20): [0.99], (1, 30): [0.4],
        (2, 40): [1.0, 0.2], (2, 60): [1.0, 0.98],
        (3, 70): [0.0, 0.99, 1.0], (3, 80): [0.0, 0.0, 0.0],
    }  # fmt: skip
    rows = [
        Measurement(episode, examples, examples, task, f"{task}", "test", "", "anytime",
                    {"m": Scored(sign * value, None, 9)})
        for (episode, examples), found in values.items() for task, value in enumerate(found, 1)
    ]  # fmt: skip
    given = {"continual": continual, "higher_is_better": sign > 0}
    # Of the second task the third episode does not count, if it has one of its own.
    second = (2, 2, None if continual else 40)
    assert examples_to(rows, sign * 0.99, **given) == [(1, 1, 20), second, (3, 3, 10)]
    assert examples_to(rows, sign * 0.1, **given) == [(1, 1, 10), (2, 2, 10), (3, 3, 10)]
    assert examples_to(rows, sign * 1.1, **given) == [(1, 1, None), (2, 2, None), (3, 3, None)]
    known = replace(rows[0], episode=2, examples=60, task=3, scenario="zero-shot", scores={"m": Scored(sign, None, 9)})
    assert examples_to([*rows, known], sign * 0.99, **given)[2] == (3, 3, 0)
    others = [replace(row, slice="a") for row in rows] + [replace(row, scenario="task-incremental") for row in rows]
    assert examples_to(others, sign * 0.99, **given) == []


@pytest.mark.parametrize("method", ["zoo", "er"])
def test_examples_of_a_run_are_read_from_its_tables(method):
    assert start("run", *options(method), "--evaluate_every", "1") == 0
    rows, images = read_metrics("run"), pd.read_csv("run/episodes.csv").images.tolist()
    level = 0.7
    expected = []
    for task in (1, 2, 3):
        own = rows.query("scenario == 'anytime' and task == @task and episode == @task and accuracy >= @level")
        expected.append(None if own.empty else own.examples.min() - sum(images[: task - 1]))
    found = Run.load("run").examples_to(level)
    assert [None if pd.isna(number) else number for number in found.examples] == expected
    assert found.columns.tolist() == ["episode", "task", "task_name", "examples"]
    assert set(expected) != {None}


def test_a_run_that_was_not_asked_has_no_such_examples():
    assert start("run", *options("er")) == 0
    with pytest.raises(UserError, match="--evaluate_every"):
        Run.load("run").examples_to(0.9)


def test_at_most_1000_test_examples_of_a_task_are_asked_about():
    tasks = toy_stream(2).tasks
    many = replace(tasks[0], splits={**tasks[0].splits, "test": table(*draw(1, 3, 1500, generator(0, "many")))})
    stream = TaskStream(toy_stream(1).spec, (many, tasks[1]))
    chosen = Anytime(stream, 1, 0).chosen(1)
    assert len(chosen) == len(chosen.unique()) == 1000
    assert chosen.max() < 1500
    assert not torch.equal(chosen, Anytime(stream, 1, 1).chosen(1))
    assert Anytime(stream, 1, 0).chosen(2).tolist() == list(range(len(tasks[1].test)))
    answers = torch.rand(1000, 3).softmax(1)
    scores = Anytime(stream, 1, 0).scores(1, answers)
    assert scores["accuracy"].n == 1000
    assert scores["accuracy"].value == (answers.argmax(1) == many.test.targets[chosen]).double().mean().item()


def test_the_figures_of_a_run_are_those_of_its_rows(capsys):
    given = [*options("er"), "--evaluate_every", "2"]
    assert start("run", *given) == 0
    rows = read_metrics("run").query("scenario == 'anytime'")
    ends = pd.read_csv("run/episodes.csv").steps.cumsum().tolist()
    lowest = [rows[(rows.task == task) & (rows.step > ends[task - 1])].accuracy.min() for task in (1, 2)]
    newest = rows[(rows.task == 3) & (rows.step == ends[2])].accuracy.item()
    summary = summary_of("run")
    assert summary["min_acc"] == pytest.approx(np.mean(lowest))
    assert summary["worst_case_acc"] == pytest.approx(newest / 3 + 2 / 3 * np.mean(lowest))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("while learning")]
    assert line.split()[2] == f"{summary['min_acc']:.4f}"
    assert f"{summary['worst_case_acc']:.4f} (WC-ACC)" in line
    assert report(["run"]) == 0
    drawn = pd.read_csv("run/figures/while_learning.csv", float_precision="round_trip")
    shown = rows.sort_values(["task", "step"])
    assert drawn.step.tolist() == shown.step.tolist()
    assert drawn.accuracy.tolist() == shown.accuracy.tolist()
    assert "Accuracy while learning" in Path("run/report.html").read_text()


def test_without_the_option_there_is_none_of_it(capsys):
    assert start("run", *options("er")) == 0
    assert "while learning" not in capsys.readouterr().out
    assert report(["run"]) == 0
    assert not Path("run/figures/while_learning.csv").exists()
    summary = summary_of("run")
    assert summary["min_acc"] is summary["worst_case_acc"] is None


def domain(method):
    return [*options(method), "--data_config", "same.yaml", "--scenario", "domain"]


def right(net, task, spec):
    """Share of right answers of a network with one head."""
    answers = predict_examples(net, 1, task.test, spec, CPU)
    return float((answers.argmax(1) == task.test.targets).double().mean())


@pytest.mark.parametrize("method", ["finetune", "cumulative"])
def test_zero_shot_transfer_is_that_of_the_networks_on_the_disk(method):
    """Each saved network on the next task, and the untrained one on all, asked by hand."""
    assert start("run", *domain(method)) == 0
    rows, summary = read_metrics("run"), summary_of("run")
    config = saved_config("config.yaml", read_config(Path("run")))
    stream = build_stream(config.data, config.seed, torch.device("cpu"))
    with seeded(0, "member", 0):
        net = build_net("conv", stream.spec.input_shape, config.net.settings, {1: 2}, "shared")
    untrained = [right(net, task, stream.spec) for task in stream.tasks]
    assert summary["per_task_untrained_acc"] == untrained
    gained = []
    for episode in (1, 2):
        net.load_state_dict(load_file(f"run/members/member_00{episode - 1}.safetensors"))
        value = right(net, stream.tasks[episode], stream.spec)
        row = rows[(rows.scenario == "zero-shot") & (rows.episode == episode)]
        assert (row.task.item(), row.accuracy.item()) == (episode + 1, value)
        gained.append(value - untrained[episode])
    assert summary["fwt_zero_shot"] == pytest.approx(np.mean(gained))
    assert (rows.scenario == "zero-shot").sum() == 2


def test_answers_before_a_task_is_learned_are_in_no_other_figure():
    assert start("run", *domain("finetune")) == 0
    run = Run.load("run")
    others = [row for row in run.rows if row.scenario != "zero-shot"]
    found, without = (summarize(rows, True, None) for rows in (run.rows, others))
    assert {key for key in found if found[key] != without[key]} == {"fwt_zero_shot"}
    assert without["fwt_zero_shot"] is None
    assert np.isnan(run.accuracy_matrix[np.triu_indices(3, 1)]).all()


def test_an_unfinished_run_does_not_know_the_tasks_to_come(monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 9)  # in the second episode
        assert start("run", *domain("finetune"), "--evaluate_every", "2") == 143
    run = Run.load("run")
    assert run.manifest.episode == 1
    assert run.task_names == ["rotated by 0°"]
    assert list(run.targets) == [1]
    assert run.summary["fwt_zero_shot"] is run.summary["min_acc"] is None
    assert run.summary["worst_case_acc"] == run.summary["avg_acc_final"]
    assert report(["run"]) == 0


def test_where_lower_is_better_the_highest_values_count():
    values = {(1, 1): [2.0], (1, 2): [1.0], (2, 3): [5.0, 4.0], (2, 4): [3.0, 2.0], (3, 5): [1.0, 4.0, 3.0]}
    rows = [
        Measurement(episode, step, step, task, f"{task}", "test", "", scenario, {"rmse": Scored(value, None, 9)})
        for (episode, step), found in values.items() for task, value in enumerate(found, 1)
        for scenario in ("anytime", *(["domain-incremental"] if step in (2, 4, 5) else []))
    ]  # fmt: skip
    summary = summarize(rows, True, None, higher_is_better=False)
    assert summary["min_rmse"] == (5.0 + 4.0) / 2
    assert summary["worst_case_rmse"] == pytest.approx(3.0 / 3 + 2 / 3 * 4.5)
    assert summary["min_acc"] is None


def test_cls_er_answers_on_the_way_as_its_stable_average_would():
    """A run that ends after two steps answers as one of four steps is asked after two."""
    # All examples of the first task have a slot, so that no chance depends on how many arrive.
    Path("h2.yaml").write_text("{model: mlp, widths: [8], batch: 4, schedule: constant, lr: 0.05}")
    given = ["--data_config", "d.yaml", "--hp_config", "h2.yaml", "--samples", "8", "--quiet", "--continual"]
    given += ["--method", "cls_er", "--memory", "300", "--set", "settings.fill=during"]
    given += ["--set", "settings.buffer=reservoir", "--set", "settings.stable_rate=1.0"]
    assert start("long", *given, "--set", "hp.steps=4", "--evaluate_every", "2") == 0
    assert start("short", *given, "--set", "hp.steps=2") == 0
    at_two = read_metrics("long").query("scenario == 'anytime' and episode == 1 and step == 2")
    end = read_metrics("short").query("scenario == 'task-incremental' and split == 'test' and episode == 1")
    assert at_two.loss.tolist() == end.loss.tolist()
    assert len(end) == 1
