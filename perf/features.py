"""Time of caching frozen features against that of bare forward passes.

    python perf/features.py [--images 1500]

Random images of 96x96 pixels through EfficientNet-Lite0. *Bare*: batches of 64 images, normalised beforehand, go
through the network. *Cached*: the stream with frozen features is made where no file has them: checksums of images and
weights, building the network, normalisation, forward passes, and writing the file. *Read*: the same once the file is
there. Medians of three rounds, taken in turn.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common  # before torch: it decides how threads wait
import safetensors.torch
import torch
from common import in_turn, line, ratio, title

from datasets.images.stream import ImagePreprocess
from datasets.objectives import CrossEntropy
from datasets.task import TEST, TRAIN, Examples, StreamSpec, Table, Task, TaskStream
from net.config import NetConfig
from net.images.timm_trunk import TimmSettings, TimmTrunk
from training.features import frozen_trunk, with_frozen_features

_MODEL, _SHAPE, _BATCH, _ROUNDS = "tf_efficientnet_lite0", (3, 96, 96), 64, 3
_CPU = torch.device("cpu")


def stream(count: int) -> TaskStream:
    """One task of random images."""
    images = torch.randint(256, (count, *_SHAPE), dtype=torch.uint8)
    every = Examples(images, torch.arange(count), torch.arange(count) % 2)
    task = Task(1, "random", 2, Table(every), {TRAIN: every, TEST: every})
    return TaskStream(StreamSpec("random", _SHAPE, CrossEntropy(), ImagePreprocess(0, flip=False)), (task,))


def seconds(operation: Callable[[], object]) -> float:
    """Wall time of a call."""
    begin = time.perf_counter()
    operation()
    return time.perf_counter() - begin


def main() -> None:
    count = common.options(__doc__, images=1500).images
    print(title(_CPU))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = TimmTrunk(_MODEL, _SHAPE, TimmSettings()).model.state_dict()
        safetensors.torch.save_file(weights, folder / "weights.safetensors")
        net = NetConfig(f"timm/{_MODEL}", settings=TimmSettings(weights=folder / "weights.safetensors", frozen=True))
        given = stream(count)
        batches = given.spec.preprocess(given.tasks[0].test.store).split(_BATCH)
        trunk = frozen_trunk(net, _SHAPE, _CPU)

        @torch.inference_mode()
        def bare() -> None:
            for batch in batches:
                trunk(batch)

        def cached() -> None:
            shutil.rmtree(folder / "cache", ignore_errors=True)
            with_frozen_features(given, net, folder / "cache", _CPU)

        read = partial(with_frozen_features, given, net, folder / "cache", _CPU)
        bare()
        columns = in_turn([partial(seconds, each) for each in (bare, cached, read)], _ROUNDS)
        line("images", "bare, s", "cached, s", "read, s", "bare / cached")
        line(f"{count:,}", *(f"{statistics.median(column):.2f}" for column in columns), f"{ratio(*columns[:2]):.3f}")


if __name__ == "__main__":
    main()
