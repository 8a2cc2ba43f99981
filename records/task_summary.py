"""The final table of train_task.py: a line for each run, and which is best on the development examples."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from records.summary import figure
from records.task_config import TaskRunConfig

_Run = TypeVar("_Run")
SHOWN = 24  # the most runs that are listed; of more, the best ones
Finished = tuple[TaskRunConfig, Mapping[str, Any]]  # a run: its configuration and its summary


def task_table(runs: Sequence[Finished]) -> str:
    """The results of one network or of several seeds and rates, for people; the test figures with standard errors.

    Of more than SHOWN runs those that are best on the development examples, and the median of all.
    """
    _, first = runs[0]
    metric, chosen = first["metric"], first["dev"] is not None
    rates = len({config.hp.lr for config, _ in runs}) > 1
    titles = [*([f"{'lr':>8}"] if rates else []), f"{'seed':>6}", *([f"{f'dev {metric}':>14}"] if chosen else [])]
    titles += [f"{f'test {metric}':>14}", f"{'± error':>9}", *(["best checkpoint (test there)"] if chosen else [])]
    lines = ["", "  ".join(titles)]
    shown = listed(runs, lambda run: by_development(run[1])) if chosen else runs[:SHOWN]
    for config, summary in sorted(shown, key=lambda run: (run[0].hp.lr, run[0].seed)):
        error, best = summary["test_stderr"], summary["best_test"]
        cells = [*([f"{config.hp.lr:>8g}"] if rates else []), f"{config.seed:>6}"]
        cells += [f"{summary['dev']:>14.4f}"] if chosen else []
        cells += [f"{figure(summary, 'avg_acc_final'):>14.4f}", f"{'' if error is None else f'{error:.4f}':>9}"]
        if chosen and summary["best_step"] is not None:
            cells.append(f"step {summary['best_step']:,}" + (f" ({best:.4f})" if best is not None else ""))
        lines.append("  ".join(cells).rstrip())
    if len(shown) < len(runs):
        scores = sorted(figure(summary, "avg_acc_final") for _, summary in runs)
        which = f"the {len(shown)} best" if chosen else f"the first {len(shown)}"
        middle = f"{scores[0]:.4f} to {scores[-1]:.4f}, median {statistics.median(scores):.4f}"
        lines += ["", f"{which} of {len(runs)} runs; test {metric} of all: {middle}"]
    if chosen and len(runs) > 1:
        config, best = best_run(runs)
        name = f"seed on the development examples: {config.seed}" + (f" at lr {config.hp.lr:g}" if rates else "")
        lines += ["", f"best {name}, test {metric} {figure(best, 'avg_acc_final'):.4f}"]
    return "\n".join(lines)


def listed(runs: Sequence[_Run], score: Callable[[_Run], Any]) -> list[_Run]:
    """The runs that a table has a line for: all, or the SHOWN of the highest score, in their order."""
    best = sorted(range(len(runs)), key=lambda place: score(runs[place]), reverse=True)[:SHOWN]
    return [runs[place] for place in sorted(best)]


def best_run(runs: Sequence[Finished]) -> Finished:
    """The run whose final network is best on the development examples; of equals the one with the smallest seed."""
    return max(runs, key=lambda run: by_development(run[1]))


def by_development(summary: Mapping[str, Any]) -> tuple[float, int]:
    """The better a run is on the development examples the larger; of equals the one with the smallest seed."""
    return (1 if summary["higher_is_better"] else -1) * summary["dev"], -summary["seed"]


def in_ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers as text, of three or more that follow each other the first and the last: 0 to 4, 7, 8."""
    starts = [place for place, number in enumerate(numbers) if place == 0 or number != numbers[place - 1] + 1]
    parts = [numbers[a:b] for a, b in zip(starts, [*starts[1:], len(numbers)], strict=True)]
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)
