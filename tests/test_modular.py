"""Modular arithmetic: its tasks and splits, and the Fourier components of networks that add."""

import itertools
import math
from collections import Counter

import pytest
import torch

from datasets import build_stream
from datasets.synthetic.modular import OPERATIONS, all_pairs, arithmetic
from evaluation.fourier import key_frequencies, measures, power
from evaluation.questions import EVALUATIONS
from evaluation.subject import Subject
from net import build_net
from net.multihead import MultiHead
from net.token_mlp import TokenMLP
from records.invocation import configure
from tests.toys import CPU
from utils.errors import UserError


def config_of(tmp_path, **content):
    """The settings that a YAML file of these keys makes."""
    (tmp_path / "d.yaml").write_text(str({"dataset": "modular", "tasks": ["addition"], **content}).replace("'", '"'))
    return configure(data_config=str(tmp_path / "d.yaml"), hp_config="config/hyperparam/attention.yaml").config.data


def stream_of(tmp_path, seed=0, **content):
    return build_stream(config_of(tmp_path, **content), seed, CPU.device)


def shown(task, split):
    """Pairs and answers of a split, and the other two values of its inputs."""
    examples = task.splits[split]
    inputs = examples.store[examples.rows]
    rows = torch.cat([inputs[:, :2], examples.targets], 1).tolist()
    return rows, set(map(tuple, inputs[:, 2:].tolist()))


# Tasks


def by_hand(name, a, b, p):
    """The answer in Python's whole numbers."""
    ratio = a * pow(b, -1, p) if "division" in name and b else None
    return {
        "addition": a + b, "subtraction": a - b, "multiplication": a * b, "division": ratio,
        "division_or_subtraction": ratio if b % 2 else a - b, "x^2+y^2": a * a + b * b,
        "x^2+xy+y^2": a * a + a * b + b * b, "x^2+xy+y^2+x": a * a + a * b + b * b + a, "x^3+xy": a * a * a + a * b,
        "x^3+xy^2+y": a * a * a + a * b * b + b,
    }[name] % p  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_pair_is_in_exactly_one_split_with_the_right_answer(tmp_path, name):
    task = stream_of(tmp_path, tasks=[name], modulus=13, train_share=0.4).tasks[0]
    found = [row for split in task.splits for row in shown(task, split)[0]]
    numbers = range(1, 13) if name == "division" else range(13)
    expected = [[a, b, by_hand(name, a, b, 13)] for a in range(13) for b in numbers]
    assert sorted(found) == expected
    sizes = {split: len(examples) for split, examples in task.splits.items()}
    assert sizes["train"] == round(0.4 * len(expected))
    assert 0 <= sizes["test"] - sizes["dev"] <= 1
    assert len(task.train) == sizes["train"]


def test_the_token_of_a_task_tells_its_operation(tmp_path):
    stream = stream_of(tmp_path, tasks=["subtraction", "addition"], modulus=7)
    assert [task.num_outputs for task in stream.tasks] == [9, 9]
    assert [arithmetic(task) for task in stream.tasks] == [("subtraction", 7), ("addition", 7)]
    for task, token in zip(stream.tasks, (7, 8), strict=True):
        assert {values for split in task.splits for values in shown(task, split)[1]} == {(token, 2)}


def test_the_seed_draws_the_split(tmp_path):
    first, again, other = (stream_of(tmp_path, seed).tasks[0] for seed in (0, 0, 1))
    for split in ("train", "dev", "test"):
        assert shown(first, split) == shown(again, split)
        assert sorted(shown(first, split)[0]) != sorted(shown(other, split)[0])


def test_slices_tell_whether_the_mirror_image_of_a_pair_is_trained_on(tmp_path):
    task = stream_of(tmp_path, modulus=11).tasks[0]
    trained = {(a, b) for a, b, _ in shown(task, "train")[0]}
    for split in ("dev", "test"):
        rows, parts = shown(task, split)[0], task.splits[split].slices
        expected = [place for place, (a, b, _) in enumerate(rows) if (b, a) in trained]
        assert parts["mirror trained on"].tolist() == expected
        assert sorted([*parts["mirror not trained on"].tolist(), *expected]) == list(range(len(rows)))
    assert not stream_of(tmp_path, tasks=["subtraction"]).tasks[0].test.slices


def test_the_most_frequent_answer_is_a_baseline(tmp_path):
    config = config_of(tmp_path, tasks=["addition", "multiplication"], modulus=7)
    counts = Counter(a * b % 7 for a, b in itertools.product(range(7), repeat=2))
    assert config.baselines(0) == {"most frequent": pytest.approx(1 / 7)}
    assert config.baselines(1) == {"most frequent": pytest.approx(max(counts.values()) / 49)}


@pytest.mark.parametrize(("content", "words"), [
    ({"tasks": ["division"], "modulus": 12}, "modulus is 12; it must be a prime number"),
    ({"modulus": 3, "train_share": 0.01}, "of 9 pairs 0 would be trained on"),
    ({"modulus": 3, "train_share": 0.95}, "9 would be trained on, and 0 left"),
    ({"tasks": ["addition", "addition"]}, "an operation twice"),
    ({"tasks": ["power"]}, "task"),
    ({"fresh": True}, "fresh"),
])  # fmt: skip
def test_what_there_is_not(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        stream_of(tmp_path, **content)


# Waves


def wave_logits(p, keys, sign=1, size=3.0):
    """sum_k size cos(2 pi k (a + b - c) / p), [p, p, p]."""
    a, b, c = torch.meshgrid(*[torch.arange(p, dtype=torch.float64)] * 3, indexing="ij")
    return sum(size * torch.cos(2 * math.pi * k * (a + sign * b - c) / p) for k in keys)


def loss_by_hand(logits, pairs, sign):
    p = len(logits)
    losses = [-logits[a, b].log_softmax(0)[(a + sign * b) % p].item() for a, b in pairs]
    return sum(losses) / len(losses)


def kept_by_hand(logits, keys, sign, constant):
    """The projection on 1, cos(w (a + b)) and sin(w (a + b)), by least squares."""
    p = len(logits)
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).double().unbind(1)
    columns = [torch.ones(p * p, dtype=torch.float64)] if constant else []
    for k in keys:
        angles = 2 * math.pi * k * (a + sign * b) / p
        columns += [angles.cos()] if 2 * k == p else [angles.cos(), angles.sin()]
    basis, _ = torch.linalg.qr(torch.stack(columns, 1))
    return (basis @ (basis.T @ logits.flatten(0, 1))).unflatten(0, (p, p))


@pytest.mark.parametrize(("p", "keys", "sign"), [(7, [1, 3], 1), (7, [2], -1), (6, [1, 3], 1), (6, [], -1)])
def test_measures_are_projections_on_waves(p, keys, sign):
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(p, p, p, generator=rng, dtype=torch.float64)
    trained = torch.rand(p, p, generator=rng) < 0.4
    found = measures(logits, trained, keys, sign)
    pairs = list(itertools.product(range(p), repeat=2))
    inside, outside = ([pair for pair in pairs if bool(trained[pair]) == known] for known in (True, False))
    kept = kept_by_hand(logits, keys, sign, constant=True)
    without = logits - (kept_by_hand(logits, keys, sign, constant=False) if keys else 0)
    expected = [loss_by_hand(logits, inside, sign), loss_by_hand(logits, outside, sign)]
    for part in (inside, outside):
        hits = [logits[a, b].argmax().item() == (a + sign * b) % p for a, b in part]
        expected.append(sum(hits) / len(hits))
    expected += [loss_by_hand(kept, pairs, sign), loss_by_hand(without, inside, sign)]
    assert list(found) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_of_waves_is_all_restricted_and_nothing_excluded(sign):
    trained = torch.rand(13, 13, generator=torch.Generator().manual_seed(0)) < 0.3
    logits = wave_logits(13, [2, 5], sign)
    found = measures(logits, trained, [2, 5], sign)
    assert found.train_accuracy == found.rest_accuracy == 1
    assert found.restricted_loss == pytest.approx(found.train_loss, abs=1e-12)
    assert found.excluded_loss == pytest.approx(math.log(13), abs=1e-12)
    other = measures(logits, trained, [1, 3], sign)  # the waves are of other frequencies
    assert other.restricted_loss == pytest.approx(math.log(13), abs=1e-12)
    assert other.excluded_loss == pytest.approx(found.train_loss, abs=1e-12)


def test_a_table_that_was_learned_by_heart_has_no_waves():
    p, rng = 59, torch.Generator().manual_seed(0)
    trained = torch.rand(p, p, generator=rng) < 0.3
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).unbind(1)
    logits = 10 * torch.nn.functional.one_hot((a + b) % p, p).double().unflatten(0, (p, p)) * trained.unsqueeze(-1)
    assert key_frequencies(logits) == []
    found = measures(logits, trained, [4, 11, 23])
    assert found.train_loss < 0.01
    assert found.excluded_loss < 0.05
    assert found.restricted_loss == pytest.approx(math.log(p), abs=0.5)
    assert (found.train_accuracy, found.rest_accuracy) == (1, pytest.approx(1 / p, abs=0.02))


@pytest.mark.parametrize("p", [11, 12])
def test_power_of_an_embedding_by_sums(p):
    values = torch.randn(p, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = []
    for k in range(1, p // 2 + 1):
        angles = [2 * math.pi * k * a / p for a in range(p)]
        waves = [[math.cos(angle) for angle in angles], [math.sin(angle) for angle in angles]]
        # The part of the squared length that lies along the waves of length 1.
        units = [torch.tensor(wave) / max(1e-9, math.hypot(*wave)) for wave in waves]
        expected.append(sum((unit.double() @ values).square().sum().item() for unit in units if unit.norm() > 0.5))
    away = (values - values.mean(0)).square().sum().item()
    assert power(values).tolist() == pytest.approx([part / away for part in expected], abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_key_frequencies_are_those_of_the_waves_in_logits(sign):
    noise = torch.randn(23, 23, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for keys in ([4], [1, 7, 11], list(range(1, 12))):
        waves = wave_logits(23, keys, sign)
        constant = 50 * noise[:1, :1] + 70 * noise[:, :, :1]  # logits of each output, and of each pair
        assert key_frequencies(waves, sign) == keys
        assert key_frequencies(2 + 3 * waves + constant + noise, sign) == keys
    assert key_frequencies(wave_logits(23, [4], -sign), sign) == []
    assert key_frequencies(noise, sign) == []
    assert key_frequencies(torch.zeros(23, 23, 23), sign) == []


@pytest.mark.parametrize(("p", "sign"), [(7, 1), (7, -1), (6, 1)])
def test_key_frequencies_have_a_pth_of_the_power(p, sign):
    rng, found = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        sizes = torch.rand(p // 2, generator=rng, dtype=torch.float64)
        logits = torch.randn(p, p, p, generator=rng, dtype=torch.float64) / 2
        logits += sum(size * wave_logits(p, [k], sign, 1.0) for k, size in enumerate(sizes, 1))
        centred = logits - logits.mean(2, keepdim=True)
        centred = centred - centred.mean((0, 1))
        powers = [kept_by_hand(centred, [k], sign, constant=False).square().sum() for k in range(1, p // 2 + 1)]
        expected = [k for k, own in enumerate(powers, 1) if own >= centred.square().sum() / p]
        assert key_frequencies(logits + 20 * logits[:1, :1] + 20 * logits[:, :, :1], sign) == expected
        found.add(tuple(expected))
    assert len(found) > 3


def adding_net(p, keys, sign, outputs):
    """A perceptron whose outputs are exactly sums of waves: nine pairs of phases cancel all other terms of squares."""
    net = build_net("token_mlp", (4,), TokenMLP.Settings(hidden=9 * len(keys)), {1: outputs}, "identity", 1)
    columns, numbers = [], torch.arange(p) * 2 * math.pi / p
    for k, one, two in itertools.product(keys, *[[0, 2 * math.pi / 3, 4 * math.pi / 3]] * 2):
        columns.append([(k * numbers + one).cos(), (sign * k * numbers + two).cos(), (k * numbers + one + two).cos()])
    with torch.no_grad():
        first, second, last = (torch.stack(part, 1) for part in zip(*columns, strict=True))
        net.trunk.tables.copy_(torch.nn.functional.pad(torch.stack([first, second]), (0, 0, 0, outputs - p)))
        net.trunk.last.weight.copy_(torch.nn.functional.pad(last, (0, 0, 0, outputs - p)))
    return net


@pytest.mark.parametrize("name", ["addition", "subtraction"])
def test_the_evaluation_of_a_network_that_adds_by_waves(tmp_path, name):
    stream = stream_of(tmp_path, tasks=["x^2+y^2", name], modulus=23)
    squares, task = stream.tasks
    net, ask = adding_net(23, [3, 10], 1 if name == "addition" else -1, 25), EVALUATIONS["fourier"]
    net = MultiHead(net.trunk, 25, {1: 25, 2: 25}, "identity")
    watched = task.with_splits(test=task.splits["dev"])  # as while a network is trained: all pairs are asked about
    found = ask.ask(Subject(net, watched, stream.spec, CPU))
    size = {"train": len(task.splits["train"])}
    size["rest"] = 23 * 23 - size["train"]
    logits = 4.5 * wave_logits(23, [3, 10], 1 if name == "addition" else -1, 1.0)
    pairs = {"rest": [], "train": [(a, b) for a, b, _ in shown(task, "train")[0]]}
    pairs["rest"] = [pair for pair in itertools.product(range(23), repeat=2) if pair not in set(pairs["train"])]
    for part, own in pairs.items():
        assert found[f"{part} loss"].value == pytest.approx(
            loss_by_hand(logits, own, 1 if name == "addition" else -1), abs=1e-5
        )
        assert (found[f"{part} accuracy"].value, found[f"{part} loss"].n) == (1, size[part])
    assert found["restricted loss"].value == pytest.approx(found["train loss"].value, abs=1e-5)
    assert found["excluded loss"].value == pytest.approx(math.log(23), abs=1e-5)
    assert found["key frequencies"].value == 2
    shares = [found[f"power at {k}"].value for k in range(1, 12)]
    assert shares == pytest.approx([0.5 * (k in (3, 10)) for k in range(1, 12)], abs=1e-5)
    squared = sum(float(p.detach().double().square().sum()) for p in net.parameters())
    assert found["squared weights"].value == pytest.approx(squared)
    assert not ask.obstacle(net, task)
    assert "only of modular addition" in ask.obstacle(net, squares)


def test_all_pairs_are_asked_about_also_those_of_no_split(tmp_path):
    task = stream_of(tmp_path, tasks=["division"], modulus=5).tasks[0]
    inputs, trained = all_pairs(task)
    assert inputs.tolist() == [[a, b, 5, 2] for a in range(5) for b in range(5)]
    known = {(a, b) for a, b, _ in shown(task, "train")[0]}
    assert trained.tolist() == [(a, b) in known for a in range(5) for b in range(5)]
