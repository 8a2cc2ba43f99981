"""What each part of a network of sequence mixers does: attribution, attention and ablation."""

import math
from pathlib import Path

import pytest
import torch

import report
import train_task
from datasets.objectives import Tokens
from datasets.schema import Schema
from datasets.synthetic.associative_recall import AssociativeRecall
from datasets.synthetic.language import FIRST_SYMBOL
from datasets.synthetic.languages import FreshDocuments
from datasets.task import Examples, Preprocess, StreamSpec, Table, Task
from evaluation.attribution import attributed
from evaluation.questions import EVALUATIONS
from evaluation.subject import Subject
from net import build_net, settings_class
from net.sequences.handset import direct, induction
from net.sequences.mixers import MIXERS
from net.sequences.model import NORMS, STATE_MIXERS, SequenceModel
from net.sequences.sites import run
from tests.test_report import figure
from tests.test_sites import BATCH, LENGTH, SETTINGS, VOCABULARY, inputs_of, model_of
from tests.toys import CPU
from utils.settings import read

CONFIG = Path(__file__).parent.parent / "config"
PAIRS, SYMBOLS, DOCUMENTS = 4, 20, 500


def examples_of(pairs=PAIRS, count=DOCUMENTS):
    language = AssociativeRecall(AssociativeRecall.Settings(symbols=SYMBOLS, pairs=pairs))
    return FreshDocuments(language, language.longest, False, count, CPU.device).frozen(count, 0, "parts")


def subject(net, examples):
    task = Task(1, "recall", FIRST_SYMBOL + SYMBOLS, Table(examples), {"train": examples, "test": examples})
    spec = StreamSpec("toy", tuple(examples.store.shape[1:]), Tokens(), Preprocess(), "identity", asked=1)
    return Subject(net.eval(), task, spec, CPU)


def asked(name, net, examples):
    """The values that an evaluation finds of a network, by name, and the scores."""
    question, of = EVALUATIONS[name], subject(net, examples)
    assert not question.obstacle(of.net, of.task)
    scores = question.ask(of)
    return {key: score.value for key, score in scores.items()}, scores


def drawn_net(examples, **settings):
    """A network with drawn weights for documents, large enough that every part matters."""
    asked_for = {"width": 8, "mixers": [{"mixer": "attention", "heads": 2}], "positions": True, **settings}
    own, shape = read(SequenceModel.Settings, "net", asked_for), tuple(examples.store.shape[1:])
    torch.manual_seed(0)
    net = build_net("sequence", shape, own, {1: FIRST_SYMBOL + SYMBOLS}, "identity", 1)
    for parameter in net.trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return net.eval()


@pytest.fixture(scope="module")
def examples():
    return examples_of()


@pytest.fixture(scope="module")
def controls(examples):
    size = (examples.store.shape[1] - 1, FIRST_SYMBOL + SYMBOLS)
    return {"induction": induction(*size), "direct": direct(*size), "late": direct(*size, idle=1)}


# attribution


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("state", STATE_MIXERS)
@torch.no_grad()
def test_what_the_parts_add_to_the_logit_is_all_of_it(norm, state):
    for mixer in ({"mixer": "attention", "heads": 2}, {"mixer": "mamba"}, {"mixer": "based", "heads": 4}):
        net, inputs = model_of(mixer, state, norm=norm, positions=True), inputs_of()
        answers = torch.tensor([[3], [0], [11]])
        outputs = net(inputs)
        logits = outputs.gather(-1, answers.unsqueeze(-1)).squeeze(-1) - outputs.mean(-1)
        found = attributed(net, inputs, answers)
        assert torch.equal(found["logit"], logits)
        parts = {name: values for name, values in found.items() if name != "logit" and "head" not in name}
        names = ["embedding", "blocks.0.mixer", "blocks.0.state", "blocks.1.mixer", "blocks.1.state", "norm bias"]
        there = [name for name in names if ("state" not in name or state != "none")
                 and (name != "norm bias" or norm == "layer")]  # fmt: skip
        assert [*parts] == [f"attribution {name}" for name in there]
        assert (sum(parts.values()) - logits).abs().max() < 1e-10 < logits.abs().max()


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_a_part_adds_what_is_missing_without_it_at_the_same_scale(norm):
    """An independent way: the part is taken off the stream, and the norm is applied with the scale of the whole."""
    net, inputs, answers = model_of({"mixer": "attention", "heads": 2}, norm=norm), inputs_of(), torch.tensor([[3]] * 3)
    found, rows = attributed(net, inputs, answers), torch.arange(BATCH)
    last = inputs[:, -1]
    ran = run(net, inputs, read=["blocks.0.mixer.output", "blocks.0.mixer.heads", "blocks.1.output"]).activations
    stream, joining = ran["blocks.1.output"][rows, last], net.blocks[0].mixer.joining
    head = ran["blocks.0.mixer.heads"].clone()
    head[:, :, 0] = 0  # what the other head adds, and the bias
    parts = {
        "attribution blocks.0.mixer": ran["blocks.0.mixer.output"][rows, last],
        "attribution blocks.0.mixer head 1": (joining(head.flatten(2)) - joining.bias)[rows, last],
    }

    def logits(values):
        if norm == "none":
            return values @ net.embed.weight.T @ (torch.eye(12, dtype=torch.float64) - 1 / 12)[:, 3]
        centred = values - values.mean(-1, keepdim=True) if norm == "layer" else values
        whole = stream - stream.mean(-1, keepdim=True) if norm == "layer" else stream
        scale = whole.square().mean(-1, keepdim=True).add(net.norm.eps or 2.0**-52).sqrt()
        outputs = centred / scale * net.norm.weight @ net.embed.weight.T
        return outputs[:, 3] - outputs.mean(1)

    for name, values in parts.items():
        assert (found[name].squeeze(1) - (logits(stream) - logits(stream - values))).abs().max() < 1e-10


def test_attribution_of_the_controls(controls, examples):
    """The last layer writes the answer, and nothing else does; means and standard errors are those of 320 documents."""
    for name, writer in (("induction", 1), ("direct", 1), ("late", 2)):
        found, scores = asked("attribution", controls[name], examples)
        logit = 30 * (1 - 1 / (FIRST_SYMBOL + SYMBOLS))
        assert found["logit"] == pytest.approx(logit, abs=1e-4)
        assert found.pop(f"attribution blocks.{writer}.mixer") == pytest.approx(logit, abs=1e-4)
        others = [value for part, value in found.items() if part != "logit"]
        assert len(others) == writer + 1
        assert max(map(abs, others)) < 1e-4
        assert {score.n for score in scores.values()} == {320}


def test_attribution_is_a_mean_over_documents(examples):
    net = drawn_net(examples)
    found = EVALUATIONS["attribution"].ask(subject(net, examples))
    chosen = examples.subset(torch.arange(320) * DOCUMENTS // 320)
    with torch.no_grad():
        values = attributed(net.trunk, chosen.store[chosen.rows], chosen.targets)
    for name in ("logit", "attribution blocks.1.mixer head 0", "attribution norm bias"):
        each = values[name].squeeze(1).double()
        assert found[name].value == pytest.approx(each.mean().item(), rel=1e-4)
        assert found[name].stderr == pytest.approx(each.std().item() / math.sqrt(320), rel=1e-4)


def test_of_several_questions_the_mean_counts():
    own = read(SequenceModel.Settings, "net", {"width": 8, "layers": 1})
    net = build_net("sequence", (LENGTH + 2,), own, {1: VOCABULARY}, "identity", 2).eval()
    inputs = torch.cat([inputs_of()[:, :LENGTH], torch.tensor([[3, 5], [2, -1], [7, 8]])], 1)
    targets = torch.tensor([[1, 2], [3, -1], [4, 5]])
    test = Examples(inputs, torch.arange(BATCH), targets)
    task = Task(1, "toy", VOCABULARY, Table(test), {"train": test, "test": test})
    of = Subject(net, task, StreamSpec("toy", (LENGTH + 2,), Tokens(), Preprocess(), "identity", asked=2), CPU)
    outputs = net.trunk(inputs).detach()
    logits = outputs.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1) - outputs.mean(-1)
    logits[1, 1] = logits[1, 0]
    score = EVALUATIONS["attribution"].ask(of)["logit"]
    assert score.value == pytest.approx(logits.mean(1).mean().item(), abs=1e-6)
    assert score.n == BATCH


# attention


@pytest.mark.parametrize("mixer", [
    {"mixer": "attention", "heads": 2}, {"mixer": "sliding_attention", "heads": 2, "window": 3},
    {"mixer": "based", "heads": 2}, {"mixer": "based", "heads": 4, "feature_map": "cosformer", "feature": 3},
])  # fmt: skip
@torch.no_grad()
def test_weights_of_attention_are_those_of_the_outputs(mixer):
    name = mixer["mixer"]
    torch.manual_seed(0)
    mixing = MIXERS[name](8, LENGTH, read(MIXERS[name].Settings, "mixer", mixer)).double()
    inputs = torch.randn(BATCH, LENGTH, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = mixing.weights(inputs)
    assert weights.shape == (BATCH, mixing.heads, LENGTH, LENGTH)
    sums = weights.sum(-1)
    none = (weights == 0).all(-1)  # some maps have scores that are all 0
    assert (sums - 1)[~none].abs().max() < 1e-6
    assert none.any() == ("feature_map" in mixer)
    assert (weights.triu(1) == 0).all()
    if name == "sliding_attention":
        assert (weights.tril(-3) == 0).all()
        assert (weights.tril(-2)[..., 2:, :].sum(-1) > 0).all()
    values = mixing.v(inputs) if name == "based" else mixing.qkv_proj(inputs)[..., 16:]
    mixed = weights @ values.unflatten(-1, (mixing.heads, -1)).transpose(1, 2)
    assert (mixing.joining(mixed.transpose(1, 2).flatten(2)) - mixing(inputs)).abs().max() < 1e-12


def test_attention_of_the_controls(controls, examples):
    found, scores = asked("attention", controls["induction"], examples)
    assert found["weight blocks.1.mixer head 0 query>target"] == pytest.approx(1, abs=1e-6)
    assert found["weight blocks.0.mixer head 0 target>original_query"] == pytest.approx(1, abs=1e-6)  # the one before
    assert found["weight blocks.0.mixer head 0 query>divider"] == pytest.approx(1, abs=1e-6)
    for other in ("original_query", "divider"):
        assert found[f"weight blocks.1.mixer head 0 query>{other}"] == pytest.approx(0, abs=1e-6)
    assert {name.split()[-1] for name in found} == {
        "target>original_query", "divider>original_query", "divider>target", "query>original_query", "query>target",
        "query>divider",
    }  # fmt: skip
    assert {score.n for score in scores.values()} == {320}
    for name, first in (("direct", 0), ("late", 1)):
        found, _ = asked("attention", controls[name], examples)
        assert found[f"weight blocks.{first}.mixer head 0 query>original_query"] == pytest.approx(1, abs=1e-6)
        assert found[f"weight blocks.{first + 1}.mixer head 0 query>target"] == pytest.approx(1, abs=1e-6)


def test_attention_between_items_by_hand(examples):
    """Items that are missing, in another order or behind the question; many heads, one layer without weights."""
    layers = [{"mixer": "based", "heads": 2}, "base_conv", {"mixer": "attention", "heads": 4}]
    net = drawn_net(examples, mixers=layers, layers=3)
    few = examples.subset(torch.arange(6))
    first, second = torch.tensor([2, 5, -1, 3, 4, 6]), torch.tensor([4, 3, 2, 3, 8, 1])
    behind = torch.full((6,), few.store.shape[1] - 2)
    schema = Schema({"first": first, "second": second, "behind": behind}, {}, few.targets, few.targets.float())
    few = Examples(few.store[few.rows], torch.arange(6), few.targets, schema=schema)
    found, scores = asked("attention", net, few)
    assert {name.rsplit(" ", 1)[0] for name in found} == {
        *(f"weight blocks.0.mixer head {head}" for head in range(2)),
        *(f"weight blocks.2.mixer head {head}" for head in range(4)),
    }
    site = "blocks.2.mixer.input"
    weights = net.trunk.blocks[2].mixer.weights(run(net.trunk, few.store, read=[site]).activations[site]).detach()
    for head in range(4):
        at = f"weight blocks.2.mixer head {head}"
        later = [weights[0, head, 4, 2].item(), weights[4, head, 8, 4].item()]
        assert found[f"{at} second>first"] == pytest.approx(sum(later) / 2, abs=1e-6)
        earlier = [weights[1, head, 5, 3].item(), weights[5, head, 6, 1].item()]
        assert found[f"{at} first>second"] == pytest.approx(sum(earlier) / 2, abs=1e-6)
        assert scores[f"{at} first>second"].n == 2
    assert not [name for name in found if "behind" in name]


# ablation


def test_ablation_of_the_controls(controls, examples):
    found, _ = asked("ablation", controls["induction"], examples)
    assert found["accuracy with all"] == 1
    for part in ("blocks.0.mixer", "blocks.1.mixer"):
        assert found[f"accuracy without {part}"] < 1 / PAIRS + 0.1
    assert found["largest_drop"] == 1 - min(value for name, value in found.items() if "without" in name)
    found, _ = asked("ablation", controls["late"], examples)
    assert list(found) == [
        "largest_drop",
        "accuracy with all",
        *(f"accuracy without blocks.{n}.mixer" for n in range(3)),
    ]
    assert found["accuracy without blocks.0.mixer"] == 1  # it is idle
    assert max(found[f"accuracy without blocks.{number}.mixer"] for number in (1, 2)) < 1 / PAIRS + 0.1


@torch.no_grad()
def test_ablation_replaces_each_part_by_its_mean():
    """An independent way: the layers are computed here one by one, with the mean in the place of one part."""
    examples = examples_of(count=40)
    net = drawn_net(examples, state_mixer="mlp")
    trunk, inputs = net.trunk, examples.store[examples.rows]

    def accuracy(without, head=None):
        stream = trunk.embedded(inputs)
        for number, block in enumerate(trunk.blocks):
            added = block.mixer(block.mixer_norm(stream))
            if without == f"blocks.{number}.mixer" and head is None:
                added = added.mean(0).expand_as(added)
            elif without == f"blocks.{number}.mixer":
                normed = block.mixer_norm(stream)
                values = block.mixer.qkv_proj(normed)[..., 16:].unflatten(-1, (2, 4)).transpose(1, 2)
                heads = (block.mixer.weights(normed) @ values).transpose(1, 2)
                heads[:, :, head] = heads[:, :, head].mean(0)
                added = block.mixer.joining(heads.flatten(2))
            stream = stream + added
            added = block.state(block.state_norm(stream))
            stream = stream + (added.mean(0).expand_as(added) if without == f"blocks.{number}.state" else added)
        answers = trunk.read(stream, inputs).argmax(-1)
        return (answers == examples.targets).double().mean().item()

    # what it says of drawn weights: its targets are what the whole network answers
    examples = Examples(inputs, torch.arange(40), trunk(inputs).argmax(-1), schema=examples.schema)
    found, _ = asked("ablation", net, examples)
    expected = {"accuracy with all": accuracy(None)}
    for number in range(2):
        expected[f"accuracy without blocks.{number}.mixer"] = accuracy(f"blocks.{number}.mixer")
        for head in range(2):
            name = f"accuracy without blocks.{number}.mixer head {head}"
            expected[name] = accuracy(f"blocks.{number}.mixer", head)
        expected[f"accuracy without blocks.{number}.state"] = accuracy(f"blocks.{number}.state")
    assert list(found) == ["largest_drop", *expected]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert expected.pop("accuracy with all") == 1
    assert len({*expected.values()}) > 3
    assert found["largest_drop"] == pytest.approx(1 - min(expected.values()))


@pytest.mark.parametrize("name", MIXERS)
def test_parts_of_every_mixer(name, examples):
    mixer = {"mixer": name, **SETTINGS.get(name, {})}
    few, net = examples.subset(torch.arange(8)), drawn_net(examples, mixers=[mixer], layers=1)
    found, _ = asked("attribution", net, few)
    parts = sum(value for key, value in found.items() if key != "logit" and "head" not in key)
    assert parts == pytest.approx(found["logit"], abs=1e-3)
    assert "accuracy without blocks.0.mixer" in asked("ablation", net, few)[0]


def test_what_cannot_be_asked(examples):
    attribution, attention = (EVALUATIONS[name].obstacle for name in ("attribution", "attention"))
    task = subject(drawn_net(examples), examples).task
    assert "no layer" in attention(drawn_net(examples, mixers=["mamba"]), task)
    bare = Examples(examples.store, examples.rows, examples.targets)
    assert "no documents with a schema" in attention(drawn_net(examples), task.with_splits(test=bare))
    mlp = build_net("mlp", (4,), settings_class("mlp")(), {1: 3})
    assert "only networks of sequence mixers" in attribution(mlp, task)
    assert "no layer" in attention(mlp, task)
    vectors = build_net("sequence", (9, 5), read(SequenceModel.Settings, "net", {}), {1: 6}, "identity", 2)
    assert "the answers are no tokens" in attribution(vectors, task)


def test_a_run_and_its_report(tmp_path, capsys):
    data = {"pairs": 2, "symbols": 8, "dev_examples": 64, "test_examples": 64}
    changes = {"net.width": 8, "net.mixers": "[{mixer: attention, heads: 2}]", "hp.batch": 16,
               **{f"data.{key}": value for key, value in data.items()}}  # fmt: skip
    given = [arg for name, value in changes.items() for arg in ("--set", f"{name}={value}")]
    assert train_task.main([
        "--data_config", str(CONFIG / "dataset/associative_recall.yaml"), "--hp_config",
        str(CONFIG / "hyperparam/attention.yaml"), "--steps", "4", "--evaluate", "ablation,attribution,attention",
        "--run_dir", str(tmp_path), "--quiet", *given]) == 0  # fmt: skip
    scenarios = {line.split(",")[7] for line in (tmp_path / "metrics.csv").read_text().splitlines()}
    assert scenarios >= {"ablation", "attribution", "attention"}
    assert report.main([str(tmp_path)]) == 0
    capsys.readouterr()
    parts = ["mixer", "mixer head 0", "mixer head 1", "state"]
    names = [f"blocks.{number}.{part}" for number in range(2) for part in parts]
    assert list(figure(tmp_path / "report.html", "ablation")["part"]) == names
    assert "with one part replaced by its mean, each in turn" in (tmp_path / "report.html").read_text()
