"""Streams of sequences: what the seed draws, mixtures, slices, padding, the shipped files and wrong ones."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from datasets import build_stream
from datasets.objectives import Tokens
from datasets.task import Generator, Table
from records.invocation import configure
from tests.recalling import CONFIGS, SMALL, checked, expected, first, made, questions
from utils.errors import UserError
from utils.seeding import generator

SHIPPED = [path.stem for path in sorted(CONFIGS.glob("*.yaml")) if "dataset: sequences" in path.read_text()]


def tensors(task, split):
    return task.splits[split].store, task.splits[split].targets


def same(one, other):
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", ["mqar", "vocabulary_majority", "continuous_mqar"])
def test_what_the_seed_draws_and_what_is_the_same_in_every_run(name):
    """Noise too."""
    tasks = [first(name, seed=seed)[1] for seed in (0, 0, 1)]
    for split, size in (("train", 64), ("dev", 96), ("test", 128)):
        parts = [tensors(task, split) for task in tasks]
        assert len(parts[0][1]) == size
        assert same(parts[0], parts[1])
        assert same(parts[0], parts[2]) == (split != "train")
    everything = torch.cat([*(part.store for part in tasks[0].splits.values()), tasks[2].train_eval.store])
    assert len(everything.unique(dim=0)) == len(everything)  # splits have no example in common


def test_fresh_examples_follow_the_same_rule_as_frozen_ones():
    stream, task = first("forgetting", pairs=6, updates=3, length=40)
    assert isinstance(task.train, Generator)
    rng = generator(0, "epochs")
    one, other = task.train.epoch(rng), task.train.draw(100, rng)
    assert (len(one), len(other)) == (256, 100)
    assert not torch.equal(one.store[:100], other.store)
    assert torch.equal(one.store, task.train.epoch(generator(0, "epochs")).store)
    for examples in (one, other, task.train_eval, task.test):
        checked(stream, examples, 6, 40, 3)
    _, frozen = first("forgetting", pairs=6, updates=3, length=40, fresh=False)
    assert isinstance(frozen.train, Table)
    assert frozen.train.examples is frozen.train_eval
    assert same(tensors(frozen, "train"), tensors(task, "train"))
    table = task.train.freeze(50, 0, "kept").examples
    assert torch.equal(table.store, task.train.freeze(50, 0, "kept").examples.store)


MIXED = {
    "task": "mqar",
    "train": [{"length": 16, "pairs": 2, "examples": 5}, {"length": 32, "pairs": 4, "examples": 2}, {"length": 24}],
    "test": [{"length": 16, "pairs": 3}, {"length": 40, "pairs": 6}],
}


def sizes(stream, examples):
    """How many examples ask so many questions."""
    return Counter(len(asked) for _, asked in questions(stream, examples))


@pytest.mark.parametrize("fresh", [True, False])
def test_training_examples_are_a_shuffled_mixture_of_segments(fresh):
    stream, task = first(MIXED, pairs=1, train_examples=800, epoch_examples=800, fresh=fresh)
    assert (stream.spec.input_shape, stream.spec.asked) == ((40 + 6,), 6)  # the largest of all segments and splits
    for examples in (task.train_eval, task.train.epoch(generator(0, "x"))):
        assert examples.store.shape == (800, 32 + 6)  # training does not wait for what only tests have
        assert sizes(stream, examples) == {2: 500, 4: 200, 1: 100}
        for pairs, length in ((2, 16), (4, 32), (1, 24)):
            chosen = [n for n, (_, asked) in enumerate(questions(stream, examples)) if len(asked) == pairs]
            checked(stream, examples.subset(torch.tensor(chosen)), pairs, length)
            assert min(chosen) < 100
            assert max(chosen) >= 700
    assert task.train_eval.slices == {}


def test_small_draws_of_a_mixture_have_the_right_shares_on_average():
    """Of five examples every segment has its share 3.125, 1.25, .625, rounded up or down."""
    stream, task = first(MIXED, pairs=1)
    rng, total = generator(0, "small"), Counter()
    for _ in range(800):
        found = sizes(stream, task.train.draw(5, rng))
        assert found[2] in (3, 4)
        assert found[4] in (1, 2)
        assert found[1] in (0, 1)
        total += found
    for pairs, share in ((2, 3.125), (4, 1.25), (1, 0.625)):
        assert total[pairs] / 800 == pytest.approx(share, abs=5 * 0.5 / math.sqrt(800))


def test_test_examples_have_equal_numbers_of_each_segment_and_a_slice_for_each():
    stream, task = first(MIXED, test_examples=101)
    for split, size in (("test", 101), ("dev", 96)):
        part = task.splits[split]
        assert list(part.slices) == ["length 16, 3 pairs", "length 40, 6 pairs"]
        for (pairs, length), positions in zip(((3, 16), (6, 40)), part.slices.values(), strict=True):
            assert abs(len(positions) - size / 2) <= 0.5
            checked(stream, part.subset(positions), pairs, length)
        assert torch.equal(torch.cat([*part.slices.values()]).sort().values, torch.arange(size))
    alone = first({"task": "parity", "train": [{"length": 8}, {"length": 4}, {"length": 8, "examples": 3}]})[1]
    assert list(alone.test.slices) == ["length 8", "length 4"]  # as trained
    assert first("mqar")[1].test.slices == {}


def test_tasks_of_one_stream_share_one_shape_and_vocabulary():
    tasks = ["mqar", {"task": "compositional", "pairs": 9, "length": 60}, {"task": "forgetting", "updates": 1},
             {"task": "cumulative_parity", "length": 5}, {"task": "mqar", "name": "mine", "pairs": 8}]  # fmt: skip
    stream = made(tasks, dev_examples=5000)
    assert (stream.spec.input_shape, stream.spec.asked, stream.spec.heads) == ((64 + 9,), 9, "identity")
    assert isinstance(stream.spec.objective, Tokens)
    assert stream.spec.objective.ignored == -1
    assert {task.num_outputs for task in stream.tasks} == {256}
    names = ["compositional of length 60, 9 pairs", "forgetting of 1 update", "cumulative_parity of length 5"]
    assert [task.name for task in stream.tasks] == ["mqar", *names, "mine"]
    checked(stream, stream.tasks[1].test, 9, 60, key=2)
    for tokens, found in questions(stream, stream.tasks[3].test, 5):
        assert found == expected("cumulative_parity", tokens)
    alone = first("mqar", dev_examples=5000)[1].splits["dev"]
    assert torch.equal(stream.tasks[0].splits["dev"].store[:, :64], alone.store[:, :64])  # padding alone differs


# YAML files


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_the_stream_that_it_says(name):
    path = CONFIGS / f"{name}.yaml"
    small = {f"data.{key}": 14 for key in SMALL}
    config = configure(data_config=str(path), set=small).config
    stream, written = build_stream(config.data, 0, torch.device("cpu")), yaml.safe_load(path.read_text())
    assert len(stream.tasks) == len(written["tasks"])
    vectors = name == "continuous_mqar"
    assert {task.num_outputs for task in stream.tasks} == {written["dimension" if vectors else "vocabulary"]}
    assert all(len(part.targets) == 14 for task in stream.tasks for part in task.splits.values())
    assert config.data.settings.fresh == (name != "mqar_mixed")


def test_the_published_mixture():
    config = configure(data_config=str(CONFIGS / "mqar_mixed.yaml"), set={
        "data.train_examples": 90, "data.test_examples": 14, "data.dev_examples": 14}).config  # fmt: skip
    stream = build_stream(config.data, 0, torch.device("cpu"))
    (task,) = stream.tasks
    assert (stream.spec.input_shape, stream.spec.asked, task.num_outputs) == ((1024 + 256,), 256, 8192)
    assert sizes(stream, task.train_eval) == {4: 50, 8: 10, 16: 10, 32: 10, 64: 10}
    assert sizes(stream, task.test) == dict.fromkeys((4, 8, 16, 32, 64, 128, 256), 2)


def test_a_sweep_changes_the_size():
    (task,) = made(["mqar"], length=128, pairs=8, vocabulary=512).tasks
    assert task.test.store.shape == (128, 136)
    assert task.num_outputs == 512


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"tasks": ["mqr"]}, "d.yaml: task 1: task: unknown task 'mqr'; did you mean 'mqar'?"),
        ({"tasks": []}, "d.yaml: tasks must be a list with at least one task"),
        ({"tasks": [{"task": "mqar", "size": 4}]}, "d.yaml: task 1: unknown key 'size'"),
        ({"tasks": ["mqar"], "lenght": 4}, "d.yaml: unknown key 'lenght'; did you mean 'length'?"),
        ({"tasks": ["mqar"], "length": 63}, "d.yaml: task 1: length is 63; it must be even"),
        ({"tasks": ["mqar"], "vocabulary": 64}, "d.yaml: task 1: vocabulary is 64; it must be above the length, 64"),
        ({"tasks": ["parity", {"task": "mqar", "pairs": 17}]},
         "d.yaml: task 2: pairs is 17; a length of 64 has room for 16"),
        ({"tasks": ["mqar"], "power": 0}, "d.yaml: power is 0; it must be a number above 0"),
        ({"tasks": ["compositional"], "pairs": 8}, "d.yaml: task 1: pairs is 8; it must be a square number, such as 4"),
        ({"tasks": ["compositional"], "pairs": 16}, "d.yaml: task 1: pairs is 16; a length of 64 has room for 10"),
        ({"tasks": ["compositional"], "vocabulary": 8}, "d.yaml: task 1: vocabulary is 8; too little for 4 pairs, 12"),
        ({"tasks": ["forgetting"], "updates": 5}, "d.yaml: task 1: updates is 5; there are only 4 pairs"),
        ({"tasks": ["forgetting"], "pairs": 14}, "length is 64; 14 pairs and 7 updates need 70"),
        ({"tasks": ["forgetting"], "vocabulary": 9}, "d.yaml: task 1: vocabulary is 9; 4 pairs need 10"),
        ({"tasks": ["continuous_mqar"], "vocabulary": 7}, "d.yaml: task 1: vocabulary is 7; 4 pairs need 8"),
        ({"tasks": ["parity"], "vocabulary": 2}, "d.yaml: task 1: vocabulary is 2; it must be at least 3"),
        ({"tasks": ["mqar", "continuous_mqar"]}, "d.yaml: tasks: continuous_mqar has vectors, the others tokens"),
        ({"tasks": [{"task": "parity", "pairs": 4}]}, "d.yaml: task 1: pairs means nothing to parity; leave it out"),
        ({"tasks": [{"task": "mqar", "test": [{"updates": 1}]}]}, "d.yaml: task 1: updates means nothing to mqar"),
        ({"tasks": [{"task": "mqar", "train": 4}]}, "d.yaml: task 1: train must be a list of segments, such as"),
        ({"tasks": [{"task": "mqar", "test": [{"pairs": 4, "examples": 1}]}]},
         "d.yaml: task 1: test: segment 1: unknown key 'examples'"),
        ({"tasks": [{"task": "mqar", "train": [{"pairs": 1}, {"length": 1}]}]},
         "d.yaml: task 1: train: segment 2: length is 1; it must be a whole number at least 2"),
        ({"tasks": [{"task": "mqar", "test": [{"pairs": 1}, {"pairs": 20}]}]},
         "d.yaml: task 1: test: segment 2: pairs is 20; a length of 64 has room for 16"),
        ({"tasks": [{"task": "mqar", "test": [{"pairs": 4}, {"length": 64}]}]},
         "d.yaml: task 1: test has two segments of one difficulty"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").write_text(yaml.safe_dump({"dataset": "sequences", **SMALL, **content}))
    with pytest.raises(UserError) as told:
        build_stream(configure(data_config="d.yaml").config.data, 0, torch.device("cpu"))
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_forgotten_task_leaves_the_others_as_they_are():
    small = {f"data.{key}": 8 for key in SMALL}
    data = configure(data_config=str(CONFIGS / "recall_ladder.yaml"), set=small).config.data
    whole, less = (build_stream(one, 0, torch.device("cpu")) for one in (data, replace(data, forgotten=(4,))))
    assert [task.name for task in whole.tasks] == [f"mqar of {pairs} pairs" for pairs in (4, 8, 16, 32)]
    assert [task.id for task in less.tasks] == [1, 2, 3]
    assert less.spec.input_shape == whole.spec.input_shape
    assert less.fingerprints() == {number: whole.fingerprints()[number] for number in (1, 2, 3)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["mqar", "vocabulary_majority", "continuous_mqar"])
def test_a_gpu_draws_by_the_same_rule_and_has_the_same_frozen_examples(name):
    config = configure(data_config=str(CONFIGS / f"{name}.yaml"), set={f"data.{key}": 500 for key in SMALL}).config
    stream, on_cpu = (build_stream(config.data, 0, torch.device(kind)) for kind in ("cuda", "cpu"))
    (task,), (twin,) = stream.tasks, on_cpu.tasks
    assert stream.fingerprints() == on_cpu.fingerprints()
    drawn = task.train.epoch(generator(0, "gpu"))
    assert drawn.store.is_cuda
    assert drawn.targets.is_cuda
    assert torch.equal(drawn.store, task.train.epoch(generator(0, "gpu")).store)
    if name == "mqar":
        checked(stream, drawn, 4, 64)
    assert drawn.store.shape == twin.train_eval.store.shape


@pytest.mark.parametrize("kind", ["mqar", "compositional", "forgetting"])
def test_a_guessed_value_of_the_context_is_right_as_often_as_is_said(kind):
    """One of the values that are shown, drawn evenly, for each question."""
    _, task = first({"task": kind, "pairs": 4, "length": 48, "test": [{"length": 48}]}, test_examples=3000)
    path = str(CONFIGS / "mqar.yaml")
    changes = {"data.tasks": [{"task": kind, "pairs": 4, "length": 48}], "data.vocabulary": 256}
    (said,) = configure(data_config=path, set=changes).config.data.baselines(0).values()
    shown, width = (6, 2) if kind == "forgetting" else (4, 3 if kind == "compositional" else 2)
    values = task.test.store[:, [place * width + width - 1 for place in range(shown)]]
    rng = generator(0, "guess")
    asked = task.test.targets >= 0
    guess = values.gather(1, torch.randint(shown, task.test.targets.shape, generator=rng))
    right = (guess == task.test.targets)[asked].double()
    assert right.mean() == pytest.approx(said, abs=5 * 0.5 / math.sqrt(len(right)))
    assert said == pytest.approx(1 / shown)


def test_a_mixture_of_difficulties_has_no_single_guess():
    changes = {"data.tasks": [{"task": "mqar", "test": [{"pairs": 2}, {"pairs": 4}]}]}
    assert configure(data_config=str(CONFIGS / "mqar.yaml"), set=changes).config.data.baselines(0) == {}
