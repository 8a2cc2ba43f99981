"""The report: every number in it follows from the run directory, and the page needs nothing else."""

import base64
import contextlib
import csv
import html
import io
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, log_loss

import forget
import modelzoo
from records.checkpoints import RunCheckpoints
from records.run import Run
from report import main
from reporting import analysis, figures, style
from reporting.groups import compare
from studies.tables import METRICS
from tests.standins import write_image_folder
from tests.tables import read_metrics

PROJECT = Path(__file__).parent.parent
SPLIT, ROTATED = (str(PROJECT / "config" / "dataset" / f"{name}_digits.yaml") for name in ("split", "rotated"))
MLP = str(PROJECT / "config" / "hyperparam" / "mlp.yaml")
SMALL = ["--set", "net.width=16"]
# Names that a page, an SVG and TeX could take for something else.
NAMES = ["zero & one", "<b>two</b> three", "$4_5$ ^", '"6" 7\\', "8 % 9"]
LABELS = [f"{number} {name}" for number, name in enumerate(NAMES, 1)]
TASKS = [{"name": name, "classes": [2 * i, 2 * i + 1]} for i, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of isolated networks, the zoo and ER on the split digits."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "names.yaml").write_text(yaml.safe_dump({"dataset": "digits", "tasks": TASKS}))
    given = ["--data_config", str(folder / "names.yaml"), "--samples", "4", "--epochs", "2", "--continual", "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        for seed, (method, more) in itertools.product(
            "01", [("isolated", []), ("zoo", ["--tasks_per_round", "3"]), ("er", ["--memory_per_class", "2"])]
        ):
            here = ["--method", method, "--seed", seed, "--run_dir", str(folder / f"runs/{method}{seed}")]
            assert modelzoo.main([*given, *more, *here]) == 0
    return folder / "runs"


@pytest.fixture(scope="module")
def page(runs):
    """The page of the zoo, compared with isolated networks."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main([str(runs / "zoo0"), "--isolated", str(runs / "isolated0")]) == 0
    assert told.getvalue() == f"{runs / 'zoo0/report.html'}\n"
    return runs / "zoo0/report.html"


@pytest.fixture(scope="module")
def page_of_several(runs, tmp_path_factory):
    """The page of all runs, in a folder of a long name."""
    folder = tmp_path_factory.mktemp("several")
    far = shutil.copytree(runs, folder / ("folder_of_a_long_name_" * 10))
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([str(far), "--out", str(folder)]) == 0
    return folder / "report.html"


class Tables(HTMLParser):
    """The cells of all tables, the numbers at the top, and what is linked."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tiles, self.links, self._into = [], {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href", "data")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._into = "cell"
        elif tag in ("dt", "dd"):
            self._into = tag
        elif tag == "small":
            self._into = None

    def handle_endtag(self, tag):
        if tag in ("td", "th", "dt", "dd"):
            self._into = None

    def handle_data(self, data):
        if self._into == "cell":
            self.tables[-1][-1][-1] += data
        elif self._into == "dt":
            self.tiles[data], self._last = "", data
        elif self._into == "dd":
            self.tiles[self._last] += data


def test_a_heading_stands_above_something(page):
    """What was not asked, such as the mechanism of a network on images, has no heading."""
    sections = re.findall(r"<section>\s*<h2>(.*?)</h2>(.*?)</section>", page.read_text(), re.DOTALL)
    assert {"What was learned", "Cost"} <= {title for title, _ in sections}
    assert [title for title, content in sections if not re.search("<table|<figure|<details", content)] == []


def figure(page, name):
    return pd.read_csv(page.parent / "figures" / f"{name}.csv", float_precision="round_trip")


def measured(run):
    rows = read_metrics(run).query("scenario == 'task-incremental' and split == 'test' and episode > 0")
    return rows.pivot(index="episode", columns="task", values="accuracy").to_numpy()


def answers(run, task):
    """Member -> its probabilities on the test examples, and the right classes."""
    saved = {int(path.stem[-3:]): load_file(path) for path in sorted((run / "predictions").glob("member_*"))}
    targets = load_file(run / "predictions/targets.safetensors")[f"task_{task}/test"]
    name = f"task_{task}/test"
    return {number: tensors[name].astype(float) for number, tensors in saved.items() if name in tensors}, targets


def ece(probabilities, targets):
    """One example after the other."""
    sure, hits = probabilities.max(1), probabilities.argmax(1) == targets
    gaps = [0.0] * 15
    for confidence, hit in zip(sure, hits, strict=True):
        gaps[15 * sum(other < confidence for other in sure) // len(sure)] += float(hit) - confidence
    return sum(map(abs, gaps)) / len(sure)


def test_tables_and_tiles_follow_from_the_measurements(runs, page):
    tables = Tables(page.read_text())
    R, isolated = measured(runs / "zoo0"), measured(runs / "isolated0")[-1]
    header, *rows, mean = tables.tables[0]
    assert header == ["task", "right after its episode", "at the end", "isolated network", "95 % interval, at the end"]
    counts = [len(answers(runs / "zoo0", task)[1]) for task in range(1, 6)]
    half = 0.0
    for task, row in enumerate(rows):
        shown = [R[task, task], R[-1, task], isolated[task]]
        assert row[:-1] == [f"{task + 1} {NAMES[task]}", *(f"{value:.4f}" for value in shown)]
        hits = round(R[-1, task] * counts[task])
        wilson = stats.binomtest(hits, counts[task]).proportion_ci(method="wilson")
        assert row[-1] == f"{wilson.low:.4f}–{wilson.high:.4f}"
        half = np.hypot(half, (wilson.high - wilson.low) / 2 / 5)
    assert mean == ["mean", *(f"{np.mean(v):.4f}" for v in (R.diagonal(), R[-1], isolated)), f"± {half:.4f}"]
    assert f"; ± {100 * half:.1f} (test examples)" in page.read_text()
    expected = {
        "final accuracy": f"{100 * R[-1].mean():.1f}",
        "backward transfer": f"{100 * np.mean([R[-1, t] - R[t, t] for t in range(4)]):+.1f}",
        "forgetting": f"{100 * np.mean([R[t:4, t].max() - R[-1, t] for t in range(4)]):+.1f}",
        "gain over isolated": f"{100 * (R[-1] - isolated).mean():+.1f}",
        "forward transfer": f"{100 * (R.diagonal() - isolated)[1:].mean():+.1f}",
        "networks saved": "5",
    }
    assert {name: tables.tiles[name] for name in expected} == {
        name: value.replace("-0.0", "+0.0") for name, value in expected.items()
    }
    assert "A selection of the episodes" not in page.read_text()
    assert not re.search(r">-0(\.0+)?[<% ]", page.read_text())


def test_accuracy_on_each_class_and_confusion_follow_from_the_predictions(runs, page):
    header, *rows = Tables(page.read_text()).tables[2]
    assert header[:4] == ["task", "class", "test examples", "accuracy"]
    counts = figure(page, "confusion").n.to_numpy().reshape(5, 2, 2)
    for task in range(1, 6):
        members, targets = answers(runs / "zoo0", task)
        truth = confusion_matrix(targets, np.mean(list(members.values()), 0).argmax(1))
        np.testing.assert_array_equal(counts[task - 1], truth)
        for output in range(2):
            _, _, n, accuracy, mistaken = rows[2 * (task - 1) + output]
            assert (int(n), float(accuracy)) == (
                truth[output].sum(),
                pytest.approx(truth[output, output] / int(n), abs=1e-4),
            )
            assert mistaken.endswith(f"({truth[output, 1 - output]})") or not truth[output, 1 - output]
        panel = figures.confusion(Run.load(runs / "zoo0")).drawn.axes[task - 1]
        shares = truth / truth.sum(1, keepdims=True)
        np.testing.assert_allclose(panel.images[0].get_array(), shares)


def test_unlike_classes_show_what_the_largest_one_gives(tmp_path, monkeypatch, capsys, undrawn):
    """Nine white and three black test images; a network asked to call all white has 75 %, balanced 50 %."""
    monkeypatch.chdir(tmp_path)
    for part, name, count in (("train", "a", 4), ("train", "b", 4), ("test", "a", 9), ("test", "b", 3)):
        folder = Path("data/own", part, name)
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    Path("own.yaml").write_text("{dataset: image_folder, root: own, image_size: 8, tasks: [[a, b]]}")
    assert (
        modelzoo.main(["--data_config", "own.yaml", "--continual", "--epochs", "1", "--quiet", "--run_dir", "run"]) == 0
    )
    assert main(["run"]) == 0
    header, row, _ = Tables(Path("run/report.html").read_text()).tables[0]
    shown = dict(zip(header, row, strict=True))
    members, targets = answers(Path("run"), 1)
    answered = np.mean(list(members.values()), 0).argmax(1)
    assert shown["majority rate"] == "0.7500"
    assert float(shown["balanced accuracy"]) == pytest.approx(balanced_accuracy_score(targets, answered), abs=1e-4)
    assert "one after another, from all training examples." in Path("run/report.html").read_text()


def test_accuracy_without_the_task_follows_from_the_measurements(runs, page):
    header, *rows = Tables(page.read_text()).tables[1]
    measured = read_metrics(runs / "zoo0").query("split == 'test' and episode > 0")
    assert header[1:] == ["routed-class", "task-identification"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    for row in rows:
        for scenario, value in zip(header[1:], row[1:], strict=True):
            found = measured[(measured.episode == int(row[0])) & (measured.scenario == scenario)]
            assert float(value) == pytest.approx(found.accuracy.mean(), abs=5e-5)


@pytest.mark.parametrize(("stream", "domain"), [("rotated_digits", True), ("digits", False)])
def test_what_is_shown_without_the_task_is_explained_and_nothing_else(
    stream, domain, tmp_path, monkeypatch, capsys, undrawn
):
    monkeypatch.chdir(tmp_path)
    pairs = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [0, 9]]
    Path("d.yaml").write_text(yaml.safe_dump({"dataset": stream, "tasks": 6 if domain else pairs}))
    given = ["--data_config", "d.yaml", "--samples", "1", "--epochs", "1", "--method", "finetune", "--continual"]
    assert modelzoo.main([*given, *SMALL, "--quiet", "--run_dir", "run"]) == 0
    assert main(["run"]) == 0
    text = Path("run/report.html").read_text()
    header, *rows = Tables(text).tables[1]
    found = {name for name in header if name.startswith("routed-domain")}
    assert found == ({"routed-domain", "routed-domain-sum"} if domain else set())
    assert len(rows) == 5
    assert "A selection of the episodes; the CSV file has all." in text
    assert ("routed-domain: only the class;" in text) == domain


def test_calibration_follows_from_the_predictions(runs, page):
    header, *rows, _ = Tables(page.read_text()).tables[3]
    assert header[:4] == ["task", "members", "accuracy, one member", "accuracy, ensemble"]
    last = (
        read_metrics(runs / "zoo0")
        .query("scenario == 'task-incremental' and split == 'test' and episode == 5")
        .set_index("task")
    )
    for task, row in enumerate(rows, 1):
        members, targets = answers(runs / "zoo0", task)
        mean = np.mean(list(members.values()), 0)
        right = np.eye(2)[targets]
        scores = (
            lambda p, y=targets: accuracy_score(y, p.argmax(1)),
            lambda p, y=targets: log_loss(y, p / p.sum(1, keepdims=True)),
            lambda p, right=right: np.mean(np.sum((p - right) ** 2, 1)),
            lambda p, y=targets: ece(p, y),
        )
        expected = [value for score in scores for value in (np.mean([score(p) for p in members.values()]), score(mean))]
        assert row[1] == str(len(members))
        assert float(row[-1]) == pytest.approx(last.ece[task], abs=1e-4)
        assert float(row[5]) == pytest.approx(last.loss[task], abs=1e-4)
        assert [float(value) for value in row[2:]] == pytest.approx(expected, abs=1e-4)


def test_the_data_of_each_figure_follow_from_the_run(runs, page):
    run = runs / "zoo0"
    R, isolated = measured(run), measured(runs / "isolated0")[-1]
    assert list(figure(page, "accuracy_matrix")) == ["episode", *LABELS]
    np.testing.assert_array_equal(figure(page, "accuracy_matrix")[LABELS].to_numpy(), R)
    curves = figure(page, "transfer_curves")
    for line in curves.itertuples():
        task = LABELS.index(line.task)
        assert line.accuracy == R[line.episode - 1, task]
        assert line.isolated == isolated[task]
    assert len(curves) == np.isfinite(R).sum()
    episodes = pd.read_csv(run / "episodes.csv", float_precision="round_trip")
    grid, weights = figure(page, "members"), figure(page, "sampling_weights")
    for row, facts in enumerate(episodes.itertuples()):
        trained = {int(task) for task in str(facts.tasks).split()}
        assert {task for task in range(1, 6) if grid[LABELS[task - 1]][row]} == trained
        pairs = [] if pd.isna(facts.sampling_weights) else facts.sampling_weights.split()
        found = {task: weights[LABELS[task - 1]][row] for task in range(1, 6)}
        assert {task: w for task, w in found.items() if not np.isnan(w)} == {
            int(task): float(weight) for task, weight in (pair.split(":") for pair in pairs)
        }
    costs = figure(page, "cost")
    for name in ("seconds", "train_seconds", "sample_gradients", "examples", "peak_memory_bytes"):
        assert costs[name].tolist() == episodes[name].tolist()
    parameters = [json.loads(path.read_text())["parameters"] for path in sorted((run / "members").glob("*.json"))]
    assert costs.parameters_stored.tolist() == np.cumsum(parameters).tolist()


def test_what_members_added_and_which_tasks_went_together(runs, page):
    run = runs / "zoo0"
    trained = [set(json.loads(path.read_text())["tasks"]) for path in sorted((run / "members").glob("*.json"))]
    added, together = figure(page, "added_by_members"), figure(page, "task_affinity")
    for task in range(1, 6):
        members, targets = answers(run, task)
        scores = {number: accuracy_score(targets, p.argmax(1)) for number, p in members.items()}
        lines = added[added.task == LABELS[task - 1]]
        assert lines.member.tolist() == list(members)
        for count, found in zip(lines.members, lines.accuracy, strict=True):
            mean = np.mean(list(members.values())[:count], 0)
            assert found == pytest.approx(accuracy_score(targets, mean.argmax(1)))
        for other in set(range(1, 6)) - {task}:
            both = [score for number, score in scores.items() if other in trained[number]]
            without = [score for number, score in scores.items() if other not in trained[number]]
            line = together[(together.task == LABELS[task - 1]) & (together["with"] == LABELS[other - 1])].iloc[0]
            assert line.members == len(both)
            if both and without:
                assert line.difference == pytest.approx(np.mean(both) - np.mean(without))
            else:
                assert np.isnan(line.difference)


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    links = Tables(text).links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\((?!#)|@import|<script|<img", text)
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) <= {(n, "") for n in names} | {
        ("", n) for n in names
    }
    drawn = re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)
    assert len(drawn) == len(list((page.parent / "figures").glob("*.svg"))) == 9
    for picture in drawn:
        shown = "".join(ElementTree.fromstring(picture.replace("xlink:href", "href")).itertext())
        assert "$4_5$" in shown or not any(name[:5] in shown for name in NAMES)
    assert "<b>two</b>" not in text
    assert "mathdefault" not in text  # TeX, which would be shown as it is
    linked = [link.partition(",")[2] for link in links if link.startswith("data:text/csv")]
    files = {path.read_text() for path in (page.parent / "figures").glob("*.csv")}
    assert files <= {base64.b64decode(content).decode() for content in linked}


def test_the_figures_are_files_for_papers_and_slides(page):
    files = {path.name for path in (page.parent / "figures").iterdir()}
    names = {"accuracy_matrix", "transfer_curves", "members", "sampling_weights", "added_by_members", "task_affinity",
             "reliability", "confusion", "cost"}  # fmt: skip
    assert files == {f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv")}
    assert modelzoo.main(["--verify", str(page.parent)]) == 0


def test_figures_are_readable_on_a_page_of_400_pixels(page):
    """320 pixels are left for a figure beside the margins of the page and of the frame."""
    for picture in re.findall(r"<svg .*?</svg>", page.read_text(), flags=re.DOTALL):
        width = float(re.search(r'viewBox="0 0 (\S+)', picture)[1])
        sizes = {float(size) for size in re.findall(r"font(?:-size)?:[^;\"]*?([\d.]+)px", picture)}
        assert sizes
        assert min(sizes) * 320 / width > 7


def test_the_same_run_makes_the_same_report(runs, page, tmp_path, capsys):
    assert main([str(runs / "zoo0"), "--isolated", str(runs / "isolated0"), "--out", str(tmp_path)]) == 0
    for path in (page.parent / "figures").iterdir():
        assert (tmp_path / "figures" / path.name).read_bytes() == path.read_bytes(), path.name


def test_one_network_for_all_tasks_has_no_ensemble(runs, capsys, undrawn):
    assert main([str(runs / "er0")]) == 0
    page = runs / "er0/report.html"
    header, *rows, _ = Tables(page.read_text()).tables[3]
    assert header == ["task", "members", "accuracy", "NLL, nats", "Brier score", "ECE"]
    R = measured(runs / "er0")
    for task, row in enumerate(rows):
        assert float(row[2]) == pytest.approx(R[-1, task], abs=1e-4)
    assert not (page.parent / "figures/added_by_members.png").exists()
    assert figure(page, "cost").parameters_stored.is_monotonic_increasing


def test_members_count_by_what_they_saw(tmp_path, monkeypatch, capsys, undrawn):
    """With half of the examples kept, the member that saw all of a task weighs twice."""
    monkeypatch.chdir(tmp_path)
    given = [*SMALL, "--samples", "4", "--epochs", "1", "--quiet", "--continual", "--replay_frac", "0.5"]
    assert modelzoo.main([*given, "--run_dir", "zoo"]) == 0
    assert main(["zoo"]) == 0
    members, targets = answers(Path("zoo"), 1)
    assert len(members) == 5
    mean = np.average(list(members.values()), axis=0, weights=[2, 1, 1, 1, 1])
    mean /= mean.sum(1, keepdims=True)
    row = Tables(Path("zoo/report.html").read_text()).tables[3][1]
    assert float(row[5]) == pytest.approx(log_loss(targets, mean), abs=1e-4)
    plain = np.mean(list(members.values()), 0)
    assert float(row[5]) != pytest.approx(log_loss(targets, plain / plain.sum(1, keepdims=True)), abs=1e-4)
    rows = read_metrics("zoo").query(
        "scenario == 'task-incremental' and split == 'test' and episode == 5 and task == 1"
    )
    assert float(row[5]) == pytest.approx(rows.loss.item(), abs=1e-4)


def test_a_run_without_members_of_some_tasks_says_so(tmp_path, monkeypatch, capsys, undrawn):
    """Every member but the first saw task 2, so that only the first task has a member without it."""
    monkeypatch.chdir(tmp_path)
    given = [*SMALL, "--samples", "2", "--epochs", "1", "--quiet", "--continual", "--tasks_per_round", "5"]
    assert modelzoo.main([*given, "--run_dir", "zoo"]) == 0
    assert forget.main(["zoo", "--task", "2", "--quiet", "--run_dir", "less"]) == 0
    for name, lost in [("zoo", None), ("less", 3)]:
        assert main([name]) == 0
        text = Path(name, "report.html").read_text()
        assert re.findall(r"No network answers (\d) of the tasks\.", text) == ([] if lost is None else [str(lost)])
        assert ("How it was learned" in text) == (lost is None)
        assert Path(name, "figures/members.png").exists() == (lost is None)
    assert len(Tables(Path("less/report.html").read_text()).tables[0]) == 1 + 1 + 1  # header, task 1, mean


def test_all_tasks_at_once(tmp_path, monkeypatch, capsys, undrawn):
    monkeypatch.chdir(tmp_path)
    given = [*SMALL, "--samples", "3", "--epochs", "1", "--quiet"]
    assert modelzoo.main([*given, "--rounds", "3", "--tasks_per_round", "2", "--run_dir", "zoo"]) == 0
    assert modelzoo.main([*given, "--method", "joint", "--run_dir", "joint"]) == 0
    assert main(["zoo"]) == 0
    assert figure(Path("zoo/report.html"), "accuracy_matrix").shape == (3, 6)
    assert "backward transfer" not in Path("zoo/report.html").read_text()
    assert main(["joint"]) == 0
    assert not Path("joint/figures/transfer_curves.png").exists()
    header, *rows, _ = Tables(Path("joint/report.html").read_text()).tables[0]
    assert header == ["task", "at the end", "95 % interval, at the end"]
    assert [float(row[1]) for row in rows] == pytest.approx(measured(Path("joint"))[0], abs=1e-4)
    assert main(["zoo", "joint", "--out", "both"]) == 0


def test_a_run_that_was_interrupted_has_a_report(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    given = [*SMALL, "--continual", "--samples", "3", "--epochs", "1", "--quiet", "--run_dir", "run"]
    monkeypatch.setattr(RunCheckpoints, "stop_if_asked", stop_after(2))
    with pytest.raises(Stopped):
        modelzoo.main(given)
    assert main(["run"]) == 0
    page = Path("run/report.html")
    assert "run is not finished: this is its state after episode 2 of 5." in page.read_text()
    assert "No network answers" not in page.read_text()
    assert figure(page, "accuracy_matrix").shape == (2, 3)
    assert measured(Path("run")).shape == (2, 2)
    assert main(["run", "--format", "md"]) == 2
    assert "none of the runs is finished" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert modelzoo.main([*given, "--resume"]) == 0
    assert main(["run"]) == 0
    assert "not finished" not in page.read_text()


class Stopped(Exception):  # noqa: N818
    pass


def stop_after(episodes):
    seen = [0]

    def stop(self):
        seen[0] += 1
        if seen[0] == episodes:
            raise Stopped

    return stop


def test_runs_are_compared(runs, page_of_several):
    text = page_of_several.read_text()
    assert "mathdefault" not in text
    tables = Tables(text).tables
    accuracy = {row[0]: row[1:] for row in tables[0][1:]}
    assert tables[0][0] == ["method", *(column.title for column in METRICS)]
    assert accuracy.keys() == {"er", "isolated", "zoo"}
    for method, row in accuracy.items():
        final = [measured(runs / f"{method}{seed}")[-1] for seed in "01"]
        isolated = [measured(runs / f"isolated{seed}")[-1] for seed in "01"]
        assert row[0].startswith(f"{np.mean(final):.4f} ± ")
        assert row[5].startswith(f"{np.subtract(final, isolated).mean():+.4f} ± ")
    saved = figure(page_of_several, "accuracy_over_episodes")
    for line in saved.itertuples():
        assert line.accuracy == pytest.approx(np.nanmean(measured(runs / f"{line.run}{line.seed}")[line.episode - 1]))
    points = figure(page_of_several, "accuracy_against_cost")
    for line in points.itertuples():
        summary = json.loads((runs / f"{line.run}{line.seed}/summary.json").read_text())
        assert line.train_seconds == summary["train_seconds"]
        assert line.bytes == summary["stored_bytes"] + 4 * summary["parameters_total"]
    final = {name: [measured(runs / f"{name}{seed}")[-1].mean() for seed in "01"] for name in accuracy}
    best = max(final, key=lambda name: np.mean(final[name]))
    paired = {row[0]: row[1:] for row in tables[2][1:]}
    assert paired.keys() == accuracy.keys()
    assert paired.pop(best) == ["2", "+0.0000 ± 0.0000", "1"]
    for name, (common, difference, p) in paired.items():
        assert common == "2"
        assert difference.startswith(f"{np.subtract(final[name], final[best]).mean():+.4f} ± ")
        assert float(p) == pytest.approx(stats.ttest_rel(final[name], final[best]).pvalue, rel=1e-2)
    options = {row[0]: row[1:] for row in tables[3][1:]}
    settings = yaml.safe_load((runs / "er0/config.yaml").read_text())["settings"]
    assert len(shown := ", ".join(f"{key} {value}" for key, value in settings.items())) > 40
    assert options["er"][tables[3][0].index("settings") - 1] == shown


NAMED = [
    {"name": "episode", "classes": [0, 1]},
    {"name": "same", "classes": [2, 3]},
    {"name": "same", "classes": [0, 1]},
]


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Runs that are alike but for one thing: method, a forgotten task, held-out images, seed, other or fewer tasks."""
    folder = tmp_path_factory.mktemp("alike")
    for name, tasks in (("here", NAMED), ("there", [[4, 5], [6, 7], [8, 9]]), ("fewer", NAMED[:2])):
        (folder / name).mkdir()
        (folder / name / "stream.yaml").write_text(yaml.safe_dump({"dataset": "digits", "tasks": tasks}))
    made = [("zoo", "here", ""), ("iso", "here", "--method isolated"), ("held", "here", "--hold_out 0.5"),
            ("other", "there", ""), ("fewer", "fewer", ""),
            ("seed1", "here", "--method isolated --seed 1")]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        for name, place, more in made:
            given = f"--data_config {folder}/{place}/stream.yaml --continual --samples 4 --epochs 1 --quiet {more}"
            assert modelzoo.main([*given.split(), "--run_dir", str(folder / "runs" / name)]) == 0
        runs = folder / "runs"
        without = ["--task", "1", "--quiet", "--run_dir"]
        assert forget.main([str(runs / "zoo"), "--retrain", *without, str(runs / "without")]) == 0
        assert forget.main([str(runs / "iso"), *without, str(folder / "iso-without")]) == 0
    return runs


def lines_of(capsys, *given):
    capsys.readouterr()
    assert main([*map(str, given), "--format", "csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_tasks_are_matched_by_their_number(alike, capsys, undrawn):
    """Without task 1, tasks 2 and 3 are compared with the isolated networks of these; those of 1 may be there."""
    left = json.loads((alike / "without/summary.json").read_text())["per_task_acc"]
    expected = np.mean(np.subtract(left, measured(alike / "iso")[-1, 1:]))
    less = alike.parent / "iso-without"
    for reference in (alike / "iso", less):
        (line,) = lines_of(capsys, alike / "without", "--isolated", reference)
        assert float(line["gain_isolated"]) == pytest.approx(expected, abs=1e-12)
    refused([str(alike / "zoo"), "--isolated", str(less)], ["another 'data.forgotten'"], capsys)
    assert main([str(alike / "without"), "--isolated", str(alike / "iso")]) == 0
    shown = Tables((alike / "without/report.html").read_text()).tables[0]
    column = shown[0].index("isolated network")
    assert [row[column] for row in shown[1:3]] == [f"{value:.4f}" for value in measured(alike / "iso")[-1, 1:]]


def test_names_of_tasks_are_labels_only(alike, tmp_path, capsys, undrawn):
    """One is named as a column of the data, two have the same name; under other names they are the same tasks."""
    (tmp_path / "stream.yaml").write_text(yaml.safe_dump({"dataset": "digits", "tasks": [t["classes"] for t in NAMED]}))
    given = (
        f"--data_config {tmp_path}/stream.yaml --continual --samples 4 --epochs 1 --quiet --run_dir {tmp_path}/renamed"
    )
    assert modelzoo.main([*given.split(), "--isolated", str(alike / "iso")]) == 0
    assert len({line["comparison"] for line in lines_of(capsys, tmp_path / "renamed", alike / "iso")}) == 1
    refused([str(tmp_path / "renamed"), str(alike / "zoo")], ["are the same run with the same seed"], capsys)
    assert main([str(alike / "zoo"), "--isolated", str(alike / "iso")]) == 0
    curves, isolated = figure(alike / "zoo/report.html", "transfer_curves"), measured(alike / "iso")[-1]
    found = curves.groupby("task", sort=False).isolated.unique()
    assert {task: values.tolist() for task, values in found.items()} == {
        label: [value] for label, value in zip(["1 episode", "2 same", "3 same"], isolated, strict=True)
    }
    assert list(figure(alike / "zoo/report.html", "accuracy_matrix")) == ["episode", "1 episode", "2 same", "3 same"]


def test_only_runs_on_the_same_data_share_a_table(alike, capsys):
    """Other images held out, another stream file of the same name, fewer tasks, a forgotten task."""
    tables = {}
    for line in lines_of(capsys, alike):
        tables.setdefault(line["comparison"], set()).add(line["method"])
    assert sorted(map(sorted, tables.values())) == [["isolated", "zoo"], *[["zoo"]] * 4]
    assert len([title for title in tables if "hold_out 0.5" in title]) == 1
    assert len([title for title in tables if title.endswith("without task 1")]) == 1
    assert {line["gain_isolated"] for line in lines_of(capsys, alike / "held", alike / "iso")} == {"", "0.0"}


@pytest.mark.parametrize(("name", "key"), [("held", "data.hold_out"), ("other", "data.tasks"), ("fewer", "data.tasks")])
def test_isolated_networks_of_other_data_are_refused(alike, name, key, capsys):
    refused([str(alike / name), "--isolated", str(alike / "iso")], [f"another {key!r}"], capsys)


def test_other_images_in_the_same_folder_are_other_data(tmp_path, monkeypatch, capsys):
    """The stream file is the same, and may stay where it is while --data_dir is another one."""
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").write_text("{dataset: image_folder, root: mine, image_size: 8, tasks: [[a, b]]}")
    for place, side in (("one", 8), ("two", 12)):
        write_image_folder(Path(place, "mine"), ["a", "b"], side)
    for place, method in (("one", "zoo"), ("one", "isolated"), ("two", "er"), ("two", "isolated")):
        given = f"--data_config d.yaml --data_dir {place} --continual --epochs 1 --quiet --method {method}"
        assert modelzoo.main([*given.split(), "--run_dir", f"runs/{place}-{method}"]) == 0
    tables = {}
    for line in lines_of(capsys, "runs"):
        tables.setdefault(line["comparison"], set()).add(line["method"])
    assert tables == {"d, conv, data 1": {"isolated", "zoo"}, "d, conv, data 2": {"isolated", "er"}}
    refused(["runs/one-zoo", "--isolated", "runs/two-isolated"], ["another 'data_sha256'"], capsys)


def test_isolated_networks_of_another_seed_are_refused(alike, capsys):
    refused([str(alike / "zoo"), "--isolated", str(alike / "seed1")], ["another 'seed'"], capsys)
    assert {line["method"]: line["gain_isolated"] for line in lines_of(capsys, alike / "zoo", alike / "seed1")} == {
        "zoo": "",
        "isolated": "0.0",
    }


def test_groups_of_one_method_have_the_names_of_their_runs(runs, tmp_path, capsys):
    other = ["--samples", "4", "--epochs", "1", "--continual", "--quiet", "--tasks_per_round", "2"]
    config = str(runs.parent / "names.yaml")
    assert modelzoo.main([*other, "--data_config", config, "--run_dir", str(tmp_path / "less")]) == 0
    capsys.readouterr()
    for seed in "01":
        shutil.copytree(runs / f"zoo{seed}", tmp_path / f"more_seed{seed}")
    assert main([*(str(tmp_path / name) for name in ("more_seed0", "more_seed1", "less")), "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["method"] for line in lines] == ["more", "less"]
    (comparison,) = compare(both := [runs / "zoo0", tmp_path / "less"], labels=dict.fromkeys(both, "a"))
    assert [group.label for group in comparison.groups] == ["a", "less"]


def test_long_names_that_begin_alike_can_be_told_apart_in_the_figures(runs, tmp_path, capsys):
    names = [f"split_digits-conv-zoo_with_{kind}" for kind in ("few_a_round", "all_in_each_round")]
    shutil.copytree(runs / "zoo0", tmp_path / names[0])
    given = ["--data_config", str(runs.parent / "names.yaml"), "--samples", "4", "--epochs", "1", "--continual"]
    assert modelzoo.main([*given, "--quiet", "--run_dir", str(tmp_path / names[1])]) == 0
    assert main([str(tmp_path)]) == 0
    for name in ("accuracy_over_episodes", "accuracy_against_cost"):
        svg = (tmp_path / f"figures/{name}.svg").read_text()
        labels = re.findall(r'<text [^>]*x="([\d.]+)"[^>]*>(split_[^<]*)<', svg)
        assert len({label for _, label in labels}) == 2
        assert all(label[-6:] in {name[-6:] for name in names} for _, label in labels)
        width = float(re.search(r'viewBox="0 0 (\S+)', svg)[1])
        assert all(float(left) + 4 * len(label) < width for left, label in labels)


def test_groups_without_common_seeds_have_no_difference(runs, tmp_path, capsys, undrawn):
    assert main([str(runs / "zoo0"), str(runs / "isolated1"), "--out", str(tmp_path)]) == 0
    paired = {row[0]: row[1:] for row in Tables((tmp_path / "report.html").read_text()).tables[2][1:]}
    assert sorted(paired.values()) == [["0", "n/a", "n/a"], ["1", "+0.0000", "n/a"]]


def test_tables_for_papers(runs, capsys):
    assert main([str(runs), "--format", "csv"]) == 0
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    for method, line in lines.items():
        final = [measured(runs / f"{method}{seed}")[-1].mean() for seed in "01"]
        assert float(line["avg_acc_final"]) == pytest.approx(np.mean(final))
        # Two values: t of one degree of freedom is 12.706.
        half = 12.706204736 * np.std(final, ddof=1) / np.sqrt(2)
        assert float(line["avg_acc_final_half_width"]) == pytest.approx(half, abs=1e-9)
        assert line["avg_acc_final_n"] == "2"
    assert main([str(runs), "--format", "md"]) == 0
    assert "| zoo " in capsys.readouterr().out
    assert main([str(runs), "--format", "tex"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in (r"\toprule", r"\bottomrule", r"$\pm$"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{tmp}/nothing", ["nothing is not the directory of a run"]),
        ("", ["arguments are required: RUN"]),
        ("{runs}/zoo0 --fromat md", ["unknown option --fromat", "did you mean --format?"]),
        ("{runs}/zoo0 --format pdf", ["--format: unknown format 'pdf'", "csv, html, md, tex"]),
        ("{runs}/zoo0 {runs}/zoo0", ["are the same run", "leave one out"]),
        ("{runs}/zoo0 --isolated {runs}/er0", ["must be one of --method isolated"]),
        ("{runs}/zoo0 {runs}/er0 --isolated {runs}/isolated1", ["holds no finished run of --method isolated"]),
        ("{runs}/zoo0 --out {runs}/zoo0/config.yaml", ["config.yaml", "cannot be read or written"]),
    ],
)
def test_wrong_input_is_refused_in_one_line(given, words, runs, tmp_path, capsys):
    refused(given.format(runs=runs, tmp=tmp_path).split(), words, capsys)


@pytest.mark.parametrize(
    "name", ["metrics.csv", "predictions/member_001.safetensors", "members/member_002.json", "summary.json"]
)
def test_a_damaged_run_is_refused_in_one_line(name, runs, tmp_path, capsys):
    shutil.copytree(runs / "zoo0", tmp_path / "bad")
    path = tmp_path / "bad" / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    refused([str(tmp_path / "bad")], [f"{name} is damaged"], capsys)


def test_names_are_escaped_for_the_place_they_go_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["a\rb", "=1+1", "c\x1b[2J\u202ed", "'=2", "-3", "e\nf"]
    tasks = [{"name": name, "classes": [0, 1]} for name in names]
    Path("d.yaml").write_text(yaml.safe_dump({"dataset": "digits", "tasks": tasks}))
    given = "--data_config d.yaml --samples 2 --epochs 1 --continual --method finetune --run_dir run"
    assert modelzoo.main(given.split()) == 0
    assert [*dict.fromkeys(Run.load("run").metrics.task_name)] == names
    assert [*dict.fromkeys(row.task_name for row in Run.load("run").rows)] == names
    for more in ([], ["--format", "md"], ["--format", "tex"], ["--format", "csv"]):
        assert main(["run", *more]) == 0
    assert "A selection of the episodes; the CSV file has all." in Path("run/report.html").read_text()
    shown = [capsys.readouterr().out, *(path.read_text() for path in Path("run").rglob("*.[sh][vt]*[gl]"))]
    assert len(shown) > 3
    for text in shown:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert any(r"c\x1b[2J\u202ed" in text for text in shown[1:])
    for path, expected in {
        "run/metrics.csv": {"'=1+1", "''=2", "-3", "a\rb"},
        "run/figures/transfer_curves.csv": {"1 a\rb", "2 =1+1", "4 '=2", "5 -3"},
    }.items():
        lines = csv.reader(io.StringIO(Path(path).read_bytes().decode(), newline=""))
        cells = set(itertools.chain(*lines))
        assert expected <= cells
        assert not any(cell.startswith("=") for cell in cells)


def test_a_report_does_not_follow_links_out_of_the_run(runs, tmp_path, capsys, undrawn):
    shutil.copytree(runs / "er0", tmp_path / "run")
    (tmp_path / "mine").write_text("mine")
    for name in ("report.html", "report.html.partial"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
        (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    assert main([str(tmp_path / "run")]) == 0
    assert (tmp_path / "mine").read_text() == "mine"
    shutil.move(tmp_path / "run/figures", tmp_path / "figures")
    (tmp_path / "run/figures").symlink_to(tmp_path / "figures")
    capsys.readouterr()
    refused([str(tmp_path / "run")], ["run/figures is a link"], capsys)


def refused(given, words, capsys):
    assert main(given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("report.py: ")
    assert len(captured.err.splitlines()) == 1
    assert [word for word in words if word not in captured.err] == [], captured.err


def test_labels_are_moved_apart_in_their_order():
    places = [0.5, 0.5, 0.1, 0.52, 0.9]
    moved = style.spread(places, 0.1)
    assert np.diff(np.sort(moved)).min() >= 0.1 - 1e-6
    assert np.argsort(moved, kind="stable").tolist() == np.argsort(places, kind="stable").tolist()
    assert style.spread([0.0, 1.0], 0.1) == [0.0, 1.0]


MEASURE = """
<script>
onload = () => setTimeout(() => {
  const answers = [...document.querySelectorAll("iframe")].map(frame => measured(frame.contentDocument));
  document.body.innerHTML = "";
  document.body.textContent = "MEASURED" + JSON.stringify(answers) + "END";
}, 300);
function measured(page) {
  const wrong = [];
  const root = page.scrollingElement;
  if (root.scrollWidth > root.clientWidth) wrong.push("the page is wider than the window: " + root.scrollWidth);
  for (const element of page.querySelectorAll("h1, h2, h3, p, dt, dd, figcaption, figure, summary, li"))
    if (element.scrollWidth > element.clientWidth + 1) wrong.push("too wide: " + element.textContent.slice(0, 60));
  for (const picture of page.querySelectorAll("svg")) {
    const box = picture.getBoundingClientRect();
    if (box.width < 100 || box.height < 100) wrong.push("no picture: " + picture.getAttribute("aria-label"));
    for (const text of picture.querySelectorAll("text")) {
      const own = text.getBoundingClientRect();
      if (own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1)
        wrong.push("outside of " + picture.getAttribute("aria-label") + ": " + text.textContent);
    }
  }
  for (const image of page.querySelectorAll("img"))
    if (!image.complete || !image.naturalWidth) wrong.push("image: " + image.src);
  const ground = page.defaultView.getComputedStyle(page.body).backgroundColor;
  return {wrong, ground};
}
</script>
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_in_a_browser(scheme, page, page_of_several, tmp_path):
    """No error on the console, nothing missing, no text outside its box, in narrow and in wide windows."""
    frames = [f'<iframe width="{width}" height="9000" srcdoc="{html.escape(shown.read_text())}"></iframe>'
              for shown in (page, page_of_several) for width in (400, 1400)]  # fmt: skip
    (tmp_path / "harness.html").write_text(
        '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><body>{"".join(frames)}{MEASURE}'
    )
    preferred = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", "--window-size=1600,1200", "--virtual-time-budget=3000", *preferred, "--dump-dom",
         (tmp_path / "harness.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"MEASURED(\[.*?\])END", done.stdout)
    assert found, done.stderr[-2000:]
    answers = json.loads(html.unescape(found[1]))
    ground = {"light": "rgb(246, 247, 249)", "dark": "rgb(18, 22, 27)"}[scheme]
    assert answers == [{"wrong": [], "ground": ground}] * 4
    assert "CONSOLE" not in done.stderr


# Scenarios


def test_runs_of_several_scenarios_stand_in_one_table(tmp_path, undrawn):
    """A method has a cell for each scenario; what task-trained heads do without the task has a mark."""
    runs = {}
    for method, scenario in [("er", "class"), ("er", "task"), ("zoo", "task"), ("er", "domain")]:
        runs[method, scenario] = tmp_path / f"{method}-{scenario}"
        quick = [
            "--data_config",
            ROTATED,
            "--hp_config",
            MLP,
            "--continual",
            "--epochs",
            "1",
            "--samples",
            "4",
            "--quiet",
        ]
        own = ["--method", method, "--scenario", scenario, "--run_dir", str(runs[method, scenario])]
        assert modelzoo.main([*quick, *own, "--quiet", "--set", "data.tasks=3"]) == 0
    assert main([*map(str, runs.values()), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (content,) = re.findall(r'download="scenarios.csv" href="data:[^,]*,([^"]+)"', page)
    found = pd.read_csv(io.BytesIO(base64.b64decode(content)), dtype=str, keep_default_na=False).set_index("method")

    def value(run, key):
        return f"{json.loads((runs[run] / 'summary.json').read_text())[key]:.4f}"

    for scenario in ("task", "domain", "class"):
        assert found.loc["er", scenario] == value(("er", scenario), "avg_acc_final")
    assert found.loc["zoo", "task"] == value(("zoo", "task"), "avg_acc_final")
    assert found.loc["zoo", "domain"] == value(("zoo", "task"), "routed_domain_acc") + " †"
    assert found.loc["zoo", "class"] == value(("zoo", "task"), "routed_class_acc") + " †"
    assert "This is not class- or domain-incremental learning" in page


def test_classes_of_all_tasks_are_told_apart_in_one_table(tmp_path):
    given = ["--data_config", SPLIT, "--hp_config", MLP, "--continual", "--epochs", "1", "--samples", "4", "--quiet"]
    assert modelzoo.main([*given, "--method", "er", "--scenario", "class", "--run_dir", str(tmp_path / "run")]) == 0
    run = Run.load(tmp_path / "run")
    counts = analysis.confusion(run)
    answers, targets = (np.concatenate([part(t) for t in range(1, 6)])
                        for part in (lambda t: run.predictions(t).argmax(1), run.targets_of))  # fmt: skip
    table = counts.pivot(index="class", columns="answer", values="n")
    for right, answer in [(0, 0), (0, 9), (3, 8), (9, 9), (5, 6)]:
        assert table.loc[str(right), str(answer)] == ((targets == right) & (answers == answer)).sum()
    assert counts.n.sum() == len(targets)
    assert set(counts.task) == {"all tasks"}
