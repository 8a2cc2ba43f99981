"""Methods on tasks that are not images of classes: tokens, real numbers, examples that are drawn without end."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasets.task import Table
from methods import METHODS, build_method
from methods.base import Context, check_requirements
from net import TRUNKS, build_net, settings_class
from net.multihead import MultiHead
from tests.toys import (
    CPU,
    LENGTH,
    TOKENS,
    Shifted,
    TokenTrunk,
    Turned,
    number_stream,
    run_toy,
    token_stream,
    toy_config,
    toy_stream,
)
from training.monitor import Monitor
from training.recipe import Recipe
from utils.errors import UserError
from utils.seeding import generator

STREAMS = {"tokens": token_stream, "numbers": number_stream}
MODELS = {"tokens": "tokens", "numbers": "mlp"}


@pytest.fixture(autouse=True)
def token_trunk(monkeypatch):
    monkeypatch.setitem(TRUNKS, "tokens", TokenTrunk)


def config_of(kind, method, **options):
    return toy_config(method=method, model=MODELS[kind], hp={"epochs": 12, "lr": 0.1}, **options)


# Train sources


def test_a_frozen_table_is_drawn_from_the_stream_of_its_name():
    one, again = (Turned(0.3).freeze(20, 7, 1, "test").examples for _ in range(2))
    expected = Turned(0.3).draw(20, generator(7, "frozen", 1, "test"))
    for examples in (one, again):
        assert torch.equal(examples.store, expected.store)
        assert torch.equal(examples.targets, expected.targets)
    for other in (Turned(0.3).freeze(20, 7, 1, "train"), Turned(0.3).freeze(20, 8, 1, "test")):
        assert not torch.equal(other.examples.store, one.store)


def test_an_epoch_of_a_generator_is_drawn_anew_and_as_long_as_it_says():
    source, rng = Shifted(2, epoch_size=30), generator(0, "e")
    first, second = source.epoch(rng), source.epoch(rng)
    assert len(first) == len(second) == len(source) == 30
    assert not torch.equal(first.store, second.store)
    assert torch.equal(first.targets, (first.store + 2) % TOKENS)
    assert len(Table(first, 3)) == 90 == len(Table(first, 3).epoch(rng))


# Tasks


def test_outputs_without_names_are_called_by_their_numbers():
    assert number_stream(1).tasks[0].output_names == ("0", "1")
    named = toy_stream(1).tasks[0]
    assert named.output_names == named.classes == ("a", "b", "c")


def test_splits_are_exchanged_and_slices_belong_to_a_split():
    task = number_stream(1).tasks[0]
    more = task.with_splits(dev=task.test.subset(torch.arange(5)))
    assert list(more.splits) == ["train", "test", "dev"]
    assert more.test is task.test
    assert more.held_out is None
    assert list(task.test.slices) == ["first"]
    assert more.splits["dev"].slices == {}  # their positions would be those of others


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", STREAMS)
def test_streams_of_any_kind_are_the_same_data_in_every_process(kind, frozen):
    first, again, more = (STREAMS[kind](tasks, frozen).fingerprints() for tasks in (2, 2, 3))
    assert first == again
    assert more == {**first, 3: more[3]}  # of each task for itself
    assert len(set(more.values())) == 3


# Methods


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize(  # tasks with unlike answers to the same inputs cannot be learned together by one head
    ("method", "heads"),
    [
        *((method, "task") for method in ("zoo", "finetune", "er", "isolated")),
        ("finetune", "shared"),
        ("zoo", "shared"),
    ],
)  # fmt: skip
def test_methods_learn_the_newest_task(method, kind, frozen, heads):
    """The loss falls below a third of that of the uninformed prediction, which is what an untrained network has."""
    stream = STREAMS[kind](2, frozen, heads)
    alone = {"tasks_per_round": 1} if method == "zoo" and heads == "shared" else {}
    _, history, predictions = run_toy(config_of(kind, method, **alone), stream)
    objective = stream.spec.objective
    shape = (40, LENGTH, TOKENS) if kind == "tokens" else (40, 2)
    for task, said in zip(stream.tasks, predictions, strict=True):
        assert said[task.id].shape == shape
        loss = objective.evaluate(said[task.id], task.test.targets)["loss"].value
        assert loss < objective.uninformed_loss(task.num_outputs, task.train_eval.targets) / 3
    assert history[0].stats.images == 12 * 64
    if method in ("zoo", "isolated"):  # what is learned later does not touch a member
        assert torch.equal(predictions[1][1], predictions[0][1]) == (method == "isolated" or bool(alone))


@pytest.mark.parametrize("heads", ["task", "shared"])
def test_a_head_that_tasks_share_is_the_newest_for_all_of_them(heads):
    """Finetuning on other targets turns the answer to the first task with a shared head, not with its own."""
    stream = number_stream(2, heads=heads)
    learner, _, _ = run_toy(config_of("numbers", "finetune"), stream)
    first, second = (learner.network([task.id]) for task in stream.tasks)
    assert torch.equal(first.weight, second.weight) == (heads == "shared")
    both = learner.network([1, 2])
    assert len(both.weight) == (2 if heads == "shared" else 4)


def test_a_stream_of_a_generator_goes_on_drawing_and_its_memory_is_a_table():
    stream = token_stream(2)
    learner, _, _ = run_toy(config_of("tokens", "er", memory_per_class=2), stream)
    kept = learner.memory.examples(1)
    assert len(kept) == 2 * TOKENS
    frozen = {tuple(row) for row in stream.tasks[0].train_eval.store.tolist()}
    assert {tuple(row) for row in kept.store[kept.rows].tolist()} <= frozen


@pytest.mark.parametrize("kind", STREAMS)
def test_a_saved_method_goes_on_as_if_it_had_never_stopped(kind):
    stream, config = STREAMS[kind](2, heads="shared"), config_of(kind, "finetune")
    _, _, predictions = run_toy(config, stream)
    first, _, _ = run_toy(config, stream, episodes=1)
    second = build_method(Context(config, stream.spec, CPU))
    episodes = list(stream.continual())
    second.load_state_dict(first.state_dict(), episodes[:1])
    second.learn(episodes[1], Monitor())
    for task in stream.tasks:
        assert torch.equal(second.predict(task), predictions[1][task.id])


# Heads


@pytest.mark.parametrize("between", [(), (3,), (2, 3)])
def test_heads_act_on_the_last_axis(between):
    """Each position by itself has the outputs that it has among the others."""
    net = MultiHead(nn.Identity(), 6, {1: 4, 3: 2})
    features, ids = torch.randn(5, *between, 6), torch.tensor([1, 3, 3, 1, 3])
    outputs = net(features, ids)
    both = net.heads(features, torch.tensor([3, 1]))
    assert outputs.shape == (5, *between, 4)
    assert both.shape == (5, *between, 2, 4)
    for example, task in enumerate(ids.tolist()):
        width = net.head_sizes[task]
        expected = F.linear(features[example], net.weight[net.rows(task)], net.bias[net.rows(task)])
        torch.testing.assert_close(outputs[example][..., :width], expected)
        torch.testing.assert_close(both[example][..., 0 if task == 3 else 1, :width], expected)
        assert (outputs[example][..., width:] == -math.inf).all()


def test_a_shared_head_is_one_linear_layer_and_without_a_head_features_are_outputs():
    features, ids = torch.randn(5, 3, 4), torch.tensor([1, 2, 2, 1, 2])
    shared = MultiHead(nn.Identity(), 4, {1: 4, 2: 4}, "shared")
    assert shared.weight.shape == (4, 4)
    torch.testing.assert_close(shared(features, ids), F.linear(features, shared.weight, shared.bias))
    assert torch.equal(shared.heads(features, ids[:2])[..., 1, :], shared(features, ids))
    identity = MultiHead(nn.Identity(), 4, {1: 4, 2: 4}, "identity")
    assert torch.equal(identity(features, ids), features)
    assert not any(parameter.requires_grad for parameter in identity.parameters())
    assert [net.head_parameters(2) for net in (shared, identity)] == [20, 0]


@pytest.mark.parametrize(
    ("heads", "sizes", "message"),
    [
        ("shared", {1: 4, 2: 3}, r"tasks have \[3, 4\] outputs; with shared heads all have the same number"),
        ("identity", {1: 3}, "the network has 4 features and tasks have 3 outputs"),
    ],
)
def test_heads_that_do_not_fit_say_so(heads, sizes, message):
    with pytest.raises(UserError, match=message):
        MultiHead(nn.Identity(), 4, sizes, heads)


def test_a_network_without_a_head_learns():
    stream = number_stream(2, heads="identity")

    class Square(nn.Linear):
        Settings = TokenTrunk.Settings

        def __init__(self, shape, settings):
            super().__init__(2, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRUNKS, "square", Square)
        config = toy_config(method="finetune", model="square", hp={"epochs": 12, "lr": 0.1})
        _, _, predictions = run_toy(config, stream)
    for task, said in zip(stream.tasks, predictions, strict=True):
        assert F.mse_loss(said[task.id], task.test.targets) < 0.01  # a rotation is linear


# What methods require


@pytest.mark.parametrize("method", ["lwf", "der", "derpp", "ewc", "ewc_online"])
@pytest.mark.parametrize("kind", STREAMS)
def test_methods_that_need_classes_refuse_others_before_they_train(method, kind):
    name = "Tokens" if kind == "tokens" else "RealNumbers"
    with pytest.raises(UserError, match=rf"method \w+ needs targets that are classes; {name} has none"):
        run_toy(config_of(kind, method), STREAMS[kind]())


@pytest.mark.parametrize("method", ["packnet", "wsn", "gpm"])
def test_methods_that_know_layers_refuse_networks_without(method):
    with pytest.raises(UserError, match=r"method \w+ needs a network with layers .*Linear.*; TokenTrunk has none"):
        run_toy(config_of("tokens", method), token_stream())


@pytest.mark.parametrize("method", ["packnet", "wsn", "gpm"])
def test_methods_that_protect_the_past_need_a_head_for_each_task(method):
    stream = replace(toy_stream(1), spec=replace(toy_stream(1).spec, heads="shared"))
    with pytest.raises(UserError, match=r"method \w+ needs a head for each task; this network has shared heads"):
        run_toy(toy_config(method=method), stream)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_accepts_images_of_classes(method):
    spec = toy_stream(1).spec
    check_requirements(METHODS[method], spec, build_net("conv", (1, 8, 8), settings_class("conv")(), {1: 2}), Recipe())


@pytest.mark.parametrize("method", ["ewc", "ewc_online", "si", "gpm"])
def test_methods_that_count_on_the_steps_of_sgd_refuse_other_optimizers(method):
    stream = toy_stream(1)
    learner = build_method(Context(toy_config(method=method), stream.spec, CPU))
    learner.recipe = replace(learner.recipe, optimizer="adamw")
    with pytest.raises(UserError, match=r"needs the optimizer sgd, not adamw"):
        learner.learn(next(stream.continual()), Monitor())
