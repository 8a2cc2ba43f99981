"""What a dataset YAML may say of images: normalisation, padding, fewer examples, and what the seed of the run draws."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chi2, chisquare, kstest

from datasets import build_stream
from datasets.config import TaskConfig
from datasets.images.views import turned
from datasets.mixture import Mixture
from datasets.task import Task, TaskStream
from records.invocation import configure
from tests.standins import stream, write_cifar10, write_mnist
from utils.errors import UserError

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parent.parent / "config" / "dataset"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Small stand-ins for MNIST and CIFAR-10."""
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder)
    write_cifar10(folder)
    return folder


def shown(task: Task, split: str = "test") -> torch.Tensor:
    """The images of a split before preprocessing, uint8 [N, C, H, W]."""
    examples = task.splits[split]
    return Mixture([(task.id, examples)]).inputs(slice(0, len(examples)))


def of_mnist(data_dir: Path, **own: object) -> TaskStream:
    return stream("mnist", [[0, 1], [2, 3]], data_dir, own)


# Normalisation and padding

PUBLISHED = {
    "half": (0.5, 0.25),
    "unit": (0.0, 1.0),
    "mnist": (0.1307, 0.3081),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def channels(values: object) -> np.ndarray:
    return np.broadcast_to(np.array(values, dtype=np.float64), 3).reshape(3, 1, 1)


@pytest.mark.parametrize(
    ("normalize", "mean", "sd"),
    [
        *((name, mean, sd) for name, (mean, sd) in PUBLISHED.items()),
        ({"mean": 0.1, "sd": 0.2752}, 0.1, 0.2752),
        ({"mean": [0, 0.5, 1], "sd": 0.5}, (0, 0.5, 1), 0.5),
        ({"mean": 0.25, "sd": [0.125, 0.25, 1]}, 0.25, (0.125, 0.25, 1)),
    ],
    ids=str,
)
def test_pixels_are_normalised_by_the_constants_of_each_channel(normalize, mean, sd, data_dir):
    made = stream("cifar10", [[0, 1]], data_dir, {"normalize": normalize})
    images = shown(made.tasks[0])
    expected = (images.double().numpy() / 255 - channels(mean)) / channels(sd)
    np.testing.assert_allclose(made.spec.preprocess(images).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("normalize: hlaf", "normalize: unknown normalisation 'hlaf'; did you mean 'half'"),
        ("normalize: 0.5", "normalize: unknown normalisation '0.5'"),
        ("normalize: {mean: 0.5}", "normalize: key 'sd' is missing"),
        ("normalize: {mean: 0.5, std: 0.5}", "normalize: unknown key 'std'"),
        ("normalize: {mean: 0.5, sd: 0}", "normalize: sd is 0; it must be a number at least 0.001"),
        ("normalize: {mean: 127, sd: 0.5}", "normalize: mean is 127; it must be a number at least 0 and at most 1"),
        ("normalize: {mean: [], sd: 1}", "normalize: mean is empty"),
        ("normalize: {mean: [a], sd: 1}", "normalize: mean is 'a'"),
        ("pad: -1", "pad is -1; it must be a whole number at least 0"),
        ("samples_per_task: 0", "samples_per_task is 0"),
        ("task_order: random", "task_order: unknown task_order 'random'"),
        ("class_order: sed", "class_order: unknown class_order 'sed'; did you mean 'seed'"),
        ("views: seed", "unknown key 'views'"),
    ],
)
def test_a_wrong_setting_is_one_line(written, words, tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text(f"dataset: digits\ntasks: [[0, 1]]\n{written}\n")
    with pytest.raises(UserError) as error:
        configure(data_config=str(path))
    assert str(error.value).startswith(f"{path}: {words}")


@pytest.mark.parametrize(
    ("normalize", "words"),
    [
        ("cifar10", "cifar10 is for 3 channels; the images have 1"),
        ({"mean": [0.5, 0.5], "sd": 1}, "mean is for 2 channels; the images have 1"),
    ],
)
def test_a_normalisation_for_other_channels_is_refused(normalize, words, data_dir):
    with pytest.raises(UserError, match=rf"d\.yaml: normalize: {words}"):
        of_mnist(data_dir, normalize=normalize)


def test_black_pixels_are_put_around_each_image_before_it_is_normalised(data_dir):
    made, plain = of_mnist(data_dir, pad=2, normalize="mnist"), of_mnist(data_dir, normalize="mnist")
    assert made.spec.input_shape == (1, 32, 32)
    for task, other in zip(made.tasks, plain.tasks, strict=True):
        inputs, inner = made.spec.preprocess(shown(task)), plain.spec.preprocess(shown(other))
        assert torch.equal(inputs[:, :, 2:30, 2:30], inner)
        border = torch.ones(32, 32, dtype=torch.bool)
        border[2:30, 2:30] = False
        np.testing.assert_allclose(inputs[:, :, border].numpy(), -0.1307 / 0.3081, rtol=1e-5)


def test_crops_are_taken_from_the_padded_image():
    made = stream("digits", [[0, 1]], folder={"pad": 3, "normalize": "unit"})
    images = shown(made.tasks[0], "train")
    choices = made.spec.preprocess.draw(len(images), torch.Generator().manual_seed(0))
    assert choices is not None
    crops = made.spec.preprocess(images, choices)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))  # 3, and 1 more for the crop
    for crop, image, (top, left, _) in zip(crops, padded, choices.tolist(), strict=True):
        np.testing.assert_allclose(crop.numpy() * 255, image[:, top : top + 14, left : left + 14], atol=1e-4)


def test_images_are_rotated_before_they_are_padded(data_dir):
    task = TaskConfig(tuple(range(30, 40)))
    made, plain = (stream("rotated_mnist", [task], data_dir, own) for own in ({"pad": 2}, {}))
    inner = made.spec.preprocess(shown(made.tasks[0]))[:, :, 2:30, 2:30]
    assert torch.equal(inner, plain.spec.preprocess(shown(plain.tasks[0])))


# Fewer examples

PARTS = [[0, 1, 2], [3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize("count", [40, 150, 10_000])
def test_samples_per_task_keeps_as_many_of_each_task_and_all_of_the_test_split(count):
    few, full = (stream("digits", PARTS, folder=own).tasks for own in ({"samples_per_task": count}, {}))
    for task, whole in zip(few, full, strict=True):
        kept, every = task.train_eval.rows.tolist(), whole.train_eval.rows.tolist()
        assert len(set(kept)) == len(kept) == min(count, len(every))
        assert set(kept) <= set(every)
        target = dict(zip(every, whole.train_eval.targets.tolist(), strict=True))
        assert task.train_eval.targets.tolist() == [target[row] for row in kept]
        assert torch.equal(task.test.rows, whole.test.rows)


def test_samples_of_a_task_are_drawn_evenly_by_seed_and_task():
    """Every training image is as likely as any other, whatever its class."""

    def rows(seed: int) -> list[list[int]]:
        made = stream("rotated_digits", [range(10), range(10, 20)], folder={"samples_per_task": 300}, seed=seed)
        return [sorted(task.train_eval.rows.tolist()) for task in made.tasks]

    everything = stream("digits", [range(10)]).tasks[0].train_eval.rows.tolist()
    drawn = [rows(seed) for seed in range(60)]
    assert drawn[:3] == [rows(seed) for seed in range(3)]
    assert all(one != other for one, other in drawn)
    often = Counter(row for both in drawn for kept in both for row in kept)
    spread = chisquare([often[row] for row in everything]).statistic / (1 - 300 / len(everything))
    # Drawn without replacement, the variance is smaller by the share that is drawn.
    assert chi2.sf(spread, len(everything) - 1) > 1e-4


def test_samples_of_a_task_and_what_is_held_out_of_it():
    made = stream("digits", PARTS, folder={"samples_per_task": 100}, hold_out=0.2, seed=1)
    for task in made.tasks:
        assert task.held_out is not None
        kept, held = task.train_eval.rows.tolist(), task.held_out.rows.tolist()
        assert len({*kept, *held}) == len(kept) + len(held) == 100
        assert len(held) == pytest.approx(20, abs=3)  # rounded for each class
        assert set(task.held_out.targets.tolist()) == set(range(task.num_outputs))


def test_two_limits_and_too_few_examples_are_refused():
    with pytest.raises(UserError, match="samples and samples_per_task are two ways"):
        stream("digits", [[0, 1]], folder={"samples_per_task": 9}, samples=3)
    with pytest.raises(UserError, match=r"samples_per_task leaves no training image of class '.' of task 1"):
        stream("digits", [range(10)], folder={"samples_per_task": 9})


# Orders that the seed draws


def arrangement(made: TaskStream) -> tuple[tuple[str, ...], ...]:
    return tuple(task.classes for task in made.tasks)


def test_classes_are_dealt_over_the_places_in_every_way_alike():
    found = Counter(arrangement(stream("digits", [[0, 1], [2, 1]], folder={"class_order": "seed"}, seed=s))
                    for s in range(120))  # fmt: skip
    expected = {((a, b), (c, b)) for a, b, c in itertools.permutations("012")}
    assert set(found) == expected
    assert chisquare(list(found.values())).pvalue > 1e-4


def test_a_task_shows_the_classes_that_it_is_named_after():
    """Each class has the images that it has where it is written."""
    whole = stream("digits", [range(10)]).tasks[0].test
    tasks = stream("digits", PARTS, folder={"class_order": "seed"}, seed=3).tasks
    assert [task.num_outputs for task in tasks] == [3, 2, 5]
    assert sorted(name for task in tasks for name in task.classes) == list("0123456789")
    assert [task.classes for task in tasks] != [tuple(map(str, part)) for part in PARTS]
    for task in tasks:
        assert task.name == "/".join(task.classes)
        for target, name in enumerate(task.classes):
            rows = task.test.rows[task.test.targets == target]
            assert torch.equal(rows, whole.rows[whole.targets == int(name)])


def test_tasks_arrive_in_every_order_alike_each_as_it_is_written():
    parts = [TaskConfig((0, 1), name="clean"), TaskConfig((2, 3), name="noisy", label_noise=1.0), TaskConfig((4, 5))]
    found = Counter()
    for seed in range(120):
        made = stream("digits", parts, task_order="seed", seed=seed)
        assert [task.id for task in made.tasks] == [1, 2, 3]
        found[tuple(task.name for task in made.tasks)] += 1
        for task in made.tasks:
            counts = torch.bincount(task.train_eval.targets)
            ordered = torch.equal(task.train_eval.targets, torch.arange(2).repeat_interleave(counts))
            assert ordered == (task.name != "noisy")
    assert set(found) == set(itertools.permutations(["clean", "noisy", "4/5"]))
    assert chisquare(list(found.values())).pvalue > 1e-4


FEW = {"data.train_examples": 20, "data.dev_examples": 20, "data.test_examples": 20}
STREAMS_OF_TASKS = {
    "split_digits.yaml": {},
    "rotated_digits.yaml": {},
    "alg_stream.yaml": FEW,
    "recall_ladder.yaml": {**FEW, "data.length": 128},
    "language_stream.yaml": FEW,
    "tms_stream.yaml": FEW,
    "modular_addition.yaml": {"data.tasks": ["addition", "division", "subtraction"], "data.modulus": 7},
}


@pytest.mark.parametrize("name", STREAMS_OF_TASKS)
def test_a_number_draws_the_order_of_any_tasks_the_same_for_all_seeds(name):
    """And the order that the seed of this number would draw."""

    def made(order, seed):
        changes = {**STREAMS_OF_TASKS[name], "data.task_order": order}
        config = configure(data_config=str(CONFIGS / name), seed=seed, set=changes).config
        return build_stream(config.data, config.seed, CPU).tasks

    written = made("written", 0)
    orders = [[task.name for task in made(order, seed)] for order, seed in ((2, 0), (2, 1), ("seed", 2), (7, 0))]
    assert orders[0] == orders[1] == orders[2]
    assert len({tuple(task.name for task in written), *map(tuple, orders)}) == 3
    found = {task.name: task for task in made(2, 0)}
    assert [task.id for task in found.values()] == list(range(1, len(written) + 1))
    for task in written:
        assert torch.equal(found[task.name].test.targets, task.test.targets)


@pytest.mark.parametrize("own", [{"folder": {"class_order": "seed"}}, {"task_order": "seed"}])
@pytest.mark.parametrize("hold_out", [0, 0.3])
def test_a_task_without_the_forgotten_ones_is_what_it_was(own, hold_out):
    tasks = stream("digits", PARTS, **own, seed=4, hold_out=hold_out).tasks
    left = stream("digits", PARTS, **own, seed=4, hold_out=hold_out, forgotten=(2,)).tasks
    assert [task.id for task in left] == [1, 3]
    for task, before in zip(left, (tasks[0], tasks[2]), strict=True):
        assert (task.name, task.classes) == (before.name, before.classes)
        assert all(torch.equal(part.rows, before.splits[name].rows) for name, part in task.splits.items())


def test_names_of_tasks_whose_classes_are_dealt_are_refused():
    with pytest.raises(UserError, match=r"d\.yaml: class_order: seed deals .* the name 'low'"):
        stream("digits", [TaskConfig((0, 1), name="low"), [2, 3]], folder={"class_order": "seed"})


@pytest.mark.parametrize("dataset", ["rotated_digits", "rotated_mnist", "permuted_mnist"])
def test_classes_of_views_are_not_dealt(dataset, tmp_path):
    (tmp_path / "d.yaml").write_text(f"dataset: {dataset}\ntasks: 3\nclass_order: seed\n")
    with pytest.raises(UserError, match="unknown key 'class_order'"):
        configure(data_config=str(tmp_path / "d.yaml"))


# Views that the seed draws


def from_yaml(name: str, data_dir: Path, seed: int = 0, **changes: object) -> TaskStream:
    config = configure(data_config=str(CONFIGS / name), data_dir=data_dir, seed=seed, set=changes).config
    return build_stream(config.data, config.seed, CPU)


def test_every_task_of_permuted_mnist20_has_a_permutation_of_its_own(data_dir):
    """Also the first; training and test images are permuted alike, and the seed decides how."""
    whole = {split: stream("mnist", [range(10)], data_dir).tasks[0] for split in ("train", "test")}
    views = set()
    for seed in (0, 1):
        made = from_yaml("permuted_mnist20.yaml", data_dir, seed)
        assert len(made.tasks) == 20
        for task in made.tasks:
            view = task.test.view
            assert view is not None
            assert sorted(view.tolist()) == list(range(784))
            for split, plain in whole.items():
                expected = shown(plain, split).flatten(2).numpy()[:, :, view.numpy()]
                assert np.array_equal(shown(task, split).flatten(2).numpy(), expected)
            views.add(tuple(view.tolist()))
    assert len(views) == 40
    assert tuple(range(784)) not in views
    in_place = (np.array(list(views)) == np.arange(784)).sum(1)
    assert in_place.mean() < 3  # a random permutation leaves one pixel in its place


def by_pillow(image: np.ndarray, degrees: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).rotate(degrees))


@settings(max_examples=100)
@given(side=st.integers(2, 32), degrees=st.floats(0, 360), seed=st.integers(0, 2**32 - 1))
def test_a_drawn_rotation_is_that_of_pillow(side, degrees, seed):
    image = np.random.default_rng(seed).integers(256, size=(side, side), dtype=np.uint8)
    view = turned(side, degrees).numpy()
    found = np.where(view < 0, 0, image.ravel()[view]).reshape(side, side)
    assert np.array_equal(found, by_pillow(image, degrees))


def angle(task: Task) -> float:
    return float(task.name.removeprefix("rotated by ").removesuffix("°"))


def test_the_tasks_of_rotated_mnist20_are_turned_as_they_are_called_each_in_its_twentieth(data_dir):
    original = shown(stream("mnist", [range(10)], data_dir).tasks[0]).numpy()
    tasks = from_yaml("rotated_mnist20.yaml", data_dir, **{"data.samples_per_task": 55}).tasks
    assert len(tasks) == 20
    for place, task in enumerate(tasks):
        assert 9 * place - 0.05 <= angle(task) <= 9 * (place + 1) + 0.05
        expected = np.stack([by_pillow(image[0], angle(task))[None] for image in original])
        # The name is rounded, which moves few pixels; a degree more moves a tenth of them.
        assert (shown(task).numpy() == expected).mean() > 0.96
        assert len(task.train_eval) == 55


@pytest.mark.parametrize(("span", "width"), [(None, 180), (90, 90), (360, 360)])
def test_drawn_angles_are_uniform_in_their_parts_of_the_span(span, width):
    own = {"views": "seed"} | ({} if span is None else {"span": span})
    shares = []
    for seed in range(60):
        tasks = stream("rotated_digits", [range(10 * x, 10 * x + 2) for x in range(4)], folder=own, seed=seed).tasks
        shares += [angle(task) / width * 4 - place for place, task in enumerate(tasks)]
    assert kstest(shares, "uniform").pvalue > 1e-4
    assert len(set(shares)) > 100


@pytest.mark.parametrize(
    ("tasks", "own", "words"),
    [
        ([[0, 1], [10, 11]], {"span": 90}, r"d\.yaml: span is for drawn rotations"),
        ([[0, 1], [20, 21]], {"views": "seed"}, r"d\.yaml: task 2: of 2 tasks 10x \+ y goes up to 19"),
    ],
)
def test_views_that_cannot_be_drawn_are_refused(tasks, own, words):
    with pytest.raises(UserError, match=words):
        stream("rotated_digits", tasks, folder=own)


# Blurred boundaries


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_a_share_of_each_task_arrives_with_its_neighbours(scenario):
    """Every training example arrives once, with its own task or, half of a share of 0.4 each, with a neighbour."""
    options = {"data_config": CONFIGS / "split_digits.yaml", "scenario": scenario}
    sharp = build_stream(configure(**options).config.data, 3, CPU)
    stream = build_stream(configure(**options, set={"data.blur": 0.4}).config.data, 3, CPU)
    own = [task.train.examples for task in sharp.tasks]
    meant = {row: (number, target) for number, part in enumerate(own)
             for row, target in zip(part.rows.tolist(), part.targets.tolist(), strict=True)}  # fmt: skip
    arrived = Counter()
    for number, task in enumerate(stream.tasks):
        for row, target in zip(task.train.examples.rows.tolist(), task.train.examples.targets.tolist(), strict=True):
            home, right = meant.pop(row)
            assert target == right
            arrived[home, number - home] += 1
        assert torch.equal(task.train_eval.rows, task.train.examples.rows)
        assert torch.equal(task.test.rows, sharp.tasks[number].test.rows)
        assert task.num_outputs == (2 if scenario == "domain" else min(10, 2 * (number + 2)))
    assert not meant
    for number, part in enumerate(own):
        given = round(0.2 * len(part))
        assert arrived[number, -1] == (given if number > 0 else 0)
        assert arrived[number, 1] == (given if number < 4 else 0)


def test_boundaries_are_not_blurred_where_tasks_share_no_head_or_no_view():
    for name, scenario, reason in [
        ("split_digits", "task", "needs --scenario domain or class"),
        ("rotated_digits", "domain", "needs tasks that are sets of classes of one data set"),
    ]:
        options = {"data_config": CONFIGS / f"{name}.yaml", "scenario": scenario, "set": {"data.blur": 0.1}}
        with pytest.raises(UserError, match=reason):
            build_stream(configure(**options).config.data, 0, CPU)
