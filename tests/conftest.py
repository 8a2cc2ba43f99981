"""Before any test: how threads wait, which is decided before torch is loaded; and fixtures of several files."""

from utils.startup import prepare

prepare(__name__)

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What is flushed to the disk outlives a power failure, which no test causes; some thousand waits are minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, where benchmark.py runs a program that stands in for modelzoo.py."""
    import benchmark
    from tests.test_benchmark import PROGRAM  # not before its own assertions are rewritten

    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    Path("orders").mkdir()
    monkeypatch.setitem(benchmark.PROGRAMS, "modelzoo", tmp_path / "program.py")
    return tmp_path


@pytest.fixture
def undrawn():
    """Figures of reports are prepared, with their data, but not drawn; for tests that look at the rest of the page."""
    import reporting.style

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting.style, "svg_and_png", lambda drawn: ('<svg viewBox="0 0 1 1"></svg>', b"PNG"))
        yield


@pytest.fixture
def in_process(monkeypatch):
    """Benchmarks run their programs in this process, one run after the other."""
    import benchmark
    import modelzoo
    import train_task
    from studies.engines import Ended
    from studies.schedule import job_of

    programs = {"modelzoo.py": modelzoo.main, "train_task.py": train_task.main}

    def run_jobs(planned, engine, store, program, show):
        for job in (job_of(each, store, program) for each in planned):
            code = programs[Path(job.command[1]).name](job.command[2:])
            yield Ended(job.name, 0.0, f"exit code {code}" * (code != 0))

    monkeypatch.setattr(benchmark, "run_jobs", run_jobs)
