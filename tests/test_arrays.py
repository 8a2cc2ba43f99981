"""Streams of arrays: tables, embeddings and time series from files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from datasets import build_stream
from datasets.arrays.scaling import ArrayPreprocess, ScaledNumbers, moments
from methods import METHODS
from records import configure
from records.invocation import with_settings
from tests.test_net import net_of
from tests.toys import run_toy
from utils.errors import UserError

PROJECT = Path(__file__).parent.parent
CPU = torch.device("cpu")
COUNT = 90
TASKS, LABELS = np.arange(COUNT) % 3, np.arange(COUNT) // 3 % 2


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def drawn(shape=(4,), seed=0):
    """Features whose first value, or first channel, tells the class."""
    X = np.random.default_rng(seed).normal(size=(COUNT, *shape)) * 10 + 100
    X[:, 0] += 60 * LABELS.reshape(-1, *(1,) * (len(shape) - 1))
    return X


def write(X=None, y=LABELS, task=TASKS, name="a.npz", yaml="", **more):
    """A file of arrays and d.yaml, which names it."""
    arrays = {"X": drawn() if X is None else X, "y": y, "task": task, **more}
    np.savez(name, **{key: value for key, value in arrays.items() if value is not None})
    Path("d.yaml").write_text(f"{{dataset: arrays, file: {name}, {yaml}}}")


def configured(model="mlp", **more):
    """The configuration of a run on d.yaml with a network of a few units."""
    units = {"net.widths": [8]} if model == "mlp" else {"net.width": 4}
    usual = {"data_config": "d.yaml", "hp_config": str(PROJECT / f"config/hyperparam/{model}.yaml"), "continual": True,
             "data_dir": ".", "threads": 1, "quiet": True, "epochs": 3}  # fmt: skip
    return configure(**{**usual, **more, "set": {**units, **more.get("set", {})}})


def stream(**more):
    invocation = configured(**more)
    return build_stream(invocation.config.data, invocation.config.seed, CPU)


def rows_of(task, split):
    return task.splits[split].rows.tolist()


# What the tasks are


@pytest.mark.parametrize("kind", ["npz", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_tasks(kind):
    X, y, task = drawn().astype(np.float32), np.array(["b", "a"])[LABELS], np.array(["z", "x", "y"])[TASKS]
    split = np.where(np.arange(COUNT) < 60, "train", "test")
    write(X, y, task, split=split)
    frame = pandas.DataFrame(X, columns=[f"f{i}" for i in range(4)])
    frame.insert(1, "y", y)
    frame["split"], frame["task"] = split, task
    frame.to_csv("a.csv", index=False)
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet("a.parquet")
    Path("d.yaml").write_text(f"dataset: arrays\nfile: a.{kind}\n")
    found = stream()
    assert [task.name for task in found.tasks] == ["z", "x", "y"]  # as they appear
    for number, one in enumerate(found.tasks):
        assert one.classes == ("a", "b")
        assert rows_of(one, "train") == [row for row in range(60) if TASKS[row] == number]
        assert rows_of(one, "test") == [row for row in range(60, COUNT) if TASKS[row] == number]
        for part in one.splits.values():
            np.testing.assert_allclose(part.store[part.rows], X[part.rows], rtol=1e-6)
            assert [one.classes[c] for c in part.targets] == y[part.rows].tolist()


def test_the_yaml_chooses_and_orders_tasks_and_classes():
    write(y=np.arange(COUNT) % 5, yaml="tasks: [2, {task: 0, classes: [4, 1], name: few}, [3, 0, 2]]")
    last, few, classes = stream().tasks
    assert (last.name, last.num_outputs, few.name, classes.name) == ("2", 5, "few", "3/0/2")
    assert few.classes == ("4", "1")
    for task in (last, few, classes):
        for part in task.splits.values():
            assert [int(task.classes[target]) for target in part.targets] == (part.rows % 5).tolist()
    assert {*(few.test.rows % 3).tolist()} == {0}
    together = sorted(rows_of(classes, "train") + rows_of(classes, "test"))
    assert together == [row for row in range(COUNT) if row % 5 in (0, 2, 3)]


@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.25, 0.5]))
@settings(max_examples=8, deadline=None)
def test_the_split_is_of_each_class_and_depends_on_the_examples_alone(seed, share):
    """Neither on the seed of the run nor on the order of the rows; equal examples stay together."""
    rng = np.random.default_rng(seed)
    X = drawn(seed=seed).astype(np.float32)
    X[12:18] = X[6:12]  # of the same tasks and classes
    order = rng.permutation(COUNT)
    tested = []
    for file, rows, run_seed in (("a.npz", np.arange(COUNT), 0), (f"{seed}.npz", order, 5)):
        write(X[rows], LABELS[rows], TASKS[rows], file, f"test_share: {share}")
        tasks = stream(seed=run_seed).tasks
        tested.append({row.tobytes() for task in tasks for row in task.test.store[task.test.rows].numpy()})
        for task in tasks:
            assert not {*rows_of(task, "train")} & {*rows_of(task, "test")}
            counts = task.test.targets.bincount(minlength=2)
            assert ((counts >= round(share * 15)) & (counts <= round(share * 15) + 1)).all()
            kept = {row.tobytes() for row in task.train_eval.store[task.train_eval.rows].numpy()}
            assert not kept & {row.tobytes() for row in task.test.store[task.test.rows].numpy()}
    assert tested[0] == tested[1]


def test_held_out_and_limited_examples():
    write(y=np.arange(COUNT) // 3 % 3, yaml="tasks: [[0, 1], [1, 2]]")
    tasks = stream(hold_out=0.25).tasks
    parts = [{*rows_of(task, split)} for task in tasks for split in ("train", "test", "held_out")]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[3] & parts[4] | parts[3] & parts[5]
    assert not parts[0] & parts[5] | parts[3] & parts[2]  # of the class that both have
    assert not parts[1] & parts[2] | parts[4] & parts[5]
    other = stream(hold_out=0.25, seed=1).tasks[0]  # the seed chooses what is held out, not what is for testing
    assert {*rows_of(other, "test")} == parts[1]
    assert {*rows_of(other, "held_out")} != parts[2]
    few = stream(hold_out=0.25, samples=4).tasks[0]
    assert few.train_eval.targets.bincount().tolist() == [3, 3]
    assert few.held_out.targets.bincount().tolist() == [1, 1]
    assert {*rows_of(few, "train")} <= parts[0]


def test_classes_are_sorted_by_value():
    write(y=np.arange(COUNT) // 3 % 3 + 9, task=None)
    (task,) = stream().tasks
    assert (task.name, task.classes) == ("9/10/11", ("9", "10", "11"))
    assert (task.test.targets + 9).tolist() == (task.test.rows // 3 % 3 + 9).tolist()


# Scales


@given(st.integers(0, 2**32))
@settings(max_examples=6, deadline=None)
def test_features_have_the_scale_of_the_first_task_whatever_comes_later(seed):
    X = drawn(seed=seed).astype(np.float32)
    X[:, 3] = 7  # constant
    write(X)
    before = stream()
    X[TASKS > 0] *= 50
    write(X, name=f"{seed}.npz")
    found = stream()
    assert torch.equal(before.spec.preprocess.mean, found.spec.preprocess.mean)
    assert torch.equal(before.spec.preprocess.sd, found.spec.preprocess.sd)
    training, later = found.tasks[0].train_eval, found.tasks[1].test
    twin = StandardScaler().fit(X[training.rows].astype(np.float64))
    for part in (training, later):
        ours = found.spec.preprocess(part.store[part.rows])
        np.testing.assert_allclose(ours, twin.transform(X[part.rows].astype(np.float64)), rtol=1e-4, atol=1e-4)


def test_series_are_scaled_by_channel_and_scales_are_saved():
    X = np.random.default_rng(0).normal(size=(20, 3, 7)) * [[1], [5], [9]] + [[0], [100], [-3]]
    mean, sd = moments(X)
    ours = ArrayPreprocess(torch.tensor(mean), torch.tensor(sd))
    scaled = ours(torch.tensor(X, dtype=torch.float32))
    for channel in range(3):
        twin = StandardScaler().fit_transform(X[:, channel].reshape(-1, 1)).reshape(20, 7)
        np.testing.assert_allclose(scaled[:, channel], twin, atol=1e-4)
    assert torch.equal(ArrayPreprocess.saved("c", ours.facts)(torch.tensor(X).float()), scaled)
    with pytest.raises(UserError, match="c must have the lists of numbers mean and sd"):
        ArrayPreprocess.saved("c", {"mean": [1.0]})


def test_real_numbers_are_learned_on_a_common_scale_and_scored_in_their_unit():
    rng = np.random.default_rng(0)
    targets, outputs = rng.normal(size=(50, 2)) * [3, 100] + [5, -1000], torch.randn(50, 2)
    scaler = StandardScaler().fit(targets)
    ours, y = (
        ScaledNumbers(torch.tensor(scaler.mean_).float(), torch.tensor(scaler.scale_).float()),
        torch.tensor(targets),
    )
    scaled = torch.tensor(scaler.transform(targets), dtype=torch.float32)
    torch.testing.assert_close(ours.loss(outputs, y), F.mse_loss(outputs, scaled), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.losses(outputs.T[None], y[None])[0], F.mse_loss(outputs, scaled), rtol=1e-4, atol=0)
    predicted = ours.predict(outputs)
    np.testing.assert_allclose(predicted, scaler.inverse_transform(outputs.numpy()), rtol=1e-4)
    rmse = np.sqrt(np.mean((predicted.double().numpy() - targets) ** 2))
    assert ours.evaluate(predicted, y)["rmse"].value == pytest.approx(rmse, rel=1e-4)
    torch.testing.assert_close(ours.uninformed((3, 2), 2), torch.tensor(scaler.mean_).float().expand(3, -1))


# What does not fit


@pytest.mark.parametrize(
    ("arrays", "yaml", "line"),
    [
        ({"X": np.full((COUNT, 2), np.nan)}, "", "X has missing or infinite values in row 0, from 0, and 89 more"),
        ({"X": np.full((COUNT, 2), 1e300)}, "", "X has missing or infinite values"),
        ({"X": np.zeros(COUNT)}, "", r"X has the shape \[90\]; features must be \[N, D\]"),
        ({"X": np.full((COUNT, 2), "a")}, "", "X has values of <U1; features must be numbers"),
        ({"X": np.full((COUNT, 2), None)}, "", "a.npz cannot be read: Object arrays cannot be loaded"),
        ({"y": LABELS[:-1]}, "", "y has 89 values, but there are 90 examples"),
        ({"y": None}, "", "unknown array 'y'"),
        ({"y": np.where(LABELS, np.inf, 0.5)}, "", "y has missing or infinite values in row 3"),
        ({"y": np.zeros(COUNT, int)}, "", "task 1 has the single class '0'; a task needs at least two classes"),
        ({"y": np.stack([LABELS, LABELS], 1)}, "", r"y has the shape \[90, 2\]; classes must be \[N\]"),
        ({"y": np.zeros((COUNT, 2, 2))}, "", r"y has the shape \[90, 2, 2\]; real numbers must be \[N\] or \[N, D\]"),
        ({"y": np.zeros((COUNT, 0))}, "", r"y has the shape \[90, 0\]; real numbers must be"),
        ({"y": LABELS * 1e20}, "", r"y has numbers beyond 1e\+18; give them in a larger unit"),
        ({"y": np.arange(COUNT)}, "", "y has 90 different whole numbers in 90 examples; write kind: real"),
        ({"y": np.array([b"a", b"\xff"])[LABELS]}, "", "a.npz cannot be read: 'utf-8' codec can't decode"),
        ({"split": np.full((COUNT, 2), "train")}, "", r"split has the shape \[90, 2\]; it must be one text"),
        ({"y": np.array(["a", "b"])[LABELS]}, "kind: real", "kind: real needs numbers; y has texts"),
        ({"y": LABELS / 2}, "tasks: [[0, 1]]", "task 1 names classes, but y has real numbers"),
        ({"split": np.full(COUNT, "train")}, "", "task 1 has no test examples"),
        ({"split": np.full(COUNT, "test")}, "", "task 1: class '0' has no training examples"),
        ({"split": np.full(COUNT, "val")}, "", "split has the value 'val'; it must be train or test"),
        ({}, "tasks: [0, 7]", r"task 2: unknown task '7' \(known: 0, 1, 2\)"),
        ({}, "tasks: [[0, 3]]", r"task 1: unknown class '3' \(known: 0, 1\)"),
        ({}, "tasks: [[0]]", "task 1 has the single class 0; a task needs at least two"),
        ({}, "tasks: 3", "tasks must be a list of values"),
        ({"task": None}, "tasks: [0, 1]", "task 1: a.npz has no array 'task', which tells tasks"),
        ({}, "task: year", "unknown array 'year'"),
        ({}, "X: Z", r"unknown array 'Z'.* \(known: X, task, y\)"),
        ({}, "test_share: 2", "test_share is 2; it must be a number at least 0.01 and at most 0.9"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(arrays, yaml, line):
    write(**{**arrays, "yaml": yaml})
    with pytest.raises(UserError, match=line) as error:
        stream()
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_one_line(monkeypatch):
    def refused(file):
        Path("d.yaml").write_text(f"dataset: arrays\nfile: {file}\n")
        with pytest.raises(UserError) as error:
            stream()
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "none.npz cannot be read: No such file" in refused("none.npz")
    Path("b.npz").write_bytes(b"PK nothing")
    assert "b.npz cannot be read" in refused("b.npz")
    np.save("one.npy", np.zeros(3))
    Path("one.npy").rename("one.npz")
    assert "one.npz is a single array" in refused("one.npz")
    assert "files of arrays end in .npz, .parquet, .csv" in refused("d.yaml")
    tables = {
        "a,y,colour\n1,0,red\n2,1,blue\n": "features must be numbers; no numbers are in colour",
        "a,y\n1,0\n2,\n": "y is missing in row 1",
        "a,b,y\n1,2,0\n2,,1\n": "t.csv: b has missing or infinite values in row 1, from 0",
        "a,y\n": "t.csv has no rows",
        "a,,y\n1,0,0\n2,1,1\n": "t.csv: column 1, from 0, has no name",
        "y,task\n1,0\n": "has no columns of features",
    }
    for content, words in tables.items():
        Path("t.csv").write_text(content)
        assert words in refused("t.csv")
    Path("t.parquet").touch()

    def missing(path):
        raise ImportError("no engine")

    monkeypatch.setattr(pandas, "read_parquet", missing)
    assert "parquet needs the package pyarrow" in refused("t.parquet")


# Networks and methods


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("shape", [(2, 9), (1, 1), (5,)], ids=str)
def test_the_convolutions_are_those_of_torch_in_one_dimension(shape, norm):
    net = net_of("conv1d", shape, {1: 2}, width=8, norm=norm).eval()
    x = torch.randn(3, *shape)
    y = x if x.ndim == 3 else x.unsqueeze(1)
    for conv, layer, size in zip(net.trunk.convs, net.trunk.norms, (7, 5, 3), strict=True):
        y = layer(F.conv1d(y, conv.weight.squeeze(2), conv.bias, padding=size // 2).unsqueeze(2)).squeeze(2).relu()
    torch.testing.assert_close(net.trunk(x), y.mean(2), rtol=1e-4, atol=1e-6)


def test_images_are_no_series():
    with pytest.raises(UserError, match="conv1d takes series, channels x length or length; the inputs are 1x8x8"):
        net_of("conv1d", (1, 8, 8), {1: 2})


def test_every_method_learns_series():
    write(drawn((2, 6)), split=np.where(np.arange(COUNT) < 60, "train", "test"))
    for name, method in METHODS.items():
        continual = "continual" in method.modes
        memory = {"memory": 20} if name in ("gdumb", "cls_er") else {}
        invocation = configured("conv1d", epochs=1, method=name, continual=continual, **memory)
        config = replace(invocation.config, settings=with_settings(invocation).settings)
        found = build_stream(config.data, 0, CPU)
        learner, _, predictions = run_toy(config, found, None if continual else 1)
        assert all(p.shape == (10, 2) for p in predictions[-1].values()), name
        assert learner.storage().parameters > 0


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_tasks_may_share_a_head(scenario):
    write(y=LABELS + 2 * TASKS if scenario == "class" else LABELS)
    found = stream(scenario=scenario)
    widths = [2, 4, 6] if scenario == "class" else [2, 2, 2]
    assert [task.num_outputs for task in found.tasks] == widths
    with_real = {"y": LABELS / 2}
    write(**with_real, name="r.npz")
    if scenario == "class":
        with pytest.raises(UserError, match="--scenario class needs tasks of classes"):
            stream(scenario=scenario)
    else:
        assert stream(scenario=scenario).spec.heads == "shared"
