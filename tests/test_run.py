"""The real command on embedded data: what it prints, what it leaves behind."""

import contextlib
import fcntl
import io
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss

from datasets import build_stream
from evaluation import metrics
from modelzoo import main
from net import build_net, settings_class
from records.invocation import parse
from tests.tables import read_metrics
from tests.test_objectives import plain_calibration_error

PROJECT = Path(__file__).parent.parent
TASKS = 6  # more than the five of a round
QUICK = ["--data_config", str(PROJECT / "config/dataset/rotated_digits.yaml"), "--samples", "4", "--epochs", "2",
         "--set", f"data.tasks={TASKS}"]  # fmt: skip
FILES = {"config.yaml", "episodes.csv", "metrics.csv", "summary.json", "manifest.json", "members", "predictions",
         "state"}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of isolated networks, a zoo that is compared with it, and what the zoo printed to stdout and stderr."""
    folder = tmp_path_factory.mktemp("runs")
    assert main([*QUICK, "--continual", "--method", "isolated", "--run_dir", str(folder / "isolated"), "--quiet"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stdout, stderr = io.StringIO(), io.StringIO()
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        assert main([*QUICK, "--continual", "--run_dir", "zoo", "--isolated", "isolated"]) == 0
    return folder, stdout.getvalue(), stderr.getvalue()


def read_csv(path):
    """Every digit that was written."""
    return pd.read_csv(path, float_precision="round_trip")


def matrix(folder):
    rows = read_metrics(folder).query("scenario == 'task-incremental' and split == 'test' and episode > 0")
    return rows.pivot(index="episode", columns="task", values="accuracy").to_numpy()


def test_the_console_tells_what_is_run_and_what_came_out(runs):
    folder, stdout, _ = runs
    lines = stdout.splitlines()
    summary = json.loads((folder / "zoo/summary.json").read_text())
    assert lines[0].split() == ["stream", "rotated_digits:", str(TASKS), "tasks,", "continual"]
    assert any("116,240 parameters" in line for line in lines)
    assert len([line for line in lines if line.startswith("episode ")]) == TASKS
    table = next(i for i, line in enumerate(lines) if line.startswith("task "))
    assert lines[table].split() == ["task", "right", "after", "at", "the", "end", "isolated"]
    final = [line.split()[-3:] for line in lines[table + 1 : table + 1 + TASKS]]
    expected = zip(
        summary["per_task_learning_acc"], summary["per_task_acc"], summary["per_task_isolated_acc"], strict=True
    )
    assert final == [[f"{value:.4f}" for value in row] for row in expected]
    assert f"backward transfer  {summary['bwt']:+.4f}" in stdout
    assert f"forward transfer   {summary['fwt_isolated']:+.4f}" in stdout


def test_plain_lines_where_there_is_no_terminal(runs):
    _, stdout, stderr = runs
    assert stderr == ""
    assert "\r" not in stdout
    assert "\x1b" not in stdout


def test_the_run_directory_is_complete(runs):
    folder, *_ = runs
    names = {path.name for path in (folder / "zoo").iterdir()}
    assert names > FILES
    assert sum(name.startswith("events.out.tfevents") for name in names - FILES) == len(names - FILES) == 1
    members = [f"member_{i:03d}" for i in range(TASKS)]
    assert sorted(p.name for p in (folder / "zoo/members").iterdir()) == sorted(
        f"{m}{end}" for m in members for end in (".json", ".safetensors")
    )
    kept = [f"kept_{i:03d}" for i in range(1, TASKS + 1)]
    assert sorted(p.stem for p in (folder / "zoo/predictions").iterdir()) == [*kept, *members, "targets"]


def test_the_summary_follows_from_the_measurements(runs):
    folder, *_ = runs
    summary = json.loads((folder / "zoo/summary.json").read_text())
    R = matrix(folder / "zoo")
    assert np.isnan(R[np.triu_indices(TASKS, 1)]).all()
    assert summary["avg_acc_final"] == pytest.approx(np.nanmean(R[-1]))
    assert summary["bwt"] == pytest.approx(np.mean([R[-1, t] - R[t, t] for t in range(TASKS - 1)]))
    assert summary["forgetting_chaudhry"] == pytest.approx(
        np.mean([R[t:-1, t].max() - R[-1, t] for t in range(TASKS - 1)])
    )
    assert summary["avg_incremental_acc"] == pytest.approx(np.mean([R[k, : k + 1].mean() for k in range(TASKS)]))
    assert summary["learning_acc"] == pytest.approx(np.mean(np.diag(R)))
    assert summary["worst_task_acc"] == R[-1].min()
    assert summary["per_task_acc"] == R[-1].tolist()
    isolated = matrix(folder / "isolated")[-1]
    assert summary["fwt_isolated"] == pytest.approx(np.mean(np.diag(R)[1:] - isolated[1:]))
    episodes = read_csv(folder / "zoo/episodes.csv")
    assert summary["images_trained"] == episodes.images.sum() == 2 * 40 * sum(min(5, k) for k in range(1, TASKS + 1))
    assert summary["train_seconds"] == pytest.approx(episodes.train_seconds.sum())
    assert summary["images_per_second"] == pytest.approx(summary["images_trained"] / summary["train_seconds"])
    assert summary["train_seconds"] <= episodes.seconds.sum() <= summary["total_seconds"]
    assert summary["stored_examples"] == TASKS * 40
    assert summary["stored_bytes"] == TASKS * 40 * (64 + 8)
    assert summary["members_per_prediction"] == pytest.approx(sum(min(5, k) for k in range(1, TASKS + 1)) / TASKS)
    for key in ("method", "stream", "seed", "tasks", "epochs", "replay_frac", "tasks_per_round", "parameters_total"):
        assert key in summary
    assert metrics.avg_acc_final(R) == summary["avg_acc_final"]


def test_the_measurements_follow_from_the_saved_predictions(runs):
    """Loss and accuracy of the last episode, recomputed with scikit-learn from predictions/ alone."""
    folder, *_ = runs
    stream = build_stream(parse([*QUICK, "--continual"]).config.data, 0, torch.device("cpu"))
    saved = [load_file(path) for path in sorted((folder / "zoo/predictions").glob("member_*"))]
    targets = load_file(folder / "zoo/predictions/targets.safetensors")
    rows = (
        read_metrics(folder / "zoo")
        .query(f"episode == {TASKS} and scenario == 'task-incremental'")
        .set_index(["task", "split"])
    )
    for task in stream.tasks:
        assert torch.equal(targets[f"task_{task.id}/test"], task.test.targets)
        for split, examples in [("test", task.test), ("train", task.train_eval)]:
            mean = np.mean(
                [p[f"task_{task.id}/{split}"].double().numpy() for p in saved if f"task_{task.id}/{split}" in p], 0
            )
            row = rows.loc[(task.id, split)]
            assert row.n == len(examples)
            assert row.accuracy == accuracy_score(examples.targets, mean.argmax(1))
            hits = (mean.argmax(1) == examples.targets.numpy()).tolist()
            assert row.ece == pytest.approx(plain_calibration_error(mean.max(1).astype("f4").tolist(), hits), abs=1e-3)
            assert row.loss == pytest.approx(log_loss(examples.targets, mean / mean.sum(1, keepdims=True)), rel=1e-4)


def test_a_saved_member_predicts_what_was_recorded(runs):
    folder, *_ = runs
    stream = build_stream(parse([*QUICK, "--continual"]).config.data, 0, torch.device("cpu"))
    facts = json.loads((folder / "zoo/members/member_004.json").read_text())
    sizes = {task: len(classes) for task, classes in zip(facts["tasks"], facts["classes"], strict=True)}
    settings = settings_class("conv")(dropout=facts["net"]["dropout"])
    net = build_net("conv", tuple(facts["input_shape"]), settings, sizes).eval()
    net.load_state_dict(load_file(folder / "zoo/members/member_004.safetensors"))
    assert facts["parameters"] == sum(p.numel() for p in net.parameters())
    task = stream.tasks[facts["tasks"][0] - 1]
    with torch.no_grad():
        images = stream.spec.preprocess(torch.stack([seen(task.test, i) for i in range(len(task.test))]))
        probabilities = net(images, torch.full((len(images),), task.id)).softmax(1)
    recorded = load_file(folder / "zoo/predictions/member_004.safetensors")[f"task_{task.id}/test"]
    torch.testing.assert_close(probabilities, recorded, rtol=1e-3, atol=1e-5)


def seen(examples, i):
    """Image i through the view, pixel by pixel."""
    pixels = examples.store[examples.rows[i]].flatten()
    if examples.view is None:
        return pixels.view(1, 8, 8)
    return torch.tensor([int(pixels[p]) if p >= 0 else 0 for p in examples.view], dtype=torch.uint8).view(1, 8, 8)


def test_threads_are_as_many_as_asked_for(tmp_path, capsys):
    given = ["--samples", "2", "--epochs", "1", "--threads", "1", "--device", "cpu", "--run_dir", str(tmp_path / "run")]
    assert main(given) == 0
    assert "cpu: 1 thread, fp32" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["threads"] == 1


def test_the_configuration_is_resolved(runs):
    folder, *_ = runs
    config = yaml.safe_load((folder / "zoo/config.yaml").read_text())
    assert config["tasks_per_round"] == 5
    assert config["device"] == "cpu" or config["device"].startswith("cuda")
    assert config["hp"]["lr"] == 0.01
    assert config["data"]["samples"] == 4
    assert config["versions"]["torch"] == torch.__version__.split("+")[0] or config["versions"]["torch"]
    assert [len(task["classes"]) for task in config["data"]["tasks"]] == [10] * TASKS


def test_tensorboard_has_the_same_numbers(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, *_ = runs
    events = EventAccumulator(str(folder / "zoo"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    rows = read_metrics(folder / "zoo")
    last = rows.query(f"episode == {TASKS} and scenario == 'task-incremental' and split == 'test'").set_index("task")
    for task, row in last.iterrows():
        tag = f"test_accuracy/{task:03d} {row.task_name}"
        points = events.Scalars(tag)
        assert [point.step for point in points] == list(range(task, TASKS + 1))
        assert points[-1].value == pytest.approx(row.accuracy, rel=1e-6)
        assert f"test_loss/{task:03d} {row.task_name}" in tags
        assert (f"sampling_weight/{task:03d} {row.task_name}" in tags) == (task < TASKS)
    assert events.Scalars("average_accuracy")[-1].value == pytest.approx(last.accuracy.mean(), rel=1e-6)
    assert len(events.Scalars("train/loss")) == len(events.Scalars("train/learning_rate")) == 2 * TASKS
    assert len(events.Scalars("images_per_second")) == TASKS


def quiet(folder, *arguments):
    assert main([*QUICK, "--quiet", "--run_dir", str(folder), *arguments]) == 0
    return (folder / "metrics.csv").read_bytes()


def test_another_seed_is_another_run(runs, tmp_path, capsys):
    folder, *_ = runs
    other = quiet(tmp_path / "other", "--continual", "--method", "isolated", "--seed", "1")
    assert other != (folder / "isolated/metrics.csv").read_bytes()


@pytest.mark.parametrize("limit", [["--tasks_per_round", "1"], ["--replay_frac", "0"]])
def test_a_zoo_without_replay_has_the_accuracy_matrix_of_isolated(runs, tmp_path, limit, capsys):
    folder, *_ = runs
    quiet(tmp_path / "zoo", "--continual", *limit)
    np.testing.assert_array_equal(matrix(tmp_path / "zoo"), matrix(folder / "isolated"))


def test_row_zero_is_the_untrained_network_on_the_tasks_it_has_heads_for(runs, tmp_path):
    folder, *_ = runs
    row = read_metrics(folder / "zoo").query("episode == 0")
    assert row.task.tolist() == [1]
    assert row.accuracy.item() < 0.35  # ten classes
    summary = json.loads((folder / "zoo/summary.json").read_text())
    assert summary["per_task_untrained_acc"] == [row.accuracy.item(), *[None] * (TASKS - 1)]
    quiet(tmp_path / "joint", "--method", "joint")
    assert read_metrics(tmp_path / "joint").query("episode == 0").task.tolist() == list(range(1, TASKS + 1))


def test_the_multitask_mode(tmp_path, capsys):
    quiet(tmp_path / "zoo", "--rounds", "2", "--warm_start")
    out = capsys.readouterr().out
    assert "backward transfer" not in out
    summary = json.loads((tmp_path / "zoo/summary.json").read_text())
    assert summary["episodes"] == 3
    assert summary["bwt"] is None
    assert matrix(tmp_path / "zoo").shape == (3, TASKS)
    assert not np.isnan(matrix(tmp_path / "zoo")).any()


def test_isolated_in_the_multitask_mode_trains_every_task_once(runs, tmp_path, capsys):
    folder, *_ = runs
    quiet(tmp_path / "isolated", "--method", "isolated")
    np.testing.assert_array_equal(matrix(tmp_path / "isolated")[-1], matrix(folder / "isolated")[-1])


def test_overwrite_replaces_a_run_and_the_same_seed_gives_the_same_run(runs, tmp_path, capsys):
    folder, *_ = runs
    shutil.copytree(folder / "zoo", tmp_path / "run")
    (tmp_path / "run/figures").mkdir()
    ours, theirs = ["members/member_077.json", "report.html", "figures/cost.png"], ["notes.txt", "members/notes.txt"]
    for name in [*ours, *theirs]:
        (tmp_path / "run" / name).write_text("old")
    assert quiet(tmp_path / "run", "--continual", "--overwrite") == (folder / "zoo/metrics.csv").read_bytes()
    assert [name for name in [*ours, *theirs] if (tmp_path / "run" / name).exists()] == theirs
    assert not (tmp_path / "run/figures").exists()


def test_the_progress_bar_on_a_terminal(tmp_path):
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    arguments = ["--samples", "5", "--epochs", "150", "--continual", "--method", "finetune", "--run_dir", "run",
                 "--set", "data.tasks=[[0, 1], [2, 3]]"]  # fmt: skip
    program = [sys.executable, str(PROJECT / "modelzoo.py"), *arguments]
    process = subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=child)
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(parent, 65536):
            shown += part
    assert process.wait() == 0
    for words in ("episode 2/2", "epoch", "loss", "images/s"):
        assert words in shown.decode()
