"""The figures: each drawn from a run, or from several, with a caption that can be read alone and the data behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullFormatter

from datasets.objectives import BINS
from records.members import answering
from records.run import Array, Run
from records.summary import direction
from reporting import analysis
from reporting.groups import Group
from reporting.style import DIVERGING, INK, MUTED, SHADES, colours, figure, look, marker, percent, spread, whole
from studies.tables import readable

_LABELLED = 12  # of at most so many tasks, cells have numbers
_BANDS = 7  # at most so many groups have a band around their lines


@dataclass(frozen=True)
class Picture:
    """A figure of the report."""

    name: str  # of its files
    title: str
    caption: str
    drawn: Figure
    data: pd.DataFrame


# Of one run.


def accuracy_matrix(run: Run) -> Picture:
    """R[k, t], a row for each episode."""
    names, R = run.task_names, run.accuracy_matrix
    drawn, (axes,) = figure(_height(len(R)))
    low = np.floor(20 * np.nanmin(R)) / 20
    norm = Normalize(min(low, 0.95), 1.0) if run.shows_accuracy else Normalize(np.nanmin(R), np.nanmax(R))
    image = _cells(axes, R, SHADES, norm, lambda value: _value(run, value))
    axes.set(xlabel="task", ylabel="after episode")
    _number(axes, len(names), len(R))
    bar = drawn.colorbar(image, ax=axes, pad=0.02, format=lambda value, _: _value(run, value))
    bar.set_label(_measured(run))
    bar.outline.set_visible(False)  # type: ignore[operator]
    data = pd.DataFrame(R, index=pd.RangeIndex(1, len(R) + 1, name="episode"), columns=names).reset_index()
    caption = f"Accuracy matrix R. Row k, column t: {_measured(run)} on the test examples of task t after episode k."
    if run.shows_accuracy:
        caption = (
            "Accuracy matrix R. Row k, column t: accuracy on the test examples of task t after episode k, in percent."
        )
    if run.continual and run.shows_accuracy:
        caption += (
            " Going down a column, one sees a task being forgotten (it gets darker) or improved by later episodes."
        )
    return Picture("accuracy_matrix", "Accuracy matrix", caption, drawn, data)


def _measured(run: Run) -> str:
    """Name of the main metric, for axes and captions."""
    return "test accuracy, %" if run.shows_accuracy else f"test {run.metric} ({direction(run.summary)})"


def _value(run: Run, value: float) -> str:
    return f"{100 * value:.0f}" if run.shows_accuracy else f"{value:.3g}"


def transfer_curves(run: Run) -> Picture | None:
    """A line for each task from its own episode on, and what an isolated network reaches; None of one episode."""
    if len(run.episodes) == 1:
        return None
    names, R = run.task_names, run.accuracy_matrix
    drawn, (axes,) = figure(_height(len(names), 3.6))
    palette = colours(len(names))
    lines, ends = [], []
    for task, name in enumerate(names):
        seen = np.flatnonzero(~np.isnan(R[:, task]))
        axes.plot(seen + 1, R[seen, task], color=palette[task], marker=marker(task), markersize=3)
        if run.isolated is not None:
            axes.plot(seen[0] + 1, run.isolated[task], "x", color=palette[task], markersize=6, markeredgewidth=1.6)
        lines += [(name, episode + 1, R[episode, task]) for episode in seen]
        ends.append(R[-1, task])
    axes.set(xlabel="episode", ylabel=_measured(run))
    if run.shows_accuracy:
        percent(axes.yaxis)
    whole(axes.xaxis)
    _label_ends(axes, len(R), ends, [f"{number} {name}" for number, name in enumerate(names, 1)], palette)
    data = pd.DataFrame(lines, columns=["task", "episode", run.metric])
    caption = f"Test {run.metric} on each task, from the episode in which it arrives to the last one."
    if not run.continual:
        caption = f"Test {run.metric} on each task after each episode; all tasks are known from the start."
    if run.isolated is not None:
        data["isolated"] = data.task.map(dict(zip(names, run.isolated, strict=True)))
        caption += " The cross is a network trained on that task alone."
    if not run.shows_accuracy:
        caption += f" {direction(run.summary).capitalize()}."
    elif run.continual and run.isolated is not None:
        caption += " A line that begins above its cross is forward transfer, one that rises is backward transfer."
    elif run.continual:
        caption += " Lines that fall are forgetting, lines that rise are backward transfer."
    return Picture("transfer_curves", "Transfer between tasks", caption, drawn, data)


def training_grid(run: Run) -> Picture:
    """Which tasks each network was trained on."""
    names = run.task_names
    grid = np.zeros((len(run.episodes), len(names)))
    for row, facts in enumerate(run.episodes):
        for task in facts.tasks:
            grid[row, task - 1] = 1 if run.continual and task != row + 1 else 2
    drawn, (axes,) = figure(_height(len(grid)))
    palette = colours(len(names))
    for row, task in zip(*np.nonzero(grid), strict=True):
        size = min(60.0, 2000 / max(grid.shape) ** 1.35)
        new = grid[row, task] == 2
        axes.scatter(task + 1, row + 1, s=size, marker="s", linewidths=1.2, edgecolors=palette[task],
                     facecolors=palette[task] if new else "none")  # fmt: skip
    axes.set(xlabel="task", ylabel="episode", xlim=(0.4, len(names) + 0.6), ylim=(len(grid) + 0.6, 0.4))
    _number(axes, len(names), len(grid), offset=1)
    data = pd.DataFrame(grid > 0, index=pd.RangeIndex(1, len(grid) + 1, name="episode"), columns=names)
    caption = (
        "Which tasks the network of each episode was trained on. "
        + ("Filled: the new task. Open: past tasks, drawn for replay." if run.continual else "")
    ).strip()
    return Picture("members", "Who learned what", caption, drawn, data.astype(int).reset_index())


def sampling_weights(run: Run) -> Picture | None:
    """How likely each task was to be drawn; None if nothing is drawn."""
    names = run.task_names
    weights = np.full((len(run.episodes), len(names)), np.nan)
    for row, facts in enumerate(run.episodes):
        for task, weight in facts.sampling_weights.items():
            weights[row, task - 1] = weight
    shares = weights / np.nansum(weights, 1, keepdims=True).clip(1e-300)
    if not np.isfinite(weights).any():
        return None
    drawn, (axes,) = figure(_height(len(weights)))
    norm = LogNorm(float(np.clip(np.nanmin(shares), 1e-3, 0.5)), 1.0)
    image = _cells(axes, shares, SHADES, norm, lambda value: f"{100 * value:.0f}" if value >= 0.005 else "")
    axes.set(xlabel="task", ylabel="episode")
    _number(axes, len(names), len(weights))
    bar = drawn.colorbar(image, ax=axes, pad=0.02, format=lambda value, _: f"{100 * value:g}")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label("share of the weights, %")
    bar.outline.set_visible(False)  # type: ignore[operator]
    caption = (
        "How the tasks that are replayed were chosen: the share of each task in the sampling weights of the episode, "
        "in percent. The worse the ensemble still fits a task, the likelier it is drawn (brighter)."
    )
    data = pd.DataFrame(weights, index=pd.RangeIndex(1, len(weights) + 1, name="episode"), columns=names)
    return Picture("sampling_weights", "Sampling weights", caption, drawn, data.reset_index())


def added_by_members(run: Run) -> Picture:
    """Accuracy on each task against the number of members that answer it."""
    table, names = analysis.added_by_members(run), run.task_names
    drawn, (axes,) = figure(_height(len(names), 3.6))
    palette, ends, tasks = colours(len(names)), [], list(run.test_predictions)
    last = int(table.members.max())
    for task in tasks:
        line = table[table.task == task]
        axes.plot(line.members, line.accuracy, color=palette[task - 1], marker=marker(task - 1), markersize=3)
        if len(line) < last:
            axes.plot(
                [line.members.iloc[-1], last], [line.accuracy.iloc[-1]] * 2, ":", color=palette[task - 1], linewidth=0.9
            )
        ends.append(line.accuracy.iloc[-1])
    axes.set(xlabel="members that answer the task", ylabel="test accuracy, %")
    percent(axes.yaxis)
    whole(axes.xaxis)
    _label_ends(axes, last, ends, [f"{t} {names[t - 1]}" for t in tasks], [palette[t - 1] for t in tasks])
    caption = (
        "What each member added: test accuracy on a task when its first m members answer, in the order in which they "
        "joined. Dotted: no more members were trained on the task."
    )
    data = table.assign(task=[names[task - 1] for task in table.task])
    return Picture("added_by_members", "What each member added", caption, drawn, data)


def task_affinity(run: Run) -> Picture | None:
    """Which tasks helped which; None if no two kinds of members can be compared."""
    difference, together = analysis.affinity(run)
    if not np.isfinite(difference).any():
        return None
    names = run.task_names
    drawn, (axes,) = figure(_height(len(names)))
    bound = max(0.01, np.nanmax(np.abs(difference)))
    image = _cells(axes, difference, DIVERGING, Normalize(-bound, bound), lambda value: f"{100 * value:+.0f}")
    axes.set(xlabel="trained together with task", ylabel="accuracy on task")
    _number(axes, len(names), len(names))
    bar = drawn.colorbar(image, ax=axes, pad=0.02, format=lambda value, _: f"{100 * value:+.0f}")
    bar.set_label("difference, points")
    bar.outline.set_visible(False)  # type: ignore[operator]
    rows = [
        (names[i], names[j], difference[i, j], together[i, j])
        for i in range(len(names)) for j in range(len(names)) if i != j
    ]  # fmt: skip
    caption = (
        "Which tasks went well together. Row i, column j: mean test accuracy on task i of single members that were "
        "also trained on task j, minus that of members trained on i without j, in percentage points. Empty: one kind "
        "of member is missing. A few members each, so single cells are noisy."
    )
    data = pd.DataFrame(rows, columns=["task", "with", "difference", "members"])
    return Picture("task_affinity", "Task affinity", caption, drawn, data)


def reliability(run: Run) -> Picture:
    """Stated confidence against accuracy, before and after averaging."""
    bins, names = analysis.pooled_reliability(run), {"one member": "single members", "ensemble": "ensemble"}
    alone = all(len(members) == 1 for members in run.test_predictions.values())
    drawn, (axes,) = figure(3.6)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle="--")
    tables = []
    for colour, (answer, table) in zip(("#e69f00", "#0072b2"), bins.items(), strict=True):
        if alone and answer == "one member":
            continue
        label = "the network" if alone else names[answer]
        axes.plot(table.confidence, table.accuracy, marker="o", color=colour, label=label)
        tables.append(table.assign(answer=label))
    low = min(float(table[["confidence", "accuracy"]].min().min()) for table in tables)
    axes.set(xlabel="probability of the predicted class", ylabel="share that is right")
    axes.set(xlim=(max(0, low - 0.05), 1.01), ylim=(max(0, low - 0.05), 1.02))
    axes.legend(loc="upper left")
    caption = (
        f"Reliability. The test predictions of all tasks, sorted by the probability of the predicted class into "
        f"{BINS} bins of equal size: how often they are right against how sure they are. On the dashed line "
        "the probabilities can be taken at their word; below it they are too sure, above it too cautious."
    )
    return Picture("reliability", "Reliability", caption, drawn, pd.concat(tables))


def cost(run: Run) -> Picture:
    """Time, memory, parameters and examples of each episode."""
    facts = run.episodes
    episodes = [fact.episode for fact in facts]
    parameters = [_stored(run, fact.episode) for fact in facts]
    data = pd.DataFrame({
        "episode": episodes,
        "seconds": [fact.seconds for fact in facts],
        "train_seconds": [fact.train_seconds for fact in facts],
        "peak_memory_bytes": [fact.peak_memory_bytes for fact in facts],
        "parameters_stored": parameters,
        "sample_gradients": [fact.sample_gradients for fact in facts],
        "examples": [fact.examples for fact in facts],
    })  # fmt: skip
    drawn, axes = figure(3.8, 2, 2)
    axes[0].bar(episodes, data.train_seconds, color="#0072b2", label="training")
    axes[0].bar(
        episodes, data.seconds - data.train_seconds, bottom=data.train_seconds, color="#e69f00", label="the rest"
    )
    axes[0].set(title="time, seconds")
    axes[0].set_ylim(0, 1.28 * data.seconds.max())
    axes[0].legend(ncols=2, loc="upper left", handlelength=1)
    for place, name, title in (
        (axes[1], "examples", "training examples, in an epoch"),
        (axes[2], "peak_memory_bytes", "peak memory, bytes"),
        (axes[3], "parameters_stored", "parameters stored"),
    ):
        place.bar(episodes, data[name], color="#0072b2")
        place.set(title=title)
        place.yaxis.set_major_formatter(lambda value, _: readable(value) if value else "0")
    for place in axes:
        place.grid(axis="x", visible=False)
        whole(place.xaxis)
    for place in axes[2:]:
        place.set(xlabel="episode")
    caption = (
        "What each episode cost: wall time; examples trained on, new and replayed; the highest memory use of the "
        "process, or of the GPU; parameters of all networks kept after the episode."
    )
    return Picture("cost", "Cost", caption, drawn, data)


def _stored(run: Run, episode: int) -> int:
    """Parameters of the networks that answer after an episode."""
    members = [member for member in run.members if member.episode <= episode]
    return sum(member.parameters for member in answering(members))


def of_one_run(run: Run) -> list[Picture]:
    """All figures that this run has the data for."""
    pictures: list[Picture | None]
    pictures = [accuracy_matrix(run), transfer_curves(run), training_grid(run), sampling_weights(run)]
    if run.classifies:
        several = any(len(members) > 1 for members in run.test_predictions.values())
        pictures += [added_by_members(run), task_affinity(run)] if several else []
        pictures.append(reliability(run))
    return [picture for picture in [*pictures, cost(run)] if picture is not None]


# Parts of figures.


def _height(rows: int, least: float = 3.0) -> float:
    return float(np.clip(0.26 * rows + 0.9, least, 6.5))


def _cells(
    axes: Axes, values: Array, palette: object, norm: Normalize, text: Callable[[float], str]
) -> AxesImage:  # fmt: skip
    """A heat map, with numbers in the cells if there are few."""
    image = axes.imshow(values, cmap=palette, norm=norm, aspect="auto", interpolation="nearest")  # type: ignore[arg-type]
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if max(values.shape) <= _LABELLED:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = image.cmap(norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                axes.text(column, row, text(value), ha="center", va="center", fontsize=7.5,
                          color="#ffffff" if dark else "#000000")  # fmt: skip
    return image


def _number(axes: Axes, columns: int, rows: int, offset: int = 0) -> None:
    """Tasks and episodes are counted from 1."""
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
        step = max(1, -(-count // 20))
        shown = np.arange(0, count, step)
        axis.set_ticks(shown + offset, [str(number + 1) for number in shown])
        axis.set_tick_params(length=0)


def _label_ends(axes: Axes, last: float, ends: Sequence[float], names: Sequence[str], palette: Sequence[str]) -> None:
    """The names of lines at their right ends, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    height = axes.figure.get_figheight() - 0.7  # type: ignore[union-attr]
    distance = (high - low) * 0.135 / height
    places = spread(ends, distance)
    low, high = min(low, *places), max(high, *places)
    axes.set_ylim(low, high)
    left = axes.get_xlim()[0]
    for end, place, name, colour in zip(ends, places, names, palette, strict=True):
        short = name if len(name) <= 18 else name[:17] + "…"
        axes.annotate(
            short, (last, end), (1.03, (place - low) / (high - low)), textcoords="axes fraction", va="center",
            fontsize=7.5, color=INK, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5),
            },
        )  # fmt: skip
    axes.set_xlim(left, last + 0.02 * (last - left + 1))


# Of several runs.


def accuracy_over_episodes(groups: Sequence[Group]) -> Picture | None:
    """Mean accuracy on the tasks seen so far, a line for each group; None if all learned all tasks at once."""
    drawn, (axes,) = figure(_height(len(groups), 3.6))
    lines: list[tuple[str, int, int, float]] = []
    ends: dict[str, tuple[float, str]] = {}
    last = 1
    for number, group in enumerate(groups):
        runs = {seed: run for seed, run in group.runs.items() if run.continual}
        if not runs:
            continue
        length = min(len(run.episodes) for run in runs.values())
        means = np.array([np.nanmean(run.accuracy_matrix[:length], 1) for run in runs.values()])
        episodes, form = np.arange(1, length + 1), look(number)
        axes.plot(episodes, means.mean(0), markersize=3, **form)  # type: ignore[arg-type]
        if len(groups) <= _BANDS:
            axes.fill_between(episodes, means.min(0), means.max(0), color=form["color"], alpha=0.15, linewidth=0)
        lines += [
            (group.label, seed, int(episode), float(value))
            for seed, row in zip(runs, means, strict=True) for episode, value in zip(episodes, row, strict=True)
        ]  # fmt: skip
        ends[group.label] = float(means.mean(0)[-1]), form["color"]
        last = max(last, length)
    if not lines:
        return None
    first = next(iter(groups[0].runs.values()))
    axes.set(xlabel="episode", ylabel=f"mean {_measured(first)}, on tasks seen")
    if first.shows_accuracy:
        axes.set(ylabel="mean test accuracy on tasks seen, %")
        percent(axes.yaxis)
    whole(axes.xaxis)
    _label_ends(axes, last, [end for end, _ in ends.values()], list(ends), [colour for _, colour in ends.values()])
    caption = f"Mean test {first.metric} on the tasks seen so far, after each episode: the mean over seeds" + (
        ", and the range from the lowest to the highest seed." if len(groups) <= _BANDS else "."
    )
    data = pd.DataFrame(lines, columns=["run", "seed", "episode", first.metric])
    return Picture("accuracy_over_episodes", "Accuracy over episodes", caption, drawn, data)


COSTS = {
    "train_seconds": "training time, seconds",
    "bytes": "stored, bytes",
    "parameters_per_prediction": "parameters asked per prediction",
}


def accuracy_against_cost(groups: Sequence[Group]) -> Picture | None:
    """Final accuracy against training time, storage and inference cost, a point for each group."""
    lines = []
    for group in groups:
        for seed, run in group.runs.items():
            found = run.summary
            # What is stored is not known where a task was forgotten.
            if run.finished and run.shows_accuracy and found["stored_bytes"] is not None:
                stored = found["stored_bytes"] + 4 * found["parameters_total"]
                lines.append((group.label, seed, found["avg_acc_final"], found["train_seconds"], stored,
                              found["parameters_per_prediction"]))  # fmt: skip
    if not lines:
        return None
    data = pd.DataFrame(lines, columns=["run", "seed", "accuracy", *COSTS])
    forms = {group.label: {**look(number), "linestyle": "none"} for number, group in enumerate(groups)}
    labels = list(dict.fromkeys(data.run))
    rows = -(-len(labels) // 3)
    drawn, axes = figure(6.2 + 0.17 * rows, len(COSTS), 1)
    for place, (key, title) in zip(axes, COSTS.items(), strict=True):
        for label in labels:
            part = data[data.run == label]
            place.plot(part[key].mean(), part.accuracy.mean(), markersize=6, label=label, **forms[label])  # type: ignore[arg-type]
            ends = [part.accuracy.min(), part.accuracy.max()]
            place.plot([part[key].mean()] * 2, ends, color=forms[label]["color"], linewidth=1)
        place.set(xlabel=title, ylabel="final accuracy, %", xscale="log")
        percent(place.yaxis)
        place.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        place.xaxis.set_major_formatter(lambda value, _: readable(value))
        place.xaxis.set_minor_formatter(NullFormatter())
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, handletextpad=0.2)
    caption = (
        "What accuracy costs: final test accuracy against seconds in training loops, bytes that are stored (examples, "
        "and parameters at four bytes), and parameters of the networks that answer one example. Points are means over "
        "seeds, bars reach from the lowest to the highest seed; upper left is best."
    )
    return Picture("accuracy_against_cost", "Accuracy against cost", caption, drawn, data)


def of_several_runs(groups: Sequence[Group]) -> list[Picture]:
    """All figures that these runs have the data for."""
    return [picture for picture in (accuracy_over_episodes(groups), accuracy_against_cost(groups)) if picture]
