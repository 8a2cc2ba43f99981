"""Interchange interventions, and what networks answer to the questions of documents."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets import build_stream
from datasets.objectives import Tokens
from datasets.schema import Schema
from datasets.synthetic.languages import FreshDocuments
from datasets.synthetic.treecall import Treecall
from datasets.task import Examples, Preprocess, StreamSpec, Table, Task
from evaluation import interchange
from evaluation.bootstrap import ratios, resamples
from evaluation.interchange import AskedDocuments, intervened, named_cells, patched_sites
from evaluation.questions import EVALUATIONS, check_evaluations
from evaluation.subject import Subject
from net import build_net, settings_class
from net.multihead import MultiHead
from net.sequences.handset import direct, induction
from net.sequences.mixers import MIXERS
from net.sequences.model import SequenceModel
from net.sequences.sites import Write, run
from records.invocation import configure
from tests.toys import CPU
from utils.errors import UserError
from utils.seeding import seeded
from utils.settings import read

CONFIG = Path(__file__).parent.parent / "config/dataset/associative_recall.yaml"
LENGTH, VOCABULARY, BATCH = 9, 11, 5
SETTINGS = {"attention": {"heads": 2}, "based": {"heads": 2}, "gla": {"heads": 2}, "rwkv7": {"head_size": 4},
            "mamba2": {"head_size": 8}}  # fmt: skip


def model_of(*mixers, **settings):
    """A network with drawn weights, in test mode and double precision."""
    chosen = [{"mixer": name, **SETTINGS.get(name, {})} for name in mixers]
    own = read(SequenceModel.Settings, "net", {"width": 8, "expansion": 2, "mixers": chosen, **settings})
    with seeded(0, "interchange"):
        net = SequenceModel((LENGTH + 1,), own, VOCABULARY, asked=1)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return net.double().eval()


def documents_of(seed=0, batch=BATCH):
    """Tokens of no language, whose items are anywhere: before and behind each other, and behind the question."""
    rng = torch.Generator().manual_seed(seed)

    def drawn(high, *shape):
        return torch.randint(high, shape, generator=rng)

    tokens, asked = drawn(VOCABULARY, batch, LENGTH), 4 + drawn(LENGTH - 5, batch)
    places = {name: (torch.rand(batch, generator=rng) * (asked + 1)).long() for name in ("first", "second", "third")}
    places |= {"query": asked, "answer": asked + 1, "seldom": torch.arange(batch) - 1}
    replacements = {
        item: (tokens.gather(1, places[item].unsqueeze(1)).squeeze(1) + 1 + drawn(VOCABULARY - 1, batch)) % VOCABULARY
        for item in ("first", "second")
    }
    schema = Schema(places, replacements, drawn(VOCABULARY, batch, 1), torch.ones(batch, 1))
    return AskedDocuments(torch.cat([tokens, asked.unsqueeze(1)], 1), schema.answers.squeeze(1), schema)


def measures(outputs, answers, reference):
    """Probability and logit of the answer and KL to a distribution, [B, 3], by torch's functions."""
    kl = F.kl_div(reference.log_softmax(-1), outputs.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    found = [outputs.softmax(-1)[range(len(answers)), answers], outputs[range(len(answers)), answers], kl]
    return torch.stack(found, 1)


def one_by_one(net, documents, corrupted):
    """Each patch by a run of its own, [B, 3] by site and item; and those of the clean and the corrupted documents."""
    inputs, answers, schema = documents
    changed, rows = inputs.clone(), torch.arange(len(inputs))
    changed[rows, schema.positions[corrupted]] = schema.replacements[corrupted]
    clean, reference = run(net, inputs, read=net.sites()), run(net, changed).outputs[:, 0]
    found = {}
    for site in net.sites():
        for item, places in schema.positions.items():
            if not site.endswith("heads") and (places >= 0).all():
                write = Write(clean.activations[site][rows, places], rows, places)
                outputs = run(net, changed, write={site: write}).outputs[:, 0]
                found[site, item] = measures(outputs, answers, reference)
    return found, measures(clean.outputs[:, 0], answers, reference), measures(reference, answers, reference)


NETWORKS = [
    *((name, name, {}) for name in MIXERS),
    ("attention", "base_conv", {"state_mixer": "norm", "positions": True}),
    ("mamba", "attention", {"state_mixer": "none", "layers": 3}),
    ("base_conv", "based", {"state_mixer": "glu", "layers": 3, "norm": "rms"}),
    ("attention", "attention", {"layers": 1, "positions": True, "tied": False}),
    ("rwkv7", "rwkv7", {"layers": 1, "state_mixer": "none"}),
]


@pytest.mark.parametrize(("first", "second", "settings"), NETWORKS)
@torch.no_grad()
def test_the_patches_are_those_of_runs_one_by_one(first, second, settings, monkeypatch):
    net, documents = model_of(first, second, **settings), documents_of()
    found = intervened(net, documents)
    assert list(found) == ["first", "second"]
    for item, effects in found.items():
        expected, clean, corrupted = one_by_one(net, documents, item)
        assert list(effects.restored) == list(expected)
        assert "seldom" not in {place for _, place in expected}  # one of the documents has none
        assert (effects.clean - clean).abs().max() < 1e-10
        assert (effects.corrupted - corrupted).abs().max() < 1e-10
        for cell, values in expected.items():
            assert (effects.restored[cell] - values).abs().max() < 1e-10, cell
        assert max((values - corrupted).abs().max() for values in expected.values()) > 1e-5
    monkeypatch.setattr(interchange, "_BYTES_CPU", 0)  # eight at a time
    many, again = documents_of(batch=40), {}
    for item, effects in intervened(net, many).items():
        again[item], _, _ = one_by_one(net, many, item)
        assert max((effects.restored[cell] - values).abs().max() for cell, values in again[item].items()) < 1e-10


@pytest.mark.parametrize("mixer", ["attention", "hyena", "mamba"])
@torch.no_grad()
def test_what_is_known_without_a_run_is_exact(mixer):
    net, documents = model_of(mixer).float(), documents_of(batch=30)
    schema = documents.schema
    for effects in intervened(net, documents).values():
        moved = effects.restored["blocks.1.output", "query"]
        assert torch.equal(moved, effects.clean)  # the output of the last layer at the question
        assert not torch.equal(effects.clean, effects.corrupted)
        for site in patched_sites(net):
            assert torch.equal(effects.restored[site, "answer"], effects.corrupted)  # behind the question
            before = schema.positions["third"] < schema.positions["first"].minimum(schema.positions["second"])
            assert torch.equal(effects.restored[site, "third"][before], effects.corrupted[before])
        assert (effects.corrupted[:, 2] == 0).all()
    same = {
        item: documents.inputs.gather(1, schema.positions[item].unsqueeze(1)).squeeze(1) for item in schema.replacements
    }
    itself = Schema(schema.positions, same, schema.answers, schema.probabilities)
    for effects in intervened(net, documents._replace(schema=itself)).values():  # a clean run with itself
        assert torch.equal(effects.clean, effects.corrupted)
        assert all(torch.equal(values, effects.clean) for values in effects.restored.values())


@torch.no_grad()
def test_state_mixers_and_sites_that_are_the_same():
    same = patched_sites(model_of("attention"))
    assert same["blocks.0.output"] == "blocks.1.input"
    assert same["blocks.1.state.input"] == "blocks.1.state.output"
    assert not [site for site in same if site.endswith("heads")]
    assert list(same)[-1] == same["blocks.1.output"] == "blocks.1.output"


def recall(**changes):
    """A network with drawn weights asked about associative recall."""
    changes = {"train_examples": 64, "dev_examples": 64, "test_examples": 400, "symbols": 16, "pairs": 3, **changes}
    config = configure(data_config=str(CONFIG), set={f"data.{key}": value for key, value in changes.items()}).config
    stream = build_stream(config.data, 0, CPU.device)
    task = stream.tasks[0]
    with seeded(0, "interchange"):
        settings = settings_class("sequence")(width=8)
        net = build_net("sequence", stream.spec.input_shape, settings, {1: task.num_outputs}, asked=1,
                        heads="identity")  # fmt: skip
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter)
    return Subject(net.eval(), task, stream.spec, CPU)


@torch.no_grad()
def test_scores_are_means_over_documents_taken_evenly():
    subject = recall()
    subject.net.trunk.embed.weight.mul_(0.01)  # almost equal probabilities
    found = EVALUATIONS["interchange"].ask(subject)
    examples = subject.task.test
    rows = torch.tensor([400 * number // 320 for number in range(320)])
    documents = AskedDocuments(
        examples.store[examples.rows[rows]], examples.targets[rows, 0], examples.schema.rows(examples.rows[rows])
    )
    names = {"probability", "logit"}
    for item, effects in intervened(subject.net.trunk, documents).items():
        clean, corrupted = effects.clean.double(), effects.corrupted.double()
        for number, name in enumerate(("probability", "logit")):
            assert found[name].value == pytest.approx(clean[:, number].mean().item(), abs=1e-9)
            of = found[f"corrupted {name} of {item}"]
            assert of.value == pytest.approx(corrupted[:, number].mean().item(), abs=1e-9)
            assert of.stderr == pytest.approx(corrupted[:, number].std().item() / math.sqrt(320), abs=1e-9)
            names |= {f"corrupted {name} of {item}"}
        same = patched_sites(subject.net.trunk)
        for (site, place), values in effects.restored.items():
            if same[site] != site or place == "answer":
                continue  # known: the same as another one, or nothing
            for number, name in enumerate(("probability", "logit", "kl")):
                of = f"restored {name} {site}@{place} of {item}"
                assert found[of].value == pytest.approx(values[:, number].double().mean().item(), abs=1e-9)
                assert found[of].n == 320
                names |= {of}
    assert next(iter(found)) == "probability"
    assert {place for _, place in effects.restored} == {"original_query", "target", "divider", "query", "answer"}
    assert {name for name in found if "association" not in name} == names  # small effects: no association is defined
    assert not [name for name in found if "association" in name]


class Sure(SequenceModel):
    """Wide outputs: almost all of the probability is on one token."""

    def outputs_at(self, stream):
        return 6 * super().outputs_at(stream)


@torch.no_grad()
def test_associations_where_the_corruption_changes_the_answer():
    subject = recall()
    subject.net.trunk.__class__ = Sure
    # the answer of each document is what this network says, so that corruptions lower its probability
    examples = subject.task.test
    said = subject.net.trunk(examples.store[examples.rows]).argmax(-1)
    task = subject.task.with_splits(test=Examples(examples.store, examples.rows, said, schema=examples.schema))
    subject = Subject(subject.net, task, subject.spec, CPU)
    found = EVALUATIONS["interchange"].ask(subject)
    for item in ("original_query", "target"):
        drop = found["probability"].value - found[f"corrupted probability of {item}"].value
        assert drop > 0.05
        for site in set(patched_sites(subject.net.trunk).values()):
            for place in ("original_query", "target", "divider", "query"):
                cell = f"{site}@{place} of {item}"
                gain = found[f"restored probability {cell}"].value - found[f"corrupted probability of {item}"].value
                value = found[f"association {cell}"]
                assert value.value == pytest.approx(gain / drop, abs=1e-9)
                low, high = found[f"association low {cell}"].value, found[f"association high {cell}"].value
                assert low <= value.value <= high or high - low < 1e-6
                assert 0 <= value.stderr <= high - low + 1e-12
        for restoring in (f"blocks.0.input@{item}", "blocks.1.output@query"):
            assert found[f"association {restoring} of {item}"].value == pytest.approx(1, abs=1e-12)
    shorts = {"induction": "target", "direct early": "query", "direct late": "original_query"}
    for name, place in shorts.items():
        cell = f"association blocks.1.input@{place} of original_query"
        assert found[name] == found[cell]
        for end in ("low", "high"):
            assert found[f"{name} {end}"] == found[cell.replace("association", f"association {end}")]
    assert EVALUATIONS["interchange"].ask(subject) == found  # the same every time


CONTROLS = [
    (induction, {}, {"induction": 1, "direct early": 0, "direct late": 0}),
    (direct, {}, {"induction": 0, "direct early": 1, "direct late": 0}),
    (direct, {"idle": 1}, {"induction": 0, "direct early": 0, "direct late": 1}),
    # Asked for what stands before a value: it is the key that induction would bring to the value.
    (induction, {"ask": "value"}, {"induction": 1, "direct early": 0}),
    (direct, {"ask": "value"}, {"induction": 0, "direct early": 1}),
]


@pytest.mark.parametrize(("make", "given", "expected"), CONTROLS)
def test_mechanisms_that_are_written_down(make, given, expected):
    ask = given.get("ask", "key")
    subject = recall(ask=ask)
    length = subject.task.test.store.shape[1] - 1
    net = make(length, subject.task.num_outputs, **given)
    found = EVALUATIONS["interchange"].ask(Subject(net, subject.task, subject.spec, CPU))
    assert found["probability"].value > 0.999
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=0.01)
        assert found[name].stderr < 0.01
    assert set(expected) == {name for name in ("induction", "direct early", "direct late") if name in found}
    for place in ("original_query", "query", "target") if ask == "key" else ():  # nothing has moved from the target
        value = found[f"association blocks.1.input@{place} of target"].value
        assert value == pytest.approx(float(place == "target"), abs=0.01)
    behaves = EVALUATIONS["behaviour"].ask(Subject(net, subject.task, subject.spec, CPU))
    assert behaves["accuracy"].value == 1
    assert behaves["kl"].value == pytest.approx(0, abs=1e-3)


def test_induction_has_no_place_where_the_order_of_the_items_varies():
    places = {"query": torch.tensor([7, 7]), "original_query": torch.tensor([1, 3]), "target": torch.tensor([2, 2])}
    mixed = Schema(places, {}, torch.zeros(2, 1), torch.ones(2, 1))
    assert set(named_cells(mixed).values()) == {"direct early"}


@torch.no_grad()
def test_documents_of_trees_with_relations():
    """Documents of unequal lengths with a token of the relation: the same as by runs one by one."""
    spoken = Treecall(Treecall.Settings(terminals=12, relations=("parent", "sibling"), longest=12))
    examples = FreshDocuments(spoken, spoken.longest, False, 20, CPU.device).frozen(20, 0, "trees")
    documents = AskedDocuments(examples.store, examples.targets[:, 0], examples.schema)
    assert (documents.inputs[:, -1] == examples.schema.positions["relation"]).all()
    with seeded(0, "trees"):
        settings = read(SequenceModel.Settings, "net", {"width": 8, "mixers": ["attention"], "positions": True})
        net = SequenceModel((spoken.longest + 1,), settings, 6 + 12, asked=1)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter)
    for item, effects in intervened(net.double().eval(), documents).items():
        expected, clean, corrupted = one_by_one(net, documents, item)
        assert "relation" in {place for _, place in expected}
        assert (effects.clean - clean).abs().max() < 1e-10
        assert (effects.corrupted - corrupted).abs().max() < 1e-10
        for cell, values in expected.items():
            assert (effects.restored[cell] - values).abs().max() < 1e-10


def test_the_bootstrap_of_a_ratio():
    rng = np.random.default_rng(0)
    below = rng.normal(0.6, 0.3, 400)
    above = np.stack([0.5 * below + rng.normal(0, 0.2, 400), below, 0 * below])
    drawn = resamples(400, 4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 400)
    assert (drawn.sum(1) == 400).all()
    assert drawn.var(0).mean() == pytest.approx(399 / 400, rel=0.02)  # of multinomial counts
    table = ratios(torch.tensor(above), torch.tensor(below), drawn).numpy()
    assert table[:, 0] == pytest.approx(above.mean(1) / below.mean(), abs=1e-12)
    # the delta method: r +- std(x - r y) / (mean(y) sqrt(n))
    error = np.std(above[0] - table[0, 0] * below) / below.mean() / 20
    assert table[0, 1] == pytest.approx(error, rel=0.05)
    assert table[0, 2:] == pytest.approx([table[0, 0] - 1.96 * error, table[0, 0] + 1.96 * error], abs=0.15 * error)
    assert table[1] == pytest.approx([1, 0, 1, 1], abs=1e-12)
    assert table[2] == pytest.approx([0, 0, 0, 0], abs=1e-12)
    picks = rng.integers(400, size=(4000, 400))  # numpy's own resampling
    own = above[0][picks].mean(1) / below[picks].mean(1)
    assert table[0, 1:] == pytest.approx([own.std(), *np.quantile(own, [0.025, 0.975])], rel=0.06)


class Says(torch.nn.Module):
    """The outputs are the logarithms of written probabilities, plus 3."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = probabilities.log() + 3

    def forward(self, inputs):
        return self.logits[inputs[:, 0]].unsqueeze(1)


def test_behaviour_against_closed_forms():
    said = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1]])
    answers = torch.tensor([[0, 3], [2, 3], [1, 0]])
    exact = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.75, 0.25]])
    targets = torch.tensor([[0], [2], [1]])
    schema = Schema({}, {}, answers, exact)
    examples = Examples(torch.tensor([[0], [1], [2]]), torch.tensor([2, 0, 1]), targets[[2, 0, 1]], schema=schema)
    task = Task(1, "toy", 4, Table(examples), {"train": examples, "test": examples})
    net = MultiHead(Says(said), 4, {1: 4}, "identity").eval()
    spec = StreamSpec("toy", (1,), Tokens(), Preprocess(), heads="identity", asked=1)
    found = EVALUATIONS["behaviour"].ask(Subject(net, task, spec, CPU))
    assert list(found) == ["accuracy", "probability", "logit", "kl"]
    right = np.array([0.5, 0.3, 0.25])
    kl = [math.log(2), 0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.4), 0.75 * math.log(3)]
    for name, values in {"accuracy": [1, 0, 0], "probability": right, "logit": np.log(right) + 3, "kl": kl}.items():
        assert found[name].value == pytest.approx(np.mean(values), abs=1e-6)
        assert found[name].stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(3), abs=1e-6)
        assert found[name].n == 3


def test_what_cannot_be_asked():
    subject = recall()
    check_evaluations(["behaviour", "interchange"], {}, subject.net, subject.task)
    without = Examples(torch.zeros(4, 6, dtype=torch.int64), torch.arange(4), torch.zeros(4, 1, dtype=torch.int64))
    plain = subject.task.with_splits(test=without)
    for name in ("behaviour", "interchange"):
        with pytest.raises(UserError, match=f"--evaluate {name}: the task has no documents with a schema"):
            check_evaluations([name], {}, subject.net, plain)
    with pytest.raises(UserError, match="--evaluate interchange: only networks of sequence mixers"):
        check_evaluations(["interchange"], {}, MultiHead(torch.nn.Flatten(), 4, {1: 4}, "identity"), subject.task)
