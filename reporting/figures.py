"""The figures of one run: each has a caption that can be read alone and the data that it shows."""

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import LogLocator, NullFormatter

from datasets.objectives import BINS
from evaluation.anytime import MOST
from records.members import answering
from records.run import Array, Run
from records.summary import curves_of, direction, signed
from reporting import analysis
from reporting.drawing import DrawnFigure, against_steps, count_from_one, heat_map, height, label_ends, measured
from reporting.mechanism_matrices import mechanism_matrices
from reporting.style import DIVERGING, MUTED, SHADES, WIDTH, colours, empty_figure, marker, whole
from studies.tables import readable

_PANELS = 20  # the most tasks whose confusion matrices are drawn


def of_one_run(run: Run) -> list[DrawnFigure]:
    """All figures that this run has the data for."""
    pictures = [accuracy_matrix(run), transfer_curves(run), while_learning(run), training_grid(run)]
    pictures += [sampling_weights(run), mechanism_matrices(run)]
    if run.classifies:
        several = any(len(members) > 1 for members in run.test_predictions.values())
        pictures += [added_by_members(run), task_affinity(run)] if several else []
        pictures += [confusion(run), reliability(run)]
    return [picture for picture in [*pictures, cost(run)] if picture is not None]


def _by_episode(values: Array, run: Run) -> pd.DataFrame:
    index = pd.RangeIndex(1, len(values) + 1, name="episode")
    return pd.DataFrame(values, index=index, columns=run.task_labels).reset_index()


def accuracy_matrix(run: Run) -> DrawnFigure:
    """The accuracy matrix R[k, t], a row for each episode."""
    R = run.accuracy_matrix
    drawn, (axes,) = empty_figure(height(len(R)))
    low = np.floor(20 * np.nanmin(R)) / 20
    norm = Normalize(min(low, 0.95), 1.0) if run.shows_accuracy else Normalize(np.nanmin(R), np.nanmax(R))
    text = (lambda value: f"{100 * value:.0f}") if run.shows_accuracy else (lambda value: f"{value:.3g}")
    heat_map(axes, R, SHADES, norm, text).set_label(measured(run))
    axes.set(xlabel="task", ylabel="after episode")
    shown = "accuracy" if run.shows_accuracy else measured(run)
    title = f"{run.metric.capitalize()} matrix"
    caption = f"{title} R. Row k, column t: {shown} on the test examples of task t after episode k"
    caption += ", in percent." if run.shows_accuracy else "."
    if run.continual and run.shows_accuracy:
        caption += " Down a column, a task is forgotten (darker) or improved by later episodes."
    return DrawnFigure("accuracy_matrix", title, caption, drawn, _by_episode(R, run))


def transfer_curves(run: Run) -> DrawnFigure | None:
    """A line for each task from its own episode on, and the accuracy of an isolated network; None of one episode."""
    if len(run.episodes) == 1:
        return None
    names, R = run.task_labels, run.accuracy_matrix
    drawn, (axes,) = empty_figure(height(len(names), 3.6))
    palette = colours(len(names))
    lines: list[tuple[str, int, float, float]] = []
    alone = np.full(len(names), np.nan) if run.isolated is None else run.isolated
    for task, name in enumerate(names):
        seen = np.flatnonzero(~np.isnan(R[:, task]))
        axes.plot(seen + 1, R[seen, task], color=palette[task], marker=marker(task), markersize=3)
        axes.plot(seen[0] + 1, alone[task], "x", color=palette[task], markersize=6, markeredgewidth=1.6)
        lines += [(name, episode + 1, R[episode, task], alone[task]) for episode in seen]
    against_steps(axes, "episode", measured(run), run.shows_accuracy)
    label_ends(axes, len(R), R[-1], names, palette)
    data = pd.DataFrame(lines, columns=["task", "episode", run.metric, "isolated"]).dropna(axis=1, how="all")
    caption = f"Test {run.metric} on each task, from the episode in which it arrives to the last one."
    if not run.continual:
        caption = f"Test {run.metric} on each task after each episode; all tasks are known from the start."
    if run.isolated is not None:
        caption += " The cross is a network trained on that task alone."
    if not run.shows_accuracy:
        caption += f" {direction(run.summary).capitalize()}."
    elif run.continual and run.isolated is not None:
        caption += " A line that begins above its cross is forward transfer, one that rises is backward transfer."
    elif run.continual:
        caption += " Lines that fall are forgetting, lines that rise are backward transfer."
    return DrawnFigure("transfer_curves", "Transfer between tasks", caption, drawn, data)


def while_learning(run: Run) -> DrawnFigure | None:
    """A line for each task over the steps of the run from its own episode on; None without --evaluate_every."""
    steps, values, ends = curves_of(run.rows)
    if not steps:
        return None
    names, last, lines = run.task_labels, np.array(steps)[ends], []
    drawn, (axes,) = empty_figure(height(len(names), 3.6))
    palette = colours(len(names))
    for begin in (0, *last[:-1]):
        axes.axvline(begin, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
    for task, name in enumerate(names):
        seen = np.flatnonzero(~np.isnan(values[:, task]))
        axes.plot(np.array(steps)[seen], values[seen, task], color=palette[task], linewidth=1.2)
        lines += [(name, steps[moment], values[moment, task]) for moment in seen]
    against_steps(axes, "gradient steps of the run", measured(run), run.shows_accuracy)
    label_ends(axes, steps[-1], values[-1], names, palette)
    data = pd.DataFrame(lines, columns=["task", "step", run.metric])
    caption = f"Test {run.metric} on each task while tasks are learned, on at most {MOST:,} test examples of each."
    caption += " A task begins at each dashed line"
    caption += "; a line that falls there and recovers shows a stability gap." if run.shows_accuracy else "."
    caption += "" if run.shows_accuracy else f" {direction(run.summary).capitalize()}."
    title = "Accuracy while learning" if run.shows_accuracy else "While learning"
    return DrawnFigure("while_learning", title, caption, drawn, data)


def training_grid(run: Run) -> DrawnFigure | None:
    """The tasks that the network of each episode was trained on; None if nothing was trained."""
    if not any(facts.tasks for facts in run.episodes):
        return None
    names = run.task_names
    grid = np.zeros((len(run.episodes), len(names)), int)
    drawn, (axes,) = empty_figure(height(len(grid)))
    palette = colours(len(names))
    for row, facts in enumerate(run.episodes):
        for task in sorted(facts.tasks):
            grid[row, task - 1] = 1
            new = not run.continual or task == row + 1
            axes.scatter(task, row + 1, s=min(60.0, 2000 / max(grid.shape) ** 1.35), marker="s", linewidths=1.2,
                         edgecolors=palette[task - 1], facecolors=palette[task - 1] if new else "none")  # fmt: skip
    axes.set(xlabel="task", ylabel="episode", xlim=(0.4, len(names) + 0.6), ylim=(len(grid) + 0.6, 0.4))
    count_from_one(axes, len(names), len(grid), offset=1)
    caption = "Which tasks the network of each episode was trained on."
    caption += " Filled: the new task. Open: past tasks, drawn for replay." if run.continual else ""
    return DrawnFigure("members", "Who learned what", caption, drawn, _by_episode(grid, run))


def sampling_weights(run: Run) -> DrawnFigure | None:
    """How likely each task was to be drawn; None if no tasks are drawn."""
    drawn_from, tasks = [facts.sampling_weights for facts in run.episodes], range(1, len(run.task_names) + 1)
    weights = pd.DataFrame(drawn_from, columns=tasks).to_numpy(float)
    if not np.isfinite(weights).any():
        return None
    shares = weights / np.nansum(weights, 1, keepdims=True).clip(1e-300)
    drawn, (axes,) = empty_figure(height(len(weights)))
    norm = LogNorm(float(np.clip(np.nanmin(shares), 1e-3, 0.5)), 1.0)
    bar = heat_map(axes, shares, SHADES, norm, lambda value: f"{100 * value:.0f}" if value >= 0.005 else "")
    axes.set(xlabel="task", ylabel="episode")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label("share of the weights, %")
    caption = (
        "How the tasks that are replayed were chosen: the share of each task in the sampling weights of the episode, "
        "in percent. The worse the ensemble still fits a task, the likelier it is drawn (brighter)."
    )
    return DrawnFigure("sampling_weights", "Sampling weights", caption, drawn, _by_episode(weights, run))


def added_by_members(run: Run) -> DrawnFigure:
    """Accuracy on each task against the number of members that answer it."""
    table, names = analysis.added_by_members(run), run.task_labels
    drawn, (axes,) = empty_figure(height(len(names), 3.6))
    palette, ends, tasks = colours(len(names)), [], list(run.test_predictions)
    last = int(table.members.max())
    for task in tasks:
        line, colour = table[table.task == task], palette[task - 1]
        axes.plot(line.members, line.accuracy, color=colour, marker=marker(task - 1), markersize=3)
        ends.append(line.accuracy.iloc[-1])
        if len(line) < last:
            axes.plot([line.members.iloc[-1], last], [ends[-1]] * 2, ":", color=colour, linewidth=0.9)
    against_steps(axes, "members that answer the task", "test accuracy, %", as_percent=True)
    label_ends(axes, last, ends, [names[t - 1] for t in tasks], [palette[t - 1] for t in tasks])
    caption = (
        "What each member added: test accuracy on a task when its first m members answer, in the order in which they "
        "joined. Dotted: no more members were trained on the task."
    )
    data = table.assign(task=[names[task - 1] for task in table.task])
    return DrawnFigure("added_by_members", "What each member added", caption, drawn, data)


def task_affinity(run: Run) -> DrawnFigure | None:
    """Which tasks helped which; None if no members can be compared."""
    difference, together = analysis.affinity(run)
    if not np.isfinite(difference).any():
        return None
    names = run.task_labels
    drawn, (axes,) = empty_figure(height(len(names)))
    bound = max(0.01, np.nanmax(np.abs(difference)))
    bar = heat_map(axes, difference, DIVERGING, Normalize(-bound, bound), lambda value: signed(100 * value, 0))
    bar.set_label("difference, points")
    axes.set(xlabel="trained together with task", ylabel="accuracy on task")
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
    return DrawnFigure("task_affinity", "Task affinity", caption, drawn, data)


def confusion(run: Run) -> DrawnFigure:
    """How often each class is taken for each other one, a panel for each of the first tasks."""
    data = analysis.confusion(run)
    tables = dict(list(data.groupby("task", sort=False))[:_PANELS])
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    drawn, axes = empty_figure(0.4 + rows * (0.3 + WIDTH / (columns + 1)), rows, columns)
    for panel in axes:
        panel.set_axis_off()
    for number, (panel, table) in enumerate(zip(axes, tables.values(), strict=False), 1):
        counts = table.n.to_numpy().reshape(table["class"].nunique(), -1)
        shares = counts / counts.sum(1, keepdims=True).clip(1)
        image = panel.imshow(shares, cmap=SHADES, norm=Normalize(0, 1), interpolation="nearest")
        panel.set_title(f"task {number}" if len(tables) > 1 else table.task.iloc[0])
    bar = drawn.colorbar(image, ax=axes, shrink=0.6, format=lambda value, _: f"{100 * value:.0f}")
    bar.set_label("share of the class, %")
    caption = "Confusion matrices. Row: the right class, column: the answer, in the order of the classes of the task."
    if data.task.nunique() > len(tables):
        caption += f" The first {len(tables)} tasks; the CSV file has all."
    return DrawnFigure("confusion", "Which classes are confused", caption, drawn, data)


def reliability(run: Run) -> DrawnFigure:
    """Confidence against accuracy, before and after averaging."""
    bins, names = analysis.reliability(run), {"one member": "single members", "ensemble": "ensemble"}
    if all(len(members) == 1 for members in run.test_predictions.values()):
        names = {"ensemble": "the network"}
    drawn, (axes,) = empty_figure(3.6)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle="--")
    for answer, label in names.items():
        colour = "#0072b2" if answer == "ensemble" else "#e69f00"
        axes.plot(bins[answer].confidence, bins[answer].accuracy, marker="o", color=colour, label=label)
    data = pd.concat([bins[answer].assign(answer=label) for answer, label in names.items()])
    low = max(0, float(data[["confidence", "accuracy"]].min().min()) - 0.05)
    axes.set(xlabel="probability of the predicted class", ylabel="share that is right")
    axes.set(xlim=(low, 1.01), ylim=(low, 1.02))
    axes.legend()
    caption = (
        f"Reliability. The test predictions of all tasks, sorted by the probability of the predicted class into "
        f"{BINS} bins of equal size: how often they are right against how confident they are. On the dashed line "
        "the probabilities are calibrated; below it they are overconfident, above it too cautious."
    )
    return DrawnFigure("reliability", "Reliability", caption, drawn, data)


def cost(run: Run) -> DrawnFigure:
    """Time, memory, parameters and examples of each episode."""
    names = ("episode", "seconds", "train_seconds", "peak_memory_bytes", "sample_gradients", "examples")
    data = pd.DataFrame({name: [getattr(facts, name) for facts in run.episodes] for name in names})
    kept = [answering([member for member in run.members if member.episode <= episode]) for episode in data.episode]
    data.insert(4, "parameters_stored", [sum(member.parameters for member in members) for members in kept])
    drawn, axes = empty_figure(3.8, 2, 2)
    rest = data.seconds - data.train_seconds
    axes[0].bar(data.episode, data.train_seconds, color="#0072b2", label="training")
    axes[0].bar(data.episode, rest, bottom=data.train_seconds, color="#e69f00", label="the rest")
    axes[0].set(title="time, seconds", ylim=(0, 1.28 * data.seconds.max()))
    axes[0].legend(ncols=2, loc="upper left", handlelength=1)
    shown = {"examples": "examples, in an epoch", "peak_memory_bytes": "peak memory, bytes",
             "parameters_stored": "parameters stored"}  # fmt: skip
    for panel, (name, title) in zip(axes[1:], shown.items(), strict=True):
        panel.bar(data.episode, data[name], color="#0072b2")
        panel.set(title=title)
        panel.yaxis.set_major_formatter(lambda value, _: readable(value) if value else "0")
    for panel in axes:
        panel.grid(axis="x", visible=False)
        whole(panel.xaxis)
    for panel in axes[2:]:
        panel.set(xlabel="episode")
    caption = (
        "What each episode cost: wall time; examples trained on, new and replayed; the highest memory use of the "
        "process, or of the GPU; parameters of all networks kept after the episode."
    )
    return DrawnFigure("cost", "Cost", caption, drawn, data)
