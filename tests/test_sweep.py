"""Sweeps of train_task.py: tables and figures of hand-made runs against the best found by brute force."""

import contextlib
import csv
import io
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import report
import train_task
from evaluation.measurements import ANYTIME
from records.configuration import plain_config
from records.run import Run, find_runs
from reporting.sweep import cells, differs
from reporting.sweep_figures import of_sweep
from reporting.task_page import of_task_runs
from studies.grid import load_grid
from studies.task_tables import write_task_tables
from tests.test_benchmark import seal

PROJECT = Path(__file__).parent.parent
LENGTHS, SIZES, RATES, SEEDS = (5, 16, 128), (4, 8, 32), (0.001, 0.02), (0, 1)
FEW = [f"--set={key}={value}" for key, value in {
    "data.length": 3, "net.hidden_size": 3, "data.dev_examples": 300, "data.test_examples": 300, "hp.batch": 64
}.items()]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run as train_task.py leaves it, whose copies are what the tests are about."""
    path = tmp_path_factory.mktemp("sweep") / "cell/lr0.04/seed0"
    with contextlib.redirect_stdout(io.StringIO()):
        assert train_task.main([*FEW, "--steps=8", "--quiet", f"--run_dir={path}"]) == 0
    return Run.load(path)


def copy(run, net, sections, scores, seed=0, **summary):
    """The run with another network, other settings by section, and (development, test) scores everywhere."""
    dev, test = scores
    changed = {name: {**run.config[name], **values} for name, values in sections.items()}
    changed["net"] = {**run.config["net"], **changed.get("net", {}), "path": f"somewhere/{net}.yaml"}
    rows = []
    for row in run.rows:
        value = dev if row.scenario == ANYTIME else test
        scores = {name: replace(score, value=value) for name, score in row.scores.items()}
        rows.append(replace(row, scores=scores))
    known = {**run.summary, "dev": dev, "avg_acc_final": test, "seed": seed, **summary}
    return replace(run, config={**run.config, **changed, "seed": seed}, rows=rows, summary=known)


def sweep(run, nets=("wide", "deep"), sizes=SIZES, lengths=LENGTHS, state=None):
    """Copies with random scores, by (net, length, size, rate, seed)."""
    draw, found = random.Random(7), {}
    for net, length, size, rate, seed in itertools.product(nets, lengths, sizes, RATES, SEEDS):
        sections = {
            "data": {"length": length, "train_examples": 1000 * length}, "net": {"hidden_size": size},
            "hp": {"lr": rate, "batch": 1024 // length},
        }  # fmt: skip
        more = {} if state is None else {"state_bytes": state(net, length, size)}
        key = net, length, size, rate, seed
        found[key] = copy(run, net, sections, (draw.random(), draw.random()), seed, **more)
    return found


def brute_force(runs, keep):
    """By the kept places of the key, the run with the highest development score."""
    best = {}
    for key, run in runs.items():
        place = tuple(key[number] for number in keep)
        if place not in best or run.summary["dev"] > best[place].summary["dev"]:
            best[place] = run
    return best


def test_points_are_the_best_by_development_examples(run):
    runs = sweep(run, state=lambda net, length, size: 4 * size * (length if net == "deep" else 1))
    pictures = {picture.name: picture for picture in of_sweep(cells(list(runs.values())))}
    assert list(pictures) == ["score_against_size", "score_against_state", "score_by_answer", "score_by_gap",
                              "sweep_curves"]  # fmt: skip
    expected = brute_force(runs, (0, 1, 2))
    assert max(brute_force(runs, ()).values(), key=lambda run: run.summary["dev"]).summary["avg_acc_final"] < max(
        run.summary["avg_acc_final"] for run in runs.values()
    )  # test and development examples disagree, so that the test can tell them apart
    for name, column in (("score_against_size", "hidden_size"), ("score_against_state", "state bytes")):
        data = pictures[name].data
        found = {
            (line.network, line.data, line.x): (line.accuracy, line.rate, line.seed)
            for line in data.rename(columns={column: "x", "learning rate": "rate"}).itertuples()
        }
        assert found == {
            (net, f"length {length}", size if column == "hidden_size" else
             best.summary["state_bytes"]): (best.summary["avg_acc_final"], best.config["hp"]["lr"], best.config["seed"])
            for (net, length, size), best in expected.items()
        }  # fmt: skip
    over = brute_force(runs, (0, 1))
    for name, index in (
        ("score_by_answer", "avg_acc_final"),
        ("score_by_gap", "avg_acc_final"),
        ("sweep_curves", "dev"),
    ):
        values = pictures[name].data.groupby(["network", "data"]).accuracy.unique()
        assert {key: list(value) for key, value in values.items()} == {
            (net, f"length {length}"): [best.summary[index]]
            for (net, length), best in over.items()
        }  # fmt: skip


def test_lower_errors_are_better_and_networks_without_a_choice_have_no_point(run):
    lower = {"higher_is_better": False}
    one, two = (
        copy(run, "a", {"hp": {"lr": lr}}, scores, **lower) for lr, scores in ((1, (0.2, 0.9)), (2, (0.3, 0.1)))
    )
    (cell,) = cells([one, two])
    assert cell.best is one
    blind = [copy(run, "a", {"hp": {"lr": lr}}, (None, 0.5)) for lr in (1, 2)]
    (cell,) = cells(blind)
    assert cell.best is None
    assert of_sweep([cell]) == []
    (cell,) = cells(blind[:1])
    assert cell.best is blind[0]


def test_figures_appear_where_they_make_sense(run):
    def names(runs):
        return {picture.name for picture in of_sweep(cells(list(runs.values())))}

    always = {"score_by_answer", "score_by_gap", "sweep_curves"}
    assert names(sweep(run)) == {*always, "score_against_size"}
    assert names(sweep(run, sizes=(4,))) == always
    assert names(sweep(run, sizes=(4,), state=lambda *_: 64)) == always
    assert names(sweep(run, sizes=(4,), state=lambda net, *_: len(net) if net == "wide" else None)) == always
    assert names(sweep(run, sizes=(4,), state=lambda net, length, _: length)) == {*always, "score_against_state"}
    assert names({1: replace(run, rows=[row for row in run.rows if not row.slice])}) == {"sweep_curves"}


def test_panels_share_their_axis_and_have_a_line_for_each_network(run):
    picture = of_sweep(cells(list(sweep(run).values())))[0]
    panels = picture.drawn.axes
    assert [axes.get_title() for axes in panels] == ["length 5", "length 16", "length 128"]
    assert len({axes.get_ylim() for axes in panels}) == 1
    for axes in panels:
        assert [line.get_label() for line in axes.lines] == ["wide", "deep"]
        assert all(list(line.get_xdata()) == list(SIZES) for line in axes.lines)
    (legend,) = picture.drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["wide", "deep"]


def test_axes_are_found_from_what_differs(run):
    """Each network has its own size; what follows from size or data is in no name, what does not is."""
    both = [
        copy(run, net, {"net": {key: size, "heads": size // 2}, "hp": {"batch": batch}}, (0.5, size / 10))
        for net, key, batches in (("a", "hidden_size", (64,)), ("b", "width", (64, 128)))
        for size in (2, 4) for batch in batches
    ]  # fmt: skip
    assert [(cell.network, cell.panel, cell.size_key, cell.size) for cell in cells(both)] == [
        *(("a", "", "net.hidden_size", size) for size in (2, 4)),
        *(("b, batch 64", "", "net.width", size) for size in (2, 4)),
        *(("b, batch 128", "", "net.width", size) for size in (2, 4)),
    ]  # fmt: skip
    picture = of_sweep(cells(both))[0]
    assert picture.title == "Accuracy against hidden_size or width"
    assert list(picture.data) == ["network", "hidden_size or width", "accuracy", "learning rate", "seed"]


def test_panels_are_named_after_what_tells_them_apart(run):
    def names(*data):
        return [cell.panel for cell in cells([copy(run, "a", {"data": own}, (0.5, 0.5)) for own in data])]

    assert names({"length": 5}, {"length": 16}) == ["length 5", "length 16"]
    assert names({"length": 128, "pairs": 8}, {"length": 64, "pairs": 4}) == [
        "length 64, pairs 4",
        "length 128, pairs 8",
    ]
    assert names({"length": 5, "fresh": True}, {"length": 5, "fresh": False}) == ["fresh False", "fresh True"]
    both = (
        {"length": 5, "train_examples": 9000},
        {"length": 7, "train_examples": 9000},
        {"length": 7, "train_examples": 8},
    )
    assert names(*both) == [
        "length 5, train_examples 9000",
        "length 7, train_examples 8",
        "length 7, train_examples 9000",
    ]
    assert names({"segments": [[64, 4]] * 9}, {"segments": [[64, 8]] * 9}) == ["data 1", "data 2"]


def test_only_data_and_networks_make_a_sweep(run):
    assert not differs([copy(run, "a", {"hp": {"lr": lr}}, (0.5, 0.5), seed) for lr in (1, 2) for seed in (0, 1)])
    assert differs([copy(run, "a", {"net": {"hidden_size": size}}, (0.5, 0.5)) for size in (1, 2)])
    assert differs([copy(run, "a", {"data": {"length": length}}, (0.5, 0.5)) for length in (1, 2)])


def test_the_page_of_a_sweep(run, tmp_path):
    runs = sweep(run, lengths=(5, 16), state=lambda net, length, size: 4 * size)
    page = of_task_runs(list(runs.values()), "python report.py x")
    (section,) = page.sections
    (table,) = section.tables
    assert table.header == ["network", "data", "hidden_size", "learning rate", "seed", "runs", "development", "test",
                            "± error", "parameters", "state bytes", "examples"]  # fmt: skip
    best = brute_force(runs, (0, 1, 2))
    shown = {(row[0].text, row[1].text, int(row[2].text)): row for row in table.rows}
    assert shown.keys() == {(net, f"length {length}", size) for net, length, size in best}
    tops = {id(top) for top in brute_force(runs, (1,)).values()}
    for (net, length, size), chosen in best.items():
        row = shown[net, f"length {length}", size]
        assert float(row[7].text) == pytest.approx(chosen.summary["avg_acc_final"], abs=1e-4)
        assert (row[10].text, row[7].bold) == (f"{4 * size}", id(chosen) in tops)
    text = page.write(tmp_path).read_text()
    assert '<figure id="score_against_state">' in text
    assert "nothing is chosen by" in text


def test_runs_of_a_store_are_found_in_their_cells(run, tmp_path, capsys):
    store = run.path.parent.parent.parent
    assert find_runs(store) == [run.path]
    given = ["--data_config", str(PROJECT / "config/dataset/median.yaml"), *FEW, "--steps=2", "--quiet"]
    assert train_task.main([*given, f"--run_dir={store / 'other/seed0'}"]) == 0
    assert find_runs(store) == [run.path, store / "other/seed0"] or find_runs(store) == [
        store / "other/seed0",
        run.path,
    ]
    capsys.readouterr()
    assert report.main([str(store), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert [f"<h2>{name}</h2>" in text for name in ("2nd_argmax", "median")] == [True, True]
    assert '<figure id="sweep_curves_b">' in text


def test_tables_have_a_block_for_each_network_and_its_best_rate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text((PROJECT / "config/hyperparam/rnn.yaml").read_text() + "momentum: 0.8\n")
    grid = {
        "program": "train_task", "streams": ["config/dataset/2nd_argmax.yaml"], "seeds": 2, "rates": [0.001, 0.02],
        "hyperparams": ["config/hyperparam/rnn.yaml", {"hp_config": "other.yaml", "vary": {"net.hidden_size": [2]}}],
        "together": [{"data.length": 3, "hp.batch": 64}, {"data.length": 5, "hp.batch": 32}],
        "vary": {"net.hidden_size": [2, 4]}, "examples": 4096,
        "published": {"2nd_argmax, other": {"source": "A paper", "rows": "net.hidden_size", "columns": "data.length",
                                            "scale": 1, "tolerance": 0, "values": {2: {3: 2.0}}}},
    }  # fmt: skip
    Path("grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    grid, draw, found = load_grid("grid.yaml", Path("store")), random.Random(3), {}
    for run in grid.runs:
        key = run.net, run.config.data.settings.length, run.config.net.settings.hidden_size
        dev, test = draw.random(), draw.random()
        found.setdefault(key, []).append((dev, test, run.config.hp.lr))
        config = json.loads(json.dumps(plain_config(run.config), default=str))
        facts = {"commit": "c" * 40, "uncommitted_changes": False, "versions": {}, "device": "cpu", "threads": 1}
        run.directory.mkdir(parents=True)
        (run.directory / "config.yaml").write_text(yaml.safe_dump(config | facts | {"precision": "fp32"}))
        summary = {
            "metric": "accuracy", "higher_is_better": True, "seed": run.config.seed, "dev": dev, "avg_acc_final": test,
            "test_stderr": None, "examples": 4096, "total_seconds": 1.0, "trained_together": 4,
            "parameters_total": 1000 * key[2],
        } | ({"state_bytes": 5000 + key[2]} if run.net == "rnn" else {})  # fmt: skip
        (run.directory / "summary.json").write_text(json.dumps(summary))
        seal(run.directory)
    write_task_tables(grid, Path("store"), {}, "python benchmark.py")
    best = {key: max(runs) for key, runs in found.items()}
    assert any(max(test for _, test, _ in runs) != best[key][1] for key, runs in found.items())
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in Path("store/table.md").read_text().splitlines()
    ]
    matrix = [line for line in lines if len(line) == 4]
    assert matrix[0] == ["network", "hidden_size / length, batch", "3, 64", "5, 32"]
    assert matrix[2:5] == [
        ["rnn", "2", f"{best['rnn', 3, 2][1]:.4f}", f"{best['rnn', 5, 2][1]:.4f}"],
        ["", "4", f"{best['rnn', 3, 4][1]:.4f}", f"{best['rnn', 5, 4][1]:.4f}"],
        ["other", "2", f"{best['other', 3, 2][1]:.4f} † (2)", f"{best['other', 5, 2][1]:.4f}"],
    ]
    titles, _, *rows = (line for line in lines if len(line) > 4)
    for row in rows:
        line = dict(zip(titles, row, strict=True))
        length, batch, size = (int(words.split()[-1]) for words in line["cell"].split(","))
        (_, test, rate), net = best[line["network"], length, size], line["network"]
        assert (line["ours"].rstrip(" †"), float(line["best rate"])) == (f"{test:.4f}", rate)
        assert line["state bytes"] == ({2: "5,002", 4: "5,004"}[size] if net == "rnn" else "–")
        assert (line["parameters"], line["runs"], batch) == (f"{size},000", "4", {3: 64, 5: 32}[length])
    assert len(rows) == 6
    with open("store/results.csv", newline="") as file:
        results = list(csv.DictReader(file))
    assert {(line["hp.batch"], line["data.length"]) for line in results} == {("64", "3"), ("32", "5")}
    assert {line["hp.lr"] for line in results} == {"0.001", "0.02"}


def test_a_setting_of_a_mixer_is_a_size(run):
    """Networks that differ in a number of one of their parts are one line, in the order of that number."""
    runs = []
    for net, key, values in (("window", "window", (16, 2, 4)), ("feature", "feature", (8, 1))):
        for value in values:
            mixers = [{"mixer": "base_conv", "kernel": 3}, {"mixer": net, key: value}]
            runs.append(copy(run, net, {"net": {"mixers": mixers}}, (value / 20, value / 20)))
    found = cells(runs)
    assert [(cell.network, cell.size) for cell in found] == [
        ("window", 2), ("window", 4), ("window", 16), ("feature", 1), ("feature", 8),
    ]  # fmt: skip
    assert {cell.size_key for cell in found} == {"net.mixers.2.window", "net.mixers.2.feature"}
