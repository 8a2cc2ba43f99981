"""Networks of sequence mixers learn recall, through the program."""

import html
import json

import pandas as pd
import pytest
import torch

import report
import train_task
from records import configure_task
from tests.test_train_task import PROJECT, checkpoints, here, network_of, settings, summary, train, whole

__all__ = ["here"]
SMALL = settings(data__vocabulary=48, data__length=16, data__pairs=4, data__noise="false", data__dev_examples=512,
                 data__test_examples=512, net__width=32, hp__lr=0.01)  # fmt: skip


def recall(where, preset, *options, task="mqar"):
    data = ("--data_config", str(PROJECT / f"config/dataset/{task}.yaml"))
    return train(where, *data, "--hp_config", str(PROJECT / f"config/hyperparam/{preset}.yaml"), *SMALL, *options)


def test_attention_behind_a_short_convolution_finds_values_where_gated_convolutions_guess():
    """One of the four values of the context is right by chance."""
    options = ("--steps", "1500", "--checkpoints", "none", "--evaluate_at", "every:100")
    found = recall("attention", "conv_attention", *options, "--until", "0.97")
    guessed = recall("convolutions", "base_conv", "--steps", str(summary(found)["reached"]), "--checkpoints", "none")
    assert summary(found)["avg_acc_final"] > 0.96
    assert 0.2 < summary(guessed)["avg_acc_final"] < 0.75
    assert max(whole(found, metric="exact_match").values()) > 0.87


def test_the_summary_has_the_bytes_of_the_state():
    run = recall("delta", "delta_net", "--steps", "1", "--checkpoints", "none")
    # A convolution of three positions, and two heads of 16 x 16.
    assert summary(run)["state_bytes"] == 4 * (3 * 32 + 2 * 16 * 16)
    member = json.loads(next((run / "members").glob("*.json")).read_text())
    assert member["asked"] == 4


def test_an_encoder_learns_every_skip_trigram_through_its_heads(here):
    """The logit of the answer is what attention brings, directly and through the perceptron; the mark knows nothing.

    At a faster rate than that of the preset, on sequences half as long.
    """
    options = settings(data__length=10, data__dev_examples=512, data__test_examples=512, hp__lr=0.005)
    files = [
        ("--data_config", "config/dataset/skip_trigram.yaml"),
        ("--hp_config", "config/hyperparam/skip_trigram.yaml"),
    ]
    given = [value for option, file in files for value in (option, str(PROJECT / file))]
    run = train("trigrams", *given, *options, "--steps", "200", "--checkpoints", "none", "--evaluate",
                "attribution:end")  # fmt: skip
    rows = pd.read_csv(run / "metrics.csv")
    tested = rows[(rows.split == "test") & (rows.metric == "accuracy")]
    by_answer = tested[tested.slice.str.startswith("answer", na=False)]
    assert set(by_answer.slice) == {f"answer {number}" for number in range(6, 11)}
    assert by_answer.value.min() > 0.98
    found = rows[rows.scenario == "attribution"].set_index("metric").value
    heads = found["attribution blocks.0.mixer head 0"] + found["attribution blocks.0.mixer head 1"]
    assert heads == pytest.approx(found["attribution blocks.0.mixer"], rel=1e-4)  # attention has no biases
    parts = heads + found["attribution blocks.0.state"]
    assert parts > 5 > 1 > abs(found["attribution embedding"])


PRESETS = ["attention", "conv_attention", "sliding_attention", "based", "base_conv", "hyena", "h3", "mamba", "mamba2",
           "gla", "delta_net", "gated_delta_net", "rwkv7"]  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_trained_and_read_again(preset):
    run = recall("run", preset, "--steps", "3", "--checkpoints", "every:1")
    assert train_task.main(["--verify", str(run)]) == 0
    assert set(whole(run)) == {0, 1, 2, 3}
    net, kept = network_of(run), checkpoints(run)
    assert all(torch.equal(value, kept[3][name]) for name, value in net.state_dict().items())
    assert not all(torch.equal(value, kept[2][name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("task", ["compositional", "forgetting", "continuous_mqar", "parity", "majority",
                                  "vocabulary_majority", "cumulative_parity", "cumulative_majority",
                                  "skip_trigram"])  # fmt: skip
def test_every_task_is_trained(task):
    options = ["--steps", "2", "--checkpoints", "none", "--set", "data.length=32", "--set", "data.vocabulary=49"]
    run = recall("run", "conv_attention", *options, task=task)
    assert 0 <= summary(run)["avg_acc_final"] <= 1


def test_runs_and_reports_are_named_after_the_sequence_mixers(tmp_path):
    run = recall("run", "based", "--steps", "1", "--checkpoints", "none")
    assert report.main([str(run)]) == 0
    text = html.unescape((run / "report.html").read_text())
    assert "base_conv+based on mqar" in text
    assert "mixers base_conv filter short kernel 3" in text
    assert "a value of the context" in text
    given = {"hp_config": str(PROJECT / "config/hyperparam/based.yaml"),
             "data_config": str(PROJECT / "config/dataset/mqar.yaml")}  # fmt: skip
    assert str(configure_task(**given).folder) == "runs/mqar-base_conv+based-seed0"
