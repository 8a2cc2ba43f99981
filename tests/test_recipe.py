"""Recipes: schedules against closed forms and torch's own, optimizers against torch's, lengths, what is refused."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    SequentialLR,
)

from net import build_net, settings_class
from tests.toys import CPU, Turned, number_stream
from training.batches import Batch
from training.optimizers import OPTIMIZERS, SCHEDULES, learning_rates, make_optimizer
from training.recipe import BATCH_SIZE, STEPS_OR_SHARE, Recipe
from training.steps import GradientSteps, StepRule
from utils.errors import UserError
from utils.seeding import generator, seeded
from utils.settings import COUNT, read

STEPS = 40


def rates_of(scheduler_of, steps=STEPS):
    """Learning rates of torch's scheduler, from a highest one of 0.3."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.3)
    scheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


SCHEDULERS = {
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
    "linear": lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.0, steps),
    "constant": lambda optimizer, steps: ConstantLR(optimizer, 1.0),
    "exponential": lambda optimizer, steps: ExponentialLR(optimizer, 0.9),
    "half_exponential": lambda optimizer, steps: SequentialLR(
        optimizer, [ExponentialLR(optimizer, 0.01 ** (2 / steps)), ConstantLR(optimizer, 0.01, steps)], [steps // 2]
    ),
}
FORMS = {
    "cosine": lambda t: (1 + math.cos(math.pi * t / STEPS)) / 2,
    "linear": lambda t: (STEPS - t) / STEPS,
    "constant": lambda t: 1,
    "exponential": lambda t: 0.9**t,
    "half_exponential": lambda t: 0.01 ** min(2 * t / STEPS, 1),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_their_closed_forms_and_torchs(schedule):
    rates = learning_rates(Recipe(schedule=schedule, lr=0.3, gamma=0.9), STEPS)
    found = [rates(step) for step in range(STEPS)]
    assert found == pytest.approx([0.3 * FORMS[schedule](step) for step in range(STEPS)])
    assert found == pytest.approx(rates_of(lambda optimizer: SCHEDULERS[schedule](optimizer, STEPS)))


@pytest.mark.parametrize("warmup", [7, 0.175])
@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "half_exponential"])
def test_a_warm_up_rises_in_a_line_and_leaves_the_rest_to_the_schedule(schedule, warmup):
    rates = learning_rates(Recipe(schedule=schedule, lr=0.3, gamma=0.9, warmup=warmup), STEPS)
    expected = rates_of(
        lambda optimizer: SequentialLR(
            optimizer, [LinearLR(optimizer, 1 / 8, 1.0, 7), SCHEDULERS[schedule](optimizer, STEPS - 7)], [7]
        )
    )
    assert [rates(step) for step in range(STEPS)] == pytest.approx(expected)
    assert rates(6) < rates(7) == 0.3


@pytest.mark.parametrize("warmup", [7, 0.175])
def test_the_warm_up_of_half_exponential_is_a_factor_on_the_schedule_of_all_steps(warmup):
    rates = learning_rates(Recipe(schedule="half_exponential", lr=0.3, warmup=warmup), STEPS)
    factor = FORMS["half_exponential"]
    expected = rates_of(lambda optimizer: LambdaLR(optimizer, lambda step: min(step / 7, 1) * factor(step)))
    assert [rates(step) for step in range(STEPS)] == pytest.approx(expected)
    assert rates(0) == 0


TORCHS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.8, nesterov=True, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.1, (0.7, 0.95), 1e-4, 0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.1, (0.7, 0.95), 1e-4, 0.01),
}


def small_net():
    with seeded(0, "net"):
        return build_net("mlp", (2,), settings_class("mlp")(dropout=0.0, widths=(7, 7)), {1: 2})


def batches_of(count):
    rng = generator(0, "data")
    for _ in range(count):
        examples = Turned(0.5).draw(6, rng)
        yield Batch(examples.store, examples.targets, torch.ones(6, dtype=torch.long))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_are_torchs(optimizer):
    recipe = Recipe(
        steps=9, lr=0.1, l2_reg=0.01, optimizer=optimizer, momentum=0.8, beta1=0.7, beta2=0.95, eps=1e-4,
        schedule="constant",
    )  # fmt: skip
    ours, plain, spec = small_net(), small_net(), number_stream(1).spec
    steps, theirs = GradientSteps(ours, spec, recipe, CPU, 9, StepRule()), TORCHS[optimizer](plain.parameters())
    for batch in batches_of(9):
        steps(batch)
        theirs.zero_grad()
        spec.objective.loss(plain(batch.inputs, batch.task_ids), batch.targets).backward()
        theirs.step()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_sgd_without_momentum_is_plain():
    net = small_net()
    group = make_optimizer(net, Recipe(momentum=0.0), 0.1).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0, False)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_go_on_from_their_state_to_the_bit(optimizer):
    recipe, spec, data = Recipe(steps=8, lr=0.05, optimizer=optimizer), number_stream(1).spec, list(batches_of(8))
    whole = small_net()
    steps = GradientSteps(whole, spec, recipe, CPU, 8, StepRule())
    for number, batch in enumerate(data):
        if number == 5:
            state, weights = copy.deepcopy(steps.state()), copy.deepcopy(whole.state_dict())
        steps(batch)
    resumed = small_net()
    steps = GradientSteps(resumed, spec, recipe, CPU, 8, StepRule())
    resumed.load_state_dict(weights)
    steps.restore(state)
    for batch in data[5:]:
        steps(batch)
    assert all(one.equal(other) for one, other in zip(resumed.parameters(), whole.parameters(), strict=True))


# Lengths


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 300))
def test_a_length_in_examples_ends_with_the_batch_that_reaches_it(examples, size, wanted):
    """Against counting batch by batch, epoch after epoch."""
    seen = steps = 0
    while seen < wanted:
        left = examples - seen % examples
        seen, steps = seen + min(size, left), steps + 1
    assert Recipe(examples=wanted).length(examples, size) == steps


def test_lengths_in_epochs_and_in_steps():
    assert Recipe(epochs=3).length(20, 8) == 9
    assert Recipe(steps=5).length(20, 8) == 5
    assert Recipe().epochs == 100
    assert Recipe(steps=5).epochs is None
    assert (Recipe(batch="full").batch_size(20), Recipe(batch=7).batch_size(20)) == (20, 7)


def test_examples_that_are_seen_once_are_not_augmented_unless_asked_for():
    given = [Recipe(), Recipe(epochs=1), Recipe(epochs=1, augment=True), Recipe(augment=False), Recipe(steps=1)]
    assert [recipe.augments for recipe in given] == [True, False, True, False, True]


# What is accepted

RIGHT = [
    (COUNT, 1, 1), (COUNT, "2^24", 1 << 24), (COUNT, "1000", 1000), (BATCH_SIZE, 1, 1),
    (BATCH_SIZE, "full", "full"), (STEPS_OR_SHARE, 0, 0), (STEPS_OR_SHARE, 200, 200), (STEPS_OR_SHARE, 0.1, 0.1),
]  # fmt: skip
WRONG = [
    (COUNT, 0), (COUNT, 2.0), (COUNT, True), (COUNT, "2^"), (COUNT, "2**3"), (COUNT, "9^99"),
    (COUNT, None), (BATCH_SIZE, 0), (BATCH_SIZE, "half"), (BATCH_SIZE, 16.0), (BATCH_SIZE, True),
    (STEPS_OR_SHARE, -1), (STEPS_OR_SHARE, 1.0), (STEPS_OR_SHARE, 1.5), (STEPS_OR_SHARE, "1"), (STEPS_OR_SHARE, True),
    (STEPS_OR_SHARE, math.nan),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "expected"), RIGHT, ids=lambda value: getattr(value, "words", repr(value)))
def test_values_that_are_read(kind, value, expected):
    assert kind.read("h.yaml: key", value) == expected


@pytest.mark.parametrize(("kind", "value"), WRONG, ids=lambda value: getattr(value, "words", repr(value)))
def test_values_that_are_refused_with_what_is_right(kind, value):
    with pytest.raises(UserError) as error:
        kind.read("h.yaml: key", value)
    assert str(error.value) == f"h.yaml: key is {value!r}; it must be {kind.describe()}"


def test_a_recipe_is_read_by_its_declarations():
    found = read(Recipe, "h.yaml", {"examples": "2^10", "batch": "full", "optimizer": "adamw", "warmup": 0.1})
    assert found == Recipe(examples=1024, batch="full", optimizer="adamw", warmup=0.1)
    with pytest.raises(UserError, match=r"h\.yaml: optimizer: unknown optimizer 'adamv'; .*adamw"):
        read(Recipe, "h.yaml", {"optimizer": "adamv"})
    with pytest.raises(UserError, match="epochs and steps are given; one of them sets the length of training"):
        read(Recipe, "h.yaml", {"epochs": 3, "steps": 4})
