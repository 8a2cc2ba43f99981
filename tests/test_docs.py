"""The Python blocks of docs/python.md and docs/extending.md run, in their order, and say what they claim to."""

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest

import datasets
import evaluation.questions
import methods
import net

PROJECT = Path(__file__).parent.parent
REGISTRIES = (datasets.STREAMS, net.TRUNKS, methods.METHODS, evaluation.questions.EVALUATIONS)
# ```python, perhaps with "raises Error: words" or "file NAME" behind it; ```yaml file NAME is written down.
BLOCK = re.compile(r"^```(python|yaml)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    return [match.groups() for match in BLOCK.finditer((PROJECT / "docs" / page).read_text())]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with the project's configuration; registries are as they were afterwards."""
    before = [dict(registry) for registry in REGISTRIES]
    (tmp_path / "config").symlink_to(PROJECT / "config")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for registry, content in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.mark.parametrize("page", ["python.md", "extending.md"])
def test_the_blocks_of_a_page_run(page, place):
    found, names = blocks(page), {"__name__": "page"}
    assert len(found) > 4
    for language, note, code in found:
        word, _, rest = (note or "").partition(" ")
        if language == "yaml":
            assert word == "file"
            (place / rest).write_text(code)
            continue
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            if word == "raises":
                name, _, words = rest.partition(": ")
                with pytest.raises(Exception, match=re.escape(words)) as error:
                    exec(compile(code, page, "exec"), names)
                assert type(error.value).__name__ == name
            else:
                exec(compile(code, page, "exec"), names)
        assert "Traceback" not in told.getvalue()
    assert names.keys() > {"run", "configure"}


def test_what_python_shows_is_what_the_files_hold(place):
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for language, note, code in blocks("python.md"):
            if language == "yaml":
                (place / note.removeprefix("file ")).write_text(code)
            elif not (note or "").startswith("raises"):
                exec(compile(code, "python.md", "exec"), names)
    done, answer = names["done"], names["answer"]
    assert done.config["net"]["width"] == 40
    targets = done.targets[5]
    accuracy = (done.predictions(5, "test").argmax(1) == targets).mean()
    assert accuracy == pytest.approx(done.accuracy_matrix[-1, 4], abs=1e-9)
    assert done.summary["per_task_isolated_acc"] is not None
    assert len(answer.labels) == 2
    assert sys.modules["modelzoo"]
