"""A resumed run of train_task.py is the run that was never interrupted, to the bit."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_task
from records.checkpoints import TaskCheckpoints
from tests.test_resume import Killed, killed_at_writes, stop_after
from tests.test_train_task import CYCLE, PROJECT, RNN, TINY, settings
from utils.trees import to_bytes

BASE = [*TINY, *RNN, "--steps", "30"]
TIMES = ("train_seconds", "images_per_second", "total_seconds", "trained_together")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def start(where, *options):
    return train_task.main(["--threads", "1", "--quiet", *options, "--run_dir", where])


def runs_in(where):
    return sorted(Path(where).glob("seed*")) or [Path(where)]


def results(run):
    """What must be the same to the bit, by name; times are left out."""
    names = ["metrics.csv", *(f"{folder}/{path.name}" for folder in ("members", "checkpoints", "predictions")
                              for path in (run / folder).iterdir())]  # fmt: skip
    told = json.loads((run / "summary.json").read_text())
    (episode,) = csv.DictReader((run / "episodes.csv").read_text().splitlines())
    return {name: (run / name).read_bytes() for name in names} | {
        "episodes.csv": episode["train_loss"],
        "summary.json": {key: value for key, value in told.items() if key not in TIMES},
    }


def same_as(where, expected):
    assert [run.name for run in runs_in(where)[1:]] == [run.name for run in runs_in(expected)[1:]]
    for run, other in zip(runs_in(where), runs_in(expected), strict=True):
        found, wanted = results(run), results(other)
        assert found.keys() == wanted.keys()
        assert [name for name, content in found.items() if content != wanted[name]] == []
        left = {path.name for path in run.iterdir() if not path.name.startswith("events.")}
        assert left == {path.name for path in other.iterdir() if not path.name.startswith("events.")}
    assert train_task.main(["--verify", where]) == 0


CASES = {
    "one seed": BASE,
    "several seeds": [*BASE, "--seeds", "3", "--seed", "4"],
    "saved after every epoch": [*BASE, "--seeds", "2", "--checkpoint_minutes", "0"],
    "evaluated at other steps": [*BASE, "--seeds", "2", "--checkpoints", "every:7", "--evaluate_at", "log:5"],
    "until a score": [
        *BASE, "--set", "hp.batch=64", "--set", "hp.lr=0.1", "--seeds", "3", "--evaluate_at", "every:5",
        "--until", "0.5",
    ],
    "nothing on the way": [*BASE, "--checkpoints", "none", "--evaluate_at", "none"],
    "a table": [*BASE, "--seeds", "2", "--set", "data.fresh=false", "--set", "hp.optimizer=sgd"],
    "attention": [*CYCLE, *TINY, "--steps", "30", "--seeds", "2", "--evaluate", "dormant"],
    "one after the other": [
        "--data_config", str(PROJECT / "config/dataset/split_digits.yaml"), "--task", "3", "--samples", "16",
        "--hp_config", str(PROJECT / "config/hyperparam/conv.yaml"), "--epochs", "4", "--seeds", "2",
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_run_stopped_by_signals_goes_on(case, monkeypatch, capsys):
    options, rng, stops = CASES[case], random.Random(case), 0
    assert start("whole", *options) == 0
    seeds = f" --seeds {len(runs_in('whole'))}" if "--seeds" in options else ""
    first = " --seed 4" if "--seed" in options else ""
    for _ in range(30):
        with monkeypatch.context() as patch:
            stop_after(patch, rng.randint(2, 15))
            code = start("run", *(["--resume"] if stops else []), *options)
        if code == 0:
            break
        assert code == 143
        stops += 1
        told = capsys.readouterr().err
        assert told.endswith(f"resume with: python train_task.py --resume --run_dir run{seeds}{first}\n")
    assert stops >= 2
    same_as("run", "whole")


def test_the_command_that_is_shown_resumes_the_runs(monkeypatch, capsys):
    options = CASES["several seeds"]
    assert start("whole", *options) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 12)
        assert start("run", *options) == 143
    command = capsys.readouterr().err.partition("resume with: python train_task.py ")[2].split()
    assert train_task.main(["--quiet", *command]) == 0
    same_as("run", "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_was_ended_is_resumed(number):
    options = [*BASE[:-1], "200", "--seeds", "2", "--checkpoint_minutes", "0", "--threads", "1"]
    assert start("whole", *options) == 0
    process = subprocess.Popen(
        [sys.executable, PROJECT / "train_task.py", *options, "--run_dir", "run", "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(Path("run").glob("seed1/state/*")) and process.poll() is None:  # until something was saved
        time.sleep(0.02)
    process.send_signal(number)
    told = process.communicate()[1]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert number == signal.SIGKILL or "--resume --run_dir run --seeds 2" in told
    assert start("run", "--resume", *options) == 0
    close_to("run", "whole")


def close_to(where, expected):
    """Runs that went on from unequal steps compute apart: the same up to rounding."""
    for run, other in zip(runs_in(where), runs_in(expected), strict=True):
        found, wanted = results(run), results(other)
        assert found.keys() == wanted.keys()
        assert len(found["metrics.csv"].splitlines()) == len(wanted["metrics.csv"].splitlines())
        for path in [*(run / "checkpoints").iterdir(), run / "members/member_000.safetensors"]:
            theirs = load_file(other / path.relative_to(run))
            for name, value in load_file(path).items():
                torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-3)
    assert train_task.main(["--verify", where]) == 0


@pytest.mark.parametrize("case", ["one seed", "two seeds", "until a score"])
def test_a_run_killed_between_any_two_files_goes_on(case, monkeypatch):
    options = [*BASE[:-1], "12", "--checkpoint_minutes", "0", "--checkpoints", "every:6"]
    options += {
        "one seed": [], "two seeds": ["--seeds", "2"],
        "until a score": ["--set", "hp.lr=0.02", "--seed", "5", "--evaluate_at", "every:2", "--until", "0.475"],
    }[case]  # fmt: skip
    assert start("whole", *options) == 0
    if case == "until a score":  # where no checkpoint is due
        assert json.loads(Path("whole/summary.json").read_text())["reached"] % 6
    counts = (n / 2 for n in range(2, 400, 1 if case == "one seed" else 5))
    check = close_to if case == "two seeds" else same_as
    killed_at_writes(counts, lambda where, *more: start(where, *more, *options), check, monkeypatch)


def test_runs_that_were_saved_at_unequal_steps_go_on_in_groups_of_their_own(monkeypatch, capsys):
    options = [*BASE, "--seeds", "3"]
    assert start("whole", *options) == 0
    save = TaskCheckpoints.save

    def partly(self, name, state):  # killed after the state of the first run was written
        first = self._directories[0]
        first.keep_training(self.seconds(), {name: to_bytes(state()[0])})
        raise Killed

    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        assert start("run", *options) == 143
    with monkeypatch.context() as patch:
        patch.setattr(TaskCheckpoints, "save", partly)
        patch.setattr(TaskCheckpoints, "due", lambda self, epoch_ends=False: epoch_ends)
        with pytest.raises(Killed):
            start("run", "--resume", *options)
    assert TaskCheckpoints.save is save
    capsys.readouterr()
    assert train_task.main(["--threads", "1", "--resume", *options, "--run_dir", "run"]) == 0
    shown = capsys.readouterr().out
    assert "1, 2, trained together" in shown
    assert shown.count("resumed after") == 2
    close_to("run", "whole")


def test_a_signal_between_two_runs_stops_the_program(monkeypatch):
    options = CASES["one after the other"]
    assert start("whole", *options) == 0
    finish = train_task.TaskGroup.finish

    def signalled(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(train_task.TaskGroup, "finish", signalled)
        assert start("run", *options) == 143
    assert (Path("run/seed0/summary.json").exists(), Path("run/seed1/summary.json").exists()) == (True, False)
    assert start("run", "--resume", *options) == 0
    same_as("run", "whole")


def test_a_finished_run_is_shown_again_and_more_seeds_are_added(capsys):
    assert start("two", *BASE, "--seeds", "2") == 0
    table = capsys.readouterr().out
    assert start("two", "--resume", "--seeds", "2") == 0
    assert capsys.readouterr().out == table
    assert start("two", "--resume", "--seeds", "3") == 0  # with the options of those that are there
    assert start("three", *BASE, "--seeds", "3") == 0
    close_to("two", "three")


def test_a_run_that_failed_fails_again(monkeypatch, capsys):
    bad = [*BASE, "--data_config", str(PROJECT / "config/dataset/median.yaml"), "--evaluate_at", "none",
           *settings(hp__lr=1000, hp__optimizer="sgd"), "--checkpoint_minutes", "0"]  # fmt: skip
    assert start("run", *bad) == 1
    first = capsys.readouterr().err
    assert start("run", "--resume", *bad) == 1
    assert capsys.readouterr().err == first
