"""What reports show of the inside of networks: the numbers of metrics.csv, in their places."""

import contextlib
import csv
import html
import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import modelzoo
import train_task
from records.manifest import Manifest
from records.members import SavedMember
from records.run import Run
from records.tables import read_metrics
from report import main
from reporting import mechanism_figures, mechanism_matrices, mechanisms
from reporting.groups import compare
from utils.errors import UserError

SIZES = {"train_examples": 64, "dev_examples": 64, "test_examples": 64, "epoch_examples": 1024}
NET = {"model": "sequence", "width": 32, "layers": 2, "state_mixer": "norm", "batch": 128, "optimizer": "adamw",
       "lr": 0.006, "l2_reg": 0.0, "schedule": "constant", "decayed": "weights", "dropout": 0.0,
       "mixers": [{"mixer": "base_conv", "kernel": 2}, {"mixer": "attention", "heads": 2}]}  # fmt: skip
HEADER = "episode,step,examples,task,task_name,split,slice,scenario,metric,value,n,stderr"
INDUCTION = "blocks.1.input@target of original_query"


def ran(main, *options):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*map(str, options), "--quiet", "--threads", "1"]) == 0


def report_of(*options):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*map(str, options)]) == 0


def given(folder, tasks):
    (folder / "d.yaml").write_text(
        yaml.safe_dump({"dataset": "languages", "tasks": tasks, "symbols": 16, "pairs": 2, **SIZES})
    )
    (folder / "hp.yaml").write_text(yaml.safe_dump(NET))
    return ["--data_config", folder / "d.yaml", "--hp_config", folder / "hp.yaml"]


def hand_made(lines, members=(), ask=None):
    """A run of rows episode, step, task, scenario, metric, value, with accuracies of the test split."""
    text = "\n".join([HEADER, *(
        f"{episode},{step},{10 * step},{task},t{task},{'dev' if scenario == 'anytime' else 'test'},,{scenario},"
        f"{metric},{value},50,0.5" for episode, step, task, scenario, metric, value in lines
    )])  # fmt: skip
    saved = [SavedMember(number, episode, replaces, tasks, (1.0,) * len(tasks), tasks, ((),) * len(tasks), {}, (), 0)
             for number, (episode, replaces, tasks) in enumerate(members)]  # fmt: skip
    rows = read_metrics(text + "\n")
    names = {row.task: row.task_name for row in rows}
    summary = {"metric": "accuracy", "higher_is_better": True, "task_names": list(names.values())}
    config = {"data": {"tasks": [{"ask": ask}]}, "continual": True, "higher_is_better": True}
    return Run(Path("run"), config, Manifest(), rows, [], saved, summary, {task: task for task in names})


def learned(episodes):
    """Rows of R where each episode adds a task."""
    return [(k, k, t, "task-incremental", "accuracy", (k + t) / 10) for k in range(1, episodes + 1)
            for t in range(1, k + 1)]  # fmt: skip


def asked(values):
    """Rows of interchange: (episode, task) -> induction, None where it is not defined."""
    return [(k, k, t, "interchange", *(("probability", 0.5) if value is None else ("induction", value)))
            for (k, t), value in values]  # fmt: skip


def test_r_m_of_a_single_network_is_its_score_in_each_task():
    values = {(1, 1): 0.9, (2, 1): None, (2, 2): 0.4, (3, 1): 0.2, (3, 2): 0.3, (3, 3): -0.1}
    members = [(1, True, (1,)), (2, True, (1, 2)), (3, True, (1, 2, 3))]
    run = hand_made([*learned(3), *asked(values.items())], members)
    nan = np.nan
    assert np.array_equal(run.mechanism_matrix(), [[0.9, nan, nan], [nan, 0.4, nan], [0.2, 0.3, -0.1]], True)
    assert list(run.evaluated("induction").until) == [1, 2, 2, 3, 3, 3]
    assert np.isnan(run.mechanism_matrix("direct late")).all()
    found = mechanism_matrices.mechanism_matrices(run).data
    shown = {(line.score, line.episode, line.task[0]): line.value for line in found.itertuples()}
    assert shown["induction", 3, "2"] == 0.3
    assert shown["accuracy", 3, "2"] == 0.5
    assert ("induction", 2, "1") not in shown
    assert len(shown) == 6 + 5


def test_r_m_of_an_ensemble_is_the_mean_over_its_members_so_far():
    values = [((1, 1), 0.8), ((2, 2), 0.5), ((2, 1), 0.2), ((3, 3), None), ((3, 1), -0.1), ((3, 2), 0.7)]
    members = [(1, True, (1,)), (2, False, (2, 1)), (3, False, (3, 1, 2))]
    run, nan = hand_made([*learned(3), *asked(values)], members), np.nan
    R_m = run.mechanism_matrix()
    assert np.allclose(R_m, [[0.8, nan, nan], [0.5, 0.5, nan], [0.3, 0.6, nan]], equal_nan=True)
    table = mechanism_matrices.ranges(run).set_index("task")
    assert list(table.networks) == [3, 2, 1]
    assert list(table.defined) == [3, 2, 0]
    assert (table.lowest["1 t1"], table.highest["1 t1"]) == (-0.1, 0.8)
    rows = mechanism_matrices.ranges_table(run).rows
    assert rows == [
        ["1 t1", "3", "0.30 (-0.10 to 0.80)"],
        ["2 t2", "2", "0.60 (0.50 to 0.70)"],
        ["3 t3", "1", "undefined"],
    ]


def test_r_m_needs_the_evaluation():
    run = hand_made(learned(2), [(1, True, (1,)), (2, True, (1, 2))])
    with pytest.raises(UserError, match="run was not asked after its episodes"):
        run.mechanism_matrix()
    assert mechanism_matrices.mechanism_matrices(run) is None
    assert mechanism_matrices.ranges_table(run) is None


def test_a_run_that_was_not_asked_has_no_figures():
    run = hand_made([(0, step, 1, "anytime", "accuracy", 0.5) for step in (0, 1)])
    assert mechanism_figures.of_runs({"seed 0": run}, "seed 0") == []
    assert mechanism_figures.associations_table({"seed 0": run}) is None


def test_what_is_not_defined_is_said_and_not_drawn():
    cells = [(f"restored probability {site}@{item} of original_query", 0.5)
             for site in ("blocks.0.input", "blocks.1.input") for item in ("target", "query")]  # fmt: skip
    rows = [(0, step, 1, "anytime", "accuracy", 0.5) for step in (0, 1)]
    undefined = hand_made([*rows, *((1, 1, 1, "interchange", *cell) for cell in cells)])
    assert mechanism_figures.of_runs({"seed 0": undefined}, "seed 0") == []
    assert mechanism_figures.associations_table({"seed 0": undefined}).rows == [["seed 0", *["undefined"] * 3]]
    own = [("induction", 0.8), ("induction low", 0.75), ("induction high", 0.86),
           (f"association {INDUCTION}", 0.8)]  # fmt: skip
    run = hand_made([*rows, *((1, 1, 1, "interchange", *cell) for cell in [*cells, *own])])
    sheet = mechanism_figures.associations_table({"seed 0": run})
    assert sheet.rows == [["seed 0", "0.80 (0.75 to 0.86)", "undefined", "undefined"]]
    curve, cells_drawn = mechanism_figures.of_runs({"seed 0": run}, "seed 0")
    last = curve.data[curve.data.score == "induction"].iloc[-1]
    assert (last.value, last.low, last.high, last.examples) == (0.8, 0.75, 0.86, 10)
    assert list(curve.data[curve.data.score == "accuracy"].value) == [0.5, 0.5]
    found = cells_drawn.data.set_index(["site", "item"]).association
    assert found["blocks.1.input", "target"] == 0.8
    assert found.isna().sum() == 3


def test_the_target_stands_first_where_keys_are_asked_for_by_their_values():
    scores = [(f"accuracy target from blocks.0.input@{item}", 0.1)
              for item in ("original_query", "target", "divider", "query")]  # fmt: skip
    for ask, first in ((None, ["original_query", "target"]), ("value", ["target", "original_query"])):
        run = hand_made([(1, 1, 1, "probes", *score) for score in scores], ask=ask)
        assert list(mechanisms.in_order(run, mechanisms.probed(run))["item"]) == [*first, "divider", "query"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A network that has learned recall, with its report."""
    folder = tmp_path_factory.mktemp("watched")
    names = "interchange,probes,attribution,attention,transplant"
    ran(train_task.main, *given(folder, ["recall"]), "--steps", 200, "--evaluate_at", "every:100", "--evaluate", names,
        "--run_dir", folder / "run")  # fmt: skip
    report_of(folder / "run")
    return folder / "run"


def lines_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def last_of(run, scenario):
    """The values of the last time that an evaluation was asked, by name."""
    lines = [line for line in lines_of(run) if line["scenario"] == scenario]
    return {line["metric"]: float(line["value"]) for line in lines if line["step"] == lines[-1]["step"]}


def drawn(run, name):
    with (run / "figures" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_figures_of_a_run_show_what_metrics_csv_says(watched):
    expected = last_of(watched, "interchange")
    found = drawn(watched, "interchange")
    kinds = {"association": "association", "low": "association low", "high": "association high",
             "restored probability": "restored probability"}  # fmt: skip
    for line, (column, kind) in itertools.product(found, kinds.items()):
        where = f"{line['site']}@{line['item']} of {line['corrupted']}"
        assert float(line[column]) == expected.pop(f"{kind} {where}")
    assert not [name for name in expected if " of " in name and name.startswith(("association", "restored prob"))]
    last = {line["score"]: float(line["value"] or "nan") for line in drawn(watched, "associations")}
    for score in ("induction", "direct early", "direct late"):
        assert last[score] == expected[score]
    anytime = last_of(watched, "anytime")
    assert last["accuracy"] == anytime["accuracy"] > 0.6  # or nothing here is defined
    probes = last_of(watched, "probes")
    for line in drawn(watched, "probes"):
        where = f"{line['label']} from {line['site']}@{line['item']}"
        for kind in ("accuracy", "control", "selectivity"):
            assert probes.pop(f"{kind} {where}", "") == (float(line[kind]) if line[kind] else "")
        assert (line["item"] == "divider") == (line["control"] == "")
    assert all(name.startswith("ceiling ") for name in probes)
    weights = {f"weight {line['head']} {line['later']}>{line['earlier']}": float(line["weight"])
               for line in drawn(watched, "attention")}  # fmt: skip
    assert weights == last_of(watched, "attention")
    parts = {line["part"]: float(line["value"]) for line in drawn(watched, "attribution")}
    assert parts == {
        name.removeprefix("attribution "): value for name, value in last_of(watched, "attribution").items()
    }
    moved = {f"restored {line['source']} into {line['network']} {line['site']}@{line['item']} of {line['corrupted']}":
             float(line["restored"]) for line in drawn(watched, "transplants")}  # fmt: skip
    assert moved == {name: value for name, value in last_of(watched, "transplant").items() if "into" in name}
    assert len(drawn(watched, "attribution_over_training")) == 3 * len(parts)


def test_the_page_of_a_run_has_the_figures(watched):
    page = html.unescape((watched / "report.html").read_text())
    attribution = "Direct logit attribution"
    for title in ("What is learned, and how it works", "Interchange interventions", "What probes can read",
                  "Attention", attribution, f"{attribution} over training", "Transplants between checkpoints",
                  "Associations at the last evaluation"):  # fmt: skip
        assert re.search(rf"<h[23]>{title}</h[23]>", page), title


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """A single network and a zoo on two languages."""
    folder = tmp_path_factory.mktemp("streams")
    options = given(folder, ["recall", {"language": "recall", "pairs": 1}])
    for method in ("finetune", "zoo"):
        ran(modelzoo.main, *options, "--steps", 150, "--continual", "--method", method, "--evaluate", "interchange",
            "--run_dir", folder / "runs" / method)  # fmt: skip
    return folder / "runs"


def test_a_single_network_is_asked_about_all_tasks_seen_and_a_member_once(streams):
    asked_about = {
        method: [(line["episode"], line["task"]) for line in lines_of(streams / method)
                 if line["scenario"] == "interchange" and line["metric"] == "probability"]
        for method in ("finetune", "zoo")
    }  # fmt: skip
    assert asked_about["finetune"] == [("1", "1"), ("2", "1"), ("2", "2")]
    assert sorted(asked_about["zoo"]) == [("1", "1"), ("2", "1"), ("2", "2")]
    scores = {method: {
        (int(line["episode"]), int(line["task"])): float(line["value"]) for line in lines_of(streams / method)
        if line["metric"] == "induction"
    } for method in asked_about}  # fmt: skip
    assert (1, 1) in scores["finetune"]
    assert (2, 1) in scores["zoo"]
    single, zoo = (Run.load(streams / method).mechanism_matrix() for method in asked_about)
    for (episode, task), value in scores["finetune"].items():
        assert single[episode - 1, task - 1] == value
    assert zoo[1, 0] == pytest.approx((scores["zoo"][1, 1] + scores["zoo"][2, 1]) / 2)
    assert np.isnan([single[0, 1], zoo[0, 1]]).all()


def test_reports_of_streams_have_the_mechanism_beside_the_accuracy(streams):
    report_of(streams / "zoo")
    page = html.unescape((streams / "zoo" / "report.html").read_text())
    assert "<h3>Behaviour and mechanism</h3>" in page
    assert "<h3>Mechanism of each task</h3>" in page
    (comparison,) = compare([streams / "finetune", streams / "zoo"])
    data = mechanism_matrices.mechanism_over_episodes(comparison.groups).data
    for line in data.itertuples():
        run = Run.load(streams / line.run)
        assert line.accuracy == pytest.approx(np.nanmean(run.accuracy_matrix[line.episode - 1]))
        defined = [value for value in run.mechanism_matrix()[line.episode - 1] if np.isfinite(value)]
        assert line.induction == pytest.approx(np.mean(defined) if defined else np.nan, nan_ok=True)
    assert len(data) == 4
    report_of(streams)
    page = html.unescape((streams / "report.html").read_text())
    assert "<h3>Behaviour and mechanism over episodes</h3>" in page
    assert "<h3>Mechanism</h3>" in page
