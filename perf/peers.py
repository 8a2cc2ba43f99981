"""Images per second of this project, of avalanche-lib and of a DataLoader loop, with the same net, data and batch size.

    python perf/peers.py [--repeats 3]

Conv net, 28x28 grey images, random crops, batch 16, on the CPU. avalanche-lib 0.6.0 is installed into its own
environment. Every measurement is a process, taken in turn.
"""

import statistics
import subprocess
import sys
import time
import venv
import warnings
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import torch  # noqa: E402
from plain import PilImages, Plain, optimizer  # noqa: E402
from torch import nn  # noqa: E402

AVALANCHE = PROJECT / ".venv-avalanche"
PACKAGES = ("avalanche-lib==0.6.0", "torch==2.13.0", "torchvision==0.28.0")
IMAGES, EPOCHS, WORKERS = 3200, 2, (0, 1, 2)
BATCH, CLASSES, WARM_UP = 16, 10, 160


def data(images: int) -> PilImages:
    """Images of noise; decoding costs nothing here, so it is not part of the comparison."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 28, 28), generator=rng, dtype=torch.uint8)
    return PilImages(pixels, torch.arange(images) % CLASSES)


def network() -> nn.Module:
    """The plain net with one head."""
    plain = Plain((1, 28, 28), [CLASSES])
    return nn.Sequential(plain.trunk, plain.heads[0])


def loader(images: int, epochs: int, workers: int) -> float:
    """A DataLoader and a training loop."""
    net, loss_of = network(), nn.CrossEntropyLoss()
    steps = optimizer(net)

    def train(images: int, epochs: int) -> None:
        options = {"shuffle": True, "num_workers": workers, "persistent_workers": workers > 0}
        batches = torch.utils.data.DataLoader(data(images), BATCH, **options)  # type: ignore[arg-type]
        for _ in range(epochs):
            for inputs, targets in batches:
                steps.zero_grad()
                loss = loss_of(net(inputs), targets)
                loss.backward()
                steps.step()

    train(WARM_UP, 1)
    begin = time.perf_counter()
    train(images, epochs)
    return images * epochs / (time.perf_counter() - begin)


def avalanche(images: int, epochs: int, workers: int) -> float:
    """The Naive strategy of avalanche-lib on one experience, without metrics and loggers."""
    warnings.simplefilter("ignore")
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    net = network()
    strategy = Naive(
        model=net, optimizer=optimizer(net), criterion=nn.CrossEntropyLoss(), train_mb_size=BATCH,
        train_epochs=epochs, evaluator=EvaluationPlugin(loggers=[]),
    )  # fmt: skip
    sets = [as_classification_dataset(data(count)) for count in (WARM_UP, images)]
    warm, experience = benchmark_from_datasets(train=sets).train_stream
    strategy.train(warm, num_workers=workers)
    begin = time.perf_counter()
    strategy.train(experience, num_workers=workers)
    return images * epochs / (time.perf_counter() - begin)


def zoo(images: int, epochs: int, _: int) -> float:
    """This project."""
    from common import MNIST, run

    case = MNIST._replace(train=images)
    run(case._replace(train=WARM_UP), 1, "cpu", [range(CLASSES)])
    return run(case, epochs, "cpu", [range(CLASSES)])["images_per_second"]


def installed() -> Path:
    """The Python of the environment with avalanche-lib, which is made if it does not exist."""
    python, done = AVALANCHE / "bin" / "python", AVALANCHE / "installed"
    if not done.exists():
        print("installing avalanche-lib (about two minutes) ...", flush=True)
        venv.create(AVALANCHE, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        done.touch()
    return python


def in_process(python: Path, name: str, workers: int) -> float:
    """Images per second, measured in a new process."""
    done = subprocess.run([python, __file__, "--one", name, str(workers)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def main() -> None:
    from common import in_turn, line, options, ratio, title

    repeats = options(__doc__, repeats=3).repeats
    own, theirs = Path(sys.executable), installed()
    rows = [("this project", own, "zoo", 0)]
    rows += [(f"avalanche-lib 0.6.0, {n} workers", theirs, "avalanche", n) for n in WORKERS]
    rows += [(f"DataLoader and Pillow, {n} workers", own, "loader", n) for n in WORKERS]
    columns = in_turn([lambda row=row: in_process(*row[1:]) for row in rows], repeats)  # type: ignore[misc]
    print(f"Against others: images/s, conv net, 28x28, batch 16. {title(torch.device('cpu'))}")
    line("", "images/s", "ours over it")
    for (label, *_), column in zip(rows, columns, strict=True):
        line(label, f"{statistics.median(column):,.0f}", f"{ratio(columns[0], column):.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:  # in the environment of avalanche-lib, the project's own requirements are missing
        from utils.torchvision_ops import declare_missing_operators

        declare_missing_operators()
        measure = {"zoo": zoo, "loader": loader, "avalanche": avalanche}[sys.argv[2]]
        print(measure(IMAGES, EPOCHS, int(sys.argv[3])))
    else:
        main()
