"""A resumed run is the run that was never interrupted, to the bit."""

import csv
import os
import random
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

import utils.files
from methods import METHODS
from modelzoo import main
from records.checkpoints import RunCheckpoints

PROJECT = Path(__file__).parent.parent


class Killed(BaseException):
    """As kill -9: nothing that the program could catch."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs()


def write_configs():
    """A stream of three tasks, into the current directory."""
    tasks = [[0, 1], [10, 11, 12], [22, 23]]
    Path("d.yaml").write_text(yaml.safe_dump({"dataset": "rotated_digits", "tasks": tasks}))
    Path("h.yaml").write_text("{model: conv, width: 16, batch: 8, epochs: 3}")


def options(method):
    given = ["--data_config", "d.yaml", "--hp_config", "h.yaml", "--samples", "8", "--threads", "1", "--quiet"]
    given += ["--method", method] + (["--continual"] if "continual" in METHODS[method].modes else [])
    if "tasks_per_round" in METHODS[method].options:
        given += ["--tasks_per_round", "2"]
    if "memory_per_class" in METHODS[method].options and method != "zoo":
        given += ["--memory_per_class", "2"]
    return given


def start(where, *more):
    return main([*more, "--run_dir", where])


def results(run):
    """What must be the same to the bit, by name."""
    run = Path(run)
    names = ["metrics.csv", *(f"{folder}/{p.name}" for folder in ("members", "predictions")
                              for p in (run / folder).iterdir())]  # fmt: skip
    return {name: (run / name).read_bytes() for name in names}


def untimed(run):
    """episodes.csv but for times and memory."""
    with open(Path(run) / "episodes.csv") as file:
        keep = ("episode", "tasks", "sampling_weights", "examples", "images", "sample_gradients", "steps", "train_loss")
        return [[line[name] for name in keep] for line in csv.DictReader(file)]


def same_as(run, expected):
    assert results(run) == results(expected)
    assert untimed(run) == untimed(expected)
    left = {path.name for path in Path(run).iterdir() if not path.name.startswith("events.")}
    assert left == {path.name for path in Path(expected).iterdir() if not path.name.startswith("events.")}
    assert main(["--verify", run]) == 0


def stop_after(monkeypatch, steps, number=signal.SIGTERM):
    """A signal arrives in that step."""
    due, seen = RunCheckpoints.due, [0]

    def counted(self, *, epoch_ends=False):
        seen[0] += not epoch_ends
        if seen[0] == steps:
            os.kill(os.getpid(), number)
        return due(self, epoch_ends=epoch_ends)

    monkeypatch.setattr(RunCheckpoints, "due", counted)


def kill_at_write(monkeypatch, count):
    """Killed just before a file appears, or just after, the partial file still there."""
    replace, seen = utils.files.os.replace, [0]

    def counted(source, target):
        seen[0] += 1
        if seen[0] == count:
            raise Killed
        replace(source, target)
        if seen[0] + 0.5 == count:
            raise Killed

    monkeypatch.setattr("utils.files.os.replace", counted)
    monkeypatch.setattr("utils.files.AT_ONCE", 1)  # all writes in one order, so that they can be counted


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"closed_form"}))  # it has no steps to be stopped in
def test_a_run_stopped_by_signals_goes_on(method, monkeypatch, capsys):
    stopped_and_resumed(options(method), monkeypatch, capsys)


DURING = ("--memory", "9", "--set", "settings.fill=during", "--set", "settings.buffer=reservoir")
PROTOCOLS = {
    "the memory filled during the stream": DURING,
    "by class, several steps": (*DURING[:-1], "settings.buffer=class_reservoir", "--set", "hp.steps_per_batch=2"),
    "one head of all classes": (*DURING, "--scenario", "class", "--set", "settings.outputs=new"),
    "an optimizer that goes on": ("--scenario", "class", "--set", "hp.reset_optimizer=false"),
}


@pytest.mark.parametrize("method", ["er", "derpp", "agem"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_run_of_another_protocol_goes_on(protocol, method, monkeypatch, capsys):
    given = options(method)
    if "--memory" in PROTOCOLS[protocol]:
        del given[-2:]  # a number per class
    stopped_and_resumed([*given, *PROTOCOLS[protocol]], monkeypatch, capsys)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_with_an_optimizer_that_goes_on_is_resumed(optimizer, monkeypatch, capsys):
    more = ("--set", "hp.reset_optimizer=false", "--set", f"hp.optimizer={optimizer}")
    stopped_and_resumed([*options("finetune"), *more], monkeypatch, capsys)


def stopped_and_resumed(given, monkeypatch, capsys):
    """Stops the run of these options at random steps and compares it with one that nothing stopped."""
    assert start("whole", *given) == 0
    rng = random.Random(" ".join(given))
    stops = 0
    for _ in range(30):
        with monkeypatch.context() as patch:
            stop_after(patch, rng.randint(3, 8))
            code = start("run", *(["--resume"] if stops else []), *given)
        if code == 0:
            break
        assert code == 143
        stops += 1
        assert "stopped by SIGTERM; resume with: python modelzoo.py --resume --run_dir run" in capsys.readouterr().err
    assert stops >= 2
    same_as("run", "whole")


def test_a_run_is_resumed_from_another_folder(tmp_path, monkeypatch):
    """config.yaml names the folder of the data so that it is found from anywhere."""
    assert start("whole", *options("er")) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        assert start("run", *options("er"), "--data_dir", "images/here") == 143
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"]["data_dir"] == str(tmp_path / "images/here")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert start("../run", "--resume") == 0
    monkeypatch.chdir(tmp_path)
    same_as("run", "whole")


@pytest.mark.parametrize("kept", range(4))
def test_a_run_killed_while_its_state_is_removed_is_tidied(kept, monkeypatch):
    assert start("whole", *options("zoo")) == 0
    unlink, seen = Path.unlink, [0]

    def counted(path, **how):
        if path.parent.name == "state" and Path("run/summary.json").exists():
            seen[0] += 1
            if seen[0] > kept:
                raise Killed
        unlink(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", counted)
        if kept < 3:
            with pytest.raises(Killed):
                start("run", *options("zoo"))
        else:
            assert start("run", *options("zoo")) == 0
    assert start("run", "--resume") == 0
    same_as("run", "whole")


def killed_at_writes(counts, start, check, monkeypatch):
    """Kill a run after so many writes, and once more at its first one: resumed, it passes the check."""
    for count in counts:
        shutil.rmtree("run", ignore_errors=True)
        with monkeypatch.context() as patch:
            kill_at_write(patch, count)
            try:
                assert start("run") == 0
                break
            except Killed:
                pass
        with monkeypatch.context() as patch, suppress(Killed):
            kill_at_write(patch, 1)
            assert start("run", "--resume") == 0
        assert start("run", "--resume") == 0
        check("run", "whole")
    else:
        pytest.fail("never finished")
    assert count > 15


@pytest.mark.parametrize(
    ("method", "every"), [("zoo", 23), ("isolated", 41), ("derpp", 41), ("packnet", 41), ("joint", 17)]
)
def test_a_run_killed_between_any_two_files_goes_on(method, every, monkeypatch):
    """tests/fuzz/torture.py kills runs everywhere."""
    given = [*options(method), "--checkpoint_minutes", "0"]
    assert start("whole", *given) == 0
    first = (1, 1.5, 2, 2.5) if method == "zoo" else ()  # what every run writes first
    counts = (*first, *(n / 2 for n in range(6, 400, every)))
    killed_at_writes(counts, lambda where, *more: start(where, *more, *given), same_as, monkeypatch)
