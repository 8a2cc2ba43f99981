"""Before any test: how threads wait, which is decided before torch is loaded; and a fixture of several files."""

from utils.startup import prepare

prepare(__name__)

from pathlib import Path

import pytest


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
