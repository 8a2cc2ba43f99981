"""Languages through the programs: what is learned, what a run keeps, how it goes on."""

from pathlib import Path

import pytest
import torch
import yaml

import modelzoo
import train_task
from datasets import build_stream
from datasets.synthetic.associative_recall import AssociativeRecall
from net.sequences.model import SequenceModel
from records.configuration import saved_config
from records.directory import read_config
from records.run import Run
from records.task_config import TaskRunConfig
from tests.test_resume import same_as, start, stop_after
from tests.test_train_task import PROJECT, settings, summary
from utils.seeding import seeded

SIZES = {"train_examples": 64, "dev_examples": 256, "test_examples": 256, "epoch_examples": 1024}
TASKS = [{"language": "recall", "pairs": 2}, {"language": "recall", "ask": "value", "fewest_pairs": 1}]
NET = {"model": "sequence", "width": 16, "layers": 2, "state_mixer": "norm", "batch": 32, "optimizer": "adamw",
       "lr": 0.01, "decayed": "weights", "dropout": 0.1}  # fmt: skip
CONVOLVED = [{"mixer": "base_conv", "kernel": 3}, "attention"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yaml_of("d.yaml", {"dataset": "languages", "tasks": TASKS, "symbols": 16, "pairs": 3, **SIZES})
    yaml_of("hp.yaml", {**NET, "mixers": CONVOLVED, "steps": 6})


def yaml_of(name, content):
    Path(name).write_text(yaml.safe_dump(content))


GIVEN = ["--data_config", "d.yaml", "--hp_config", "hp.yaml", "--quiet"]


def test_a_run_of_one_language_keeps_its_settings():
    task = str(PROJECT / "config/dataset/associative_recall.yaml")
    options = ["--data_config", task, "--hp_config", "hp.yaml", "--quiet", "--threads", "1", "--run_dir", "run"]
    small = settings(**{f"data__{key}": value for key, value in SIZES.items()}, data__pairs=4, data__ask="value")
    assert train_task.main([*options, *small]) == 0
    assert train_task.main(["--verify", "run"]) == 0
    content = read_config(Path("run"))
    assert (content["data"]["pairs"], content["data"]["ask"], content["data"]["fewest_pairs"]) == (4, "value", None)
    again = saved_config("run/config.yaml", content, TaskRunConfig)
    stream = build_stream(again.data, again.seed, torch.device("cpu"))
    assert stream.spec.input_shape == (2 * 4 + 5 + 1,)
    assert stream.fingerprints() == content["data_sha256"]


@pytest.mark.parametrize("method", ["zoo", "er"])
def test_a_stream_stopped_by_signals_goes_on_to_the_same_bits(method, monkeypatch):
    given = [*GIVEN, "--continual", "--method", method, "--memory_per_task", "20", "--evaluate_every", "2"]
    assert start("whole", *given) == 0
    for stops in range(9):
        with monkeypatch.context() as patch:
            stop_after(patch, 5)
            if start("run", *(["--resume"] if stops else []), *given) == 0:
                break
    assert stops > 0
    same_as("run", "whole")
    assert Run.load("run").task_names == ["recall (pairs 2)", "recall (fewest_pairs 1, ask value)"]
    content = read_config(Path("run"))
    again = saved_config("run/config.yaml", content)
    for number, given_task in enumerate(TASKS):
        assert {key: content["data"]["tasks"][number][key] for key in given_task} == given_task
    assert build_stream(again.data, again.seed, torch.device("cpu")).fingerprints() == content["data_sha256"]
    assert modelzoo.main(["--verify", "run"]) == 0


def test_a_wrong_language_leaves_no_run(capsys):
    yaml_of("d.yaml", {"dataset": "languages", "tasks": ["recall"], "symbols": 16, "pairs": 9})
    assert modelzoo.main([*GIVEN, "--continual", "--run_dir", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "d.yaml: task 1: pairs is 9; 16 symbols have room for 7" in line
    assert not Path("run").exists()


def learned(name, kernel, mixer, *options):
    """The summary of two layers on two pairs: a convolution, and a mixer that looks back."""
    yaml_of("d.yaml", {"dataset": "languages", "tasks": ["recall"], "symbols": 16, "pairs": 2, **SIZES})
    mixers = [{"mixer": "base_conv", "kernel": kernel}, mixer]
    own = {
        "mixers": mixers,
        "width": 64,
        "batch": 128,
        "lr": 0.003,
        "dropout": 0.0,
        "l2_reg": 0.0,
        "schedule": "constant",
    }
    yaml_of("hp.yaml", {**NET, **own})
    assert train_task.main([*GIVEN, "--threads", "1", "--checkpoints", "none", "--run_dir", name, *options]) == 0
    return summary(Path(name))


@pytest.mark.parametrize("mixer", ["attention", {"mixer": "based", "feature": 8}], ids=["attention", "based"])
def test_a_convolution_of_two_tokens_makes_recall_possible_and_one_of_one_does_not(mixer):
    """One of the two values of a document is right by chance."""
    until = ["--evaluate_at", "every:50", "--until", "0.95"]
    found = learned("two", 2, mixer, "--steps", "500", *until)
    guessed = learned("one", 1, mixer, "--steps", str(found["reached"]))
    assert found["avg_acc_final"] > 0.9
    assert 0.3 < guessed["avg_acc_final"] < 0.7


def test_attention_with_learned_positions_recalls():
    """Two layers, six pairs: one of six values is right by chance."""
    yaml_of("d.yaml", {"dataset": "languages", "tasks": ["recall"], "symbols": 16, "pairs": 6, **SIZES})
    own = {
        "mixers": ["attention"], "positions": True, "width": 64, "batch": 64, "lr": 0.001, "dropout": 0.0,
        "l2_reg": 0.0, "schedule": "constant", "init": "torch", "embedding_std": 0.2, "state_mixer": "mlp",
    }  # fmt: skip
    yaml_of("hp.yaml", {**NET, **own})
    until = ("--steps", "900", "--evaluate_at", "every:50", "--until", "0.95")
    assert train_task.main([*GIVEN, "--threads", "1", "--checkpoints", "none", "--run_dir", "run", *until]) == 0
    assert summary(Path("run"))["avg_acc_final"] > 0.9


@torch.no_grad()
def test_one_layer_without_positions_cannot_tell_which_value_follows_a_key():
    """It answers alike when all values trade places, so it is right by chance; with positions it need not."""
    spoken = AssociativeRecall(AssociativeRecall.Settings(symbols=16, pairs=4))
    documents = spoken.draw(50, torch.Generator().manual_seed(0), False)
    inputs = torch.cat([documents.tokens, documents.asked.unsqueeze(1)], 1)
    traded = inputs.clone()
    traded[:, 2:9:2] = inputs[:, 2:9:2].roll(1, 1)
    for positions in (False, True):
        settings = SequenceModel.Settings(width=16, layers=1, positions=positions, init="torch", embedding_std=1.0)
        with seeded(0, "one layer"):
            net = SequenceModel((inputs.shape[1],), settings, 22, asked=1).double().eval()
        difference = (net(inputs) - net(traded)).abs().max()
        assert difference > 1e-3 if positions else difference < 1e-12
