"""Interchange interventions, stacked, against one patched run at a time; and what evaluations cost beside training.

    OMP_NUM_THREADS=1 python perf/interchange.py [--repeats 3] [--device cpu]

Associative recall of eight pairs, 320 documents, networks of two layers of width 64; all sites x items x corruptions.
one by one: for each cell the clean, the corrupted and the patched run.
Then the seconds of an evaluation, those of a thousand training steps with the preset attention, and the share of a run
of 400,000 examples that evaluations after 0, 1, 2, 4, ... steps take.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import common
import torch
from torch import Tensor

import train_task
from datasets import build_stream
from datasets.task import DEV, TaskStream
from evaluation.interchange import AskedDocuments, intervened, patched_sites
from evaluation.questions import EVALUATIONS
from evaluation.subject import DOCUMENTS, Subject
from methods.base import new_network
from net.sequences.model import SequenceModel
from net.sequences.sites import Write, run
from records.run import Run
from records.task_invocation import configure
from training.times import POWERS, times
from utils.compute import Compute
from utils.settings import read

EXAMPLES = 400_000
CASES = [("attention", "norm"), ("attention", "mlp"), ("base_conv", "mlp"), ("based", "mlp"), ("mamba", "none")]
CONFIGS = common.PROJECT / "config"
OPTIONS = {
    "data_config": str(CONFIGS / "dataset/associative_recall.yaml"),
    "hp_config": str(CONFIGS / "hyperparam/attention.yaml"),
}


class Timed(NamedTuple):
    """A way to patch: its seconds, and what it has found for each cell, [cells, B, 2]."""

    seconds: float
    found: Tensor


def documents_of(stream: TaskStream) -> AskedDocuments:
    """The documents that are asked about."""
    examples = stream.tasks[0].test.subset(torch.arange(DOCUMENTS))
    assert examples.schema is not None
    schema = examples.schema.rows(examples.rows)
    return AskedDocuments(examples.store[examples.rows], examples.targets[:, 0], schema)


@torch.no_grad()
def one_by_one(net: SequenceModel, documents: AskedDocuments) -> Tensor:
    """Probability and logit of the answer in every cell, each by three runs of all documents."""
    inputs, answers, schema = documents
    rows, found = torch.arange(len(inputs), device=inputs.device), []
    for item, replacements in schema.replacements.items():
        for site in patched_sites(net):
            for places in schema.positions.values():
                if (places < 0).any():
                    continue
                changed = inputs.index_put((rows, schema.positions[item]), replacements)
                clean = run(net, inputs, read=[site]).activations[site]
                run(net, changed)
                write = Write(clean[rows, places], rows, places)
                outputs = run(net, changed, write={site: write}).outputs[:, 0]
                found.append(torch.stack([outputs.softmax(-1)[rows, answers], outputs[rows, answers]], 1))
    return torch.stack(found)


def stacked(net: SequenceModel, documents: AskedDocuments) -> Tensor:
    """The same as the evaluation does it."""
    effects = intervened(net, documents).values()
    return torch.stack([values[:, :2] for effect in effects for values in effect.restored.values()])


def timed(way: Callable[[], Tensor]) -> Timed:
    begin = time.perf_counter()
    found = way().cpu()  # waits for the device
    return Timed(time.perf_counter() - begin, found)


def compared(stream: TaskStream, device: torch.device, repeats: int) -> None:
    """Both ways for each network."""
    documents = documents_of(stream)
    common.line("", "one by one, s", "stacked, s", "ratio", "difference")
    for mixer, state_mixer in CASES:
        settings = read(SequenceModel.Settings, "net", {"mixers": [mixer], "state_mixer": state_mixer})
        torch.manual_seed(0)
        net = SequenceModel(stream.spec.input_shape, settings, stream.tasks[0].num_outputs, 1).to(device).eval()
        ways = [lambda net=net: timed(lambda: one_by_one(net, documents)),
                lambda net=net: timed(lambda: stacked(net, documents))]  # fmt: skip
        ways[1]()
        columns = common.in_turn(ways, repeats)  # type: ignore[misc]
        seconds = [[way.seconds for way in column] for column in columns]
        difference = float((columns[0][0].found - columns[1][0].found).abs().max())
        medians = [f"{statistics.median(column):.3f}" for column in seconds]
        ratio = f"{common.ratio(*seconds):.1f}"
        common.line(f"{mixer}, {state_mixer}", *medians, ratio, f"{difference:.1e}")


def beside_training(stream: TaskStream, device: torch.device, repeats: int) -> None:
    """Seconds of the evaluations and of training."""
    config = configure(**OPTIONS, steps=1).config
    net = new_network(config, stream.spec, {1: stream.tasks[0].num_outputs}).to(device).eval()
    task = stream.tasks[0]
    subject = Subject(net, task.with_splits(test=task.splits[DEV]), stream.spec, Compute(device))

    def asked(name: str) -> float:
        begin = time.perf_counter()
        EVALUATIONS[name].ask(subject)
        return time.perf_counter() - begin

    def trained() -> float:
        """Seconds of a thousand steps in a run that is evaluated at its ends alone."""
        with tempfile.TemporaryDirectory() as folder, common.silent():
            invocation = configure(**OPTIONS, steps=1000, checkpoints="none", device=str(device),
                                   run_dir=f"{folder}/run", quiet=True)  # fmt: skip
            train_task.run(invocation)
            return float(Run.load(Path(folder) / "run").summary["train_seconds"])

    names = ("behaviour", "interchange")
    *evaluations, steps = common.in_turn([*(lambda name=name: asked(name) for name in names), trained], repeats)  # type: ignore[misc]
    number = EXAMPLES // int(config.hp.batch)
    moments = len(times(POWERS, number))
    common.line("", "seconds", "of a run")
    for name, column in zip(names, evaluations, strict=True):
        share = moments * common.ratio(column, steps) / (number / 1000)
        common.line(name, f"{statistics.median(column):.3f}", f"{share:.1%}")
    common.line("a thousand steps of training", f"{statistics.median(steps):.2f}")


def main() -> None:
    options = common.options(__doc__, device="cpu", repeats=3)
    stream = build_stream(configure(**OPTIONS).config.data, 0, options.device)
    print(f"Interchange interventions, {DOCUMENTS} documents. {common.title(options.device)}")
    compared(stream, options.device, options.repeats)
    beside_training(stream, options.device, options.repeats)


if __name__ == "__main__":
    main()
