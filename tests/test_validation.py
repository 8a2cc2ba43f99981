"""With data.validation training examples take the place of the test examples, which nothing can read."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import modelzoo
import train_task
from datasets import STREAMS, build_stream
from datasets.images.mnist import split_mnist
from datasets.validation import NOTICE, TestExamplesError, real_test
from records.configuration import comparable
from records.directory import read_config
from records.invocation import parse
from records.run import Run
from reporting.layout import validated
from tests.standins import stream, write_cifar10, write_image_folder, write_mnist
from tests.toys import toy_stream
from utils.errors import UserError

PROJECT = Path(__file__).parent.parent
CPU = torch.device("cpu")
PAIRS = ([0, 1], [1, 2])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def values(examples):
    """The inputs of examples, each as bytes."""
    return {row.numpy().tobytes() for row in examples.store[examples.rows]}


def configured(yaml_text, *options, seed=0):
    """The stream of a dataset YAML."""
    Path("d.yaml").write_text(yaml_text)
    config = parse(["--data_config", "d.yaml", "--data_dir", ".", *options]).config
    return build_stream(config.data, seed, CPU)


@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.2, 0.5]), st.sampled_from([0, 0.25]))
@settings(max_examples=4, deadline=None)
def test_validation_images_are_training_images_that_no_task_is_trained_on(seed, share, hold_out):
    """Of each class its share; a class of several tasks is divided in one way."""
    plain = stream("digits", PAIRS, seed=seed).tasks
    tasks = stream("digits", PAIRS, seed=seed, validation=share, hold_out=hold_out).tasks
    asked = {row for task in tasks for row in task.test.rows.tolist()}
    used = {row for task in tasks for name in task.splits if name != "test" for row in task.splits[name].rows.tolist()}
    assert not asked & used
    for task, before in zip(tasks, plain, strict=True):
        rows = [task.splits[name].rows for name in task.splits]
        assert torch.cat(rows).sort().values.equal(before.train_eval.rows.sort().values)
        assert values(task.test) <= values(before.train_eval)
        wanted = [round(share * count) for count in before.train_eval.targets.bincount().tolist()]
        assert task.test.targets.bincount().tolist() == wanted
        truth = dict(zip(before.train_eval.rows.tolist(), before.train_eval.targets.tolist(), strict=True))
        assert [truth[row] for row in task.test.rows.tolist()] == task.test.targets.tolist()


def test_the_seed_decides_which():
    first, again, other = (stream("digits", PAIRS, seed=seed, validation=0.2).tasks[0].test for seed in (1, 1, 2))
    assert first.rows.equal(again.rows)
    assert not first.rows.equal(other.rows)


def test_views_of_an_image_are_on_one_side():
    tasks = stream("rotated_digits", [range(10), range(10, 20)], validation=0.2).tasks
    assert tasks[0].test.rows.equal(tasks[1].test.rows)
    assert not {*tasks[0].test.rows.tolist()} & {*tasks[1].train_eval.rows.tolist()}


def mnist():
    source = write_mnist(Path())
    for path in Path("MNIST/raw").glob("t10k*"):
        path.write_bytes(b"whoever reads this fails")
    return "{dataset: mnist, tasks: [[0, 1], [2, 3]]}", source.train.pixels


def cifar10():
    source = write_cifar10(Path())
    Path("cifar-10-batches-py/test_batch").write_bytes(b"whoever reads this fails")
    return "{dataset: cifar10, tasks: [[0, 1], [2, 3]]}", source.train.pixels


def folder():
    source = write_image_folder(Path("mine"), ["a", "b", "c"], side=8)
    shutil.rmtree("mine/test")
    return "{dataset: image_folder, root: mine, image_size: 8, tasks: [[a, b], [b, c]]}", source.train.pixels


def arrays(split=True):
    """Test rows, where the file tells them, have missing values, which are refused where they are read."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    test = np.arange(60) >= 45
    more = {"split": np.where(test, "test", "train")} if split else {}
    if split:
        X[test] = np.nan
    np.savez("a.npz", X=X, y=y, **more)
    return "{dataset: arrays, file: a.npz, scale: false, tasks: [[0, 1], [1, 2]]}", X[~test] if split else X


@pytest.mark.parametrize("make", [mnist, cifar10, folder, arrays])
def test_the_files_of_test_examples_are_not_read(make):
    text, training = make()
    known = {row.tobytes() for row in training}
    with pytest.raises(UserError):  # without validation they are
        configured(text)
    for task in configured(text, "--validation", "0.3").tasks:
        assert values(task.train_eval) | values(task.test) <= known
        assert not values(task.train_eval) & values(task.test)
        assert len(task.test.targets.unique()) == task.num_outputs


def test_test_rows_of_a_file_without_a_split_stay_unused():
    text, _ = arrays(split=False)
    plain, tasks = configured(text).tasks, configured(text, "--validation=0.2", "--hold_out=0.2").tasks
    test = set[bytes]().union(*(values(task.test) for task in plain))
    for task, before in zip(tasks, plain, strict=True):
        parts = [values(task.splits[name]) for name in ("train", "test", "held_out")]
        assert set().union(*parts) == values(before.train_eval)
        assert sum(map(len, parts)) == len(before.train_eval)
        assert not set().union(*(values_in_store(task),)) & test


def values_in_store(task):
    """All inputs of the store of a task, used or not."""
    return {row.numpy().tobytes() for row in task.test.store}


GENERATED = {
    "algorithmic": "{dataset: algorithmic, tasks: [2nd_argmax], length: 4, dev_examples: 64, test_examples: 64, "
                   "train_examples: 64}",
    "sequences": "{dataset: sequences, tasks: [mqar], length: 16, vocabulary: 32, pairs: 2, dev_examples: 64, "
                 "test_examples: 64, train_examples: 64}",
    "languages": "{dataset: languages, tasks: [recall], dev_examples: 64, test_examples: 64, "
                 "train_examples: 64}",
    "superposition": "{dataset: superposition, tasks: [sparse], features: 8, dev_examples: 64, test_examples: 64, "
                     "train_examples: 64}",
}  # fmt: skip


@pytest.mark.parametrize("text", GENERATED.values(), ids=GENERATED)
def test_generated_tasks_draw_validation_examples_of_their_own(text):
    """Not the test examples, which are the same in all runs; all else is as before."""
    plain = [configured(text, seed=seed).tasks[0] for seed in (1, 2)]
    tasks = [configured(text, "--validation", "0.2", seed=seed).tasks[0] for seed in (1, 2, 1)]
    assert values(plain[0].test) == values(plain[1].test)
    found = [values(task.test) for task in (*tasks, plain[0])]
    assert found[0] == found[2] != found[1]
    assert found[3] not in found[:3]
    for task, before in zip(tasks, plain, strict=False):
        for split in ("train", "dev"):
            assert values(task.splits[split]) == values(before.splits[split])
            assert values(task.splits[split]) != values(task.test)


def test_of_modular_arithmetic_pairs_that_are_trained_on_are_taken():
    text = "{dataset: modular, tasks: [addition], modulus: 11, train_share: 0.5}"
    (plain,), (task,) = configured(text).tasks, configured(text, "--validation", "0.25").tasks
    assert values(task.train_eval) | values(task.test) == values(plain.train_eval)
    assert not values(task.train_eval) & values(task.test)
    assert len(task.test) == round(0.25 * len(plain.train_eval))
    assert values(task.splits["dev"]) == values(plain.splits["dev"])


def test_whoever_asks_for_test_examples_fails(monkeypatch):
    """A reader of data that would take them anyway, and one that knows nothing of validation."""
    write_mnist(Path())

    def leaking(config, seed, device):
        real_test(config, lambda: "test images")
        return split_mnist(config, seed, device)

    text = "{dataset: leaking, tasks: [[0, 1]]}"
    monkeypatch.setitem(STREAMS, "leaking", leaking)
    assert len(configured(text).tasks) == 1
    with pytest.raises(TestExamplesError, match=r"d\.yaml: the test examples of leaking .* must not be read"):
        configured(text, "--validation", "0.2")
    monkeypatch.setitem(STREAMS, "leaking", lambda config, seed, device: toy_stream(1))
    assert len(configured(text).tasks) == 1
    with pytest.raises(UserError, match=r"--validation 0\.2: leaking has no such examples"):
        configured(text, "--validation", "0.2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{dataset: superposition, tasks: [table], features: 4}", "task 1 is a table without other examples"),
        ("{dataset: modular, tasks: [addition], modulus: 3, train_share: 0.1}", "leaves no pair to train on"),
    ],
)
def test_what_has_no_validation_examples_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        configured(text, "--validation", "0.2")


def test_the_first_tasks_are_those_that_arrive_first():
    three = ([0, 1], [2, 3], [4, 5])
    for own in ({}, {"task_order": "seed"}):
        every, first = (
            stream("digits", three, seed=3, first_tasks=limit, **own).tasks for limit in (None, 2)
        )  # fmt: skip
        assert [task.classes for task in first] == [task.classes for task in every[:2]]
        for task, before in zip(first, every, strict=False):
            assert task.train_eval.rows.equal(before.train_eval.rows)
    assert len(configured(GENERATED["sequences"].replace("[mqar]", "[mqar, forgetting]"), "--first_tasks=1").tasks) == 1


def test_a_run_says_that_it_read_no_test_examples(capsys):
    text, _ = mnist()
    Path("d.yaml").write_text(text)
    given = ["--data_config", "d.yaml", "--hp_config", str(PROJECT / "config/hyperparam/linear.yaml"), "--data_dir=."]
    given += ["--continual", "--method=finetune", "--epochs=1", "--threads=1", "--first_tasks=1"]
    assert modelzoo.main([*given, "--validation=0.2", "--run_dir=run"]) == 0
    assert NOTICE in capsys.readouterr().out
    run = Run.load(Path("run"))
    assert [NOTICE in line for line in validated([run])] == [True]
    config = read_config(Path("run"))
    assert (config["data"]["validation"], config["data"]["first_tasks"]) == (0.2, 1)
    assert {"data.validation", "data.first_tasks"} <= comparable(config).keys()
    assert modelzoo.main([*given, "--run_dir=other"]) == 2  # the test files are not what they should be


def test_a_generated_task_is_validated_by_train_task(capsys):
    text = "{dataset: modular, tasks: [addition], modulus: 5, train_share: 0.6}"
    Path("d.yaml").write_text(text)
    given = ["--data_config=d.yaml", f"--hp_config={PROJECT / 'config/hyperparam/modular_mlp.yaml'}", "--threads=1"]
    assert train_task.main([*given, "--set=hp.epochs=1", "--validation=0.2", "--run_dir=run"]) == 0
    assert NOTICE in capsys.readouterr().out
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"]["validation"] == 0.2
