"""A memory of slots that is filled while examples arrive: chance, brute force, and what real runs replay."""

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from datasets.scenarios import in_scenario
from datasets.task import Episode
from methods import METHODS, check_method
from methods.er import ER
from methods.memory.audit import Auditor, Budget, BudgetError
from methods.memory.replay import ReplayMemory
from methods.memory.slots import NONE, Arrivals, ClassReservoir, SlotReplays, distinct, reservoir_slots
from methods.single import NormRule
from tests.test_protocols import named_stream, of_scenario
from tests.toys import filled, run_toy, toy_stream
from training.loop import arrival_order
from training.recipe import Recipe
from utils.errors import UserError
from utils.seeding import generator

DRAWS = 4000


def held_after(slots):
    """Slot -> number of the arrival in it, by a dictionary."""
    return {slot: arrival for arrival, slot in enumerate(slots) if slot != NONE}


@pytest.mark.parametrize("arrived", [6, 9, 14])
@pytest.mark.parametrize("parts", [(14,), (4, 10), (7, 7)])
def test_at_any_time_each_example_that_has_arrived_is_kept_equally_often(arrived, parts):
    """By chi-square; k of n without replacement have (n - k) / (n - 1) of the variance of independent draws."""
    size, kept, rng = 5, Counter(), generator(0, "reservoir", arrived, *parts)
    for _ in range(DRAWS):
        seen, slots = 0, []
        for count in parts:
            slots += reservoir_slots(size, seen, count, rng).tolist()
            seen += count
        held = held_after(slots[:arrived])
        assert sorted(held) == list(range(size))
        kept.update(held.values())
    expected = DRAWS * size / arrived
    statistic = sum((kept[i] - expected) ** 2 / expected for i in range(arrived)) * (arrived - 1) / (arrived - size)
    assert chi2.sf(statistic, arrived - 1) > 1e-3
    assert chi2.cdf(statistic, arrived - 1) > 1e-3  # nor more even than chance


def test_tasks_of_which_few_examples_arrive_are_kept_equally_often():
    """By the variance of draws without replacement; all slots are used."""
    size, arriving, draws, kept = 10, 8, 300, Counter()
    stream = toy_stream(3, count=25)
    for seed in range(draws):
        memory = ReplayMemory(Budget(total=size), seed, "reservoir", order=lambda _: torch.arange(arriving))
        for number, task in enumerate(stream.tasks, 1):
            with memory.auditor.lending(Episode(number, (task,))) as episode:
                memory.add(episode.new[0])
            assert memory.size()[0] == min(size, number * arriving)
        kept.update({task: len(memory.examples(task)) for task in memory.tasks})
    for task in (1, 2, 3):
        variance = size * (1 / 3) * (2 / 3) * (24 - size) / 23
        assert abs(kept[task] - draws * size / 3) < 4 * math.sqrt(draws * variance)


def test_a_reservoir_of_one_class_is_a_reservoir():
    kept, rng = Counter(), generator(0, "one class")
    for _ in range(DRAWS):
        kept.update(held_after(ClassReservoir(3).slots([0] * 9, rng).tolist()).values())
    expected = DRAWS * 3 / 9
    statistic = sum((kept[i] - expected) ** 2 / expected for i in range(9)) * 8 / 6
    assert chi2.sf(statistic, 8) > 1e-3


class PlainClassReservoir:
    """Algorithm 1 of Chrysakis & Moens, example by example, on a list of (class, arrival)."""

    def __init__(self, size, rng):
        self.size, self.rng, self.memory, self.seen, self.full = size, rng, [], Counter(), set()

    def add(self, label, arrival):
        self.seen[label] += 1
        if len(self.memory) < self.size:
            self.memory.append((label, arrival))
        else:
            kept = [i for i, (other, _) in enumerate(self.memory) if other == label]
            if label not in self.full:
                largest = self.largest()
                kept = [i for i, (other, _) in enumerate(self.memory) if other in largest]
            elif float(torch.rand((), generator=self.rng)) > len(kept) / self.seen[label]:
                return
            self.memory[kept[int(torch.randint(len(kept), (), generator=self.rng))]] = (label, arrival)
        if len(self.memory) == self.size:
            self.full |= self.largest()

    def largest(self):
        counts = Counter(label for label, _ in self.memory)
        return {label for label, count in counts.items() if count == max(counts.values())}


def test_a_class_reservoir_is_the_published_algorithm():
    """How often each arrival of an unbalanced stream is kept, against plain code with other random numbers."""
    labels, size = [0, 0, 0, 1, 0, 0, 1, 2, 0, 1, 0, 0, 2, 1], 5
    ours, plain, rng = Counter(), Counter(), generator(0, "class reservoir")
    for _ in range(DRAWS):
        memory = ClassReservoir(size)
        slots = [*memory.slots(labels[:6], rng).tolist(), *memory.slots(labels[6:], rng).tolist()]
        ours.update(held_after(slots).values())
        twin = PlainClassReservoir(size, rng)
        for arrival, label in enumerate(labels):
            twin.add(label, arrival)
        plain.update(arrival for _, arrival in twin.memory)
    for arrival in range(len(labels)):
        rates = ours[arrival] / DRAWS, plain[arrival] / DRAWS
        spread = (2 * max(rates[1] * (1 - rates[1]), 1e-4) / DRAWS) ** 0.5
        assert abs(rates[0] - rates[1]) < 4.5 * spread, arrival


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), size=st.integers(1, 12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_class_reservoir_is_as_balanced_as_the_stream_allows(labels, size, seed):
    """Classes that are smaller than the largest by more than one have all their examples."""
    held = held_after(ClassReservoir(size).slots(labels, generator(seed, "balance")).tolist())
    assert sorted(held) == list(range(min(size, len(labels))))
    counts, whole = Counter(labels[arrival] for arrival in held.values()), Counter(labels)
    for label, count in whole.items():
        assert counts[label] == count or counts[label] >= max(counts.values()) - 1


@st.composite
def arrivals(draw):
    """Size, how many slots are held before, order, and slots of which empty ones are taken from the lowest on."""
    size, count = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    before = draw(st.integers(0, size))
    held = draw(st.permutations(range(before)))
    slots, used = [], before
    for _ in range(count):
        slot = used if used < size else draw(st.integers(NONE, size - 1))
        used = max(used, slot + 1)
        slots.append(slot)
    return size, held, draw(st.permutations(range(count))), slots


@given(arrivals(), st.integers(1, 5))
@settings(deadline=None, max_examples=80)
def test_what_the_slots_hold_is_that_of_a_dictionary(case, batch):
    size, held, order, slots = case
    found = Arrivals(size, torch.tensor(held, dtype=torch.long), torch.tensor(order), torch.tensor(slots))
    before = {slot: row for row, slot in enumerate(held)}
    for arrived in range(len(slots) + 1):
        expected = dict(before)
        for arrival in range(arrived):
            if slots[arrival] != NONE:
                expected[slots[arrival]] = len(held) + order[arrival]
        assert found.count(arrived) == len(expected)
        used = torch.tensor([sorted(expected)], dtype=torch.long)
        rows = found.rows(used, torch.tensor([arrived]))
        assert rows.tolist() == [[expected[slot] for slot in sorted(expected)]]
    for start in range(0, len(slots), batch):
        part = slots[start : start + batch]
        stays = [slot if slot != NONE and slot not in part[i + 1 :] else size for i, slot in enumerate(part)]
        assert found.written(start, batch).tolist() == stays


@pytest.mark.parametrize(("count", "size"), [(5, 2), (7, 2), (6, 3), (4, 4)])
def test_each_set_of_different_numbers_is_equally_likely(count, size):
    drawn = distinct(count, size, 6000, generator(0, "distinct", count, size))
    assert drawn.shape == (6000, size)
    sets = Counter(map(frozenset, drawn.tolist()))
    possible = [frozenset(chosen) for chosen in combinations(range(count), size)]
    assert set(sets) <= set(possible)
    if len(possible) > 1:
        assert chisquare([sets[chosen] for chosen in possible]).pvalue > 1e-3


# Real runs


class Noting(NormRule):
    """Plain training that notes the new and the replayed images of each step."""

    def loss(self, net, batch, objective):
        images = [image.numpy().tobytes() for image in batch.inputs]
        new = len(batch) - batch.replayed
        STEPS.append((images[:new], images[new:]))
        return super().loss(net, batch, objective)


STEPS: list[tuple[list[bytes], list[bytes]]] = []


class NotingER(ER):
    def rule(self):
        return Noting()


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("buffer", ["reservoir", "class_reservoir"])
@pytest.mark.parametrize("repeat", [1, 3])
def test_only_what_has_arrived_before_is_replayed(buffer, repeat, scenario, monkeypatch):
    monkeypatch.setitem(METHODS, "er", NotingER)
    STEPS.clear()
    config = of_scenario(
        scenario, method="er", memory=9, hp={"augment": False, "epochs": 2, "steps_per_batch": repeat},
        settings={"fill": "during", "buffer": buffer, "replay_batch": 6},
    )  # fmt: skip
    stream = in_scenario(named_stream(), scenario)
    learner, _, _ = run_toy(config, stream)
    arrived, steps = set(), iter(STEPS)
    for number, task in enumerate(stream.tasks):
        images = {image.numpy().tobytes() for image in stream.spec.preprocess(task.train_eval.store)}
        for _ in range(2 * 24 // 8):
            batch = [next(steps) for _ in range(repeat)]
            for new, replayed in batch:
                assert new == batch[0][0]
                assert set(new) <= images
                assert set(replayed) <= arrived
                assert len(set(replayed)) == len(replayed) == min(6, len(arrived))
            arrived |= set(batch[0][0])
        assert len(arrived) == 24 * (number + 1)
    assert next(steps, None) is None
    assert len({image for _, replayed in STEPS[-3 * repeat :] for image in replayed}) <= 9  # the slots, as they stay
    assert learner.memory.size()[0] == 9


@pytest.mark.parametrize(("count", "hp", "arriving"), [(25, {"epochs": 1}, 24), (24, {"epochs": None, "steps": 2}, 16)])
def test_what_does_not_arrive_leaves_no_slot_empty(count, hp, arriving, monkeypatch):
    """A last batch of one example, or what comes after the last step."""
    monkeypatch.setitem(METHODS, "er", NotingER)
    STEPS.clear()
    settings = {"fill": "during", "buffer": "reservoir", "replay_batch": 40}
    config = of_scenario("task", method="er", memory=40, hp={"augment": False, **hp}, settings=settings)
    learner, _, _ = run_toy(config, toy_stream(3, count=count))
    arrived = set()
    for new, replayed in STEPS:
        assert set(replayed) <= arrived
        assert len(set(replayed)) == len(replayed) == min(40, len(arrived))
        arrived |= set(new)
    assert learner.memory.size()[0] == min(40, 3 * arriving)


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("noted", [False, True])
def test_batches_that_are_skipped_are_those_that_would_have_been_drawn(repeat, noted):
    stream = toy_stream(2, count=40)
    memory = filled(Budget(total=6), stream.tasks[:1], buffer="reservoir")
    with memory.auditor.lending(Episode(2, stream.tasks[1:])) as episode:
        held = memory.arrivals(episode.new[0])

        def replays():
            rng = generator(0, "replays")
            return SlotReplays(*held, stream.spec, 8, 4, rng, augment=True, repeat=repeat, noted=noted)

        drawn = replays()
        expected = [next(drawn) for _ in range(90)]
        for count in (*range(20), 63, 64, 65, 80):
            again = replays()
            again.skip(count)
            for batch in expected[count : count + 3]:
                found = next(again).tensors()
                assert found.keys() == batch.tensors().keys()
                assert all(torch.equal(value, found[name]) for name, value in batch.tensors().items())


@pytest.mark.parametrize("method", ["er", "der", "derpp", "gem", "agem", "mega"])
def test_no_more_is_kept_than_the_limits_say(method):
    stream = toy_stream(3)
    during = {"fill": "during", "buffer": "reservoir"}
    for number in (1, 2, 3):
        learner, _, _ = run_toy(of_scenario("task", method=method, memory_per_task=4), stream, number)
        assert {task: len(learner.memory.examples(task)) for task in learner.memory.tasks} == dict.fromkeys(
            range(1, number + 1), 4
        )
    if method == "gem":
        return
    for number in (1, 2, 3):
        learner, _, _ = run_toy(of_scenario("task", method=method, memory=7, settings=during), stream, number)
        assert learner.memory.size()[0] == 7


def test_the_auditor_holds_methods_to_a_number_for_each_task():
    (task,) = toy_stream(1).tasks
    auditor = Auditor(Budget(per_task=4))
    with auditor.lending(Episode(1, (task,))):
        with pytest.raises(BudgetError, match="5 training examples of task 1 are too many"):
            auditor.keep({1: torch.arange(5)})
        assert len(auditor.keep({1: torch.arange(4)})[1]) == 4


def test_examples_that_were_not_kept_cannot_be_replayed_later():
    """Nothing of the pool of a task can be gathered when its episode has ended."""
    stream = toy_stream(2)
    memory = filled(Budget(total=6), stream.tasks[:1], buffer="reservoir")
    with memory.auditor.lending(Episode(2, stream.tasks[1:])) as episode:
        _, pool = memory.arrivals(episode.new[0])
        memory.add(episode.new[0])
    with pytest.raises(BudgetError, match="training examples of task 2 were read after episode 2"):
        episode.new[0].train_eval.subset(torch.arange(2))
    assert len(memory.mixture()) == 6 < len(pool)


@pytest.mark.parametrize("buffer", ["balanced", "random"])
def test_only_slots_can_be_filled_during_the_stream(buffer):
    config = of_scenario("task", method="er", memory=5, settings={"fill": "during", "buffer": buffer})
    with pytest.raises(UserError, match="with fill: during the setting buffer must be reservoir or class_reservoir"):
        check_method(config, ())
    with pytest.raises(UserError, match="its setting buffer is 'reservoir', which has a total: add --memory"):
        check_method(replace(config, memory=None, settings=replace(config.settings, buffer="reservoir")), ())
    filling = {"fill": "during", "buffer": "reservoir"}
    with pytest.raises(UserError, match="mixed: true takes the kept examples as they are when a task begins"):
        check_method(of_scenario("task", method="er", memory=5, settings={**filling, "mixed": True}), ())
    with pytest.raises(UserError, match=r"unknown fill 'during' \(known: after\)"):
        of_scenario("task", method="gem", memory=5, settings=filling)
    streaming = of_scenario("task", method="er", memory=5, settings={"fill": "during", "buffer": "reservoir"})
    with pytest.raises(UserError, match="during needs tasks with a table of examples"):
        run_toy(streaming, toy_stream(1, fresh=True))


def test_what_no_network_with_batch_normalisation_is_trained_on_does_not_arrive():
    """Of 25 examples in batches of 8 the last one would be a batch of its own; of 26 the last two are one."""
    recipe = Recipe(epochs=1, batch=8)
    for examples, arriving in ((25, 24), (26, 26), (24, 24)):
        order = arrival_order(examples, recipe, 0, ("member", 0))
        assert len(order) == len(set(order.tolist())) == arriving
        assert set(order.tolist()) <= set(range(examples))
