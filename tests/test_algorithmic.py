"""Algorithmic tasks: answers against sorting by hand and all maps, chance levels, what depends on the seed."""

import itertools
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import forget
import modelzoo
from datasets import build_stream
from datasets.objectives import CrossEntropy, RealNumbers
from datasets.synthetic.algorithms import ALGORITHMS
from datasets.task import Generator, Table
from records import Run
from records.invocation import configure
from utils.errors import UserError
from utils.seeding import generator

CONFIGS = Path(__file__).parent.parent / "config" / "dataset"
SHIPPED = [path.stem for path in sorted(CONFIGS.glob("*.yaml")) if "dataset: algorithmic" in path.read_text()]
SMALL = {"train_examples": 64, "dev_examples": 96, "test_examples": 128, "epoch_examples": 256}
# Of all n^n maps, how many have a longest cycle of length 1, 2, ...: counted independently in the suite's description.
COUNTS = {3: [16, 9, 2], 4: [125, 93, 32, 6], 5: [1296, 1155, 500, 150, 24], 6: [16807, 17025, 8600, 3240, 864, 120]}
numbers = st.integers(2, 6).flatmap(lambda n: st.lists(st.integers(-2, 2), min_size=n, max_size=n))


def answered(name, rows):
    kind = torch.int64 if name == "longest_cycle" else torch.float32
    return ALGORITHMS[name].answer(torch.tensor(rows, dtype=kind)).tolist()


def made(tasks, seed=0, **data):
    """The stream of some algorithms on the CPU."""
    changes = {f"data.{key}": value for key, value in {**SMALL, **data}.items()}
    path = str(CONFIGS / "alg_stream.yaml")
    config = configure(data_config=path, seed=seed, set={"data.tasks": tasks, **changes}).config
    return build_stream(config.data, config.seed, torch.device("cpu"))


def inputs_of(examples):
    return examples.store[examples.rows]


# Answers


def by_hand(values):
    """Every answer by sorting places in Python: first by value, larger ones first, then by place."""
    n = len(values)
    falling = sorted(range(n), key=lambda place: (-values[place], place))
    rising = sorted(values)
    mean = Fraction(sum(values), n)
    distances = [abs(value - mean) for value in values]
    return {
        "argmax": falling[0],
        "2nd_argmax": falling[1],
        "argmedian": falling[n - 1 - n // 2],  # place n // 2 counted from the smallest
        "median": [rising[n // 2] if n % 2 else (rising[n // 2 - 1] + rising[n // 2]) / 2],
        "argoutlier": distances.index(max(distances)),
    }


@given(numbers)
def test_answers_are_those_of_sorting_by_hand_also_where_entries_are_equal(values):
    assert {name: answered(name, [values])[0] for name in ALGORITHMS if name != "longest_cycle"} == by_hand(values)


@pytest.mark.parametrize("n", range(2, 7))
def test_answers_to_normal_numbers_are_those_of_sorting_by_hand(n):
    rows = torch.randn(300, n, generator=generator(0, "by hand", n)).tolist()
    expected = [by_hand([Fraction(value) for value in row]) for row in rows]
    for name in set(ALGORITHMS) - {"longest_cycle"}:
        tolerance = 1e-6 if name == "median" else 0
        found, right = (torch.tensor(part, dtype=torch.float64) for part in (
            answered(name, rows), [[float(x) for x in e[name]] if name == "median" else e[name] for e in expected]
        ))  # fmt: skip
        torch.testing.assert_close(found, right, rtol=0, atol=tolerance)


def test_no_rounding_of_the_mean_decides_which_entry_is_an_outlier():
    """The first two are equally far from the mean; in float32 their sum, 3 + 3 * 2^-23, is rounded."""
    low, middle, high = 1.0, 1.0 + 2**-23, 1.0 + 2**-22
    assert answered("argoutlier", [[low, high, middle], [high, low, middle]]) == [0, 0]


def cycle_by_walking(images):
    """Length of the longest cycle: walk from every start until a place repeats."""
    found = []
    for start in range(len(images)):
        walked = []
        while start not in walked:
            walked.append(start)
            start = images[start]
        found.append(len(walked) - walked.index(start))
    return max(found)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_longest_cycles_of_all_maps(n):
    maps = list(itertools.product(range(n), repeat=n))
    found = answered("longest_cycle", maps)
    assert found == [cycle_by_walking(images) - 1 for images in maps]
    if n in COUNTS:
        assert [Counter(found)[length] for length in range(n)] == COUNTS[n]


# Inputs


def test_inputs_are_standard_normal_and_maps_uniform():
    task = made(["argmax"], length=3, test_examples=30_000).tasks[0]
    values = inputs_of(task.test)
    assert values.dtype == torch.float32
    assert abs(values.mean()) < 5 / math.sqrt(90_000)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / 90_000)
    task = made(["longest_cycle"], length=3, test_examples=27_000).tasks[0]
    maps = inputs_of(task.test)
    assert maps.dtype == torch.int64
    seen = Counter(map(tuple, maps.tolist()))
    statistic = sum((count - 1000) ** 2 / 1000 for count in seen.values())
    assert len(seen) == 27
    assert statistic < 26 + 5 * math.sqrt(2 * 26)  # chi-square with 26 degrees of freedom


def test_a_read_out_token_is_appended_and_changes_no_answer():
    task = made(["longest_cycle"], length=4, readout=True, test_examples=2000).tasks[0]
    maps = inputs_of(task.test)
    assert (maps[:, -1] == 3).all()
    assert set(maps[:, :-1].flatten().tolist()) == {0, 1, 2}
    assert task.num_outputs == 4
    assert task.test.targets.tolist() == [cycle_by_walking(images[:-1]) - 1 for images in maps.tolist()]


# Trivial answers


@pytest.mark.parametrize("n", COUNTS)
def test_chance_of_the_longest_cycle_is_the_share_of_the_most_frequent_length(n):
    chance = ALGORITHMS["longest_cycle"].baselines
    assert chance(n) == {"chance": max(COUNTS[n]) / n**n}
    assert chance(n + 1, readout=True) == chance(n)


@pytest.mark.parametrize("name", ["argmax", "2nd_argmax", "argmedian", "argoutlier"])
def test_every_position_is_the_answer_equally_often(name):
    task = made([name], length=5, test_examples=50_000).tasks[0]
    assert ALGORITHMS[name].baselines(5) == {"chance": 0.2}
    share = task.test.targets.bincount(minlength=5) / 50_000
    assert (share - 0.2).abs().max() < 5 * math.sqrt(0.2 * 0.8 / 50_000)


@pytest.mark.parametrize(("n", "zero", "mean"), [(3, 0.670, 0.340), (5, 0.536, 0.295), (10, 0.372, 0.196)])
def test_errors_of_trivial_answers_for_the_median(n, zero, mean):
    """Against the values known, and what these answers score on the test examples, within five standard errors."""
    found = ALGORITHMS["median"].baselines(n)
    assert found == {"zero": pytest.approx(zero, abs=6e-4), "sample mean": pytest.approx(mean, abs=6e-4)}
    test = made(["median"], length=n, test_examples=50_000).tasks[0].test
    answers = {"zero": torch.zeros_like(test.targets), "sample mean": inputs_of(test).mean(1, keepdim=True)}
    for name, given_answers in answers.items():
        score = RealNumbers().evaluate(given_answers, test.targets)["rmse"]
        assert found[name] == pytest.approx(score.value, abs=5 * score.stderr)


def test_the_median_of_two_is_their_mean():
    assert ALGORITHMS["median"].baselines(2) == {"zero": pytest.approx(math.sqrt(0.5)), "sample mean": 0}


# Streams


def test_what_the_seed_draws_and_what_is_the_same_in_every_run():
    def drawn(seed=0, **data):
        return {name: inputs_of(part) for name, part in made(["argmax"], seed, **data).tasks[0].splits.items()}

    first, again, other, more = drawn(), drawn(), drawn(seed=1), drawn(train_examples=200)
    for split in ("train", "dev", "test"):
        assert torch.equal(first[split], again[split])
        assert len(first[split]) == SMALL[f"{split}_examples"]
    for split in ("dev", "test"):
        assert torch.equal(first[split], other[split])
        assert torch.equal(first[split], more[split])
    assert not torch.equal(first["train"], other["train"])
    assert len(more["train"]) == 200
    everything = torch.cat([*first.values(), other["train"]])
    assert len(everything.unique(dim=0)) == len(everything)  # splits have no example in common


def test_training_examples_are_fresh_in_every_epoch_or_frozen():
    task = made(["2nd_argmax"]).tasks[0]
    assert isinstance(task.train, Generator)
    rng = generator(0, "epochs")
    first, second = task.train.epoch(rng), task.train.epoch(rng)
    assert len(first) == len(second) == 256
    assert not torch.equal(inputs_of(first), inputs_of(second))
    again = task.train.epoch(generator(0, "epochs"))
    assert torch.equal(inputs_of(first), inputs_of(again))
    assert first.targets.tolist() == answered("2nd_argmax", inputs_of(first).tolist())
    frozen = made(["2nd_argmax"], fresh=False).tasks[0]
    assert isinstance(frozen.train, Table)
    assert frozen.train.examples is frozen.train_eval
    assert torch.equal(inputs_of(frozen.train_eval), inputs_of(task.train_eval))


def test_tasks_of_one_length_share_their_inputs():
    stream = made(["argmax", "2nd_argmax", "argmedian", "argoutlier"])
    for split in ("train", "dev", "test"):
        parts = [task.splits[split] for task in stream.tasks]
        assert len({part.store.data_ptr() for part in parts}) == 1
        assert len({tuple(part.targets.tolist()) for part in parts}) == 4
        for task, part in zip(stream.tasks, parts, strict=True):
            assert part.targets.tolist() == answered(task.name, inputs_of(part).tolist())


@pytest.mark.parametrize("fresh", [True, False])
def test_shorter_inputs_have_zeros_in_front(fresh):
    stream = made([{"task": "2nd_argmax", "length": n} for n in (3, 5)], fresh=fresh)
    assert stream.spec.input_shape == (5,)
    assert [(task.name, task.num_outputs) for task in stream.tasks] == [
        ("2nd_argmax of length 3", 3), ("2nd_argmax of length 5", 5)
    ]  # fmt: skip
    short = stream.tasks[0]
    for examples in (*short.splits.values(), short.train.epoch(generator(0, "x"))):
        inputs = inputs_of(examples)
        assert (inputs[:, :2] == 0).all()
        assert examples.targets.tolist() == answered("2nd_argmax", inputs[:, 2:].tolist())
    alone = made([{"task": "2nd_argmax", "length": 3}]).tasks[0]
    assert torch.equal(inputs_of(alone.test), inputs_of(short.test)[:, 2:])


def test_slices_are_answers_and_quarters_by_gap():
    task = made(["2nd_argmax"], length=3, test_examples=1000).tasks[0]
    for split in ("dev", "test"):
        part = task.splits[split]
        gaps = torch.tensor([a - b for a, b, _ in (sorted(row, reverse=True) for row in inputs_of(part).tolist())])
        for answer in range(3):
            positions = part.slices[f"answer {answer}"]
            assert sorted(positions.tolist()) == [i for i, x in enumerate(part.targets.tolist()) if x == answer]
        quarters = [gaps[part.slices[f"gap {number} of 4"]] for number in (1, 2, 3, 4)]
        assert [len(quarter) for quarter in quarters] == [len(part) / 4] * 4
        assert torch.equal(torch.cat([quarter.sort().values for quarter in quarters]), gaps.sort().values)
    assert task.train_eval.slices == {}
    others = made(["argmax", "argmedian"], length=3).tasks
    assert all(list(task.test.slices) == ["answer 0", "answer 1", "answer 2"] for task in others)
    assert made(["median"]).tasks[0].test.slices == {}
    cycles = made(["longest_cycle"], length=4, readout=True, test_examples=2000).tasks[0].test
    assert {name: len(part) for name, part in cycles.slices.items()} == {
        f"answer {answer}": count for answer, count in sorted(Counter(cycles.targets.tolist()).items())
    }  # none of the answer that never occurs


# YAML files and runs


def test_there_is_a_file_for_every_algorithm_and_two_streams():
    assert set(SHIPPED) == {*ALGORITHMS, "alg_stream", "alg_lengths"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_the_stream_that_it_says(name):
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    small = {f"data.{key}": value for key, value in SMALL.items()}
    config = configure(data_config=str(CONFIGS / f"{name}.yaml"), set=small).config
    stream = build_stream(config.data, 0, torch.device("cpu"))
    assert isinstance(stream.spec.objective, RealNumbers if name == "median" else CrossEntropy)
    lengths = [task["length"] if isinstance(task, dict) else written["length"] for task in written["tasks"]]
    assert stream.spec.input_shape == (max(lengths),)
    assert [task.num_outputs for task in stream.tasks] == ([1] if name == "median" else lengths)
    changed = configure(data_config=str(CONFIGS / f"{name}.yaml"), set={**small, "data.length": 4}).config
    assert build_stream(changed.data, 0, torch.device("cpu")).spec.input_shape == (8 if name == "alg_lengths" else 4,)


def test_counts_may_be_powers():
    assert len(made(["argmax"], test_examples="2^7").tasks[0].test) == 128


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small network, and the options of a small run."""
    monkeypatch.chdir(tmp_path)
    Path("hp.yaml").write_text("{model: mlp, widths: [32], batch: 32, lr: 0.05, epochs: 12}")
    return ["--hp_config", "hp.yaml", "--quiet"]


def stream_file(**content):
    Path("d.yaml").write_text(yaml.safe_dump({"dataset": "algorithmic", **SMALL, "length": 4, **content}))
    return ["--data_config", "d.yaml"]


@pytest.mark.parametrize("method", ["zoo", "finetune"])
def test_a_stream_is_learned_better_than_by_chance(here, method):
    tasks = stream_file(tasks=["argmax", {"task": "argmax", "length": 3, "name": "short"}], epoch_examples=1024)
    assert modelzoo.main([*tasks, *here, "--continual", "--method", method, "--run_dir", "run"]) == 0
    run = Run.load("run")
    assert run.task_names == ["argmax", "short"]
    assert run.accuracy_matrix[0, 0] > 0.6  # chance: 0.25
    assert run.accuracy_matrix[1, 1] > 0.7  # chance: 0.33
    assert {"dev", "test"} <= set(run.metrics.split)
    assert {"", "answer 0", "answer 3"} <= set(run.metrics.slice)
    assert modelzoo.main(["--verify", "run"]) == 0


@pytest.mark.parametrize(("fresh", "scenario"), [(True, "domain"), (False, "domain"), (False, "class")])
def test_tasks_that_are_not_told(here, fresh, scenario):
    tasks = stream_file(tasks=["argmax", "argoutlier"], fresh=fresh)
    more = ["--continual", "--method", "finetune", "--scenario", scenario, "--run_dir", "run"]
    assert modelzoo.main([*tasks, *here, *more]) == 0
    assert Run.load("run").finished


def test_a_task_can_be_forgotten_and_another_join(here):
    tasks = stream_file(tasks=["argmax", "2nd_argmax"])
    assert modelzoo.main([*tasks, *here, "--continual", "--epochs", "1", "--run_dir", "run"]) == 0
    assert forget.main(["run", "--task", "1", "--retrain", "--quiet", "--run_dir", "less"]) == 0
    more = stream_file(tasks=[{"task": "argmedian", "length": 3}])
    assert modelzoo.main([*more, "--extend", "run", "--quiet"]) == 0
    assert Run.load("run-extended").task_names == ["argmax", "2nd_argmax", "argmedian of length 3"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"tasks": ["argmax", "argmx"]}, "d.yaml: task 2: task: unknown task 'argmx'; did you mean 'argmax'?"),
        ({"tasks": [[0, 1]]}, "d.yaml: task 1: task: unknown task '[0, 1]'"),
        ({"tasks": 3}, "d.yaml: tasks must be a list with at least one algorithm"),
        ({"tasks": []}, "d.yaml: tasks must be a list with at least one algorithm"),
        ({"tasks": [{"task": "argmax", "label_noise": 0.1}]}, "d.yaml: task 1: unknown key 'label_noise'"),
        ({"tasks": [{"task": "argmax", "length": 1}]}, "d.yaml: task 1: length is 1; it must be a whole number"),
        ({"tasks": ["argmax"], "length": 1}, "d.yaml: length is 1; it must be a whole number at least 2"),
        ({"tasks": ["argmax"], "test_examples": "2^"}, "d.yaml: test_examples is '2^'; it must be a whole number"),
        ({"tasks": ["argmax"], "lenght": 3}, "d.yaml: unknown key 'lenght'; did you mean 'length'?"),
        ({"tasks": ["argmax", "median"]}, "d.yaml: tasks: argmax is numbers -> a class, median numbers -> a number"),
        ({"tasks": ["longest_cycle", "argmax"]}, "d.yaml: tasks: longest_cycle is tokens -> a class, argmax numbers"),
        ({"tasks": ["longest_cycle", {"task": "longest_cycle", "length": 3}]}, "longest_cycle has the lengths [3, 4]"),
        ({"tasks": ["argmax"], "readout": True}, "d.yaml: readout is for tokens, which argmax has not"),
        ({"tasks": ["longest_cycle"], "readout": True, "length": 2}, "d.yaml: readout leaves one token of length 2"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(here, content, words, capsys):
    assert modelzoo.main([*stream_file(**content), *here, "--continual", "--run_dir", "run"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert words in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--samples", "5"], "--samples 5: algorithmic does not limit its examples"),
        (["--hold_out", "0.2"], "--hold_out 0.2: algorithmic holds nothing out"),
        (["--scenario", "class", "--method", "finetune"], "--scenario class needs tables of examples"),
        (["--set", "data.length=1"], "--set data.length is 1"),
    ],
)
def test_options_that_mean_nothing_here_are_one_line(here, options, words, capsys):
    assert modelzoo.main([*stream_file(tasks=["argmax"]), *here, "--continual", *options, "--run_dir", "run"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert words in told


def test_the_configuration_of_a_run_is_read_back(here):
    tasks = stream_file(tasks=["argmax", {"task": "argmax", "length": 3}])
    assert modelzoo.main([*tasks, *here, "--continual", "--epochs", "1", "--run_dir", "run"]) == 0
    saved = Run.load("run").config["data"]
    assert saved["tasks"] == [{"task": "argmax", "length": n, "name": None} for n in (None, 3)]
    assert modelzoo.main(["--resume", *tasks, *here, "--continual", "--epochs", "1", "--run_dir", "run"]) == 0


def test_readers_of_images_do_not_take_algorithms(here):
    Path("d.yaml").write_text("{dataset: digits, tasks: [argmax]}")
    with pytest.raises(UserError, match="task 1 must be a list of classes"):
        configure(data_config="d.yaml")
