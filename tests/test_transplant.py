"""Activations of the network of one checkpoint in that of another."""

import contextlib
import copy
import csv
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import modelzoo
import train_task
from datasets import build_stream
from evaluation.transplant import compared, obstacle, transplant
from net import build_net, settings_class
from net.sequences.handset import direct, induction
from net.sequences.sites import Write, run
from records import Run
from records.configuration import saved_config
from records.directory import read_config
from records.task_config import TaskRunConfig
from records.task_group import TaskGroup
from tests.languages import language, sizes, subject, task, without_schema
from utils.errors import UserError

PROJECT = Path(__file__).parent.parent
RECALL = language()
COUNT = 60
TASK = task(RECALL, COUNT)
SITE, ITEMS = "blocks.1.input", ("target", "query", "original_query")


def restored(found, step, into, item):
    return found[f"restored {step} into {into} {SITE}@{item} of original_query"]


def random_network():
    """Of the shape of the induction network."""
    net = induction(*sizes(RECALL))
    torch.manual_seed(0)
    for parameter in net.trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return net


def one_at_a_time(net, asked_about, item):
    """The share that one activation of the clean document restores: one document and one forward pass at a time."""
    examples, schema = asked_about.test, asked_about.test.schema
    sums = torch.zeros(3, dtype=torch.float64)
    for row in range(COUNT):
        clean, place = examples.store[row : row + 1], schema.positions[item][row]
        corrupted = clean.clone()
        corrupted[0, schema.positions["original_query"][row]] = schema.replacements["original_query"][row]
        ran = run(net.trunk, clean, read=[SITE])
        values = run(net.trunk, corrupted, read=[SITE]).activations[SITE].clone()
        values[0, place] = ran.activations[SITE][0, place]
        patched = run(net.trunk, corrupted, write={SITE: Write(values)}).outputs
        answer = examples.targets[row, 0]
        sums += torch.stack([
            outputs[0, 0].softmax(-1)[answer].double() for outputs in (patched, ran.outputs, net.trunk(corrupted))
        ])  # fmt: skip
    return (sums[0] - sums[2]) / (sums[1] - sums[2])


@pytest.mark.parametrize(("name", "known"), [("induction", "target"), ("direct", "query"), ("late", "original_query")])
@torch.no_grad()
def test_into_itself_it_is_the_association_of_one_network(name, known):
    net = {"induction": induction, "direct": direct, "late": lambda *size: direct(*size, idle=1)}[name](*sizes(RECALL))
    found = transplant(subject(net, TASK, step=7))
    assert len(found) == 5
    assert found["checkpoints"].value == 1
    assert found["effect 7 of original_query"].value == pytest.approx(1, abs=1e-3)
    for item in ITEMS:
        score = restored(found, 7, 7, item)
        assert score.value == pytest.approx(float(item == known), abs=1e-3)
        assert score.value == pytest.approx(float(one_at_a_time(net, TASK, item)), abs=1e-5)
        assert score.n == COUNT


def test_an_unrelated_network_restores_nothing():
    net, other = induction(*sizes(RECALL)), random_network()
    found = transplant(subject(net, TASK, step=9, earlier={4: lambda: other}))
    assert found["checkpoints"].value == 2
    for item in ITEMS:
        assert restored(found, 4, 9, item).value == pytest.approx(0, abs=1e-3)
        assert restored(found, 9, 9, item).value == pytest.approx(float(item == "target"), abs=1e-3)
    assert abs(found["effect 4 of original_query"].value) < 0.05  # of which no share can be restored
    assert not [name for name in found if "into 4" in name]


def test_a_mechanism_that_has_only_some_of_the_tokens_restores_their_documents():
    net = induction(*sizes(RECALL))
    asked = TASK.test.store[torch.arange(COUNT), TASK.test.schema.positions["original_query"]]
    earlier = copy.deepcopy(net)
    missing = asked.unique()[:3]
    with torch.no_grad():
        earlier.trunk.embed.weight[missing] = 0
    found = transplant(subject(net, TASK, step=9, earlier={4: lambda: earlier}))
    known = 1 - torch.isin(asked, missing).double().mean().item()
    score = restored(found, 4, 9, "target")
    assert 0.3 < known < 0.9
    assert score.value == pytest.approx(known, abs=1e-2)
    assert score.stderr == pytest.approx((known * (1 - known) / (COUNT - 1)) ** 0.5, rel=0.05)
    assert restored(found, 9, 4, "target").value > 0.5  # what the later one has, the earlier one can use


@pytest.mark.parametrize(("kept", "expected"), [
    ([], [40]), ([0], [0, 40]), (range(5), [0, 1, 2, 3, 4, 40]), (range(0, 40, 4), [0, 8, 16, 24, 32, 40]),
    ([0, *(2**power for power in range(15))], [0, 4, 32, 256, 2048, 20000]),
])  # fmt: skip
def test_the_networks_are_evenly_spaced_among_those_that_are_kept(kept, expected):
    nets, built = {step: random_network() for step in (*kept, expected[-1])}, []

    def build(step):
        built.append(step)
        return nets[step]

    earlier = {step: lambda step=step: build(step) for step in kept}
    found = list(compared(subject(nets[expected[-1]], TASK, step=expected[-1], earlier=earlier)))
    assert [step for step, _ in found] == expected == [*built, expected[-1]]
    assert all(net is nets[step] for step, net in found)


def test_it_takes_two_layers_and_a_language():
    length, vocabulary = sizes(RECALL)
    net = build_net("sequence", (length + 1,), settings_class("sequence")(layers=1), {1: vocabulary}, "identity", 1)
    assert "one layer" in obstacle(net, TASK)
    assert "no documents with a schema" in obstacle(net, without_schema(TASK))
    assert obstacle(induction(length, vocabulary), TASK) == ""


# Runs.

TINY = [arg for change in ("data.symbols=8", "data.pairs=2", "data.dev_examples=80", "data.test_examples=40",
                           "data.train_examples=32", "data.epoch_examples=64", "hp.batch=16", "hp.warmup=2",
                           "hp.lr=0.03", "net.width=8") for arg in ("--set", change)]  # fmt: skip
GIVEN = ["--data_config", str(PROJECT / "config/dataset/associative_recall.yaml"), "--hp_config",
         str(PROJECT / "config/hyperparam/attention.yaml"), "--steps", "20", "--threads", "1", *TINY]  # fmt: skip
ASKED = ["--evaluate", "transplant,probes:end"]


def rows(path, scenario):
    with open(path / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row["scenario"] == scenario]


def trained(path, *options, code=0, program=train_task):
    torch.manual_seed(0)  # dropout is drawn from the global generator
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(shown):
        assert program.main([*options, "--quiet", "--run_dir", str(path)]) == code
    assert "arning" not in shown.getvalue()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("transplant") / "whole", *GIVEN, *ASKED)


def test_a_run_is_asked_at_its_end_about_its_checkpoints(whole):
    found = rows(whole, "transplant")
    assert {row["step"] for row in found} == {"20"} == {row["step"] for row in rows(whole, "probes")}
    effects = [row["metric"] for row in found if row["metric"].startswith("effect")]
    assert effects == [f"effect {step} of original_query" for step in (0, 1, 2, 4, 8, 20)]
    assert {row["split"] for row in found} == {"dev"}
    # the same from the files of the run
    config = saved_config("config.yaml", read_config(whole), TaskRunConfig)
    asked_about = build_stream(config.data, 0, torch.device("cpu")).tasks[0]
    asked_about = asked_about.with_splits(test=asked_about.splits["dev"])
    kept = Run.load(whole).checkpoints
    earlier = {step: kept[step].network for step in kept if step < 20}
    again = transplant(subject(kept[20].network(), asked_about, step=20, earlier=earlier))
    assert {row["metric"]: float(row["value"]) for row in found} == pytest.approx(
        {name: score.value for name, score in again.items()}, rel=1e-5, abs=1e-9
    )
    names = [row["metric"] for row in rows(whole, "probes")]
    assert "selectivity original_query from blocks.1.input@target" in names
    assert not [name for name in names if "answer" in name or "@relation" in name]


def test_a_resumed_run_gives_the_same_answers(whole, tmp_path, monkeypatch):
    record = TaskGroup.record

    def stop(group, step):
        if step == 20:
            raise UserError("stopped here")
        record(group, step)

    with monkeypatch.context() as patch:
        patch.setattr("records.task_group._SECONDS", -1.0)  # what was recorded is saved each time
        patch.setattr(TaskGroup, "record", stop)
        trained(tmp_path / "run", *GIVEN, *ASKED, code=2)
    assert rows(tmp_path / "run", "transplant") == []
    trained(tmp_path / "run", "--resume")
    assert (tmp_path / "run/metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_asking_does_not_change_what_is_learned(whole, tmp_path):
    often = trained(tmp_path / "often", *GIVEN, "--evaluate", "transplant:always")
    bare = trained(tmp_path / "bare", *GIVEN)
    expected = load_file(bare / "members/member_000.safetensors")
    for path in (whole, often):
        found = load_file(path / "members/member_000.safetensors")
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    counts = [float(row["value"]) for row in rows(often, "transplant") if row["metric"] == "checkpoints"]
    assert counts == [1, 2, 3, 4, 5, 6, 6]


def test_a_run_of_modelzoo_has_one_network(tmp_path):
    asked = ("--evaluate", "transplant,probes")
    path = trained(tmp_path / "zoo", *GIVEN, *asked, "--continual", program=modelzoo)
    found = rows(path, "transplant")
    assert [row["metric"] for row in found][:2] == ["checkpoints", "effect 0 of original_query"]
    assert float(found[0]["value"]) == 1
    assert len(rows(path, "probes")) > 20
