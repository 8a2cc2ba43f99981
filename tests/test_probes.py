"""Linear probes find what is there, and nothing else."""

import warnings

import numpy as np
import pytest
import torch

from evaluation.probes import control_labels, obstacle, probed, probed_sites, probes
from net import build_net, settings_class
from net.sequences.handset import direct, induction
from tests.languages import language, sizes, subject, task, without_schema

N, CLASSES = 1000, 8
LABELS = np.random.default_rng(0).integers(CLASSES, size=N)
CHANCE = 1 / CLASSES


def near(share, n=500):
    return pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)


def test_a_direction_for_each_class_is_read_without_a_mistake_and_noise_is_not_read():
    noise = np.random.default_rng(1).normal(size=(N, 20))
    beside = np.concatenate([np.eye(CLASSES)[LABELS], noise], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(right.all() and len(right) == N // 2 for right in probed(np.eye(CLASSES)[LABELS], [LABELS, -LABELS]))
        (right,) = probed(beside, [LABELS])
        assert right.mean() > 0.98
        (right,) = probed(noise, [LABELS])
    assert right.mean() == near(CHANCE)


def test_a_probe_does_as_well_as_the_best_answer():
    """A bit that is turned over in a fifth of all cases."""
    truth, turned = np.random.default_rng(2).random((2, 4000)) < [[0.5], [0.2]]
    (right,) = probed((truth ^ turned)[:, None] * 7.0 - 3, [truth])
    assert right.tolist() == (~turned[2000:]).tolist()


def test_classes_of_one_half():
    late = LABELS.copy()
    late[N // 2 :][LABELS[N // 2 :] == 3] = CLASSES  # a token of its own that training never shows
    (right,) = probed(np.eye(CLASSES + 1)[late], [late])
    assert right.tolist() == (late[N // 2 :] != CLASSES).tolist()
    one = np.where(np.arange(N) < N // 2, 5, LABELS)  # training shows a single one
    (right,) = probed(np.eye(CLASSES)[one], [one])
    assert right.tolist() == (LABELS[N // 2 :] == 5).tolist()


def test_what_is_lost_in_rounding_is_not_read():
    constant = np.full((N, 3), 0.7)
    (right,) = probed(np.concatenate([constant, 0.7 + 1e-7 * np.eye(CLASSES)[LABELS]], 1), [LABELS])
    assert right.mean() == near(CHANCE)
    assert probed(constant, [LABELS])[0].mean() == near(CHANCE)


def test_control_labels_depend_on_the_token_alone_and_are_as_frequent_as_the_true_ones():
    tokens = torch.from_numpy(np.random.default_rng(3).integers(50_000, size=N))
    true = torch.from_numpy(LABELS).clamp_min(5)  # three quarters are 5
    everything = torch.arange(50_000)[torch.randperm(50_000, generator=torch.Generator().manual_seed(0))[:N]]
    found = control_labels("target", "query", true, tokens, 50_000)
    assert torch.equal(found, control_labels("target", "query", true, tokens, 50_000))
    assert not torch.equal(found, control_labels("target", "divider", true, tokens, 50_000))
    drawn = control_labels("target", "query", true, everything, 50_000)
    for label in (5, 6, 7):
        share = (true == label).double().mean().item()
        assert (drawn == label).double().mean().item() == near(share, N)
    same = control_labels("target", "query", true, torch.arange(20).repeat(50), 20)
    assert torch.equal(same, same[:20].repeat(50))


RECALL = language()
TASK = task(RECALL, 1200)
ITEMS = ("original_query", "target", "divider", "query")
SITES = ("blocks.0.input", "blocks.0.mixer.output", "blocks.1.input", "blocks.1.mixer.output", "blocks.1.output")
READ = SITES[3:]  # what the second layer has found
# What hand-set networks know where; all else can only be guessed. Their first layer adds to each position the token
# before it (induction), or where its token has been before (direct), which tells no token.
OWN = {(site, item, item) for site in ("blocks.0.input", "blocks.1.input", "blocks.1.output") for item in ITEMS[:2]}
OWN |= {(site, "query", "original_query") for site, item, _ in OWN if item == "target"}
OWN |= {(site, "query", "target") for site in READ}
ADDED = ("blocks.0.mixer.output", "blocks.1.input", "blocks.1.output")
KNOWN = {"induction": OWN | {(site, "target", "original_query") for site in ADDED}, "direct": OWN}
# What they know in one of three documents: the token before the divider is the value of the last pair, and where a
# token has not been before, the second layer of direct retrieval finds the first key.
IN_A_THIRD = {
    "induction": {(site, "divider", "target") for site in ADDED},
    "direct": {(site, item, "original_query") for site in READ for item in ITEMS[:3]} - OWN,
}


@pytest.fixture(scope="module", params=KNOWN)
def answers(request):
    made = {"induction": induction, "direct": direct}[request.param](*sizes(RECALL))
    assert probed_sites(made) == list(SITES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return request.param, probes(subject(made, TASK))


def test_what_hand_set_networks_know_is_found_where_they_have_it(answers):
    name, found = answers
    for site in SITES:
        for item in ITEMS:
            for label in ITEMS[:2]:
                score = found[f"accuracy {label} from {site}@{item}"]
                if (site, item, label) in KNOWN[name]:
                    assert score.value > 0.99
                else:
                    assert score.value == near(1 / 3 if (site, item, label) in IN_A_THIRD[name] else CHANCE)
                assert score.n == 512
                assert score.stderr == pytest.approx((score.value * (1 - score.value) / 512) ** 0.5)
    assert found["ceiling target"].value == found["ceiling original_query"].value == 1
    assert list(found)[:2] == ["ceiling original_query", "ceiling target"]


def test_the_control_is_what_the_token_itself_tells(answers):
    name, found = answers
    for label in ITEMS[:2]:
        for item in ("original_query", "target", "query"):
            for site in ("blocks.0.input", "blocks.1.input", "blocks.1.output"):
                assert found[f"control {label} from {site}@{item}"].value > 0.99
    if name == "induction":  # its first layer adds the original query to the target, and nothing of the target
        where = "original_query from blocks.0.mixer.output@target"
        assert found[f"control {where}"].value < 0.5
        difference = found[f"accuracy {where}"].value - found[f"control {where}"].value
        assert found[f"selectivity {where}"].value == pytest.approx(difference)
        # all of the documents that the control gets wrong the probe gets right
        assert found[f"selectivity {where}"].stderr == pytest.approx((difference * (1 - difference) / 511) ** 0.5)
    assert not [name for name in found if "@divider" in name and not name.startswith("accuracy")]


def test_tokens_that_training_never_shows_set_a_ceiling():
    many = language(symbols=300)
    length, vocabulary = sizes(many)
    torch.manual_seed(0)
    settings = settings_class("sequence")(width=64, layers=1, state_mixer="none")
    net = build_net("sequence", (length + 1,), settings, {1: vocabulary}, "identity", 1)
    asked_about = task(many, 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probes(subject(net, asked_about))
    schema, store = asked_about.test.schema, asked_about.test.store
    for label in ITEMS[:2]:
        tokens = store[torch.arange(300), schema.positions[label]].tolist()
        seen = np.mean([token in tokens[:150] for token in tokens[150:]])
        assert found[f"ceiling {label}"].value == pytest.approx(seen)
        assert 0.4 < seen < 0.9
        accuracy = found[f"accuracy {label} from blocks.0.input@{label}"].value
        assert accuracy == pytest.approx(seen, abs=0.1)
        assert accuracy <= seen


def test_it_is_not_asked_where_there_is_nothing_to_probe():
    net = induction(*sizes(RECALL))
    assert obstacle(net, TASK) == ""
    assert "no documents with a schema" in obstacle(net, without_schema(TASK))
    assert "two documents at least" in obstacle(net, task(RECALL, 1))
    rnn = build_net("rnn", (4,), settings_class("rnn")(hidden_size=2), {1: 4})
    assert "no layers whose activations can be read" in obstacle(rnn, TASK)
    assert probes(subject(net, task(RECALL, 2)))["ceiling target"].n == 1
