"""Every stream, from its YAML file to the examples of its tasks, against the data it is made of."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import STREAMS, build_stream
from datasets.config import DataConfig, TaskConfig
from datasets.images.stream import ImageDataset, ImagePreprocess, Images, image_stream
from datasets.images.views import permutation, rotation
from datasets.task import Examples, Task, TaskStream
from records.invocation import configure
from tests.standins import (
    Source,
    Split,
    random_split,
    stream,
    write_cifar10,
    write_cifar100,
    write_image,
    write_image_folder,
    write_mini_imagenet,
    write_mnist,
)
from tests.toys import toy_stream
from utils.errors import UserError
from utils.torchvision_ops import declare_missing_operators

# See test_algorithmic.py, test_recall_streams.py, test_languages.py and test_arrays.py.
NO_IMAGES = {"arrays", "algorithmic", "sequences", "languages", "superposition", "modular"}
# Streams whose views the seed draws are in test_stream_settings.py.
ELSEWHERE = {"views: seed", *(f"dataset: {name}" for name in NO_IMAGES)}
# Tasks that share classes or leave some out, see test_selection.py; photographs that are not here.
OTHER_CLASSES = {
    "cifar10_pairs",
    "conflicting_digits",
    "noisy_digits",
    "confusable_digits",
    "unequal_digits",
    "grocery",
}
YAMLS = [path for path in sorted((Path(__file__).parent.parent / "config" / "dataset").glob("*.yaml"))
         if not ELSEWHERE & set(path.read_text().splitlines()) and path.stem not in OTHER_CLASSES]  # fmt: skip
CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CPU = torch.device("cpu")


# The data sets: the embedded one as scikit-learn gives it, small stand-ins for the others.


def digits() -> Source:
    """All digits; which of them are for training is the stream's choice."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = (images / 16 * 255).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    nothing = Split(pixels[:0], labels[:0])
    return Source(Split(pixels, labels), nothing, "0123456789")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def sources(data_dir):
    """What each data set of STREAMS holds, in the order of its files."""
    mnist = write_mnist(data_dir)
    embedded = digits()
    return {
        "digits": embedded,
        "rotated_digits": embedded,
        "mnist": mnist,
        "rotated_mnist": mnist,
        "permuted_mnist": mnist,
        "cifar10": write_cifar10(data_dir),
        "cifar100": write_cifar100(data_dir),
        "mini_imagenet": write_mini_imagenet(data_dir),
        "image_folder": write_image_folder(data_dir / "cifar10_jpeg", CIFAR10_NAMES),
    }


def from_yaml(path: Path, data_dir: Path, **options: object) -> TaskStream:
    config = configure(data_config=str(path), data_dir=data_dir, **options).config
    return build_stream(config.data, config.seed, CPU)


def written_classes(path: Path) -> list[list[int | str]]:
    """The classes of each task as they stand in the file, in either of the two forms."""
    tasks = yaml.safe_load(path.read_text())["tasks"]
    if isinstance(tasks, int):
        return [[10 * x + y for y in range(10)] for x in range(tasks)]
    return [task["classes"] if isinstance(task, dict) else task for task in tasks]


# What an example shows, worked out from the source by other means than the stream's.


def turned(pixels: np.ndarray, x: int) -> np.ndarray:
    declare_missing_operators()
    from torchvision.transforms.functional import rotate

    return rotate(torch.from_numpy(pixels), 10.0 * x).numpy()


def permuted(pixels: np.ndarray, x: int) -> np.ndarray:
    if x == 0:
        return pixels
    order = np.random.default_rng(1000 * x).permutation(pixels[0].size)
    return pixels.reshape(len(pixels), -1)[:, order].reshape(pixels.shape)


LOOKS = {"rotated_digits": turned, "rotated_mnist": turned, "permuted_mnist": permuted}

Pictures = Counter[tuple[int, bytes]]


def pictures(examples: Examples) -> Pictures:
    """Each example as its target and the bytes of what it shows."""
    shown = examples.store.numpy()[examples.rows.numpy()]
    if examples.view is not None:
        view = examples.view.numpy()
        flat = shown.reshape(len(shown), -1)
        shown = np.where(view < 0, 0, flat[:, view])
    return Counter((int(y), image.tobytes()) for y, image in zip(examples.targets, shown, strict=True))


def expected(dataset: str, source: Source, split: Split, classes: list[int | str]) -> Pictures:
    """The same for all images of these classes; target i is the i-th class."""
    found: Pictures = Counter()
    for target, entry in enumerate(classes):
        number, x = (source.names.index(entry), 0) if isinstance(entry, str) else (entry, 0)
        if dataset in LOOKS:
            number, x = int(entry) % 10, int(entry) // 10
        pixels = split.pixels[split.labels == number]
        shown = LOOKS[dataset](pixels, x) if dataset in LOOKS and len(pixels) else pixels
        found.update((target, image.tobytes()) for image in shown)
    return found


def check_against_source(dataset: str, source: Source, tasks: list[list[int | str]], made: TaskStream) -> None:
    """The tasks have all images of their classes, each once, with the right label, and nothing else."""
    assert [task.id for task in made.tasks] == list(range(1, len(tasks) + 1))
    for task, classes in zip(made.tasks, tasks, strict=True):
        assert task.num_outputs == len(classes)
        train, test = pictures(task.train_eval), pictures(task.test)
        assert pictures(task.train.epoch(torch.Generator())) == train
        if len(source.test.labels):
            assert train == expected(dataset, source, source.train, classes)
            assert test == expected(dataset, source, source.test, classes)
        else:
            assert train + test == expected(dataset, source, source.train, classes)


# Every stream


def test_every_data_set_has_a_yaml_file_or_is_an_old_name_of_one_that_has():
    assert {yaml.safe_load(path.read_text())["dataset"] for path in YAMLS} == STREAMS.keys() - NO_IMAGES


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_the_tasks_of_a_yaml_file_are_the_images_of_its_classes(path, data_dir, sources):
    dataset = yaml.safe_load(path.read_text())["dataset"]
    made = from_yaml(path, data_dir)
    assert made.spec.name == path.stem
    assert made.spec.input_shape == sources[dataset].train.pixels.shape[1:]
    check_against_source(dataset, sources[dataset], written_classes(path), made)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_no_image_is_in_two_tasks_and_none_is_missing(path, data_dir, sources):
    made = from_yaml(path, data_dir)
    for part in ("train_eval", "test"):
        splits = [getattr(task, part) for task in made.tasks]
        everything = list(range(len(splits[0].store)))
        if yaml.safe_load(path.read_text())["dataset"] in LOOKS:  # each task has all images, seen in another way
            assert all(sorted(split.rows.tolist()) == everything for split in splits)
        else:
            assert sorted(row for split in splits for row in split.rows.tolist()) == everything


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_the_images_are_held_once_however_many_tasks_there_are(path, data_dir, sources):
    tasks = from_yaml(path, data_dir).tasks
    stores = [split.store for task in tasks for split in (task.train.epoch(torch.Generator()), task.train_eval)]
    assert len({store.data_ptr() for store in stores}) == 1
    assert len({task.test.store.data_ptr() for task in tasks}) == 1
    source = sources[yaml.safe_load(path.read_text())["dataset"]]
    memory = [store.untyped_storage() for store in (stores[0], tasks[0].test.store)]  # may be one
    held = {block.data_ptr(): block.nbytes() for block in memory}
    assert sum(held.values()) == source.train.pixels.size + source.test.pixels.size


def test_every_episode_reveals_one_task_or_the_first_reveals_all():
    made = stream("digits", [[0, 1], [2, 3], [4, 5]])
    assert [(e.number, [task.id for task in e.new]) for e in made.continual()] == [(1, [1]), (2, [2]), (3, [3])]
    assert [(e.number, [task.id for task in e.new]) for e in made.multitask(2)] == [(1, [1, 2, 3]), (2, [])]


def test_fingerprints_tell_what_a_task_shows_and_not_where_it_is_stored():
    made = stream("digits", [[0, 1], [2, 3]])
    first, second = made.tasks
    test = first.test

    def marks(**changes: torch.Tensor) -> dict[int, str]:
        changed = first.with_splits(test=replace(test, **changes))
        return replace(made, tasks=(changed, second)).fingerprints()

    known = made.fingerprints()
    assert known[1] != known[2]
    assert marks(store=test.store.flip(0), rows=len(test.store) - 1 - test.rows) == known
    for change in (
        {"store": 255 - test.store}, {"rows": test.rows.flip(0)}, {"targets": 1 - test.targets},
        {"view": torch.arange(64).flip(0)},
    ):  # fmt: skip
        found = marks(**change)
        assert found[1] != known[1]
        assert found[2] == known[2]


# The embedded digits


def test_half_of_each_digit_is_for_training_and_the_seed_does_not_change_which():
    task = stream("digits", [range(10)]).tasks[0]
    train, test = (torch.bincount(split.targets) for split in (task.train_eval, task.test))
    assert int((train - test).abs().max()) <= 1
    other = stream("digits", [range(10)], seed=5).tasks[0]
    assert torch.equal(task.train_eval.store, other.train_eval.store)
    assert torch.equal(task.test.store, other.test.store)


# Classes of a task


@pytest.mark.parametrize(
    "tasks",
    [[[7, 2]], [[9, 0, 4], [1, 2, 3, 5, 6, 7], [8, 1]], [["3", "1"], ["0", 5]]],
    ids=["order of the list", "widths and a class in two tasks", "names"],
)
def test_outputs_are_the_classes_in_the_order_of_the_list(tasks, data_dir, sources):
    made = stream("mnist", tasks, data_dir)
    assert [task.classes for task in made.tasks] == [tuple(map(str, classes)) for classes in tasks]
    check_against_source("mnist", sources["mnist"], tasks, made)


def test_classes_are_named_by_the_data_set(data_dir, sources):
    tasks = [[7, 99, "thing 03"]]
    made = stream("cifar100", tasks, data_dir)
    assert made.tasks[0].classes == ("thing 07", "thing 99", "thing 03")
    check_against_source("cifar100", sources["cifar100"], tasks, made)


def test_a_list_and_a_mapping_are_the_same_task(tmp_path, data_dir, sources):
    forms = {
        "list": "[[0, 3], [4, 1, 2]]",
        "mapping": "[{classes: [0, 3]}, {classes: [4, 1, 2]}]",
        "full": "[{name: 0/3, classes: [0, 3], label_noise: 0}, {name: 4/1/2, classes: [4, 1, 2], label_noise: 0.0}]",
    }
    streams = []
    for name, tasks in forms.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"dataset: mnist\ntasks: {tasks}\n")
        streams.append(from_yaml(path, data_dir, samples=2))
    for tasks_of_all in zip(*(made.tasks for made in streams), strict=True):
        first, *others = tasks_of_all
        for other in others:
            assert (first.id, first.name, first.classes) == (other.id, other.name, other.classes)
            assert_same_task(first, other)


def assert_same_task(one: Task, other: Task) -> None:
    for part in ("train_eval", "test"):
        mine, its = getattr(one, part), getattr(other, part)
        assert torch.equal(mine.rows, its.rows)
        assert torch.equal(mine.targets, its.targets)


def test_a_task_has_the_name_that_it_is_given(data_dir, sources):
    tasks = [TaskConfig((0, 1), name="low"), TaskConfig((8, 9))]
    assert [task.name for task in stream("mnist", tasks, data_dir).tasks] == ["low", "8/9"]


def test_coarse_cifar100_has_the_classes_of_each_superclass(data_dir, sources):
    # The superclass of fine class 0, 1, ... 99, as in the field coarse_labels of the data set's own files.
    superclass = [
        4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
        6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
        16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
        12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
    ]  # fmt: skip
    path = next(path for path in YAMLS if path.stem == "coarse_cifar100")
    assert written_classes(path) == [[c for c in range(100) if superclass[c] == task] for task in range(20)]
    made = from_yaml(path, data_dir)
    assert [task.num_outputs for task in made.tasks] == [5] * 20
    assert len({name for task in made.tasks for name in task.classes}) == 100


# Rotations and permutations


@settings(max_examples=50, deadline=None)  # torchvision is slow the first time
@given(side=st.integers(2, 30), x=st.integers(1, 35), seed=st.integers(0, 2**32 - 1))
def test_a_rotation_is_that_of_torchvision(side, x, seed):
    image = random_split(1, 1, (1, side, side), seed).pixels
    view = rotation(side, x)
    assert view is not None
    shown = np.where(view < 0, 0, image.ravel()[view.numpy()]).reshape(image.shape)
    assert np.array_equal(shown, turned(image, x))


def test_a_quarter_turn_is_counter_clockwise():
    view = rotation(3, 9)
    assert view is not None
    assert view.view(3, 3).tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]


@pytest.mark.parametrize("x", [1, 2, 4, 17])
def test_a_permutation_is_that_of_its_seed(x):
    view = permutation(784, x)
    assert view is not None
    assert view.tolist() == np.random.default_rng(1000 * x).permutation(784).tolist()
    assert sorted(view.tolist()) == list(range(784))


def test_view_zero_is_the_image_itself(data_dir, sources):
    assert permutation(784, 0) is None
    assert rotation(28, 0) is None
    for dataset in ("permuted_mnist", "rotated_mnist"):
        check_against_source("mnist", sources["mnist"], [[3, 8]], stream(dataset, [[3, 8]], data_dir))


def test_all_rotations_that_differ_can_be_tasks(sources):
    tasks = [[10 * x + 1, 10 * x + 7] for x in (0, 9, 18, 27, 35)]
    check_against_source("rotated_digits", sources["rotated_digits"], tasks, stream("rotated_digits", tasks))


def test_a_full_turn_is_refused_with_the_task_that_asks_for_it():
    with pytest.raises(UserError, match=r"d\.yaml: task 2.*360 degrees"):
        stream("rotated_digits", [[0, 1], [360, 361]])


def test_a_task_has_one_view():
    with pytest.raises(UserError, match=r"d\.yaml: task 2 mixes several"):
        stream("rotated_digits", [[0, 1], [2, 13]])


@pytest.mark.parametrize("dataset", ["permuted_mnist", "rotated_mnist"])
def test_only_images_whose_pixels_are_in_place_are_cropped(dataset, data_dir, sources):
    choices = stream(dataset, [[10, 11]], data_dir).spec.preprocess.draw(1, torch.Generator())
    assert (choices is None) == (dataset == "permuted_mnist")


# Random labels


def test_a_class_above_100_has_uniformly_random_training_labels_and_true_test_labels(data_dir, sources):
    tasks = [list(range(100 + first, 105 + first)) for first in range(0, 100, 5)]
    drawn = Counter()  # by true class within the task, and label
    seeds = 6
    for seed in range(seeds):
        for number, task in enumerate(stream("cifar100", tasks, data_dir, seed=seed).tasks):
            true = sources["cifar100"].train.labels[task.train_eval.rows.numpy()] - 5 * number
            drawn.update(zip(true.tolist(), task.train_eval.targets.tolist(), strict=True))
            of_test = sources["cifar100"].test.labels[task.test.rows.numpy()] - 5 * number
            assert task.test.targets.tolist() == of_test.tolist()
    each = seeds * 400 / 25
    assert set(drawn) == {(true, label) for true in range(5) for label in range(5)}
    assert sum((times - each) ** 2 / each for times in drawn.values()) < 42.0  # chi-squared, 20 degrees: one in 360


def test_true_classes_beside_random_ones_keep_their_labels(data_dir, sources):
    task = stream("cifar100", [[10, 120, 30]], data_dir).tasks[0]
    assert task.classes == ("thing 10", "thing 20", "thing 30")
    true = sources["cifar100"].train.labels[task.train_eval.rows.numpy()]
    for label, target in ((10, 0), (30, 2)):
        assert task.train_eval.targets[true == label].tolist() == [target] * 4
    assert pictures(task.test) == expected("cifar100", sources["cifar100"], sources["cifar100"].test, [10, 20, 30])


@pytest.mark.parametrize(("entry", "is_random"), [(0, False), (99, False), (100, True), (199, True)])
def test_random_labels_begin_at_100_and_end_at_199(entry, is_random, data_dir, sources):
    drawn = set()
    for seed in range(10):
        train = stream("cifar100", [[entry, 50]], data_dir, seed=seed).tasks[0].train_eval
        true = sources["cifar100"].train.labels[train.rows.numpy()]
        drawn.update(train.targets[true == entry % 100].tolist())
    assert drawn == ({0, 1} if is_random else {0})


@pytest.mark.parametrize(("classes", "words"), [([0, 200], "class 200.*99"), ([5, 105], "same class twice")])
def test_what_is_no_class_with_or_without_random_labels_is_refused(classes, words, data_dir, sources):
    with pytest.raises(UserError, match=rf"d\.yaml: task 1.*{words}"):
        stream("cifar100", [classes], data_dir)


def noisy_task(label_noise: float, seed: int, images: int = 40) -> tuple[Task, torch.Tensor]:
    """A task of ten classes, and the true labels of its training examples."""
    split = random_split(images, 10, (1, 2, 2), 0)
    data = Images(torch.from_numpy(split.pixels), torch.from_numpy(split.labels))
    config = DataConfig("toy", (TaskConfig(tuple(range(10)), label_noise=label_noise),), path="d.yaml")
    made = image_stream(config, ImageDataset(data, lambda: data, "0123456789", ImagePreprocess(0, False)), seed, CPU)
    return made.tasks[0], data.labels[made.tasks[0].train_eval.rows]


@pytest.mark.parametrize("label_noise", [0, 0.1, 0.26, 0.5])
def test_label_noise_redraws_exactly_its_share_of_the_training_labels(label_noise):
    # A label drawn from ten is another one in nine of ten cases; among many seeds, once all of them are.
    redrawn = round(label_noise * 40)
    changed = []
    ever = torch.zeros(40, dtype=torch.bool)
    for seed in range(200):
        task, true = noisy_task(label_noise, seed)
        different = task.train_eval.targets != true
        changed.append(int(different.sum()))
        ever[task.train_eval.rows[different]] = True
    assert max(changed) == redrawn
    assert np.mean(changed) == pytest.approx(0.9 * redrawn, abs=5 * (redrawn * 0.09 / 200) ** 0.5)
    assert bool(ever.all()) == (redrawn > 0)  # none is spared in every seed


def test_label_noise_leaves_images_and_test_labels_alone_and_the_trainer_sees_what_is_evaluated():
    clean, _ = noisy_task(0.0, 0)
    noisy, _ = noisy_task(0.5, 0)
    assert torch.equal(clean.train_eval.rows, noisy.train_eval.rows)
    assert torch.equal(clean.test.targets, noisy.test.targets)
    assert torch.equal(noisy.train.epoch(torch.Generator()).targets, noisy.train_eval.targets)


def test_all_labels_may_be_noise():
    task, true = noisy_task(1.0, 0, images=4000)
    pairs = Counter(zip(true.tolist(), task.train_eval.targets.tolist(), strict=True))
    each = 40
    assert sum((pairs[a, b] - each) ** 2 / each for a in range(10) for b in range(10)) < 130  # 90 degrees


# Few samples


@pytest.mark.parametrize("samples", [1, 7, 80])
def test_samples_keeps_as_many_of_each_class_and_all_of_the_test_split(samples, sources):
    tasks = [[0, 1, 2], [3, 4], [5, 6, 7, 8, 9]]
    few, full = (stream("digits", tasks, samples=n).tasks for n in (samples, None))
    for task, whole, classes in zip(few, full, tasks, strict=True):
        assert torch.bincount(task.train_eval.targets).tolist() == [samples] * len(classes)
        assert len(set(task.train_eval.rows.tolist())) == samples * len(classes)
        assert pictures(task.train_eval) <= pictures(whole.train_eval)
        assert torch.equal(task.test.rows, whole.test.rows)


def test_samples_are_a_random_subset_that_the_seed_decides():
    def rows(seed: int) -> list[int]:
        return stream("digits", [[0, 1]], samples=5, seed=seed).tasks[0].train_eval.rows.tolist()

    drawn = [rows(seed) for seed in range(12)]
    assert drawn == [rows(seed) for seed in range(12)]
    assert len({tuple(row) for row in drawn}) == 12
    first = stream("digits", [[0, 1]]).tasks[0].train_eval
    of_zero = set(first.rows[first.targets == 0].tolist())
    often = Counter(row for kept in drawn for row in kept if row in of_zero)
    assert sum(often.values()) == 12 * 5
    assert len(often) > 35  # of 60 draws from 89 images, 44 differ on average


@pytest.mark.parametrize("hold_out", [0, 0.3])
def test_of_a_class_with_fewer_images_samples_keeps_all(hold_out, data_dir, sources):
    """Half the classes have fewer than a hundred training images, the others more."""
    limited, full = (stream("digits", [range(10)], samples=n, hold_out=hold_out).tasks[0] for n in (90, None))
    counts, every = (sum(split.targets.bincount() for name, split in task.splits.items() if name != "test")
                     for task in (limited, full))  # fmt: skip
    assert counts.tolist() == every.clamp(max=90).tolist()
    assert 0 < (every < 90).sum() < 10


def test_the_only_image_of_a_class_is_not_held_out_however_many_are_asked_for(tmp_path):
    for path in ("train/a/0.png", "train/b/0.png", "train/b/1.png", "test/a/0.png", "test/b/0.png"):
        write_image(tmp_path / "mine" / path, np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(UserError, match="leaves no training image of class 'a' of task 1, of one"):
        stream("image_folder", [["a", "b"]], tmp_path, {"root": "mine", "image_size": 8}, samples=5, hold_out=0.5)


@pytest.mark.parametrize("dataset", ["permuted_mnist", "rotated_mnist", "rotated_digits"])
def test_a_number_of_tasks_is_that_many_views_of_all_classes(dataset, data_dir, sources, tmp_path):
    number, lists = tmp_path / "number.yaml", tmp_path / "lists.yaml"
    number.write_text(f"dataset: {dataset}\ntasks: 20\n")
    lists.write_text(f"dataset: {dataset}\ntasks: {[[10 * x + y for y in range(10)] for x in range(20)]}\n")
    one, other = (configure(data_config=str(path)).config.data for path in (number, lists))
    assert one.tasks == other.tasks
    check_against_source(dataset, sources[dataset], [list(task.classes) for task in one.tasks[:3]],
                         stream(dataset, one.tasks[:3], data_dir))  # fmt: skip
    assert configure(data_config=str(lists), set={"data.tasks": 2}).config.data.tasks == one.tasks[:2]


@pytest.mark.parametrize("yaml", ["cifar100\ntasks: 20", "permuted_mnist\ntasks: 0", "permuted_mnist\ntasks: true"])
def test_a_number_of_tasks_is_for_views_alone(yaml, tmp_path):
    (tmp_path / "d.yaml").write_text(f"dataset: {yaml}\n")
    with pytest.raises(UserError, match=r"d\.yaml: tasks (must be a list|is 0; it must be a whole number at least 1)"):
        configure(data_config=str(tmp_path / "d.yaml"))


@pytest.mark.parametrize(
    ("option", "value", "fresh"),
    [("samples", 8, False), ("samples", 100, True), ("hold_out", 0.2, False), ("hold_out", 0.2, True)],
)
def test_a_data_set_that_ignores_an_option_is_refused(option, value, fresh, monkeypatch):
    """config.yaml would record the option as if it had acted."""
    monkeypatch.setitem(STREAMS, "digits", lambda config, seed, device: toy_stream(fresh=fresh, count=24))
    assert len(stream("digits", [[0, 1]]).tasks) == 3
    with pytest.raises(UserError, match=f"--{option} {value}: digits"):
        stream("digits", [[0, 1]], **{option: value})


@pytest.mark.parametrize("later", [[], [[2, 3]], [[8, 9, 0], [4, 5]]])
def test_a_task_does_not_depend_on_later_ones(later):
    options = {"samples": 9, "seed": 3}
    first = TaskConfig((1, 5, 6), label_noise=0.5)
    alone = stream("digits", [first], **options).tasks[0]
    assert_same_task(alone, stream("digits", [first, *later], **options).tasks[0])
