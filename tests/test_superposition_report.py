"""Reports of superposition show what metrics.csv and the checkpoints say: figures, tables, and the slider."""

import contextlib
import csv
import html
import io
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

import train_task
from datasets.objectives import Scored
from evaluation.measurements import Measurement
from records.run import Run
from reporting import (
    complexity_figures,
    grokking_figures,
    slider,
    superposition,
    superposition_figures,
    transitions,
)
from reporting.layout import Page, Section
from reporting.superposition import Features
from reporting.superposition_page import feature_slider, points_table, sections
from reporting.task_page import of_task_runs

ESTIMATE = {"estimate": 8.4, "loss": 0.0618, "fall": 3.25, "effective samples": 1234.4, "between chains": 1.02,
            "chains that left": 1, "estimate, step halved": 8.3, "estimate, step doubled": 8.6,
            "estimate, localisation halved": 8.7, "estimate, localisation doubled": 8.1,
            "by dimension": 8.5, **{f"trace {part}": part / 2 for part in range(1, 17)}}  # fmt: skip


def asked(evaluation, step, scores, stderr=None):
    """A row of metrics.csv with these scores."""
    found = {name: Scored(value, stderr if name == "estimate" else None, 1) for name, value in scores.items()}
    return Measurement(1, step, 10 * step, 1, "k_hot", "dev", "", evaluation, found)


def at(step, k, above=0, below=0, loss=0.1, critical=0.09):
    """A row of `geometry`."""
    dead = {"dead, bias above 0": above, "dead, bias below 0": below}
    return asked("geometry", step, {"polygon": k, **dead, "loss": loss, "critical loss": critical})


def given(*rows, bias=True):
    """A run of these rows, without checkpoints."""
    config = {"net": {"model": "autoencoder", "bias": bias}}
    return SimpleNamespace(rows=[asked("anytime", 0, {"loss": 0.3}), *rows], config=config, checkpoints={})


# Frames


def test_steps_that_are_shown_are_about_even_on_a_logarithmic_scale():
    assert superposition.log_spaced(list(range(1001)), 4) == [0, 1, 32, 1000]
    assert superposition.log_spaced([0, 5, 9], 8) == [0, 5, 9]
    assert superposition.log_spaced([], 8) == []
    found = superposition.log_spaced([3, *range(100, 900)], 5)
    assert (found[0], found[-1], len(found) <= 5) == (3, 899, True)


def test_points_are_named_by_the_signs_of_the_biases_of_dead_features():
    rows = [at(0, 0), at(1, 4, 2), at(2, 4, 0, 2), at(3, 3, 1, 2), at(4, 6)]
    assert list(superposition.points({"a": given(*rows)}).point) == ["none", "4-gon+", "4-gon-", "3-gon+--", "6-gon"]


def test_shares_of_runs_over_steps_where_some_have_ended():
    runs = {"a": given(at(1, 4, 2), at(2, 5, 1), at(8, 6)), "b": given(at(1, 0), at(2, 5, 1)),
            "c": given(at(1, 4, 2), at(2, 4, 2), at(8, 5, 1))}  # fmt: skip
    found = superposition.shares(superposition.points(runs))
    assert found.sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    assert found["4-gon+"].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert found["5-gon+"].tolist() == pytest.approx([0, 2 / 3, 2 / 3])
    assert found["none"].tolist() == pytest.approx([1 / 3, 0, 0])
    picture = superposition_figures.visited(runs)
    line = picture.data[(picture.data.step == 8) & (picture.data.point == "6-gon")]
    assert line["share"].tolist() == pytest.approx([1 / 3])


def test_where_runs_end_with_intervals_and_learning_coefficients():
    losses = [0.0618, 0.0620, 0.0619]
    runs = {f"seed {n}": given(at(9, 5, 1, loss=loss), asked("learning_coefficient", 9, {"estimate": 8 + n, "fall": 1}))
            for n, loss in enumerate(losses)}  # fmt: skip
    runs["seed 3"] = given(at(9, 6, loss=0.0482))
    five, six = points_table(runs).rows
    n, p, z = 4, 0.75, 1.959964
    middle, half = (
        (p + z**2 / 2 / n) / (1 + z**2 / n),
        z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / 4 / n**2),
    )
    assert five == ["5-gon+", "3", "0.75", f"{middle - half:.2f}–{middle + half:.2f}", "0.06180–0.06200",
                    f"9.00 ± {1 / math.sqrt(3):.2f}"]  # fmt: skip
    runs["seed 2"].rows[-1].scores["fall"] = Scored(20.0, None, 1)  # it was at no minimum
    assert points_table(runs).rows[0][-1] == "8.50 ± 0.50 (2)"
    assert six[:3] + six[4:] == ["6-gon", "1", "0.25", "0.04820", "n/a"]
    del runs["seed 0"].rows[1]
    assert points_table({"seed 0": runs["seed 0"]}) is None


def six(run):
    """The run with a checkpoint that tells that there are six features."""
    run.checkpoints[9] = SimpleNamespace(weights=lambda: {"trunk.encoder": torch.zeros(2, 6)})
    return run


@pytest.mark.parametrize("scale", [1, 1 / 6])  # the loss is the sum or the mean over features
def test_the_staircase_names_the_published_critical_points(scale):
    run = six(given(at(0, 0, loss=0.15 * scale), at(9, 5, 1, loss=0.0619 * scale, critical=0.06180 * scale)))
    found = superposition.levels({"a": run})
    published = {"2-gon+": 0.19444, "3-gon+": 0.14583, "4-gon+": 0.09722, "5-gon-": 0.06874, "5-gon+": 0.06180,
                 "6-gon": 0.04819}  # fmt: skip
    assert {name: found[name] / scale for name in published} == pytest.approx(published, abs=1e-5)
    drawn = {text.get_text() for text in superposition_figures.staircase({"a": run}).drawn.axes[0].texts}
    assert {"4-gon+", "5-gon-", "6-gon"} <= drawn
    assert "2-gon+" not in drawn  # above all losses


def test_levels_without_biases_and_where_critical_points_are_not_known():
    met = given(at(1, 5, critical=0.0500499), at(2, 0, critical=math.nan), bias=False)
    assert superposition.levels({"a": met}) == {"5-gon": 0.0500499}  # the number of features is not known
    published = {"4-gon": 0.055556, "5-gon": 0.05005, "6-gon": 0.055556}  # means over features and inputs
    mean = given(at(1, 5, critical=0.0500499), bias=False)
    found = superposition.levels({"a": six(mean)})
    assert {name: found[name] for name in published} == pytest.approx(published, abs=1e-5)
    assert superposition.levels({"a": six(given(at(1, 0, critical=math.nan)))}) == {}


# Phase transitions

STEPS = [round(1.1**place) for place in range(25, 96)]


def falling(falls, first=0.21, scale=1.0, exact=True):
    """A run whose loss is `first` and falls to other levels at the steps that are given, which it then has."""
    levels = [scale * next((to for at, to in reversed(falls) if step >= at), first) for step in STEPS]
    if not exact:
        return given(*(asked("anytime", step, {"loss": loss}) for step, loss in zip(STEPS, levels, strict=True)))
    found = [at(step, 0, loss=loss, critical=math.nan) for step, loss in zip(STEPS, levels, strict=True)]
    last = at(STEPS[-1] + 1, 5, 1, loss=levels[-1], critical=scale * 0.0617987)
    return six(given(*found, last))


def test_phase_transitions_by_kind_with_intervals_over_the_runs_that_make_them():
    times = [50, 70, 90, 110, 150, 190, 240]
    runs = {f"seed {at}": falling([(at, 0.0972), (1500, 0.0618)]) for at in times}
    runs |= {"straight": falling([(100, 0.0618)]), "never": falling([]), "elsewhere": falling([(100, 0.08)])}
    found = transitions.jumps(runs)
    assert len(found) == 2 * 7 + 2
    first = found[(found.number == 1) & (found.to == "4-gon+")]
    assert first.time.tolist() == pytest.approx(times, rel=0.1)
    assert first[["before", "after"]].drop_duplicates().values.tolist() == [pytest.approx([0.21, 0.0972])]
    sheet = transitions.table(found, runs)
    kinds = {row[0]: row[1:] for row in sheet.rows}
    assert list(kinds) == ["start → 4-gon+", "4-gon+ → 5-gon+", "start → 5-gon+", "start → other"]
    assert kinds["start → 5-gon+"][:2] == ["1", "0.10"]
    assert kinds["start → 5-gon+"][3] == "n/a"  # one time has no interval
    assert kinds["start → other"][-1] == "0.0800"
    runs_of, share, median, interval, *losses = kinds["start → 4-gon+"]
    assert (runs_of, share, losses) == ("7", "0.70", ["0.2100", "0.0972"])
    low, high = map(int, interval.split("–"))  # of seven times the smallest and the largest, as 2 / 2^7 < 5 %
    assert (low, int(median), high) == pytest.approx((50, 110, 240), rel=0.1)
    assert "1 of 10 runs make none" in sheet.notes[1]
    assert len(sheet.data) == len(found)


def test_a_run_that_makes_a_kind_of_phase_transition_again_counts_once():
    run = falling([(50, 0.08), (200, 0.04), (1500, 0.02)])
    found = transitions.jumps({"a": run})
    assert found[["from", "to"]].values.tolist() == [["start", "other"], ["other", "other"], ["other", "other"]]
    again = {row[0]: row[1:] for row in transitions.table(found, {"a": run}).rows}["other → other"]
    assert again[:2] == ["1", "1.00"]
    assert int(again[2]) == pytest.approx(200, rel=0.1)


@pytest.mark.parametrize("scale", [3, 1 / 6])
def test_phase_transitions_have_names_whatever_the_scale_of_the_loss(scale):
    found = transitions.jumps({"a": falling([(200, 0.0618)], scale=scale)})
    assert found[["from", "to"]].values.tolist() == [["start", "5-gon+"]]


def test_of_critical_points_of_one_loss_phase_transitions_name_that_which_the_run_has_met():
    # Without biases 4 and 6 vectors have the same loss.
    for k in (4, 6):
        before = [at(step, 3, loss=1 / 12, critical=1 / 12) for step in STEPS if step < 200]
        after = [at(step, k, loss=1 / 18, critical=1 / 18) for step in STEPS if step >= 200]
        run = six(given(*before, *after, bias=False))
        assert transitions.jumps({"a": run}).to.tolist() == [f"{k}-gon"]


def test_phase_transitions_of_measured_losses_go_from_plateau_to_plateau():
    run = falling([(100, 0.1), (1500, 0.05)], exact=False)
    run.rows.append(asked("anytime", 10**4, {"loss": math.nan}))  # it has diverged
    found = transitions.jumps({"a": run})
    assert found[["from", "to"]].values.tolist() == [["plateau 1", "plateau 2"], ["plateau 2", "plateau 3"]]
    assert "critical point" not in transitions.table(found, {"a": run}).notes[0]
    few = given(*(asked("anytime", step, {"loss": 0.2 if step < 100 else 0.1}) for step in STEPS[::4]))
    assert transitions.jumps({"a": few}).empty
    assert transitions.table(transitions.jumps({"a": few}), {"a": few}) is None


def test_the_marks_of_phase_transitions_lie_on_the_staircase():
    run = falling([(200, 0.0618)], first=0.3)
    axes = superposition_figures.staircase({"a": run}, transitions.jumps({"a": run})).drawn.axes[0]
    (marks,) = (line for line in axes.lines if line.get_marker() == "|")
    (at,), (level,) = marks.get_data()
    near = [math.log(0.3), math.log(0.0618)]
    assert math.log(level) == pytest.approx(sum(near) / 2)  # the time is that at which log loss is halfway
    assert at == pytest.approx(200, rel=0.1)


def test_the_page_has_phase_transitions_where_there_are_some():
    runs = {"a": falling([(200, 0.1)], exact=False)}
    runs["a"].config["net"] = {"model": "rnn"}
    runs["a"].checkpoints[9] = SimpleNamespace(weights=lambda: {"trunk.input": torch.zeros(2, 6)})
    shown = [part.title for part in sections(runs, "a") if part.tables or part.pictures or part.sliders]
    assert shown == ["Phase transitions"]


# Learning coefficients, the Hessian, grokking


def test_the_table_of_learning_coefficients_has_the_diagnostics_beside_every_estimate():
    late = {**ESTIMATE, "between chains": 1.3, "fall": 9.0}
    del late["by dimension"]
    name = "learning_coefficient"
    runs = {"a": given(asked(name, 1, {"estimate": 1.0}), asked(name, 4000, ESTIMATE, 0.11)),
            "b": given(asked(name, 4000, late))}  # fmt: skip
    sheet = complexity_figures.coefficients_table(runs)
    text = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in sheet.rows]
    columns = {name: [row[place] for row in text] for place, name in enumerate(sheet.header)}
    assert columns == {
        "run": ["a", "b"], "step": ["4,000"] * 2, "estimate": ["8.40 ± 0.11", "8.40"], "by dimension": ["8.50", "n/a"],
        "loss": ["0.0618"] * 2, "fall": ["3.2", "9.0"], "R-hat": ["1.020", "1.300"], "effective samples": ["1,234"] * 2,
        "chains that left": ["1"] * 2, "step halved": ["8.30"] * 2, "step doubled": ["8.60"] * 2,
        "localisation halved": ["8.70"] * 2, "localisation doubled": ["8.10"] * 2,
    }  # fmt: skip
    for name in ("R-hat", "fall"):
        place = sheet.header.index(name)
        assert [row[place].bold for row in sheet.rows] == [False, True]
    assert complexity_figures.coefficients_table({"a": given()}) is None
    trace = complexity_figures.traces(runs).data
    assert trace[trace.run == "b"].value.tolist() == [part / 2 for part in range(1, 17)]


def test_critical_points_are_marked_where_a_run_near_them_knows_their_dimensions():
    near = given(at(9, 5, 1, loss=0.0619, critical=0.0618), asked("learning_coefficient", 9, ESTIMATE, 0.1))
    far = given(at(9, 6, loss=0.0618, critical=0.0482), asked("learning_coefficient", 9, ESTIMATE, 0.1))
    found = complexity_figures.known_points({"a": near, "b": far}, superposition.coefficients({"a": near, "b": far}))
    assert found.values.tolist() == [["5-gon+", 0.0618, 8.5, 8.5]]
    picture = complexity_figures.against_loss({"a": near, "b": far})
    assert picture.data.estimate.tolist() == [8.4, 8.4]
    assert picture.data.loss.tolist() == [0.0619, 0.0618]  # the exact ones, not those on examples


def test_estimates_of_networks_at_no_minimum_are_hollow():
    rows = [asked("learning_coefficient", step, {**ESTIMATE, "loss": 1 / step, "fall": fall})
            for step, fall in ((5, 700.0), (10, 9.0), (20, 0.5))]  # fmt: skip
    picture = complexity_figures.against_loss({"a": given(*rows)})
    axes = picture.drawn.axes[0]
    (filled,) = (cloud for cloud in axes.collections if isinstance(cloud, PathCollection))
    assert filled.get_offsets().tolist() == [pytest.approx([0.05, 8.4])]
    (hollow,) = (line for line in axes.lines if line.get_fillstyle() == "none")
    assert hollow.get_xdata().tolist() == [0.2, 0.1]
    assert "Hollow" in picture.caption
    assert "Hollow" not in complexity_figures.against_loss({"a": given(rows[-1])}).caption
    complexity_figures.against_loss({"a": given(*rows[:2])})  # with none that is filled


def test_the_spectrum_and_the_frequencies_are_those_of_the_rows():
    spectra = [{"rank": 2, "eigenvalue 1": 3.0, "eigenvalue 2": 0.5, "eigenvalue 10": -0.1}, {"eigenvalue 1": 2.0}]
    run = given(*(asked("hessian", step, scores) for step, scores in enumerate(spectra)),
                *(asked("fourier", step, {"power at 2": 0.25, "power at 11": 0.075 * step, "train loss": 1.0})
                  for step in (0, 10)))  # fmt: skip
    assert complexity_figures.spectrum(run).data.values.tolist() == [[0, 1, 3], [0, 2, 0.5], [0, 10, -0.1], [1, 1, 2]]
    assert grokking_figures.frequencies(run).data.values.tolist() == [
        [0, 2, 0.25], [0, 11, 0], [10, 2, 0.25], [10, 11, 0.75],
    ]  # fmt: skip


def test_grokking_curves_and_their_table():
    rows = [asked("fourier", step, {"train accuracy": 1.0, "rest accuracy": step / 10, "train loss": 0.01,
                                    "excluded loss": 2.5, "key frequencies": 4}) for step in (0, 5, 9)]  # fmt: skip
    runs = {"a": given(*rows), "b": given(*rows[:2]), "c": given()}
    assert grokking_figures.progress(runs).data["rest accuracy"].tolist() == [0, 0.5, 0.9, 0, 0.5]
    sheet = grokking_figures.measures_table(runs)
    assert [dict(zip(sheet.header, row, strict=True))["rest accuracy"] for row in sheet.rows] == ["0.9", "0.5"]
    assert grokking_figures.progress({"c": runs["c"]}) is None


def test_runs_that_were_asked_nothing_have_no_such_sections():
    for part in sections({"a": given(), "b": given()}, "a"):
        assert [*part.tables, *part.pictures, *part.sliders] == []


# Features


def moment(vectors, bias=None):
    return Features(np.array(vectors, float), None if bias is None else np.array(bias, float), math.nan)


def page_of(found, tmp_path):
    """The page with one slider, as text."""
    page = Page("title", ["lead"], [Section("Features", (), (), [found])], "command", (), ())
    return page.write(tmp_path).read_text()


def test_the_slider_has_the_places_of_all_runs_on_one_scale_whatever_their_names(tmp_path):
    runs = {"</script><b>": {0: moment([[1, 0], [0, 0.5]], [0, 0]), 7: moment([[2, 0], [0, -2]], [0.1, -0.2])},
            "b": {3: moment([[0, 0], [4, 0]], [0.4, 0])}}  # fmt: skip
    text = page_of(slider.plane_slider(runs), tmp_path)
    (content,) = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    first, second = json.loads(content)
    assert (first["name"], first["texts"], second["texts"]) == ("</script><b>", ["step 0", "step 7"], ["step 3"])
    scale, height = 170 / 4, 30 / 0.4
    assert first["places"][1] == [200 + 2 * scale, 200, 420 - 0.1 * height, 0.1 * height,
                                  200, 200 + 2 * scale, 420, 0.2 * height]  # fmt: skip
    assert second["places"][0] == [200, 200 - 4 * scale, 390, 30, 200, 200, 420, 0]
    assert "</script><b>" not in text
    assert [html.unescape(name) for name in re.findall("<option>(.*?)</option>", text)] == list(runs)


def test_without_a_script_the_slider_shows_the_last_moment(tmp_path):
    runs = {"a": {0: moment([[1, 0], [0, 1]]), 9: moment([[-1, 0.5], [0, -0.5]])}}
    text = page_of(slider.plane_slider(runs), tmp_path)
    (drawing,) = re.findall(r"<svg class.*?</svg>", text, re.DOTALL)
    lines = ElementTree.fromstring(drawing).findall(".//line")
    assert [(float(line.get("x2")), float(line.get("y2"))) for line in lines] == [(30, 200), (285, 285)]
    assert '<p class="still">step 9</p>' in text
    assert "<rect" not in text  # no biases
    assert "<select" not in text  # one run
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)  # no other files


def test_features_of_more_hidden_values_are_their_products():
    vectors = np.random.default_rng(0).normal(size=(3, 5))
    run = SimpleNamespace(rows=[asked("anytime", 4, {"loss": 0.3})], config={"net": {"model": "autoencoder"}},
                          checkpoints={4: SimpleNamespace(network=lambda: autoencoder(vectors))})  # fmt: skip
    data = superposition_figures.of_features(run).data
    for line in data.itertuples():
        expected = vectors[:, line.row] @ vectors[:, line.column]
        assert line.value == pytest.approx(expected, abs=1e-5)
    assert len(data) == 25
    assert feature_slider({"a": run}, "a") is None


def autoencoder(vectors):
    """A network with these vectors."""
    from net import build_net, settings_class
    from utils.settings import read

    settings = read(settings_class("autoencoder"), "net", {"hidden": len(vectors)})
    net = build_net("autoencoder", (vectors.shape[1],), settings, {1: vectors.shape[1]}, "identity")
    net.trunk.encoder.data.copy_(torch.tensor(vectors))
    return net


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds of six features in two dimensions, with their page."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--data_config", "config/dataset/superposition.yaml",
               "--hp_config", "config/hyperparam/autoencoder.yaml",
               "--set", "data.epoch_examples=1024", "--set", "hp.batch=128", "--steps", "300", "--seeds", "2",
               "--checkpoints", "log:10", "--evaluate_at", "log:10", "--evaluate", "geometry",
               "--run_dir", str(folder), "--quiet", "--threads", "1"]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        assert train_task.main(options) == 0
    runs = [Run.load(folder / f"seed{seed}") for seed in (0, 1)]
    more = [asked("learning_coefficient", step, {**ESTIMATE, "loss": 5 / (step + 9)}, 0.1) for step in (10, 300)]
    more += [asked("hessian", step, {"eigenvalue 1": 2.0, "eigenvalue 2": -1e-3}) for step in (10, 300)]
    more.append(asked("fourier", 300, {"train loss": 0.1, "rest accuracy": 0.5, "power at 3": 0.5}))
    runs[0] = replace(runs[0], rows=[*runs[0].rows, *more])
    of_task_runs(runs, "report.py").write(folder)
    return folder, runs


def drawn(folder, name):
    with (folder / "figures" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_slider_of_runs_has_their_weights_and_losses(trained):
    folder, runs = trained
    lines = drawn(folder, "features_by_step")
    for run in runs:
        own = [line for line in lines if line["run"] == f"seed {run.config['seed']}"]
        assert len(own) == 6 * len(run.checkpoints)
        losses = {row.step: row.scores["loss"].value for row in run.rows if row.scenario == "geometry"}
        for line in own:
            step, feature = int(line["step"]), int(line["feature"])
            weights = run.checkpoints[step].weights()
            expected = [*weights["trunk.encoder"][:, feature].tolist(), weights["trunk.bias"][feature].item()]
            assert [float(line[name]) for name in ("x", "y", "bias")] == pytest.approx(expected, abs=1e-6)
            assert float(line["loss"]) == losses[step]
    assert {int(line["step"]) for line in drawn(folder, "features")} <= set(runs[0].checkpoints)


def test_the_staircase_has_the_exact_losses(trained):
    folder, runs = trained
    expected = {(f"seed {run.config['seed']}", row.step): row.scores["loss"].value for run in runs for row in run.rows
                if row.scenario == "geometry"}  # fmt: skip
    assert {(line["run"], int(line["step"])): float(line["loss"]) for line in drawn(folder, "staircase")} == expected


def test_the_page_has_all_figures_and_tables(trained):
    page = html.unescape((trained[0] / "report.html").read_text())
    assert ">uninformed</text>" in (trained[0] / "figures/loss_curves.svg").read_text()
    assert "Dashed: the loss of a prediction" in page
    chosen = re.search(r"Features in the plane over training: (seed \d)", page)[1]
    titles = ["The loss staircase", "Critical points over training", "Where the runs end", "Trace of the chains",
              "Features in the plane, step by step", "Learning coefficient against loss",
              "Local learning coefficient: the last estimates", "Progress measures of grokking"]  # fmt: skip
    if chosen == "seed 0":
        titles += [f"Spectrum of the Hessian: {chosen}", f"Frequencies of the embedding: {chosen}"]
    for title in titles:
        assert f"<h3>{title}</h3>" in page, title
