"""Studies seen from outside: states, remaining time, status, watch, cancel, collect and dry runs."""

import hashlib
import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from records.directory import read_config, shared_config
from records.lock import LOCK, locked
from records.manifest import Entry, Manifest, read_manifest
from reporting.commands import COMMANDS
from studies.dry_run import dry_run, pilot_lengths, ranges, straight
from studies.states import JobState, RunState, StudyState, study_state
from studies.store import drop_empty, make_directories
from studies.study_file import CANCEL, Study, StudyJob, StudyRun, note_failure, study_job
from studies.watching import page
from tests.test_benchmark import PROJECT, command, finish, order, prepare, wait_for, write_grid
from training.recipe import Recipe
from utils.files import yaml_bytes
from utils.yaml_files import load_yaml

STORE = Path("store")
HOLDER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from records.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""
SLOW = """
import sys, time
epochs = [int(word.partition("=")[2]) for word in sys.argv if word.startswith("--epochs=")]
assert len(epochs) == 1 and sum(word.startswith("--run_dir=") for word in sys.argv) == 1
time.sleep(0.1 * epochs[0])
"""


def begin(grid, episodes=2):
    """study.json of a grid, as benchmark.py writes it."""
    (STORE / "logs").mkdir(parents=True, exist_ok=True)
    jobs = tuple(replace(study_job(job), episodes=episodes) for job in grid.jobs)
    told = "python benchmark.py --config grid.yaml --store store"
    Study(told, str(Path("grid.yaml").resolve()), False, grid.program, "local", jobs).write(STORE)


def begun(run, episode=0, seconds=0.0):
    """An unfinished run."""
    run.directory.mkdir(parents=True)
    (run.directory / "config.yaml").write_text("seed: 0\n")
    if episode:
        Manifest(episode, 1, seconds, {"config.yaml": Entry(8, "0")}).write(run.directory)


def leave_lock(run, **owner):
    (run.directory / LOCK).write_text(
        json.dumps({"host": socket.gethostname(), "since": "2020-01-01 00:00:00"} | owner)
    )


@contextmanager
def holding(run):
    """A process that works on a run."""
    words = [sys.executable, "-c", HOLDER, str(run.directory)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(PROJECT)}) as process:
        assert process.stdout.readline() == b"locked\n"
        try:
            yield process
        finally:
            process.kill()


def told(capsys, name, *more):
    """What a command prints as JSON, or as text."""
    assert COMMANDS[name](["--store", "store", *more]) == 0
    out = capsys.readouterr().out
    return json.loads(out) if "--json" in more else out


@pytest.fixture
def study(here):
    """A study of eight runs: finished, running, running elsewhere, failed, interrupted, killed, damaged, waiting."""
    grid = write_grid(seeds=4)
    begin(grid)
    runs = grid.runs
    finish(runs[0])
    for run in runs[1:7]:
        begun(run, episode=1, seconds=6.0)
    leave_lock(runs[2], host="elsewhere", process=1)
    note_failure(STORE, grid.jobs[3].name, "exit code 1: the loss is not finite")
    leave_lock(runs[5], process=os.getpid())  # the number of a dead process, which another one has now
    leave_lock(runs[6], process=2**22 + 1)  # no process has such a number
    (runs[6].directory / "manifest.json").write_text("{")
    with locked(runs[1].directory):
        yield grid


def test_the_state_of_each_run(study, capsys):
    expected = ["finished", "running", "running", "failed", "interrupted", "interrupted", "interrupted", "waiting"]
    assert [run.state for run in study_state(STORE).runs] == expected
    found = told(capsys, "status", "--json")
    assert found["states"] == {"finished": 1, "running": 2, "failed": 1, "interrupted": 3, "waiting": 1}
    here, elsewhere = found["running"]
    assert (here["name"], here["process"], here["done"]) == (study.jobs[1].name, os.getpid(), 0.5)
    assert elsewhere["host"] == "elsewhere"
    assert found["failed"] == [{"name": study.jobs[3].name, "failure": "exit code 1: the loss is not finite"}]
    assert [entry["name"] for entry in found["interrupted"]] == [job.name for job in study.jobs[4:7]]
    text = told(capsys, "status")
    assert "8 runs: 1 finished, 2 running, 1 failed, 3 interrupted, 1 waiting" in text
    assert f"{study.jobs[3].name}: exit code 1: the loss is not finite" in text


def not_permitted(*_):
    raise PermissionError


def test_a_failed_job_that_runs_again_is_running_and_a_lock_that_nobody_touches_is_void(study, monkeypatch):
    with locked(study.runs[3].directory):
        assert study_state(STORE).runs[3].state == "running"
    os.utime(study.runs[2].directory / LOCK, (0, 0))
    assert study_state(STORE).runs[2].state == "interrupted"
    monkeypatch.setattr(os, "kill", not_permitted)  # the process belongs to another user
    assert study_state(STORE).runs[5].state == "running"
    os.utime(study.runs[5].directory / LOCK, (0, 0))
    assert study_state(STORE).runs[5].state == "interrupted"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"episode": 1, "seconds": 1.0, "files": 5},
        {"episode": "one", "seconds": 1.0, "files": {}},
        {"episode": 1, "seconds": None, "files": {}},
    ],
)
def test_a_damaged_manifest_or_lock_does_not_end_a_look_at_the_study(study, content):
    (study.runs[6].directory / "manifest.json").write_text(json.dumps(content))
    for process in (10**30, -1, 0):  # no process, and to the system a group of processes, each of which it could end
        leave_lock(study.runs[6], process=process)
        assert study_state(STORE).runs[6].state == "interrupted"


@pytest.mark.parametrize(
    "part", [{"episodes": 0}, {"episodes": "x"}, {"runs": []}, {"runs": None}, {"name": 7}, {"runs": [{"name": 7}]}]
)
def test_a_damaged_study_is_one_line(study, capsys, part):
    path = STORE / "study.json"
    content = json.loads(path.read_text())
    content["jobs"][0] |= part
    path.write_text(json.dumps(content))
    assert COMMANDS["status"](["--store", "store"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_commands_begun_at_the_same_time_agree_on_the_names_of_runs(here):
    first = write_grid(methods=[{"method": "er", "label": "first", "memory_per_class": 1}])
    other = {"methods": [{"method": "er", "label": "other", "memory_per_class": 1}]}
    second = write_grid(**other)  # read before the first has made anything
    STORE.mkdir()
    assert all(make_directories(first.runs, STORE) for _ in range(2))
    assert not make_directories(second.runs, STORE)
    directories = [run.directory for run in first.runs]
    assert [run.directory for run in write_grid(**other).runs] == directories == sorted(STORE.iterdir())
    (directories[0] / "config.yaml").touch()
    drop_empty(first.runs, STORE)
    assert list(STORE.iterdir()) == directories[:1]


def test_long_lists_are_cut(here, capsys):
    grid = write_grid(seeds=8)
    begin(grid)
    for job in grid.jobs:
        note_failure(STORE, job.name, "exit code 1")
    assert told(capsys, "status").count("exit code 1\n") == 10
    assert told(capsys, "status", "--all").count("exit code 1\n") == 16
    assert len(told(capsys, "status", "--json")["failed"]) == 16


def test_a_finished_run_is_looked_at_once(study):
    before = study_state(STORE)
    (study.runs[0].directory / "manifest.json").unlink()
    begun(study.runs[7])
    after = study_state(STORE, before)
    assert (after.runs[0].state, after.runs[7].state) == ("finished", "interrupted")
    assert study_state(STORE).runs[0].state == "interrupted"


def one(state, name, label="a", episode=0, seconds=0.0, holder=None):
    run = StudyRun(name, label, "digits", "conv", 0)
    return JobState(StudyJob(name, 4, (run,)), (RunState(run, state, episode, seconds, 1000.0, holder or {}),))


def test_remaining_time_in_closed_form():
    """Label a takes 20 s on average, label b 40; those of a third one 26.7, the mean of all."""
    jobs = [
        one("finished", "1", seconds=10), one("finished", "2", seconds=30), one("finished", "3", "b", seconds=40),
        one("running", "4", episode=2, seconds=9, holder={"since": "1970-01-01 00:00:00"}), one("waiting", "5", "b"),
        one("running", "6", "b", holder={"since": "1970-01-01 00:00:00"}), one("waiting", "7", "c"),
        one("interrupted", "8", episode=1, seconds=15),
    ]  # fmt: skip
    state = StudyState(Study("", "", False, "modelzoo", "local", tuple(job.job for job in jobs)), jobs, now=1005.0)
    expected = [0, 0, 0, 20 - 9 - 5, 40, 40 - 5, 80 / 3, 20 - 15]
    assert [state.remaining(job) for job in jobs] == pytest.approx(expected)
    assert state.left == pytest.approx(sum(expected) / 2)
    assert state.done == pytest.approx((3 + 0.5 + 0.25) / 8)


def test_remaining_time_from_progress_where_nothing_is_finished():
    job = one("running", "1", episode=1, seconds=10, holder={"since": "1970-01-01 00:00:00"})
    waiting = one("waiting", "2", "b")
    study = Study("", "", False, "modelzoo", "local", (job.job, waiting.job))
    state = StudyState(study, [job, waiting], now=1006.0)
    assert state.remaining(job) == pytest.approx(24)
    assert state.left == pytest.approx(64)
    assert StudyState(study, [waiting], 0.0).left is None


def test_a_store_without_a_study(here, capsys):
    for name in COMMANDS.keys() - {"search"}:
        assert COMMANDS[name](["--store", "store"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("benchmark.py: --store store ")
        assert error.count("\n") == 1
    assert not STORE.exists()


def test_status_does_not_load_torch(here):
    code = "import sys, reporting.commands, studies.states, studies.watching; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_cancel_ends_what_runs_here_and_says_what_runs_elsewhere(here, capsys, monkeypatch):
    grid = write_grid(seeds=1)
    begin(grid)
    with holding(grid.runs[0]) as process:
        assert study_state(STORE).counts["running"] == 1
        assert "nothing of the study runs any more" in told(capsys, "cancel")
        assert process.wait(60) == -signal.SIGTERM
    assert (STORE / CANCEL).exists()
    assert study_state(STORE).counts == dict.fromkeys(("finished", "running", "failed", "interrupted"), 0) | {
        "waiting": 2
    }
    begun(grid.runs[1])
    leave_lock(grid.runs[1], host="elsewhere", process=7)
    monkeypatch.setattr("reporting.commands.WAIT", 0.1)
    assert COMMANDS["cancel"](["--store", "store"]) == 1
    assert f"still running: {grid.runs[1].name}, host elsewhere process 7" in capsys.readouterr().out


def test_collect_writes_what_a_run_of_the_study_writes(here, capsys):
    grid = write_grid(seeds=1)
    prepare(grid)
    order(grid.runs[1], "fail no memory")
    assert command() == 1
    begin(grid)
    note_failure(STORE, grid.jobs[1].name, "exit code 2: no memory")
    names = ("results.csv", "table.md", "table.tex")
    before = {name: (STORE / name).read_bytes() for name in names}
    assert b"failed" in before["results.csv"]
    for name in names:
        (STORE / name).unlink()
    assert "store/table.md" in told(capsys, "collect", "--no_report")
    assert {name: (STORE / name).read_bytes() for name in names} == before
    (STORE / "study.json").unlink()
    told(capsys, "collect", "--config", "grid.yaml", "--no_report")
    assert {name: (STORE / name).read_bytes() for name in names} == before


def test_the_page_shows_running_ended_and_failed_jobs(study):
    shown = io.StringIO()
    Console(file=shown, width=160).print(page(study_state(STORE), "store"))
    for job in study.jobs[:4]:
        assert job.name in shown.getvalue()
    assert study.jobs[7].name not in shown.getvalue()
    assert "1 of 2 episodes" in shown.getvalue()


def test_watch_without_a_terminal_ends_with_the_study(here, capsys):
    grid = write_grid(seeds=1)
    begin(grid)
    finish(grid.runs[0])
    note_failure(STORE, grid.jobs[1].name, "exit code 1")
    assert "2 runs: 1 finished, 0 running, 1 failed" in told(capsys, "watch")
    note_failure(STORE, grid.jobs[1].name, "")
    (STORE / CANCEL).touch()
    assert "1 waiting" in told(capsys, "watch")


def test_q_ends_the_page(study):
    ours, theirs = pty.openpty()
    code = "import sys; from reporting.commands import COMMANDS; sys.exit(COMMANDS['watch'](['--store', 'store']))"
    env = os.environ | {"PYTHONPATH": str(PROJECT), "TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        seen = b""
        while b"q ends this page" not in seen:
            seen += os.read(ours, 4096)
        assert b"\x1b[?1049h" in seen  # a page of its own
        os.write(ours, b"q")
        wait_for(lambda: process.poll() is not None)
        assert process.returncode == 0
    os.close(theirs)
    os.close(ours)


# Dry runs.


def test_a_dry_run_measures_cells_and_does_nothing(here, capsys):
    grid = write_grid(methods=["finetune", {"method": "isolated", "hp.epochs": 101}], seeds=[0, 1, 2, 5])
    finish(grid.runs[0])
    seconds = read_manifest(grid.runs[0].directory).seconds
    Path("slow.py").write_text(SLOW.replace("assert", "if '--help' in sys.argv: sys.exit()\nassert", 1))
    dry_run(grid, grid.jobs[1:], STORE, 2, program=Path("slow.py"))
    out = capsys.readouterr().out
    assert seconds == 0.0
    assert "8 runs, 7 of them to do" in out
    assert re.search(r"finetune: seeds 1-2, 5, 3 runs, 00:0\d each \(as 1 finished\)", out)
    (told,) = re.findall(r"isolated: seeds 0-2, 5, 4 runs, 00:(\d\d) each \(from pilots of 1 and 3 epochs\)", out)
    assert 5 <= int(told) <= 25  # 10.1, and a process that begins may wait for a core
    assert "with 2 at a time" in out
    assert [path.name for path in STORE.iterdir()] == [grid.runs[0].name]


def test_cells_beyond_the_time_for_pilots_are_said_to_be_unmeasured(here, capsys):
    Path("slow.py").write_text("import time; time.sleep(60)")
    dry_run(grid := write_grid(), grid.jobs, STORE, 1, 0.1, Path("slow.py"))
    assert "time unknown" in (out := capsys.readouterr().out)
    assert "without 2 cells (4 jobs) that were not measured" in out


def test_pilots_are_short_and_their_line_is_exact():
    assert pilot_lengths(Recipe(epochs=50)) == ("epochs", 50, [1, 3])
    assert pilot_lengths(Recipe(epochs=2)) == ("epochs", 2, [1, 2])
    assert pilot_lengths(Recipe(epochs=1)) == ("epochs", 1, [1])
    assert pilot_lengths(Recipe(steps=5000)) == ("steps", 5000, [50, 150])
    assert pilot_lengths(Recipe(examples=2**24, batch=16)) == ("examples", 2**24, [4800, 14400])
    assert straight([1, 3], [2 + 0.5, 2 + 1.5], 100) == pytest.approx(52)
    assert straight([1, 3], [2.0, 1.0], 100) == 1.0
    assert straight([1], [2.0], 1) == 2.0
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


# What makes large studies fast gives the same.

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc: #-\n", min_size=1), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.from_regex("[a-z_]{1,9}", fullmatch=True), PLAIN, min_size=1, max_size=5), st.booleans())
def test_configurations_read_by_parts_are_the_same(tmp_path, content, shared):
    if shared:  # YAML refers from one part to the other
        content |= {"one": [1, {"two": 2}]}
        content |= {"three": content["one"]}
    text = yaml_bytes(content)
    (tmp_path / "config.yaml").write_bytes(text)
    manifest = Manifest(files={"config.yaml": Entry(len(text), hashlib.sha256(text).hexdigest())})
    manifest.write(tmp_path)
    assert shared_config(tmp_path, manifest) == read_config(tmp_path)


def test_a_yaml_file_that_is_read_again_is_not_what_others_made_of_it(here):
    Path("some.yaml").write_text("a: [1, 2]\n")
    load_yaml("some.yaml")["a"].append(3)
    assert load_yaml("some.yaml") == {"a": [1, 2]}
    Path("some.yaml").write_text("a: 4\n")
    assert load_yaml("some.yaml") == {"a": 4}
