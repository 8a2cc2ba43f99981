"""One pass over a stream with experience replay: what a step costs beyond its arithmetic, and in avalanche-lib.

    python perf/online.py [--repeats 3]

Five tasks of two classes, 28x28 images of noise, an MLP with 512 hidden units and one head, 10 new and 10 replayed
images a step, 1,000 images kept, as many of each class, filled while the images arrive. On the CPU.
run: steps a second of a run started by the command line. bare: forward, backward and optimizer step on 20 fixed images.
avalanche: Naive with a ReplayPlugin on the same stream in experiences of 10 images, as its online benchmarks have it.
Every measurement of avalanche-lib 0.6.0 is a process in the environment that perf/peers.py makes.
"""

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

NEW, REPLAYED, KEPT, HIDDEN, RATE = 10, 10, 1000, 512, 0.1
TASKS, CLASSES, IMAGES, SIDE = 5, 2, 600, 28  # images of a class
STEPS = TASKS * CLASSES * IMAGES // NEW


def network() -> nn.Module:
    """The MLP in plain torch."""
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, HIDDEN), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(*hidden, nn.Linear(HIDDEN, TASKS * CLASSES))


def avalanche() -> float:
    """Steps a second of avalanche-lib, without metrics and loggers."""
    warnings.simplefilter("ignore")
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.scenarios import split_online_stream
    from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_tensor_classification_dataset
    from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
    from avalanche.training.storage_policy import ClassBalancedBuffer
    from avalanche.training.supervised import Naive

    def noise(first: int) -> object:
        """Images in memory, ready for the network."""
        targets = torch.arange(CLASSES * IMAGES) % CLASSES + first
        images = torch.randn(len(targets), 1, SIDE, SIDE)
        return _make_taskaware_tensor_classification_dataset(images, targets, task_labels=0)

    net = network()
    replay = ReplayPlugin(
        mem_size=KEPT, batch_size=NEW, batch_size_mem=REPLAYED, storage_policy=ClassBalancedBuffer(KEPT)
    )
    strategy = Naive(
        model=net, optimizer=torch.optim.SGD(net.parameters(), RATE), criterion=nn.CrossEntropyLoss(),
        train_mb_size=NEW, train_epochs=1, plugins=[replay], evaluator=EvaluationPlugin(loggers=[]),
    )  # fmt: skip
    sets = [noise(CLASSES * task) for task in range(TASKS)]
    stream = benchmark_from_datasets(train=sets).train_stream
    begin, steps = time.perf_counter(), 0
    for part in split_online_stream(stream, experience_size=NEW):
        strategy.train(part, num_workers=0)
        steps += 1
    return steps / (time.perf_counter() - begin)


def in_process(python: Path) -> float:
    """Steps a second of avalanche-lib, measured in a new process."""
    done = subprocess.run([python, __file__, "--avalanche"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"avalanche-lib failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def main() -> None:
    import common
    from peers import installed

    from datasets.images.stream import ImagePreprocess

    options = common.options(__doc__, repeats=3)
    case = common.Case("online", "mlp", (1, SIDE, SIDE), ImagePreprocess(0, flip=False), TASKS * CLASSES * IMAGES, 100)
    cpu, net = torch.device("cpu"), network().train()
    steps = torch.optim.SGD(net.parameters(), RATE, fused=True)
    images, targets = torch.randn(NEW + REPLAYED, 1, SIDE, SIDE), torch.arange(NEW + REPLAYED) % (TASKS * CLASSES)

    def step() -> None:
        loss = nn.functional.cross_entropy(net(images), targets)
        steps.zero_grad()
        loss.backward()
        steps.step()

    def run() -> float:
        settings = {
            "hp.lr": RATE, "hp.momentum": 0.0, "hp.nesterov": "false", "hp.l2_reg": 0.0, "hp.schedule": "constant",
            "hp.batch": NEW, "net.widths": [HIDDEN], "net.dropout": 0.5, "settings.fill": "during",
            "settings.buffer": "class_reservoir", "settings.replay_batch": REPLAYED, "settings.outputs": "all",
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            arguments = [*common.use(Path(folder), case, common.FIVE_TASKS), "--continual", "--scenario", "class"]
            arguments += ["--method", "er", "--memory", str(KEPT), "--epochs", "1", "--device", "cpu"]
            arguments += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
            path = common.modelzoo_run([*arguments, "--run_dir", f"{folder}/run"])
            from records.run import Run

            return STEPS / float(Run.load(path).summary["train_seconds"])

    def bare() -> float:
        return 1 / common.seconds_a_call(step, cpu)

    python = installed()
    run()  # libraries are loaded
    columns = common.in_turn([run, bare, lambda: in_process(python)], options.repeats)
    print(f"One pass with replay: steps/s, 10 + 10 images, MLP 784-512-10. {common.title(cpu)}")
    common.line("", "steps/s", "run over it")
    for name, column in zip(("run", "bare", "avalanche-lib 0.6.0"), columns, strict=True):
        common.line(name, f"{statistics.median(column):,.0f}", f"{common.ratio(columns[0], column):.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--avalanche"]:
        from utils.torchvision_ops import declare_missing_operators

        declare_missing_operators()
        print(avalanche())
    else:
        main()
