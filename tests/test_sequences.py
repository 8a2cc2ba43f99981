"""Networks for sequences: against torch's own modules, closed forms and published sizes; methods learn with them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import export
import modelzoo
from datasets import STREAMS
from datasets.objectives import CrossEntropy
from datasets.task import Preprocess, StreamSpec, Table, Task, TaskStream
from methods import METHODS, build_method
from methods.base import Context
from net import build_net, build_trunk, count_parameters, settings_class
from net.sequences.handcrafted import handcrafted_2nd_argmax
from net.sequences.published import from_published, to_published
from records import Run, configure
from records.invocation import parse
from tests.test_net import net_of, trunk_of
from tests.toys import CPU, configured, run_toy, table, toy_config
from training.batches import Batch
from training.optimizers import learning_rates, recipe_for
from training.recipe import Recipe
from training.steps import GradientSteps, StepRule
from utils.errors import UserError
from utils.seeding import generator, seeded
from utils.trees import from_bytes, to_bytes
from zoo import Zoo

FIRST = torch.ones(1, dtype=torch.long)


def answers(net, inputs):
    with torch.no_grad():
        return net(inputs, FIRST.expand(len(inputs)))


@pytest.mark.parametrize(
    ("model", "given", "length", "outputs", "published"),
    [
        ("rnn", {"hidden_size": 2}, 2, 1, 8),
        ("rnn", {"hidden_size": 2}, 2, 2, 10),
        ("rnn", {"hidden_size": 4}, 3, 3, 32),
        ("rnn", {"hidden_size": 16}, 10, 10, 432),
        ("rnn", {"hidden_size": 32}, 10, 10, 1376),
        ("rnn", {"hidden_size": 32}, 11, 11, 1408),
        ("attention_only", {"width": 2}, 3, 3, 50),
        ("attention_only", {"width": 8}, 6, 6, 656),
    ],
)
def test_networks_have_the_published_size(model, given, length, outputs, published):
    net = net_of(model, (length,), {1: outputs}, **given)
    assert count_parameters(net) == published
    assert count_parameters(net.trunk) + net.head_parameters(1) == published


# The recurrent network


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("hidden", "length"), [(2, 1), (4, 3), (16, 10)])
def test_a_recurrent_network_is_torchs(hidden, length, bias):
    """In double precision with the same weights: all states, from 0 and from another first state."""
    trunk = trunk_of("rnn", (length,), hidden_size=hidden, bias=bias).double()
    twin = nn.RNN(1, hidden, nonlinearity="relu", bias=bias, batch_first=True).double()
    twin.load_state_dict(trunk.rnn.state_dict())
    inputs, first = torch.randn(50, length, dtype=torch.float64), torch.rand(50, hidden, dtype=torch.float64)
    with torch.no_grad():
        for begin in (None, first):
            states, _ = twin(inputs.unsqueeze(-1), None if begin is None else begin.unsqueeze(0))
            torch.testing.assert_close(trunk.states(inputs, begin), states, rtol=0, atol=1e-12)
            if begin is None:
                torch.testing.assert_close(trunk(inputs), states[:, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_a_recurrent_network_has_the_gradients_of_torchs(bias):
    trunk = trunk_of("rnn", (5,), hidden_size=6, bias=bias).double()
    twin = nn.RNN(1, 6, nonlinearity="relu", bias=bias, batch_first=True).double()
    twin.load_state_dict(trunk.rnn.state_dict())
    inputs, weights = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
    (trunk(inputs) * weights).sum().backward()
    (twin(inputs.unsqueeze(-1))[0][:, -1] * weights).sum().backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(trunk.rnn[name].grad, parameter.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_a_recurrent_network_begins_like_torchs(bias):
    with seeded(3, "net"):
        net = net_of("rnn", (7,), {1: 7}, hidden_size=9, bias=bias)
    with seeded(3, "net"):
        twin, head = nn.RNN(1, 9, nonlinearity="relu", bias=bias), nn.Linear(9, 7, bias=False)
    for name, parameter in twin.named_parameters():
        assert torch.equal(net.trunk.rnn[name], parameter)
    torch.testing.assert_close(net.weight, head.weight, rtol=1e-6, atol=0)
    assert not net.bias.any()
    assert isinstance(net.bias, nn.Parameter) == bias


def test_zeros_in_front_change_nothing():
    """To the bit; with biases they would."""
    inputs = torch.randn(100, 4)
    longer = torch.cat([torch.zeros(100, 3), inputs], 1)
    for bias in (False, True):
        trunk = trunk_of("rnn", (7,), hidden_size=12, bias=bias)
        assert torch.equal(trunk(inputs), trunk(longer)) != bias


# The transformer


class Twin(nn.Module):
    """The transformer of torch's modules, with the names of published files."""

    def __init__(self, length, width, layers, heads, vocabulary, outputs):
        super().__init__()
        self.embed, self.pos_embed = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        made = [nn.MultiheadAttention(width, heads, bias=False, batch_first=True) for _ in range(layers)]
        self.attns, self.unembed = nn.ModuleList(made), nn.Linear(width, outputs, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens) + self.pos_embed.weight
        for attention in self.attns:
            x = x + attention(x, x, x, need_weights=False)[0]
        return self.unembed(x[:, -1])


class RecurrentTwin(nn.Module):
    """The recurrent network of torch's modules, with the names of published files."""

    def __init__(self, hidden, outputs, bias):
        super().__init__()
        self.rnn = nn.RNN(1, hidden, nonlinearity="relu", bias=bias, batch_first=True)
        self.linear = nn.Linear(hidden, outputs, bias=bias)

    def forward(self, numbers):
        return self.linear(self.rnn(numbers.unsqueeze(-1))[0][:, -1])


@pytest.mark.parametrize("vocabulary", [5, 9])
@pytest.mark.parametrize(("width", "layers", "heads"), [(2, 1, 1), (8, 2, 1), (12, 3, 4), (6, 2, 6)])
def test_a_transformer_is_made_of_torchs_attention(width, layers, heads, vocabulary):
    twin = Twin(5, width, layers, heads, vocabulary, 4)
    found = from_published(twin.state_dict(), heads=heads)
    net = build_net(found.model, found.shape, found.settings, {1: found.outputs}).double()
    net.load_state_dict(found.state)
    tokens = torch.randint(vocabulary, (60, 5))
    with torch.no_grad():
        torch.testing.assert_close(answers(net, tokens), twin.double()(tokens), rtol=0, atol=1e-12)


def test_a_transformer_begins_like_torchs_modules():
    """Embeddings are normal, the other weights uniform: variances within five standard errors."""
    with seeded(0, "net"):
        net = net_of("attention_only", (64,), {1: 64}, width=64, layers=1)
    weights = {**net.trunk.state_dict(), "head": net.weight.detach()}
    inside = 1 / math.sqrt(64)
    bounds = {"attns.0.in_proj_weight": math.sqrt(6 / (4 * 64)), "attns.0.out_proj.weight": inside, "head": inside}
    for name, value in weights.items():
        if name in bounds:
            assert value.abs().max() <= bounds[name]
            expected, fourth = bounds[name] ** 2 / 3, bounds[name] ** 4 / 5
        else:
            expected, fourth = 1.0, 3.0
        error = math.sqrt((fourth - expected**2) / value.numel())
        assert abs(value.square().mean() - expected) < 5 * error, name


# Both


SMALL = {"rnn": {"hidden_size": 5}, "attention_only": {"width": 6, "heads": 2}}


@pytest.mark.parametrize(
    ("model", "given"), [("rnn", {"bias": True}), *SMALL.items()], ids=["biases", "rnn", "attention_only"]
)
def test_many_networks_at_once_are_each_of_them(model, given):
    trunks = [trunk_of(model, (4,), **given).double() for _ in range(3)]
    shape = (3, 20, 4)
    inputs = torch.randn(shape, dtype=torch.float64) if model == "rnn" else torch.randint(4, shape)
    parts = [dict(trunk.named_parameters()) for trunk in trunks]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    expected = torch.stack([trunk(part) for trunk, part in zip(trunks, inputs, strict=True)])
    torch.testing.assert_close(trunks[0].stacked(stacked, inputs), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", SMALL)
def test_every_parameter_is_trained(model):
    with seeded(0, "net"):
        net = build_net(model, (4,), settings_class(model)(**SMALL[model]), {1: 3, 2: 4})
        inputs = torch.randn(40, 4) if model == "rnn" else torch.randint(4, (40, 4))
    net(inputs, torch.arange(40) % 2 + 1)[:, :3].square().sum().backward()
    assert {name for name, parameter in net.named_parameters() if not parameter.grad.any()} == set()


@pytest.mark.parametrize("model", SMALL)
def test_what_does_not_fit_is_one_line(model):
    with pytest.raises(UserError, match=rf"^model: {model} takes sequences; the inputs are 1x8x8: try mlp$"):
        build_trunk(model, (1, 8, 8), settings_class(model)())


def test_heads_of_attention_divide_the_width():
    with pytest.raises(UserError, match=r"^heads is 3; it must divide the width, 8$"):
        trunk_of("attention_only", (4,), width=8, heads=3)


# Networks that are written down


def right(net, inputs):
    return answers(net, inputs).argmax(1) == inputs.argsort(1)[:, -2]


@pytest.mark.parametrize(
    ("length", "gain", "accuracy", "parameters"),
    [
        (2, 100.0, 1.0, 10),
        (3, 1.0, 0.8787, 32), (3, 10.0, 0.99751, 32), (3, 100.0, 0.99991, 32),
        (10, 100.0, 0.9902, 726),
    ],
)  # fmt: skip
def test_handcrafted_networks_are_as_accurate_as_published(length, gain, accuracy, parameters):
    net = handcrafted_2nd_argmax(length, gain)
    assert (count_parameters(net), net.weight.dtype) == (parameters, torch.float32)
    inputs = torch.randn(2**18, length, generator=generator(0, "handcrafted"))
    spread = math.sqrt(accuracy * (1 - accuracy) / len(inputs))
    assert abs(right(net, inputs).double().mean() - accuracy) <= 5 * spread


def test_the_network_of_ten_numbers_is_right_where_two_are_positive():
    """Output i is relu(x_i) + 2 max(0, the other numbers)."""
    net = handcrafted_2nd_argmax(10).double()
    inputs = torch.randn(2**14, 10, dtype=torch.float64, generator=generator(0, "ten"))
    others = inputs.unsqueeze(1).expand(-1, 10, -1).masked_fill(torch.eye(10, dtype=torch.bool), -math.inf)
    expected = inputs.relu() + 2 * others.amax(-1).relu()
    torch.testing.assert_close(answers(net, inputs), expected, rtol=0, atol=1e-12)
    assert right(net, inputs)[(inputs > 0).sum(1) >= 2].all()


def test_the_network_of_three_numbers_is_linear_in_its_state():
    """With s1 = (x0 - x1) + g (x2 - x1) and s2 = (x2 - x0) + g (x2 - x1); in float32, up to 1e-5 of the largest."""
    inputs, g = torch.randn(1000, 3, generator=generator(0, "three")), 7.0
    x0, x1, x2 = inputs.double().unbind(1)
    s1, s2 = ((x0 - x1) + g * (x2 - x1)).abs(), ((x2 - x0) + g * (x2 - x1)).abs()
    expected = torch.stack([s1 + s2, (g + 1) * s2 - g * s1, (g + 1) * s1 - g * s2], 1)
    found = answers(handcrafted_2nd_argmax(3, g).double(), inputs.double())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_other_lengths_are_not_handcrafted():
    with pytest.raises(UserError, match="length is 4; there are handcrafted networks of the lengths 2, 3 and 10"):
        handcrafted_2nd_argmax(4)


# Published names


@pytest.mark.parametrize(
    ("twin", "length", "shape", "kind"),
    [
        (RecurrentTwin(4, 3, False), None, (3,), "numbers"),
        (RecurrentTwin(4, 3, True), None, (3,), "numbers"),
        (RecurrentTwin(2, 1, False), 5, (5,), "numbers"),
        (Twin(4, 6, 3, 1, 4, 4), None, (4,), "tokens"),
        (Twin(4, 6, 1, 1, 7, 1), 4, (4,), "tokens"),
    ],
    ids=["classes", "biases", "scalar", "transformer", "vocabulary"],
)
def test_published_weights_become_a_network_and_come_back(twin, length, shape, kind):
    state = twin.state_dict()
    found = from_published(state, length)
    assert (found.shape, found.outputs) == (shape, len(list(state.values())[-1]))
    net = build_net(found.model, found.shape, found.settings, {1: found.outputs})
    net.load_state_dict(found.state)
    inputs = torch.randn(30, *shape) if kind == "numbers" else torch.randint(4, (30, *shape))
    torch.testing.assert_close(answers(net, inputs), twin(inputs).detach(), rtol=1e-5, atol=1e-5)
    again = to_published(net)
    assert again.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.items())
    twin.load_state_dict(again)


def test_one_head_of_several_is_published():
    net = net_of("rnn", (4,), {1: 3, 5: 2}, hidden_size=3)
    assert torch.equal(to_published(net, 5)["linear.weight"], net.weight[3:])
    with pytest.raises(UserError, match="heads of 2 tasks; published ones have a single head"):
        to_published(net)
    with pytest.raises(UserError, match="MLP has no published names; rnn and attention_only have"):
        to_published(net_of("mlp", (4,), {1: 2}))


def changed(state, **values):
    state = {**state, **{name.replace("__", "."): value for name, value in values.items()}}
    return {name: value for name, value in state.items() if value is not None}


RECURRENT, TRANSFORMER = RecurrentTwin(4, 3, False).state_dict(), Twin(4, 6, 2, 1, 4, 4).state_dict()
UNFIT = {
    "nothing": ({}, {}, "neither rnn.weight_ih_l0 nor embed.weight is among its weights"),
    "no head": (changed(RECURRENT, linear__weight=None), {}, "rnn: linear.weight is absent, not a matrix"),
    "flat": (changed(RECURRENT, rnn__weight_ih_l0=torch.ones(4)), {}, "rnn: rnn.weight_ih_l0 is 4, not a matrix"),
    "two inputs": (
        changed(RECURRENT, rnn__weight_ih_l0=torch.ones(4, 2)), {}, "rnn.weight_ih_l0 is 4x2, expected 4x1",
    ),
    "no recurrence": (changed(RECURRENT, rnn__weight_hh_l0=None), {}, "rnn.weight_hh_l0 is absent, expected 4x4"),
    "wide head": (changed(RECURRENT, linear__weight=torch.ones(3, 5)), {}, "linear.weight is 3x5, expected 3x4"),
    "more": (changed(RECURRENT, rnn__weight_hh_l1=torch.ones(4, 4)), {}, "rnn.weight_hh_l1 is 4x4, expected absent"),
    "no length": (changed(RECURRENT, linear__weight=torch.ones(1, 4)), {}, "do not tell the length; give it"),
    "another length": (TRANSFORMER, {"length": 5}, "length is 5; pos_embed.weight has 4 positions"),
    "no layers": ({name: v for name, v in TRANSFORMER.items() if "attns" not in name}, {}, "attns.0.in_proj_weight is"),
    "a layer short": (
        changed(TRANSFORMER, attns__0__in_proj_weight=None), {}, "attns.0.in_proj_weight is absent, expected 18x6",
    ),
    "odd heads": (TRANSFORMER, {"heads": 4}, "heads is 4; it must divide the width, 6"),
}  # fmt: skip


@pytest.mark.parametrize(("state", "given", "words"), UNFIT.values(), ids=UNFIT)
def test_weights_that_are_no_published_network_are_refused_in_one_line(state, given, words):
    with pytest.raises(UserError) as error:
        from_published(state, **given)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


# The recipe


@pytest.mark.parametrize(("model", "width"), [("rnn", "hidden_size"), ("attention_only", "width")])
def test_the_shipped_recipe_is_the_published_one(model, width):
    """At every step of 2^20: min(s / 2^14, 1) max(0.01^(2 s / S), 0.01) 0.04 / sqrt(h)."""
    steps = 2**20
    config = parse(["--hp_config", f"config/hyperparam/{model}.yaml", "--set", f"net.{width}=9"]).config
    assert (config.hp.optimizer, config.hp.l2_reg, config.hp.batch) == ("adamw", 0.001, 1024)
    net = build_net(config.net.model, (5,), config.net.settings, {1: 5})
    rates = learning_rates(recipe_for(net, config.hp), steps)
    for step in (0, 1, 100, 2**14 - 1, 2**14, 2**14 + 1, 300_000, steps // 2 - 1, steps // 2, steps - 1):
        expected = min(step / 2**14, 1) * max(0.01 ** (2 * step / steps), 0.01) * 0.04 / 3
        assert rates(step) == pytest.approx(expected, rel=1e-12)


def test_steps_of_a_network_have_the_rate_of_its_width():
    """Against torch's scheduler of the factor, with plain SGD."""
    net, steps = net_of("rnn", (3,), {1: 3}, hidden_size=4), 24
    recipe = Recipe(steps=steps, lr=0.5, lr_scale="inverse_sqrt_width", schedule="half_exponential", warmup=6)
    taken = GradientSteps(net, sequences("rnn").spec, recipe, CPU, steps, StepRule())
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.25)
    scheduler = LambdaLR(optimizer, lambda s: min(s / 6, 1) * max(0.01 ** (2 * s / steps), 0.01))
    batch = Batch(torch.randn(8, 3), torch.randint(3, (8,)), torch.ones(8, dtype=torch.long))
    for _ in range(steps):
        taken(batch)
        assert taken.rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_a_rate_by_width_needs_a_network_with_one():
    recipe = Recipe(lr_scale="inverse_sqrt_width")
    with pytest.raises(UserError, match=r"lr_scale: inverse_sqrt_width needs a network with a width, .* MLP says none"):
        recipe_for(net_of("mlp", (3,), {1: 3}), recipe)
    unscaled = Recipe(lr=0.3)
    assert recipe_for(net_of("rnn", (3,), {1: 3}), unscaled) == unscaled


# Methods


def sequences(model, tasks=2):
    """Task t: for numbers, where the t-th largest of four is; for tokens, the last one plus t, of four."""
    made = []
    for number in range(1, tasks + 1):
        rng = generator(0, "sequences", number)
        if model == "rnn":
            values = torch.randn(104, 4, generator=rng)
            targets = values.argsort(1, descending=True)[:, number - 1]
        else:
            values = torch.randint(4, (104, 4), generator=rng)
            targets = (values[:, -1] + number) % 4
        halves = zip(values.split([64, 40]), targets.split([64, 40]), strict=True)
        train, test = (table(*half) for half in halves)
        made.append(Task(number, f"task {number}", 4, Table(train), {"train": train, "test": test}))
    return TaskStream(StreamSpec("sequences", (4,), CrossEntropy(), Preprocess()), tuple(made))


# What these need trunks of convolutions or nn.Linear, or heads with biases, for.
REFUSED = {
    "packnet": "layers of the kind", "wsn": "layers of the kind", "gpm": "layers of the kind",
    "closed_form": "heads with biases",
}  # fmt: skip


def config_of(method, model, **hp):
    continual = "continual" in METHODS[method].modes
    hp = {"epochs": 3, "augment": False, **hp}
    base = toy_config(method=method, hp=hp, continual=continual, rounds=None if continual else 1)
    return replace(base, net=configured(model, **SMALL[model]))


@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize("method", METHODS)
def test_methods_learn_without_biases_of_heads_or_say_what_they_need(method, model):
    stream, config = sequences(model), config_of(method, model)
    if method in REFUSED:
        with pytest.raises(UserError, match=REFUSED[method]):
            run_toy(config, stream)
        return
    learner, _, predictions = run_toy(config, stream)
    for member in learner.new_members:
        assert not member.net.bias.any()
        assert "bias" not in member.net.state_dict()
    trunk = count_parameters(build_trunk(model, (4,), config.net.settings))
    size = 4 * (5 if model == "rnn" else 6)
    stored = learner.storage()
    assert stored.parameters_per_prediction / stored.members_per_prediction == trunk + size
    if not config.continual:
        return
    again = build_method(Context(config, stream.spec, CPU))
    state = {part: from_bytes(to_bytes(tree), CPU.device) for part, tree in learner.state_dict().items()}
    again.load_state_dict(state, list(stream.continual()))
    for task in stream.tasks:
        torch.testing.assert_close(again.predict(task), predictions[-1][task.id])


@pytest.mark.parametrize("model", SMALL)
def test_finetuning_learns_both_kinds_of_sequences(model):
    """More than two of three right, where one of four is by chance."""
    config = config_of("finetune", model, epochs=60, optimizer="adamw", lr=0.02)
    stream = sequences(model, 1)
    _, _, predictions = run_toy(replace(config, net=configured(model)), stream)
    task = stream.tasks[0]
    assert (predictions[0][1].argmax(1) == task.test.targets).double().mean() > 2 / 3


@pytest.mark.parametrize("method", ["zoo", "finetune"])
def test_a_run_without_biases_is_saved_and_answers_as_it_did(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(STREAMS, "sequences", lambda config, seed, device: sequences("rnn"))
    (tmp_path / "d.yaml").write_text("{dataset: sequences, tasks: [[0, 1], [1, 2]]}")
    (tmp_path / "h.yaml").write_text("{model: rnn, hidden_size: 5, batch: 8, lr_scale: inverse_sqrt_width}")
    given = {"data_config": "d.yaml", "hp_config": "h.yaml", "method": method, "continual": True, "epochs": 2}
    modelzoo.run(configure(**given, run_dir="run", quiet=True))
    done = Run.load("run")
    zoo = Zoo.load("run")
    for task in sequences("rnn").tasks:
        found = zoo.predict(task.test.store[task.test.rows].numpy(), task.id).probabilities
        np.testing.assert_allclose(found, done.predictions(task.id, "test"), rtol=1e-4, atol=1e-5)
    assert modelzoo.main(["--verify", "run"]) == 0
    assert export.main(["run", "--out", "out", "--format", "torch"]) == 0
    exported = torch.export.load("out/model.pt2").module()
    assert sum(value.numel() for value in exported.parameters()) == done.summary["parameters_total"]
    said = exported(task.test.store[task.test.rows])["task_2"]
    np.testing.assert_allclose(said.detach(), found, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("stream", "net", "words"),
    [
        ("attention_only", "model: attention_only, vocabulary: 2", "index out of range"),
        ("rnn", "model: attention_only", "takes numbers of torch.int64; the inputs are torch.float32"),
        (
            "rnn",
            "model: mlp, lr_scale: inverse_sqrt_width",
            "lr_scale: inverse_sqrt_width needs a network with a width",
        ),
    ],
)
def test_a_network_that_does_not_fit_the_stream_is_one_line(stream, net, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(STREAMS, "sequences", lambda config, seed, device: sequences(stream))
    (tmp_path / "d.yaml").write_text("{dataset: sequences, tasks: [[0, 1], [1, 2]]}")
    (tmp_path / "h.yaml").write_text(f"{{{net}}}")
    assert modelzoo.main(["--data_config", "d.yaml", "--hp_config", "h.yaml", "--continual", "--run_dir", "run"]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()
