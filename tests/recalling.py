"""Streams of sequences with questions, and what is right for them by plain Python."""

from collections import Counter
from pathlib import Path

import torch

from datasets import build_stream
from records.invocation import configure

CONFIGS = Path(__file__).parent.parent / "config" / "dataset"
SMALL = {"train_examples": 64, "dev_examples": 96, "test_examples": 128, "epoch_examples": 256}


def made(tasks, seed=0, **data):
    """The stream of some tasks on the CPU."""
    changes = {f"data.{key}": value for key, value in {**SMALL, **data}.items()}
    path = str(CONFIGS / "mqar.yaml")
    config = configure(data_config=path, seed=seed, set={"data.tasks": tasks, **changes}).config
    return build_stream(config.data, config.seed, torch.device("cpu"))


def first(task, **data):
    """A stream with one task, and this task."""
    stream = made([task], **data)
    return stream, stream.tasks[0]


def questions(stream, examples, length=None):
    """Of each example its tokens, and its questions as pairs of position and answer; padding is checked and removed."""
    total, found = examples.store.shape[1] - stream.spec.asked, []
    for row, target in zip(examples.store[examples.rows].tolist(), examples.targets.tolist(), strict=True):
        tokens, positions = row[:total], row[total:]
        number = sum(position >= 0 for position in positions)
        assert set(positions[number:]) <= {-1}
        assert set(target[number:]) <= {-1}
        assert min(target[:number]) >= 0
        assert positions[:number] == sorted(set(positions[:number]))
        if length:
            assert set(tokens[length:]) <= {0}
            tokens = tokens[:length]
        found.append((tokens, list(zip(positions, target, strict=True))[:number]))
    return found


def recalled(tokens, context, key):
    """The tokens by the key that comes before them, in the context; a later one replaces an earlier one."""
    values = {}
    for place in range(0, context, key + 1):
        values[tuple(tokens[place : place + key])] = tokens[place + key]
    return values


def checked(stream, examples, pairs, length, updates=0, key=1):
    """Every answer is the last value of the key that stands where it is asked for, and every key is asked for once."""
    context = (pairs + updates) * (key + 1)
    for tokens, asked in questions(stream, examples, length):
        values = recalled(tokens, context, key)
        assert len(values) == pairs
        found = {tuple(tokens[place - key + 1 : place + 1]): answer for place, answer in asked}
        assert found == values
        assert len(asked) == pairs
        assert all(place >= context and (place - context) % (key + 1) == key - 1 for place, _ in asked)
        assert all(0 <= token < stream.tasks[0].num_outputs for token in tokens)


def chi_square(seen, shares):
    total = sum(seen.values())
    assert set(seen) <= set(shares)
    return sum((seen[key] - share * total) ** 2 / (share * total) for key, share in shares.items())


def majority_by_counting(tokens):
    """The most frequent token; None if there are several."""
    (winner, most), *others = Counter(tokens).most_common(2)
    return None if others and others[0][1] == most else winner


def expected(task, tokens):
    """Positions and answers of a circuit, from its tokens."""
    last, bits = len(tokens) - 1, tokens[:-1]
    if task == "parity":
        return [(last, sum(bits) % 2)]
    if task == "majority":
        return [(last, int(sum(bits) > len(bits) / 2))]
    if task == "vocabulary_majority":
        return [(last, majority_by_counting(bits))]
    prefixes = [tokens[: end + 1] for end in range(len(tokens))]
    if task == "cumulative_parity":
        return [(end, sum(prefix) % 2) for end, prefix in enumerate(prefixes)]
    return [(end, int(prefix.count(1) >= prefix.count(0))) for end, prefix in enumerate(prefixes)]
