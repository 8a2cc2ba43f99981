"""Batches of images: normalised, augmented and gathered as whole tensors, checked image by image."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from datasets.images.stream import ImagePreprocess
from datasets.mixture import Mixture
from datasets.task import Examples, Table

SEEDS = st.integers(0, 2**32)
PLAIN = ImagePreprocess(padding=0, flip=False)
CIFAR = ImagePreprocess(padding=4, flip=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(256, shape, generator=generator(seed), dtype=torch.uint8)


# Normalisation


def test_every_pixel_value_is_normalised_with_mean_and_deviation_of_the_unit_interval():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    wanted = torch.tensor([(value / 255 - 0.5) / 0.25 for value in range(256)]).view(1, 1, 16, 16)
    normal = PLAIN(values)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (2, 1, 28, 28), (1, 3, 6, 9), (0, 3, 8, 8)])
def test_without_choices_nothing_is_augmented(shape):
    images = random_images(shape, 0)
    assert torch.equal(CIFAR(images), PLAIN(images))
    assert CIFAR(images).shape == shape


def test_the_stored_images_stay_as_they_are():
    images = random_images((6, 3, 8, 8), 0)
    before = images.clone()
    CIFAR(images, CIFAR.draw(6, generator(0)))
    CIFAR(images)
    assert torch.equal(images, before)


# Augmentation


def augmented_one_by_one(images: Tensor, padding: int, choices: Tensor) -> Tensor:
    """Each image on a black canvas, cut out at its place and mirrored, pixel by pixel."""
    count, _, height, width = images.shape
    result = torch.zeros_like(images)
    for n in range(count):
        top, left, mirrored = choices[n].tolist()
        for y in range(height):
            for x in range(width):
                row = y + top - padding
                column = (width - 1 - x if mirrored else x) + left - padding
                if 0 <= row < height and 0 <= column < width:
                    result[n, :, y, x] = images[n, :, row, column]
    return result


@given(
    count=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 7),
    flip=st.booleans(),
    seed=SEEDS,
)
def test_crop_and_flip_equal_a_loop_over_the_pixels(count, channels, height, width, padding, flip, seed):
    images = random_images((count, channels, height, width), seed)
    preprocess = ImagePreprocess(padding, flip)
    choices = preprocess.draw(count, generator(seed))
    if choices is None:
        assert (padding, flip) == (0, False)
        return
    assert torch.equal(preprocess(images, choices), PLAIN(augmented_one_by_one(images, padding, choices)))


def test_the_middle_of_the_padded_image_is_the_image():
    images = random_images((7, 3, 8, 8), 1)
    assert torch.equal(CIFAR(images, torch.tensor([[4, 4, 0]] * 7)), PLAIN(images))


def test_a_corner_of_the_padded_image_is_black_but_for_a_corner_of_the_image():
    images = random_images((1, 1, 8, 8), 2) | 1  # no pixel is black
    crop = CIFAR(images, torch.tensor([[8, 0, 0]]))
    black = crop == -2  # (0 / 255 - 0.5) / 0.25
    assert not black[..., :4, 4:].any()
    assert int(black.sum()) == 8 * 8 - 4 * 4
    assert torch.equal(crop[..., :4, 4:], PLAIN(images)[..., 4:, :4])


@pytest.mark.parametrize("preprocess", [CIFAR, ImagePreprocess(1, False), ImagePreprocess(0, True)])
def test_choices_are_those_of_the_generator(preprocess):
    first, again, other = (preprocess.draw(500, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("padding", [1, 4])
def test_every_crop_and_both_orientations_are_about_equally_frequent(padding):
    side, each = 2 * padding + 1, 100
    choices = ImagePreprocess(padding, flip=True).draw(2 * side**2 * each, generator(5))
    assert choices is not None
    drawn = Counter(map(tuple, choices.tolist()))
    assert set(drawn) == {(y, x, flip) for y in range(side) for x in range(side) for flip in (0, 1)}
    assert max(abs(times - each) for times in drawn.values()) < 5 * each**0.5  # five standard deviations


def test_an_image_without_augmentation_draws_nothing():
    rng = generator(6)
    before = rng.get_state()
    assert PLAIN.draw(10, rng) is None
    assert torch.equal(rng.get_state(), before)


def test_no_flip_is_drawn_where_digits_would_become_other_signs():
    choices = ImagePreprocess(padding=4, flip=False).draw(10, generator(7))
    assert choices is not None
    assert not choices[:, 2].any()


@pytest.mark.parametrize("preprocess", [CIFAR, ImagePreprocess(2, False)])
def test_a_part_of_the_choices_augments_a_part_of_the_images(preprocess):
    images = random_images((10, 3, 8, 8), 8)
    choices = preprocess.draw(10, generator(8)).to(torch.device("cpu"))
    whole = preprocess(images, choices)
    assert torch.equal(preprocess(images[3:7], choices[3:7]), whole[3:7])


# Tables and mixtures

SHAPE = (1, 3, 4)


def random_examples(store: Tensor, count: int, view: bool, seed: int) -> Examples:
    """Some rows of the store, with repeats, seen through random pixels of which about a fifth are black."""
    rng = generator(seed)
    rows = torch.randint(len(store), (count,), generator=rng)
    targets = torch.randint(5, (count,), generator=rng)
    size = store[0].numel()
    pixels = torch.randint(size, (size,), generator=rng)
    pixels[torch.rand(size, generator=rng) < 0.2] = -1
    return Examples(store, rows, targets, pixels if view else None)


def seen(examples: Examples, position: int) -> Tensor:
    """One input, pixel by pixel."""
    stored = examples.store[examples.rows[position]]
    if examples.view is None:
        return stored
    values = stored.flatten().tolist()
    return torch.tensor([0 if p < 0 else values[p] for p in examples.view.tolist()], dtype=stored.dtype).view(SHAPE)


@given(
    parts=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6), st.booleans()), min_size=1, max_size=4),
    seed=SEEDS,
)
def test_a_mixture_gathers_what_stacking_gathers(parts, seed):
    stores = [random_images((count, *SHAPE), seed + count) for count in (5, 8)]
    tasks = [
        (3 * i + 2, random_examples(stores[which], count, view, seed + i))
        for i, (which, count, view) in enumerate(parts)
    ]
    one_by_one = [(task, seen(part, n), part.targets[n]) for task, part in tasks for n in range(len(part))]
    mixture = Mixture(tasks)
    assert len(mixture) == len(one_by_one)
    assert mixture.task_ids.tolist() == [task for task, _, _ in one_by_one]
    assert mixture.targets.tolist() == [int(target) for _, _, target in one_by_one]
    positions = torch.randint(len(mixture), (20,), generator=generator(seed))
    picked = mixture.reordered(positions)
    assert torch.equal(picked.inputs(slice(0, 20)), torch.stack([one_by_one[p][1] for p in positions.tolist()]))
    assert torch.equal(picked.targets, mixture.targets[positions])
    assert torch.equal(picked.task_ids, mixture.task_ids[positions])
    assert torch.equal(mixture.inputs(slice(0, 2)), torch.stack([image for _, image, _ in one_by_one[:2]]))


def test_a_task_without_examples_adds_nothing_to_a_mixture():
    store = random_images((5, *SHAPE), 0)
    empty, some = random_examples(store, 0, True, 1), random_examples(store, 4, False, 2)
    mixture = Mixture([(1, empty), (2, some)])
    assert mixture.task_ids.tolist() == [2] * 4
    assert torch.equal(mixture.inputs(slice(0, 4)), store[some.rows])


def test_gathering_does_not_change_the_store():
    store = random_images((5, *SHAPE), 0)
    before = store.clone()
    mixture = Mixture([(1, random_examples(store, 4, True, 1)), (2, random_examples(store, 4, False, 2))])
    mixture.inputs(slice(0, 8)).zero_()
    assert torch.equal(store, before)


@given(positions=st.lists(st.integers(0, 5), max_size=10), view=st.booleans())
def test_a_subset_has_the_examples_at_its_positions(positions, view):
    whole = random_examples(random_images((5, *SHAPE), 0), 6, view, 1)
    part = whole.subset(torch.tensor(positions, dtype=torch.int64))
    assert part.targets.tolist() == [int(whole.targets[p]) for p in positions]
    assert all(torch.equal(seen(part, n), seen(whole, p)) for n, p in enumerate(positions))
    assert part.store is whole.store


@pytest.mark.parametrize("repeat", [1, 2, 7])
def test_an_epoch_of_a_table_has_every_row_as_often_as_it_is_repeated(repeat):
    examples = random_examples(random_images((9, *SHAPE), 0), 6, True, 1)
    epoch = Table(examples, repeat).epoch(generator(0))
    assert Counter(zip(epoch.rows.tolist(), epoch.targets.tolist(), strict=True)) == Counter(
        list(zip(examples.rows.tolist(), examples.targets.tolist(), strict=True)) * repeat
    )
    assert epoch.store is examples.store
    assert epoch.view is examples.view


@pytest.mark.parametrize(
    ("inputs", "targets", "wanted"),
    [
        (torch.zeros(5, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), 4 * (3072 + 8)),
        (torch.zeros(5, 7), torch.zeros(4, 2), 4 * (7 * 4 + 2 * 4)),
        (torch.zeros(5, 3, 32, 32, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), 0),
    ],
)
def test_the_size_of_examples_is_that_of_their_inputs_and_targets_alone(inputs, targets, wanted):
    assert Examples(inputs, torch.zeros(len(targets), dtype=torch.int64), targets).nbytes == wanted
