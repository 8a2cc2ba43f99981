"""How much of a run is arithmetic, and how fast the arithmetic is.

    python perf/step_efficiency.py [--device cuda] [--repeats 3]

run: images per second of training (images_trained / train_seconds) of a member of 20 epochs, started by the
command line. bare: forward, backward and optimizer step on one fixed batch in place, same net and precision.
naive: the same as it is usually written, see plain.py, with SGD one parameter after the other.
outside: share of the run's wall time outside training. On a GPU, eager: the bare loop without a CUDA graph.
"""

import statistics
from collections.abc import Callable

import common  # before torch: it decides how threads wait
import torch
from common import BATCH, CASES, CLASSES, TASKS, Case, captured, network, rate, ratio, step_of
from plain import Plain

EPOCHS = 20


def compare(case: Case, device: torch.device, repeats: int) -> None:
    """Print a line of the table."""
    on_gpu = device.type == "cuda"
    if on_gpu:  # enough images for some seconds
        case = case._replace(train=8000, test=1600)
    summaries = []

    def trained() -> float:
        summaries.append(common.run(case, EPOCHS, str(device)))
        return summaries[-1]["images_per_second"]

    eager = step_of(network(case), case, device)
    step = captured(step_of(network(case), case, device)) if on_gpu else eager
    measures: dict[str, Callable[[], float]] = {"run": trained, "bare": lambda: rate(step, device)}
    if case.model == "conv":
        usual = step_of(Plain(case.shape, [CLASSES] * TASKS), case, device, fused=False, channels_last=False)
        measures["naive"] = lambda: rate(usual, device)
    if on_gpu:
        measures["eager"] = lambda: rate(eager, device)
    common.in_turn(list(measures.values()), 1)  # the first time, libraries are loaded and algorithms chosen
    summaries.clear()
    columns = dict(zip(measures, common.in_turn(list(measures.values()), repeats), strict=True))
    outside = statistics.median(1 - s["train_seconds"] / s["total_seconds"] for s in summaries)
    medians = {name: f"{statistics.median(column):,.0f}" for name, column in columns.items()}
    over = {name: f"{ratio(columns['bare'], column):.2f}" for name, column in columns.items()}
    cells = [medians["run"], medians["bare"], f"{ratio(columns['run'], columns['bare']):.2f}", f"{outside:.1%}"]
    for name in ("naive", "eager"):
        cells += [medians.get(name, ""), over.get(name, "")]
    common.line(case.name, *cells)


def main() -> None:
    options = common.options(__doc__, device="auto", repeats=3)
    print(f"Step efficiency: images/s, batch {BATCH}. {common.title(options.device)}")
    common.line("", "run", "bare", "run/bare", "outside", "naive", "bare/naive", "eager", "bare/eager")
    for case in CASES:
        compare(case, options.device, options.repeats)


if __name__ == "__main__":
    main()
