"""TensorBoard's own reader finds what docs/tensorboard.md says, with the numbers of the run directory."""

import errno
import io
import json
import re
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib import colormaps
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

from datasets.objectives import Scored
from evaluation import metrics
from evaluation.measurements import Measurement
from methods import METHODS
from records.configuration import hyperparameter_kinds, hyperparameters
from records.invocation import parse, with_settings
from records.monitor import RunStart
from records.pictures import heat_map
from records.tensorboard import TensorBoard, board_values
from tests.tables import read_metrics
from tests.test_resume import options, start, stop_after, write_configs

PROJECT = Path(__file__).parent.parent
KINDS = {"scalar": "scalars", "image": "images", "text": "tensors", "layout": "tensors", "hparams": "tensors"}
SESSION_START, SESSION_END = "_hparams_/session_start_info", "_hparams_/session_end_info"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of three tasks by name: a zoo with and without a reference, a baseline with one, a zoo that knows all."""
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_configs()
        assert start("isolated", *options("isolated")) == 0
        assert start("zoo", *options("zoo"), "--isolated", "isolated") == 0
        Path("same.yaml").write_text("dataset: rotated_digits\ntasks: [[0, 1], [10, 11], [20, 21]]\n")
        assert start("alone", *options("zoo"), "--data_config", "same.yaml") == 0
        assert start("er", *options("er"), "--isolated", "isolated") == 0
        assert start("watched", *options("er"), "--evaluate_every", "4") == 0
        one_head = ["--data_config", "same.yaml", "--scenario", "domain"]
        assert start("domain", *options("finetune"), *one_head) == 0
        everything = [option for option in options("zoo") if option != "--continual"]
        assert start("multitask", *everything, "--isolated", "isolated", "--rounds", "4") == 0
    return folder


def read(run):
    events = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


def tags_of(run):
    """Kind and tag, tasks by a placeholder."""
    return {(kind, re.sub(r"/\d{3} .*", "/<task>", tag))
            for kind in ("scalars", "images", "tensors") for tag in read(run).Tags()[kind]}  # fmt: skip


def documented():
    """Tag, kind, and the conditions under which it is written."""
    for line in (PROJECT / "docs/tensorboard.md").read_text().splitlines():
        if line.startswith("| `"):
            tag, kind, _, when, _ = (
                cell.strip() for cell in line.strip("| ").split(" | ") + [""] * line.endswith("| |")
            )
            yield tag.strip("`"), KINDS[kind], set(when.replace("`", "").split()) - {"always"}


def values(run, tag):
    return {event.step: event.value for event in read(run).Scalars(tag)}


def measured(run):
    return read_metrics(run)


def matrix(run):
    rows = measured(run).query("scenario == 'task-incremental' and split == 'test' and episode > 0")
    return rows.pivot(index="episode", columns="task", values="accuracy").to_numpy()


def pixels(event):
    """Colours of the cells, [rows, columns, 3]."""
    image = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
    assert image.shape[:2] == (event.height, event.width)
    return image


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("zoo", {"--continual", "--isolated", "zoo"}),
        ("alone", {"--continual", "zoo", "domain"}),
        ("er", {"--continual", "--isolated"}),
        ("watched", {"--continual", "--evaluate_every"}),
        ("multitask", {"--isolated", "zoo"}),
        ("isolated", {"--continual"}),
    ],
)
def test_the_tags_are_those_that_are_documented(runs, name, holds):
    assert tags_of(runs / name) == {(kind, tag) for tag, kind, when in documented() if when <= holds}


@pytest.mark.parametrize("name", ["zoo", "alone", "er", "multitask"])
def test_the_numbers_are_those_of_the_run_directory(runs, name):
    run = runs / name
    events = read(run)
    rows = measured(run).query("episode > 0")
    without_task = rows.query("scenario != 'task-incremental'")
    for scenario, found in without_task.groupby("scenario"):
        averages = found.groupby("episode").accuracy.mean()
        assert values(run, f"without_task/{scenario}") == pytest.approx(averages.to_dict(), rel=1e-6)
    assert without_task.scenario.nunique() == (4 if name == "alone" else 2)
    for row in rows.drop(without_task.index).itertuples():
        for figure in ("accuracy", "loss", "ece"):
            tag = f"{row.split}_{figure}/{row.task:03d} {row.task_name}"
            (value,) = [event.value for event in events.Scalars(tag) if event.step == row.episode]
            assert value == np.float32(getattr(row, figure))
    test = rows.query("scenario == 'task-incremental' and split == 'test'").groupby("episode")
    assert values(run, "average_accuracy") == pytest.approx(test.accuracy.mean().to_dict(), rel=1e-6)
    assert values(run, "average_ece") == pytest.approx(test.ece.mean().to_dict(), rel=1e-6)
    episodes = pd.read_csv(run / "episodes.csv").set_index("episode")
    for tag in ("seconds", "images_per_second", "peak_memory_bytes"):
        assert values(run, tag) == pytest.approx(episodes[tag].to_dict(), rel=1e-6)
    summary = json.loads((run / "summary.json").read_text())
    for tag in events.Tags()["scalars"]:
        if tag.startswith("summary/"):
            assert values(run, tag) == pytest.approx({len(episodes): summary[tag.removeprefix("summary/")]}, rel=1e-6)


def test_curves_within_episodes_are_over_gradient_steps(runs):
    rows = measured(runs / "watched").query("scenario == 'anytime'")
    for (task, name), found in rows.groupby(["task", "task_name"]):
        expected = dict(zip(found.step, found.accuracy, strict=True))
        assert values(runs / "watched", f"anytime_accuracy/{task:03d} {name}") == pytest.approx(expected, rel=1e-6)


def test_a_task_that_is_not_learned_yet_has_no_point(runs):
    tags = [tag for tag in read(runs / "domain").Tags()["scalars"] if tag.startswith("test_accuracy/")]
    assert [list(values(runs / "domain", tag)) for tag in sorted(tags)] == [[1, 2, 3], [2, 3], [3]]
    transfer = json.loads((runs / "domain/summary.json").read_text())["fwt_zero_shot"]
    assert values(runs / "domain", "summary/fwt_zero_shot") == {3: pytest.approx(transfer, rel=1e-6)}


def test_forgetting_and_transfer_are_those_of_the_episodes_so_far(runs):
    R = matrix(runs / "er")
    for tag, metric in (("forgetting", metrics.forgetting_chaudhry), ("backward_transfer", metrics.bwt)):
        expected = {k: metric(R[:k, :k]) for k in (2, 3)}
        assert values(runs / "er", tag) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("name", "steps"), [("zoo", [1, 2, 3]), ("multitask", [1, 1, 1])])
def test_the_isolated_accuracy_lies_where_the_curve_begins(runs, name, steps):
    isolated = json.loads((runs / "isolated/summary.json").read_text())["per_task_acc"]
    tags = sorted(tag for tag in read(runs / name).Tags()["scalars"] if tag.startswith("isolated_accuracy/"))
    points = [values(runs / name, tag) for tag in tags]
    assert points == [{step: np.float32(value)} for step, value in zip(steps, isolated, strict=True)]


def test_pictures_show_the_run(runs):
    run = runs / "zoo"
    R, events = matrix(run), read(run)
    episodes = pd.read_csv(run / "episodes.csv", keep_default_na=False)
    shown = events.Images("accuracy_matrix")
    assert [event.step for event in shown] == [1, 2, 3]
    colour = colormaps["viridis"](1 - np.sqrt(1 - np.array([0.87, 0.96])))[:, :3]
    assert np.abs(colour[0] - colour[1]).max() > 0.2
    for event in shown:
        picture, cell = pixels(event), event.width // 3
        assert picture.shape == (3 * cell, 3 * cell, 3)
        seen = np.where(np.arange(3)[:, None] < event.step, R, np.nan)
        expected = np.where(
            np.isnan(seen)[..., None], 224, 255 * colormaps["viridis"](1 - np.sqrt(1 - np.nan_to_num(seen)))[..., :3]
        )
        np.testing.assert_allclose(picture[::cell, ::cell], expected, atol=6)
        written = (picture != picture[::cell, ::cell].repeat(cell, 0).repeat(cell, 1)).any(2)
        has_number = written.reshape(3, cell, 3, cell).any((1, 3))
        np.testing.assert_array_equal(has_number, ~np.isnan(seen))
    members = pixels(events.Images("members")[-1])[::48, ::48]
    for row, tasks in zip(members, episodes.tasks, strict=True):
        assert {t + 1 for t in range(3) if tuple(row[t]) == (253, 231, 37)} == set(map(int, str(tasks).split()))
    weights = pixels(events.Images("sampling_weights")[-1])[::48, ::48]
    np.testing.assert_array_equal(weights[[0, 1, 1], [0, 1, 2]], 224)
    for pair in episodes.sampling_weights.iloc[2].split():
        task, weight = pair.split(":")
        expected = 255 * np.array(colormaps["viridis"](1 + np.log10(float(weight)) / 3)[:3])
        np.testing.assert_allclose(weights[2, int(task) - 1], expected, atol=6)


def test_the_configuration_is_there_as_text(runs):
    (event,) = read(runs / "zoo").Tensors("config")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert all(line.startswith("    ") for line in lines)  # Markdown for: as it is
    assert yaml.safe_load("\n".join(lines)) == yaml.safe_load((runs / "zoo/config.yaml").read_text())


def test_every_chart_has_curves_and_the_layout_is_the_same_for_all_runs(runs):
    texts = {name: read(runs / name).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
             for name in ("zoo", "er", "multitask")}  # fmt: skip
    assert len(set(texts.values())) == 1
    layout = Layout.FromString(texts["zoo"])
    assert [chart.title.split(",")[0] for chart in layout.category[0].chart] == [
        "average accuracy", "forgetting", "throughput",
    ]  # fmt: skip
    tags = [tag for name in ("zoo", "watched") for tag in read(runs / name).Tags()["scalars"]]
    for category in layout.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert [tag for tag in tags if re.match(pattern, tag)], pattern


def hparams(run, tag, read_as):
    (content,) = {read(run).SummaryMetadata(tag).plugin_data.content}
    return read_as(content)


def test_hyperparameters_tell_runs_from_each_other(runs):
    started = {name: hparams(runs / name, SESSION_START, metadata.parse_session_start_info_plugin_data).hparams
               for name in ("zoo", "er")}  # fmt: skip
    zoo, er = started["zoo"], started["er"]
    assert (zoo["method"].string_value, er["method"].string_value) == ("zoo", "er")
    assert (zoo["stream"].string_value, zoo["net.model"].string_value) == ("d", "conv")
    assert (zoo["hp.epochs"].number_value, zoo["data.samples"].number_value, zoo["hp.lr"].number_value) == (3, 8, 0.01)
    assert zoo["continual"].bool_value
    assert zoo["tasks_per_round"].number_value == 2
    assert "tasks_per_round" not in er
    assert (er["memory_per_class"].number_value, er["settings.replay_loss"].string_value) == (2, "mean")
    experiment = hparams(runs / "zoo", "_hparams_/experiment", metadata.parse_experiment_plugin_data)
    assert experiment == hparams(runs / "er", "_hparams_/experiment", metadata.parse_experiment_plugin_data)
    assert zoo.keys() | er.keys() <= {info.name for info in experiment.hparam_infos}
    infos = {info.name: info for info in experiment.hparam_infos}
    assert [name for name, info in infos.items() if info.differs] == [
        "method",
        "stream",
        "net.model",
        "seed",
        "hp.epochs",
    ]
    assert [value.string_value for value in infos["settings.replay_loss"].domain_discrete.values] == ["mean", "sum"]
    assert [value.bool_value for value in infos["continual"].domain_discrete.values] == [False, True]
    names = ("zoo", "alone", "watched", "domain")
    written = {tag for name in names for tag in read(runs / name).Tags()["scalars"]}
    assert {info.name.tag for info in experiment.metric_infos} == {t for t in written if t.startswith("summary/")}


@pytest.mark.parametrize("method", METHODS)
def test_every_hyperparameter_has_the_kind_that_its_column_has(method):
    config = with_settings(parse(["--method", method, *["--continual"] * ("continual" in METHODS[method].modes)]))
    for name, value in hyperparameters(config).items():
        kind = hyperparameter_kinds()[name]
        if isinstance(kind, tuple):
            assert value in kind
        else:
            assert isinstance(value, (int, float) if kind is float else kind)
            assert isinstance(value, bool) == (kind is bool)


def test_batch_and_length_are_hyperparameters(tmp_path):
    (tmp_path / "h.yaml").write_text("model: conv\nbatch: full\nsteps: 2^6\nwarmup: 0.1\n")
    found = hyperparameters(with_settings(parse(["--hp_config", str(tmp_path / "h.yaml")])))
    assert (found["hp.batch"], found["hp.steps"], found["hp.warmup"]) == ("full", 64, 0.1)


def test_a_run_says_how_it_ended(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs()
    assert hparams(runs / "zoo", SESSION_END, metadata.parse_session_end_info_plugin_data).status == 1
    with monkeypatch.context() as patch:
        stop_after(patch, 14)
        assert start("run", *options("zoo")) == 143
    assert hparams("run", SESSION_END, metadata.parse_session_end_info_plugin_data).status == 2
    assert start("run", "--resume") == 0
    assert hparams("run", SESSION_END, metadata.parse_session_end_info_plugin_data).status == 1


def test_a_run_that_was_gone_on_with_shows_what_came_before(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        assert start("again", *options("zoo"), "--isolated", "isolated") == 143
    assert start("again", "--resume") == 0
    assert len(list(Path("again").glob("events.*"))) == 2
    one, other = read("again"), read("zoo")
    assert tags_of("again") == tags_of("zoo")
    for tag in ("accuracy_matrix", "members", "sampling_weights"):
        assert one.Images(tag)[-1].encoded_image_string == other.Images(tag)[-1].encoded_image_string
    timed = ("images_per_second", "seconds", "peak_memory_bytes", "summary/train_seconds")
    for tag in set(other.Tags()["scalars"]) - set(timed):
        assert [(e.step, e.value) for e in one.Scalars(tag)] == [(e.step, e.value) for e in other.Scalars(tag)], tag


# Its parts.


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 3), (100, 100), (3000, 20), (4, 2000)])
def test_pictures_are_neither_tiny_nor_huge(rows, columns):
    png, *size = heat_map(np.linspace(0, 1, (rows + 1) // 2 * columns).reshape(-1, columns), rows)
    width, height = struct.unpack(">II", png[16:24])
    assert [width, height] == size
    assert 24 <= max(width, height) <= 960
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert tuple(image[0, 0]) == (68, 1, 84)
    assert rows == 1 or (image[-1] == 224).all()


def test_scores_of_single_activations_have_no_curves_where_there_are_many():
    few = {"induction": 1.0, **{f"association blocks.{number}.input@target": 0.0 for number in range(39)}}
    for values in (few, {**few, "association blocks.99.input@target": 0.0}):
        scores = {name: Scored(value, None, 1) for name, value in values.items()}
        row = Measurement(1, 1, 1, 1, "recall", "dev", "", "interchange", scores)
        assert board_values(row) == (few if values is few else {"induction": 1.0})


def test_a_full_disk_while_a_failed_run_is_closed_hides_no_error():
    class Disk:
        full = False

        def write(self, content):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")

    disk = Disk()
    board = TensorBoard(lambda name: disk, {})
    board.run_begins(RunStart([], {"continual": True, "higher_is_better": True}, {}, 3, None, [], []))
    disk.full = True
    board.close()
    with pytest.raises(OSError, match="No space left"):
        board.epoch_ends(1, 0.5, 0.01)
