"""No method reads or keeps training examples beyond what it has declared: the run fails if one tries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.mixture import Mixture
from datasets.task import Episode
from methods import METHODS, build_method
from methods.base import Context
from methods.memory.audit import Auditor, Budget, BudgetError, to_predict
from methods.memory.replay import BUFFERS, ReplayMemory, balanced_subset
from tests.toys import CPU, filled, run_toy, toy_config, toy_stream
from training.monitor import Monitor
from utils.seeding import generator

# Cumulative declares that it keeps everything.
BOUNDED = [name for name, method in METHODS.items() if "continual" in method.modes and name != "cumulative"]
KEEPING = [name for name in BOUNDED if "memory" in METHODS[name].options]
LIMITS = [{"memory_per_class": 2}, {"memory": 7}]
READS = {
    "inputs": lambda task: Mixture([(task.id, task.train_eval)]),
    "labels": lambda task: task.train_eval.targets.sum(),
    "a part": lambda task: task.train_eval.subset(torch.arange(2)),
    "an epoch": lambda task: task.train.epoch(generator(0, "e")).rows,
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("method", BOUNDED)
def test_reading_a_past_task_beyond_the_memory_fails_the_run(method, read, monkeypatch):
    """A method that has remembered its first task looks at it again in the second episode."""
    limit = {"replay_frac": 0.25} if method == "zoo" else {"memory": 7} if method in KEEPING else {}
    train, remembered = METHODS[method].train, []

    def curious(self, episode, monitor):
        remembered.append(episode.new[0])
        READS[read](remembered[0])
        return train(self, episode, monitor)

    monkeypatch.setattr(METHODS[method], "train", curious)
    with pytest.raises(BudgetError, match="training examples of task 1 were read after episode 1"):
        run_toy(toy_config(method=method, **limit), toy_stream(2))
    assert len(remembered) == 2


@pytest.mark.parametrize(
    ("method", "limit"),
    [(name, limit) for name in KEEPING for limit in LIMITS] + [("zoo", {"replay_frac": 0.25}), ("finetune", {})],
)
def test_keeping_more_than_was_declared_fails_the_run(method, limit, monkeypatch):
    """A memory that is broken and keeps all of a task."""

    def everything(self, task):
        self.auditor.keep({task.id: torch.arange(len(task.train_eval))})
        return {}

    monkeypatch.setattr(ReplayMemory, "add", everything)
    if method == "finetune":
        monkeypatch.setattr(METHODS[method], "after", lambda self, task, net, rule: len(self.memory.add(task)))
    with pytest.raises(BudgetError, match="24 training examples"):
        run_toy(toy_config(method=method, **limit), toy_stream(1))


@pytest.mark.parametrize("limit", [{"replay_frac": 0.25}, *LIMITS])
def test_boosting_losses_on_more_than_was_kept_fail_the_run(limit, monkeypatch):
    add, whole = ReplayMemory.add, {}

    def remember(self, task):
        whole[task.id] = task.train_eval
        return add(self, task)

    monkeypatch.setattr(ReplayMemory, "add", remember)
    monkeypatch.setattr(ReplayMemory, "examples", lambda self, task_id: whole[task_id])
    with pytest.raises(BudgetError, match="training examples of task 1 were read"):
        run_toy(toy_config(tasks_per_round=2, **limit), toy_stream(2))


@pytest.mark.parametrize("buffer", BUFFERS)
def test_examples_that_had_to_make_room_cannot_be_read(buffer):
    first, second = toy_stream(2).tasks
    memory = ReplayMemory(Budget(total=10), 0, buffer)
    with memory.auditor.lending(Episode(1, (first,))) as episode:
        memory.add(episode.new[0])
    before = memory.examples(1)
    assert len(before.targets) == 10
    with memory.auditor.lending(Episode(2, (second,))) as episode:
        memory.add(episode.new[0])
    assert len(memory.examples(1).targets) < 10
    with pytest.raises(BudgetError, match="kept of task 1 were read after some had to make room"):
        Mixture([(1, before)])


@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize(
    "budget", [Budget(fraction=0.25), Budget(per_class=2), Budget(total=10), Budget(per_task=5)], ids=str
)
def test_positions_say_which_examples_are_kept(budget, buffer):
    stream = toy_stream(3)
    memory = filled(budget, stream.tasks, buffer=buffer if budget.total else "balanced")
    for task in stream.tasks:
        assert torch.equal(task.train_eval.rows[memory.positions[task.id]], memory.examples(task.id).rows)
    assert sum(map(len, memory.positions.values())) == memory.size()[0] < 3 * 24


@pytest.mark.parametrize(("limit", "earlier"), [({"replay_frac": 0.25}, False), ({"memory": 10}, True)])
def test_the_memory_has_changed_where_an_episode_keeps_other_examples(limit, earlier):
    """Only these tasks are saved again: the others have the same examples as before."""
    stream = toy_stream(3)
    method = build_method(Context(toy_config(**limit), stream.spec, CPU))
    for episode in stream.continual():
        method.learn(episode, Monitor())
        assert method.memory.changed == set(range(1 if earlier else episode.number, episode.number + 1))


def test_an_example_is_kept_once():
    (task,) = toy_stream(1).tasks
    auditor = Auditor(Budget(total=10))
    with auditor.lending(Episode(1, (task,))), pytest.raises(BudgetError, match="task 1 is kept twice"):
        auditor.keep({1: torch.tensor([3, 5, 3])})


def test_who_may_keep_everything_goes_on_drawing_from_a_generator():
    """Its examples are new in every epoch: the memory keeps the source."""
    stream = toy_stream(1, fresh=True)
    memory = filled(Budget(fraction=1.0), stream.tasks)
    epochs = [memory.source(1, 2).epoch(generator(0, name)) for name in "ab"]
    assert len(epochs[0]) == 24
    assert not torch.equal(epochs[0].store, epochs[1].store)


def test_a_share_is_counted_in_classes_or_as_a_whole():
    classes, numbers = torch.tensor([0] * 7 + [1] * 3), torch.zeros(10, 2)
    assert Budget(fraction=0.5).allowed(classes, 3).tolist() == [3, 1, 0]
    assert Budget(fraction=0.5).allowed(numbers, 3).tolist() == [5]
    assert Budget(fraction=0.0).allowed(classes, 2).tolist() == [0, 0]
    assert Budget(per_class=4).allowed(classes, 2).tolist() == [4, 4]
    assert Budget(per_class=4).allowed(numbers, 3).tolist() == [12]
    assert Budget(total=4).allowed(classes, 2) is None


@pytest.mark.parametrize("method", BOUNDED)
def test_nothing_but_test_inputs_can_be_read_to_predict(method, monkeypatch):
    """Neither training examples nor the labels that the answer will be compared with."""
    answer, shown = METHODS[method].answer, []

    def curious(self, task):
        shown.append(task)
        return answer(self, task)

    monkeypatch.setattr(METHODS[method], "answer", curious)
    stream = toy_stream(1)
    run_toy(toy_config(method=method), stream)
    assert stream.tasks[0].test.targets.any()
    assert not shown[0].test.targets.any()
    for read in READS.values():
        with pytest.raises(BudgetError, match="training examples of task 1 were read"):
            read(shown[0])


def test_a_generator_and_what_it_has_drawn_are_on_loan():
    auditor = Auditor(Budget(total=10))
    with auditor.lending(next(iter(toy_stream(1, fresh=True).continual()))) as episode:
        task = episode.new[0]
        drawn = task.train.draw(30, generator(0, "d"))
        assert len(drawn) == 30
        assert len(task.train) == len(task.train.epoch(generator(0, "d"))) == 24
    for read in (
        lambda: task.train.draw(1, generator(0, "d")),
        lambda: task.train.epoch(generator(0, "d")),
        lambda: task.train.freeze(5, 0),
        lambda: drawn.store,
        lambda: drawn.targets,
    ):
        with pytest.raises(BudgetError, match="training examples of task 1 were read after episode 1"):
            read()


def test_no_other_split_is_shown():
    task = toy_stream(1).tasks[0]
    task = task.with_splits(held_out=task.test, dev=task.test)
    with Auditor(Budget(total=10)).lending(Episode(1, (task,))) as episode:
        assert set(episode.new[0].splits) == set(to_predict(task).splits) == {"train", "test"}


def test_no_test_label_is_shown_while_a_task_is_learned():
    auditor = Auditor(Budget(total=10))
    with auditor.lending(next(iter(toy_stream(1).continual()))) as episode:
        assert not episode.new[0].test.targets.any()


@given(st.floats(0, 1), st.lists(st.integers(0, 3), min_size=1, max_size=300), st.integers(0, 99))
@settings(deadline=None)
def test_what_a_memory_keeps_of_a_share_is_allowed(fraction, targets, seed):
    """The rounding of both agrees for every share."""
    targets = torch.tensor(targets)
    budget = Budget(fraction=fraction)
    kept = balanced_subset(targets, fraction, generator(seed, "k")) if fraction else torch.zeros(0, dtype=torch.long)
    assert (torch.bincount(targets[kept], minlength=4) <= budget.allowed(targets, 4)).all()


@pytest.mark.parametrize(("fraction", "count"), [(0.29, 100), (0.53, 100), (0.59, 5000), (0.65, 6000)])
def test_a_share_of_a_class_is_not_lost_to_rounding(fraction, count):
    assert Budget(fraction=fraction).allowed(torch.zeros(count, dtype=torch.long), 1).item() == round(fraction * count)


def remember_tasks(method, monkeypatch):
    """The tasks that a method is lent, in the order of the episodes."""
    train, lent = METHODS[method].train, []

    def remembering(self, episode, monitor):
        lent.extend(episode.new)
        return train(self, episode, monitor)

    monkeypatch.setattr(METHODS[method], "train", remembering)
    return lent


def test_joint_reads_nothing_after_its_episode(monkeypatch):
    lent = remember_tasks("joint", monkeypatch)
    run_toy(toy_config(method="joint", continual=False, rounds=1), toy_stream(2))
    assert [task.id for task in lent] == [1, 2]
    for read in READS.values():
        with pytest.raises(BudgetError, match="training examples of task 2 were read after episode 1"):
            read(lent[1])


def test_cumulative_declares_that_it_keeps_everything(monkeypatch):
    lent = remember_tasks("cumulative", monkeypatch)
    method, _, _ = run_toy(toy_config(method="cumulative"), toy_stream(2))
    assert method.budget() == Budget(fraction=1.0)
    assert method.storage().examples == 48
    for read in READS.values():
        read(lent[0])
