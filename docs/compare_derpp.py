"""DER++ of this project and of avalanche-lib 0.6.0: the same data, network, optimizer, schedule, memory and settings.

    OMP_NUM_THREADS=1 python docs/compare_derpp.py [--data_config FILE] [--samples 10] [--memory 100] [--seeds 10]

Further options are those of modelzoo.py. Images are normalised, not augmented. A seed draws the training images, which
both use; initial weights and the order of the images differ. avalanche-lib's DER cannot be told the task: it is written
into another channel of the image, and the network answers with the head of that task. Prints final accuracies in %
and, paired over seeds, their difference; means with 95 % t-intervals.
"""

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "perf"))

import torch
from peers import installed
from torch import Tensor

from datasets import build_stream
from datasets.mixture import Mixture
from datasets.task import TaskStream
from methods import build_method
from methods.base import Context
from records.invocation import parse, with_settings
from studies.statistics import mean_interval
from training.monitor import Monitor
from utils.compute import Compute

FIXED = ["--method", "derpp", "--continual", "--no_augment", "--epochs", "20"]
CPU = torch.device("cpu")


def tensors(stream: TaskStream, split: str) -> list[tuple[Tensor, Tensor]]:
    """By task: normalised images with the number of their task in another channel, and targets."""
    pairs = []
    for task in stream.tasks:
        images = stream.spec.preprocess(Mixture([(task.id, task.splits[split])]).inputs(slice(None)))
        pairs.append((torch.cat([images, torch.full_like(images[:, :1], task.id)], 1), task.splits[split].targets))
    return pairs


def both(argv: list[str], python: Path, seed: int) -> tuple[float, float]:
    """Final accuracy of this project and of avalanche-lib with one seed."""
    torch.set_num_threads(1)
    config = with_settings(parse([*argv, *FIXED, "--seed", str(seed)]))
    stream = build_stream(config.data, seed, CPU)
    learner = build_method(Context(config, stream.spec, Compute(CPU)))
    for episode in stream.continual():
        learner.learn(episode, Monitor())
    right = [(learner.predict(task).argmax(1) == task.test.targets).float().mean() for task in stream.tasks]
    given = {key: getattr(config.settings, key) for key in ("alpha", "beta", "replay_batch")}
    given |= {key: getattr(config.hp, key) for key in ("batch", "lr", "l2_reg", "epochs")}
    given |= {"memory": config.memory, "seed": seed, "heads": {task.id: task.num_outputs for task in stream.tasks}}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tasks.pt"
        torch.save({**given, "train": tensors(stream, "train"), "test": tensors(stream, "test")}, path)
        program = Path(__file__).with_name("derpp_of_avalanche.py")
        done = subprocess.run([python, program, path], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"avalanche-lib failed:\n{done.stderr}")
    return 100 * float(torch.stack(right).mean()), float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_config", default="config/dataset/rotated_digits.yaml", help="the stream")
    parser.add_argument("--samples", default="10", help="training images of each class (default: 10)")
    parser.add_argument("--memory", default="100", help="images that are kept in all (default: 100)")
    parser.add_argument("--seeds", type=int, default=10, help="(default: 10)")
    options, others = parser.parse_known_args()
    argv = [f"--{name}={getattr(options, name)}" for name in ("data_config", "samples", "memory")]
    found: list[tuple[float, float]] = []
    with ProcessPoolExecutor(2) as pool:
        for pair in pool.map(partial(both, [*argv, *others], installed()), range(options.seeds)):
            print("seed {}: {:.2f} {:.2f}".format(len(found), *pair), flush=True)
            found.append(pair)
    ours, theirs = zip(*found, strict=True)
    differences = [a - b for a, b in found]
    for name, values in (("this project", ours), ("avalanche-lib", theirs), ("difference", differences)):
        print("{:<16}{:7.2f} ± {:.2f}".format(name, *mean_interval(values)))


if __name__ == "__main__":
    main()
