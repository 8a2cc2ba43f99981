"""Paths in options and YAML files: ~ is the home folder, and names that are not UTF-8 are refused at once."""

import os
from pathlib import Path

import pytest

import benchmark
import distill
import export
import forget
import modelzoo
import predict
import report
from records import Run, configure
from studies.grid import load_grid
from tests.standins import write_image_folder
from utils.errors import UserError
from utils.startup import wrong_path
from zoo import Zoo


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with images and YAML files; the current folder is an empty one beside it."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    write_image_folder(tmp_path / "home/pictures", ["bird", "cat", "dog"], 8)
    (tmp_path / "home/d.yaml").write_text(
        "{dataset: image_folder, root: ~/pictures, image_size: 8, data_dir: ~/data, tasks: [[cat, dog], [bird, cat]]}"
    )
    (tmp_path / "home/h.yaml").write_text("{model: conv, batch: 8, epochs: 1}")
    (tmp_path / "home/grid.yaml").write_text(
        "{streams: [~/d.yaml], hyperparams: [~/h.yaml], methods: [isolated], seeds: 1, data_dir: ~/data}"
    )
    return tmp_path / "home"


DESCRIBED = ["--data_config=~/d.yaml", "--hp_config=~/h.yaml", "--continual", "--quiet", "--device=cpu"]


def test_a_tilde_is_the_home_folder_in_every_option_and_yaml_file(home, capsys):
    assert modelzoo.main([*DESCRIBED, "--run_dir=~/run"]) == 0
    assert distill.main(["~/run", "--run_dir=~/student", "--data_dir=~/data", "--epochs=1", "--device=cpu"]) == 0
    assert forget.main(["~/run", "--task=2", "--run_dir=~/less", "--device=cpu"]) == 0
    assert predict.main(["~/run", "~/pictures/test", "--task=1", "--out=~/answers.csv", "--device=cpu"]) == 0
    assert report.main(["~/run", "--format=md"]) == 0
    assert export.arguments(["~/run", "--out=~/exported"]).out == str(home / "exported")
    assert benchmark.arguments(["--config=~/grid.yaml", "--store=~/store"]).store == str(home / "store")
    (planned,) = load_grid("~/grid.yaml", home / "store").runs
    assert planned.config.data.data_dir == home / "data"
    made = {"run", "student", "less", "answers.csv", "data"}
    assert made <= {path.name for path in home.iterdir()}
    assert list(Path().iterdir()) == []
    for program, given in (("predict.py", ["~/run"]), ("report.py", ["~/run"]), ("modelzoo.py", ["--verify=~/run"])):
        assert wrong_path(program, given) is None  # asked before the program loads anything
    assert Run.load("~/run").config["data"]["data_dir"] == str(home / "data")
    assert len(Zoo.load("~/run").tasks) == 2


NO_TEXT = os.fsdecode(b"\xff")


@pytest.mark.parametrize(
    ("program", "given"),
    [
        (modelzoo, [f"--data_config={NO_TEXT}"]),
        (modelzoo, [*DESCRIBED, f"--isolated={NO_TEXT}"]),
        (modelzoo, [*DESCRIBED, f"--extend={NO_TEXT}"]),
        (modelzoo, [*DESCRIBED, f"--data_dir={NO_TEXT}"]),
        (distill, [NO_TEXT]),
        (forget, [NO_TEXT, "--task=1", "--run_dir=x"]),
        (forget, ["x", "--task=1", f"--run_dir={NO_TEXT}"]),
        (export, ["x", f"--out={NO_TEXT}"]),
        (benchmark, ["--config=~/grid.yaml", f"--store={NO_TEXT}"]),
    ],
)
def test_a_path_that_is_not_utf8_is_refused_at_once(program, given, home, capsys):
    assert program.main(given) == 2
    error = capsys.readouterr().err
    assert "is no text" in error
    assert error.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("given", [{"run_dir": NO_TEXT}, {"isolated": Path(NO_TEXT)}, {"set": {"data.root": NO_TEXT}}])
def test_a_path_that_is_not_utf8_is_refused_from_python(given, home):
    with pytest.raises(UserError, match="is no text"):
        configure(data_config="~/d.yaml", hp_config="~/h.yaml", **given)


def test_a_folder_that_is_not_utf8_is_refused_at_once(home, monkeypatch, capsys):
    Path(NO_TEXT).mkdir()
    monkeypatch.chdir(NO_TEXT)
    assert modelzoo.main([*DESCRIBED, "--run_dir=run"]) == 2
    assert "the current folder" in capsys.readouterr().err
    assert list(Path().iterdir()) == []
