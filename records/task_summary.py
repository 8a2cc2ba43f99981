"""The final table of train_task.py: a line for each seed, and which is best on the development examples."""

from collections.abc import Mapping
from typing import Any

from records.summary import figure


def task_table(summaries: Mapping[int, Mapping[str, Any]]) -> str:
    """The results of one network or of several seeds, by seed, for people; the test figures with standard errors."""
    first = next(iter(summaries.values()))
    metric, chosen = first["metric"], first["dev"] is not None
    titles = [f"{'seed':>6}", *([f"{f'dev {metric}':>14}"] if chosen else []), f"{f'test {metric}':>14}"]
    titles += [f"{'± error':>9}", *(["best checkpoint (test there)"] if chosen else [])]
    lines = ["", "  ".join(titles)]
    for seed, summary in sorted(summaries.items()):
        error, best = summary["test_stderr"], summary["best_test"]
        cells = [f"{seed:>6}", *([f"{summary['dev']:>14.4f}"] if chosen else [])]
        cells += [f"{figure(summary, 'avg_acc_final'):>14.4f}", f"{'' if error is None else f'{error:.4f}':>9}"]
        if chosen and summary["best_step"] is not None:
            cells.append(f"step {summary['best_step']:,}" + (f" ({best:.4f})" if best is not None else ""))
        lines.append("  ".join(cells).rstrip())
    if chosen and len(summaries) > 1:
        best = best_seed(summaries)
        value = figure(summaries[best], "avg_acc_final")
        lines += ["", f"best seed on the development examples: {best}, test {metric} {value:.4f}"]
    return "\n".join(lines)


def best_seed(summaries: Mapping[int, Mapping[str, Any]]) -> int:
    """The seed whose final network is best on the development examples; of equals the smallest."""
    sign = 1 if next(iter(summaries.values()))["higher_is_better"] else -1
    return max(summaries, key=lambda seed: (sign * summaries[seed]["dev"], -seed))
