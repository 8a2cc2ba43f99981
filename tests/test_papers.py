"""Published tables: what their files mean, what is refused, what is run, and what stands beside published values."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

import benchmark
import modelzoo
from benchmark import main
from studies.grid import load_grid
from studies.papers import load_paper
from tests.standins import write_mnist
from tests.test_benchmark import finish, order, results, started
from utils.torchvision_ops import declare_missing_operators

PROJECT = Path(__file__).parent.parent
PAPERS = sorted((PROJECT / "config/papers").glob("*.yaml"))
TABLE: dict[str, Any] = {
    "title": "A table",
    "source": "Author 2020, table 1",
    "setup": "Few digits.",
    "data_config": "config/dataset/split_digits.yaml",
    "hp_config": "config/hyperparam/conv.yaml",
    "seeds": 3,
    "samples": 2,
    "epochs": 1,
    "rows": [
        {"label": "SGD", "method": "finetune", "published": 60, "tolerance": 2},
        {"label": "Zoo", "method": "zoo", "published": 70.5, "spread": 0.4, "tolerance": 1.5},
    ],
    "smoke": {"samples": 1, "data.tasks": [[0, 1], [2, 3]]},
}


def write_table(**changes):
    content = {key: value for key, value in {**TABLE, **changes}.items() if value is not None}
    Path("table.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_paper("table.yaml", Path("store"))


def command(*more):
    return main(["--paper", "table.yaml", "--store", "store", *more])


def done(run, accuracy, **summary):
    """A finished run of a minute and a half."""
    finish(run, final=(accuracy, accuracy), total_seconds=90.0, **summary)


def cells(text):
    """The cells of a table in Markdown by label and column."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(lines[0][1:], row[1:], strict=True)) for row in lines[2:]}


# The tables of the project.


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_quick_version_of_each_table_runs_and_says_that_it_is_not_the_table(
    path, tmp_path, monkeypatch, in_process, capsys
):
    monkeypatch.chdir(tmp_path)
    write_mnist(Path("data"))
    assert main(["--paper", path.stem, "--smoke"]) == 0
    store = Path("runs/papers", f"{path.stem}-smoke")
    for text in (capsys.readouterr().out, (store / "table.md").read_text(), (store / "table.tex").read_text()):
        assert "SMOKE TEST, not the table" in text
    rows = yaml.safe_load(path.read_text())["rows"]
    with open(store / "results.csv", newline="") as file:
        found = list(csv.DictReader(file))
    labels = [f"{row.get('label', row['method'])}, smoke" for row in rows]
    assert [(row["label"], row["status"]) for row in found] == [(label, "finished") for label in labels]
    shown = cells((store / "table.md").read_text())
    assert list(shown) == labels
    for label, row in zip(labels, rows, strict=True):
        assert float(shown[label]["published"].split(" ± ")[0]) == row["published"]
        assert "(1 seed)" in shown[label]["ours"]
        assert shown[label]["within?"] == "not judged"


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_the_tables_of_the_project_are_good(path):
    paper = load_paper(str(path), Path("store"))
    assert len(paper.grid.runs) == len(paper.rows) * len(paper.rows[0].runs)
    assert paper.smoke is None


def test_the_example_of_the_documentation_is_good(here):
    (example,) = re.findall(r"```yaml\n(.*?)```", (PROJECT / "docs/papers.md").read_text(), re.DOTALL)
    Path("table.yaml").write_text(example)
    for smoke in (False, True):
        assert [row.claim.published for row in load_paper("table.yaml", Path("store"), smoke).rows] == [93.1, 97.9]


# What a file means.


def test_rows_have_the_options_they_share_and_their_own(here):
    rows = [
        {"method": "er", "published": 1, "tolerance": 1},
        {"method": "zoo", "label": "Zoo", "published": 1, "tolerance": 1, "epochs": 3, "hp.lr": 0.5,
         "data_config": "config/dataset/rotated_digits.yaml", "hp_config": "config/hyperparam/mlp.yaml"},
        {"method": "joint", "published": 1, "tolerance": 1},
    ]  # fmt: skip
    paper = write_table(rows=rows, seeds=[4, 2], memory=9, **{"hp.batch": 5})
    assert [row.label for row in paper.rows] == ["er", "Zoo", "joint"]
    assert [[run.config.seed for run in row.runs] for row in paper.rows] == [[4, 2]] * 3
    er, zoo, joint = (row.runs[0].config for row in paper.rows)
    assert [(config.hp.epochs, config.hp.batch, config.hp.lr) for config in (er, zoo, joint)] == [
        (1, 5, 0.01), (3, 5, 0.5), (1, 5, 0.01),
    ]  # fmt: skip
    assert [config.stream for config in (er, zoo, joint)] == ["split_digits", "rotated_digits", "split_digits"]
    assert [config.net.model for config in (er, zoo, joint)] == ["conv", "mlp", "conv"]
    assert [config.memory for config in (er, zoo, joint)] == [9, 9, None]
    assert [config.continual for config in (er, zoo, joint)] == [True, True, False]
    assert len({run.directory for row in paper.rows for run in row.runs}) == 6


def test_a_quick_version_wins_over_rows_and_runs_the_first_seed(here):
    rows = [
        {"method": "er", "published": 1, "tolerance": 1, "memory_per_class": 4, "samples": 7},
        {"method": "finetune", "published": 1, "tolerance": 1},
    ]
    smoke = {**TABLE["smoke"], "memory": 3, "hp_config": "config/hyperparam/mlp.yaml"}
    real, quick = write_table(rows=rows, seeds=[5, 6], smoke=smoke), load_paper("table.yaml", Path("store"), smoke=True)
    assert [(run.config.memory_per_class, run.config.data.samples) for run in real.grid.runs[:2]] == [(4, 7), (None, 2)]
    er, finetune = (run.config for run in quick.grid.runs)
    assert [config.seed for config in (er, finetune)] == [5, 5]
    assert (er.memory, er.memory_per_class, finetune.memory) == (3, None, None)
    assert [config.data.samples for config in (er, finetune)] == [1, 1]
    assert [len(config.data.tasks) for config in (er, finetune)] == [2, 2]
    assert [config.net.model for config in (er, finetune)] == ["mlp", "mlp"]
    assert [row.label for row in quick.rows] == ["er, smoke", "finetune, smoke"]
    assert not {run.directory for run in quick.grid.runs} & {run.directory for run in real.grid.runs}


def test_where_runs_go_and_where_data_lies(here, capsys):
    write_table()
    assert benchmark.arguments(["--paper", "model_zoo_split_mnist"]).store == "runs/papers/model_zoo_split_mnist"
    assert benchmark.arguments(["--paper", "a/table.yaml", "--smoke"]).store == "runs/papers/table-smoke"
    for run in load_paper("table.yaml", Path("store"), data_dir="elsewhere").grid.runs:
        done(run, 0.5)
    assert command("--data_dir", "elsewhere") == 0  # what is planned is what was run
    assert "data_dir=elsewhere" in Path("store/table.md").read_text()


BAD: dict[str, Any] = {
    "no title": ({"title": None}, "table.yaml: key 'title' is missing"),
    "title of a wrong type": ({"title": 3}, "table.yaml: title is 3", "a text"),
    "no set-up": ({"setup": None}, "key 'setup' is missing"),
    "no rows": ({"rows": None}, "key 'rows' is missing"),
    "no seeds": ({"seeds": None}, "key 'seeds' is missing"),
    "unknown key": ({"sample": 3}, "unknown key 'sample'", "did you mean 'samples'"),
    "key of a grid": ({"vary": {"hp.lr": [1]}}, "unknown key 'vary'"),
    "option out of range": ({"epochs": 0}, "table.yaml: epochs is 0", "at least 1"),
    "no mapping": ({"rows": ["zoo"]}, "rows: 'zoo' is no mapping"),
    "no method": ({"rows": [{"published": 1, "tolerance": 1}]}, "rows: ", "has no key 'method'"),
    "no value": ({"rows": [{"method": "zoo", "tolerance": 1}]}, "rows: zoo: key 'published' is missing"),
    "no tolerance": ({"rows": [{"method": "zoo", "published": 1}]}, "rows: zoo: key 'tolerance' is missing"),
    "text for a value": (
        {"rows": [{"method": "zoo", "published": "99.9 %", "tolerance": 1}]}, "rows: zoo: published is '99.9 %'",
    ),
    "no share": ({"rows": [{"method": "zoo", "published": 999, "tolerance": 1}]}, "published is 999", "at most 100"),
    "unknown metric": (
        {"rows": [{"method": "zoo", "published": 1, "tolerance": 1, "metric": "avg_acc"}]},
        "rows: zoo: metric: unknown metric 'avg_acc'", "avg_acc_final",
    ),
    "unknown key of a row": (
        {"rows": [{"method": "zoo", "published": 1, "tolerance": 1, "memry": 5}]}, "rows: zoo: unknown key 'memry'",
    ),
    "unknown setting of a row": (
        {"rows": [{"method": "zoo", "published": 1, "tolerance": 1, "hp.rate": 5}]}, "rows: zoo: ", "'rate'",
    ),
    "label twice": ({"rows": [TABLE["rows"][0]] * 2}, "rows: the label 'SGD' is given twice"),
    "no stream": ({"data_config": None}, "rows: SGD: key 'data_config' is missing"),
    "stream that does not exist": ({"data_config": "nope.yaml"}, "rows: SGD: ", "nope.yaml does not exist"),
    "path of a wrong type": ({"hp_config": 3}, "table.yaml: hp_config: 3 is not the path"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_one_line_and_nothing_is_written(here, capsys, name):
    changes, *words = BAD[name]
    content = {key: value for key, value in {**TABLE, **changes}.items() if value is not None}
    Path("table.yaml").write_text(yaml.safe_dump(content))
    refused(capsys, command, *words)


@pytest.mark.parametrize(
    ("smoke", "words"),
    [
        (None, ["smoke must map options"]),
        ([1], ["smoke must map options"]),
        ({"sample": 1}, ["table.yaml: smoke: unknown key 'sample'"]),
        ({"samples": 0}, ["smoke: samples is 0"]),
        ({"data.tasks": [[0]]}, ["rows: SGD, smoke: ", "a task needs at least two classes"]),
    ],
)
def test_a_bad_quick_version(here, capsys, smoke, words):
    content = {key: value for key, value in {**TABLE, "smoke": smoke}.items() if value is not None}
    Path("table.yaml").write_text(yaml.safe_dump(content))
    refused(capsys, lambda: command("--smoke"), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--paper", "model_zo"], ["--paper: unknown table 'model_zo'", "known: ", *(path.stem for path in PAPERS)]),
        (["--paper", "nope.yaml"], ["nope.yaml does not exist"]),
        (["--paper", "table.yaml", "--config", "grid.yaml"], ["--config and --paper are given"]),
        (["--config", "grid.yaml", "--store", "store", "--smoke"], ["--smoke is for --paper"]),
        (["--paper", "table.yaml", "--store", "store", "--only", "zoo"], ["--only: ", "'zoo'", "did you mean 'Zoo'"]),
    ],
)
def test_bad_options(here, capsys, options, words):
    write_table()
    refused(capsys, lambda: main(options), *words)


def refused(capsys, attempt, *words):
    assert attempt() == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("benchmark.py: ")
    assert error.count("\n") == 1
    assert [word for word in words if word not in error] == []
    assert not Path("store").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize("option", ["--paper", "--config"])
def test_without_its_data_nothing_is_run(here, capsys, monkeypatch, option):
    """A line before the first run, for published tables and grids alike; finished runs need no data."""
    declare_missing_operators()
    import torchvision

    def no_network(loader: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_network)
    mnist, label = "config/dataset/split_mnist.yaml", {"--paper": "SGD", "--config": "finetune"}[option]
    paper = write_table(data_config=mnist, data_dir="nowhere", smoke={"samples": 1})
    grid = {"streams": [mnist], "hyperparams": [TABLE["hp_config"]], "methods": ["finetune"], "seeds": 1}
    Path("grid.yaml").write_text(yaml.safe_dump({**grid, "data_dir": "nowhere"}))
    given = [option, {"--paper": "table.yaml", "--config": "grid.yaml"}[option], "--store", "store"]
    refused(capsys, lambda: main(given), f".yaml: {label}: MNIST is not in nowhere", "no network", "into nowhere")
    runs = paper.grid.runs if option == "--paper" else load_grid("grid.yaml", Path("store")).runs
    for run in runs:
        done(run, 0.5)
    assert main(given) == 0


def test_data_that_do_not_fit_are_found_before_anything_is_run(here, capsys):
    write_table(rows=[*TABLE["rows"], {**TABLE["rows"][0], "label": "nine", "data.tasks": [[9, 10]]}])
    refused(capsys, command, "table.yaml: nine: ", "10")


# What is run, and what stands in the table.


def test_published_values_beside_ours(here, capsys):
    """Means, intervals and verdicts by hand: SGD is exactly at its tolerance, the zoo just beyond."""
    sgd, zoo = (row.runs for row in write_table().rows)
    for accuracies, runs in (([0.60, 0.62, 0.64], sgd), ([0.68, 0.69, 0.70], zoo)):
        for accuracy, run in zip(accuracies, runs, strict=True):
            done(run, accuracy)
    assert command() == 0
    half = stats.t.ppf(0.975, 2) * np.std([60, 62, 64], ddof=1) / math.sqrt(3)
    for text in (capsys.readouterr().out, Path("store/table.md").read_text()):
        assert cells(text) == {
            "SGD": {"published": "60", "ours": f"62.00 ± {half:.2f} (3 seeds)", "difference": "+2.00",
                    "tolerance": "2", "within?": "yes", "minutes per seed": "1.5"},
            "Zoo": {"published": "70.5 ± 0.4", "ours": f"69.00 ± {half / 2:.2f} (3 seeds)", "difference": "-1.50",
                    "tolerance": "1.5", "within?": "yes", "minutes per seed": "1.5"},
        }  # fmt: skip
        assert "SMOKE" not in text
    rows = [{**row, "tolerance": row["tolerance"] - 0.01} for row in TABLE["rows"]]
    write_table(rows=rows)
    assert command() == 0  # it is a measurement
    assert {row["within?"] for row in cells(Path("store/table.md").read_text()).values()} == {"no"}
    text = Path("store/table.tex").read_text()
    assert rf"Zoo & 70.5 $\pm$ 0.4 & 69.00 $\pm$ {half / 2:.2f} (3 seeds) & $-$1.50 & 1.49 & no & 1.5 \\" in text
    assert [float(row["avg_acc_final"]) for row in results().values()] == [0.60, 0.68, 0.62, 0.69, 0.64, 0.70]
    assert not Path("started").exists()


def test_the_command_of_each_row_makes_its_run(here):
    paper = write_table()
    for run in paper.grid.runs:
        done(run, 0.5)
    assert command() == 0
    lines = [line.strip() for line in Path("store/table.md").read_text().splitlines() if line.startswith("    python")]
    for row, line in zip(paper.rows, lines, strict=True):
        words = line.removeprefix("python modelzoo.py ").split()
        assert modelzoo.parse(words).config.seed == 0
        assert modelzoo.parse(words).config.method == row.runs[0].config.method
        assert modelzoo.parse(words).config.data == row.runs[0].config.data


def test_another_figure_than_the_accuracy_at_the_end(here):
    rows = [
        {"label": "learned", "method": "zoo", "metric": "learning_acc", "published": 20, "tolerance": 1},
        {"label": "undefined", "method": "er", "metric": "bwt", "published": -3, "tolerance": 1, "note": "read off."},
    ]
    learned, undefined = write_table(rows=rows, seeds=1).grid.runs
    done(learned, 0.9, learning_acc=0.205)
    done(undefined, 0.9)
    assert command() == 0
    text = Path("store/table.md").read_text()
    found = cells(text)
    assert [found["learned"][key] for key in ("ours", "difference", "within?")] == ["20.50 (1 seed)", "+0.50", "yes"]
    assert [found["undefined"][key] for key in ("ours", "difference", "within?")] == ["n/a"] * 3
    assert "- learned: ours is learning_acc\n" in text
    assert "undefined: read off." in text


def test_a_table_before_all_seeds_have_finished(here, capsys):
    paper = write_table()
    for run in paper.grid.runs:
        finish(run, "prepared", total_seconds=60.0)
    done(paper.rows[0].runs[0], 0.60)
    for run in paper.rows[1].runs:
        order(run, "fail no such data")
    order(paper.rows[0].runs[2], "fail too few examples")
    assert command() == 1
    found = cells(Path("store/table.md").read_text())
    assert [found["SGD"][key] for key in ("within?", "minutes per seed")] == ["incomplete", "1.25"]
    assert "(2 seeds)" in found["SGD"]["ours"]
    assert [found["Zoo"][key] for key in ("ours", "within?")] == ["failed", "n/a"]
    assert capsys.readouterr().err.count("failed: ") == 4


def test_some_rows_only(here, capsys):
    paper = write_table()
    for run in paper.grid.runs:
        finish(run, "prepared", total_seconds=60.0)
    assert command("--only", "Zoo") == 0
    assert started() == [run.name for run in paper.rows[1].runs]
    assert "3 runs, 3 of them to do" in capsys.readouterr().out
    found = cells(Path("store/table.md").read_text())
    assert [found[label]["ours"] for label in ("SGD", "Zoo")] == ["not run", "62.50 ± 0.00 (3 seeds)"]
    assert command("--only", "SGD", "Zoo") == 0
    assert len(started()) == 6


def test_texts_of_a_table_in_markdown_and_latex(here):
    rows = [{"label": "50% & A-GEM|x", "method": "zoo", "published": 50, "tolerance": 1}]
    paper = write_table(rows=rows, title="a_b*", source="A & B", setup="two\nlines")
    for run in paper.grid.runs:
        done(run, 0.5)
    assert command() == 0
    markdown, latex = (Path("store", name).read_text() for name in ("table.md", "table.tex"))
    assert markdown.startswith("## a_b\\*\n\nPublished: A & B. two lines\n\n| row")
    assert "| 50% & A-GEM\\|x |" in markdown
    assert r"50\% \& A-GEM|x & 50 & 50.00 $\pm$ 0.00 (3 seeds) & +0.00 & 1 & yes & 1.5 \\" in latex
    assert r"\caption{a\_b*" not in latex  # a star behind \\ would be read as its argument
    assert r"A \& B" in latex
