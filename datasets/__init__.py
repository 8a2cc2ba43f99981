"""Data on the disk, or generated -> a stream of tasks on the device.

To add a data set: one file with a function (DataConfig, seed, device) -> TaskStream, and one line in STREAMS. Settings
beside `dataset` and `tasks` are a frozen dataclass, the function's attribute `Settings` (see images/image_folder.py).
Where `tasks` may be a number, the attribute `numbered` makes lists of classes of it (see images/views.py). Where tasks
are no lists of classes, the attribute `Config` is a DataConfig with other `tasks` (see synthetic/algorithmic.py).
"""

from collections.abc import Callable

import torch

from datasets.arrangement import arranged
from datasets.arrays.stream import arrays
from datasets.config import DataConfig
from datasets.images.cifar import cifar10, cifar100
from datasets.images.digits import rotated_digits, split_digits
from datasets.images.image_folder import image_folder
from datasets.images.mini_imagenet import mini_imagenet
from datasets.images.mnist import permuted_mnist, rotated_mnist, split_mnist
from datasets.images.settings import ClassSettings, RotationSettings, ViewSettings
from datasets.images.views import numbered
from datasets.scenarios import blurred, in_scenario
from datasets.synthetic.algorithmic import algorithmic
from datasets.synthetic.languages import languages
from datasets.synthetic.modular import modular
from datasets.synthetic.sequences import sequences
from datasets.synthetic.superposition import superposition
from datasets.task import Generator, TaskStream
from datasets.validation import check_validated
from utils.errors import UserError, unknown
from utils.settings import NoSettings

STREAMS: dict[str, Callable[[DataConfig, int, torch.device], TaskStream]] = {
    "digits": split_digits,
    "rotated_digits": rotated_digits,
    "mnist": split_mnist,
    "rotated_mnist": rotated_mnist,
    "permuted_mnist": permuted_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mini_imagenet": mini_imagenet,
    "image_folder": image_folder,
    "algorithmic": algorithmic,
    "sequences": sequences,
    "languages": languages,
    "superposition": superposition,
    "modular": modular,
    "arrays": arrays,
}
rotated_digits.numbered = rotated_mnist.numbered = permuted_mnist.numbered = numbered  # type: ignore[attr-defined]
rotated_digits.Settings = rotated_mnist.Settings = RotationSettings  # type: ignore[attr-defined]
permuted_mnist.Settings = ViewSettings  # type: ignore[attr-defined]
for _stream in (split_digits, split_mnist, cifar10, cifar100, mini_imagenet):
    _stream.Settings = ClassSettings  # type: ignore[attr-defined]


def settings_of(dataset: str) -> type:
    """The class of a data set's own settings; UserError if there is no such data set."""
    if dataset not in STREAMS:
        raise UserError(unknown("dataset", dataset, STREAMS))
    return getattr(STREAMS[dataset], "Settings", NoSettings)


def config_of(dataset: str) -> type[DataConfig]:
    """The class of the section `data` for a data set that exists."""
    return getattr(STREAMS[dataset], "Config", DataConfig)


def build_stream(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """The stream that the dataset YAML describes; `seed` decides which examples are used and held out.

    UserError if there is no such data or class, an option has no effect, or tasks do not fit the scenario.
    """
    stream = STREAMS[config.dataset](arranged(config, seed), seed, device)
    check_validated(config, stream)
    for task in stream.tasks:
        count = len(task.train_eval) + len(task.held_out or ())
        if config.samples and (isinstance(task.train, Generator) or count > config.samples * task.num_outputs):
            raise UserError(f"--samples {config.samples}: {config.dataset} does not limit its examples; leave it out")
        if config.hold_out and not task.held_out:
            raise UserError(f"--hold_out {config.hold_out:g}: {config.dataset} holds nothing out; leave it out")
    stream = in_scenario(stream, config.scenario)
    return blurred(stream, config.blur, seed) if config.blur else stream
