"""Figures of autoencoders over sparsity and importance, from hand-made scores of a real run."""

import contextlib
import io
from dataclasses import replace

import pytest

import train_task
from evaluation import phases
from records.run import Run
from reporting.superposition_sweep import of_superposition
from reporting.sweep import cells
from tests.test_sweep import copy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained autoencoder that was asked for its geometry, whose copies are what the tests are about."""
    path = tmp_path_factory.mktemp("features") / "seed0"
    options = ["--set=data.tasks=[sparse]", "--set=data.features=2", "--set=net.hidden=1", "--set=data.dev_examples=50"]
    files = ["--data_config=config/dataset/superposition.yaml", "--hp_config=config/hyperparam/autoencoder.yaml"]
    asked = ["--evaluate=geometry:end", "--steps=1", "--quiet", f"--run_dir={path}"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert train_task.main([*files, *options, *asked]) == 0
    return Run.load(path)


def with_scores(run, data, **scores):
    """The run with other settings of its data, and other scores of its geometry by name."""
    found = copy(run, "autoencoder", {"data": data}, (0.1, 0.1))
    rows = []
    for row, own in zip(found.rows, run.rows, strict=True):
        values = {name: replace(score, value=scores.get(name, score.value)) for name, score in own.scores.items()}
        rows.append(replace(row, scores=values) if row.scenario == "geometry" else row)
    return replace(found, rows=rows)


def test_phases_are_drawn_beside_the_solutions_of_the_lowest_loss(run):
    solutions = {phases.FIRST: (1, 0), phases.BOTH: (1, 1), phases.SECOND: (0, 1)}
    places = {(0.3, 0.1): phases.FIRST, (0.3, 1.0): phases.BOTH, (0.3, 9.0): phases.SECOND,
              (1.0, 0.5): phases.FIRST, (1.0, 1.0): phases.SECOND, (1.0, 3.0): phases.BOTH}  # fmt: skip
    runs = [
        with_scores(run, {"probability": p, "decay": i}, **{f"length of {n}": solutions[name][n] for n in (0, 1)})
        for (p, i), name in places.items()
    ]
    (drawn,) = of_superposition(cells(runs))
    data = drawn.data.set_index(["probability", "importance"])
    assert data.phase.to_dict() == places
    lowest = {place: name for place, name in places.items() if place[0] < 1}
    lowest |= {(1.0, 0.5): phases.FIRST, (1.0, 3.0): phases.SECOND}  # never superposed
    lowest[1.0, 1.0] = f"{phases.FIRST} or {phases.BOTH} or {phases.SECOND}"
    assert data["best solution"].to_dict() == lowest
    assert "5 of 6 networks" in drawn.caption


def test_dimensionality_is_drawn_over_sparsity(run):
    values = {1.0: (1.0, 0.5), 0.5: (0.5, 0.5), 0.1: (0.4, 0.6)}
    runs = [
        with_scores(
            run, {"probability": p}, **{"dimensionality of 0": a, "dimensionality of 1": b, "dimensions per feature": a}
        )
        for p, (a, b) in values.items()
    ]
    each, mean = of_superposition(cells(runs))
    found = {round(1 / x, 9): tuple(own.dimensionality) for x, own in each.data.groupby("1 / (1 - S)")}
    assert found == values
    assert "pair, 1/2 50 %" in each.caption
    assert "pentagon, 2/5 17 %" in each.caption
    assert mean.data["dimensions per feature"].tolist() == [1.0, 0.5, 0.4]


def test_there_is_no_figure_of_one_sparsity_or_of_other_networks(run):
    assert of_superposition(cells([run])) == []
    differ = [with_scores(run, {"probability": p, "values": v}) for p, v in ((0.1, "ones"), (0.2, "uniform"))]
    assert of_superposition(cells(differ)) == []
    unasked = [replace(each, rows=[row for row in each.rows if row.scenario != "geometry"]) for each in
               (with_scores(run, {"probability": p}) for p in (0.1, 0.2))]  # fmt: skip
    assert of_superposition(cells(unasked)) == []
