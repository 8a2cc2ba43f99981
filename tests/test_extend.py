"""Tasks that join a finished run: as if the run had had them from the start."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from modelzoo import main
from records.manifest import Entry, read_manifest
from tests.tables import read_metrics
from tests.test_resume import start
from zoo import Zoo

FIRST, MORE = "[[0, 1], [2, 3, 4]]", "[[5, 6], {name: last, classes: [7, 8, 9]}]"
RECIPE = ["--hp_config", "hp.yaml", "--samples", "8", "--quiet", "--continual"]


def write_configs():
    for name, tasks in {"first": FIRST, "more": MORE, "all": FIRST[:-1] + ", " + MORE[1:]}.items():
        Path(f"{name}.yaml").write_text(f"dataset: digits\ntasks: {tasks}\n")
    Path("hp.yaml").write_text("model: conv\nwidth: 16\nepochs: 2\nbatch: 8\n")


@pytest.fixture(autouse=True)
def configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs()


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A finished run of the first two tasks."""
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_configs()
        assert learn("first", "base") == 0
    return folder / "base"


@pytest.fixture
def base(learned):
    """The same, in the current folder."""
    shutil.copytree(learned, "base")


def learn(data, run, *more):
    return start(run, "--data_config", f"{data}.yaml", *RECIPE, *more)


def extend(base, run, data="more", *more):
    return start(run, "--extend", base, "--data_config", f"{data}.yaml", "--quiet", *more)


def tensors(run):
    files = sorted([*Path(run).glob("members/*.safetensors"), *Path(run).glob("predictions/*.safetensors")])
    return {path.name + path.parent.name: load_file(path) for path in files}


def same_bits(run, other):
    first, second = tensors(run), tensors(other)
    assert first.keys() == second.keys()
    for file in first:
        assert first[file].keys() == second[file].keys(), file
        assert all(first[file][name].equal(second[file][name]) for name in first[file]), file


@pytest.mark.parametrize(  # what the state of the others holds is tested with --resume
    "method", ["zoo", "isolated_ensemble", "cumulative", "ewc", "er", "derpp", "packnet", "gpm"]
)
def test_an_extended_run_is_what_it_would_be_with_all_tasks_from_the_start(method):
    given = ["--method", method, "--tasks_per_round", "2"] if method == "zoo" else ["--method", method]
    assert learn("first", "base", *given) == 0
    before = {path: path.read_bytes() for path in Path("base").rglob("*") if path.is_file()}
    assert extend("base", "longer") == 0
    assert learn("all", "whole", *given) == 0
    same_bits("longer", "whole")
    assert before == {path: path.read_bytes() for path in Path("base").rglob("*") if path.is_file()}
    rows, expected = (read_metrics(run) for run in ("longer", "whole"))
    pd.testing.assert_frame_equal(rows, expected)
    assert main(["--verify", "longer"]) == 0
    assert [task.name for task in Zoo.load("longer").tasks] == ["0/1", "2/3/4", "5/6", "last"]


def test_scores_without_the_task_are_measured_on_as_many_examples_as_all_tasks_leave(monkeypatch):
    """So those of the earlier episodes are of another sample than in a run that had all tasks from the start."""
    monkeypatch.setattr("evaluation.accuracy.MIXED_EXAMPLES", 60)
    assert learn("first", "base") == 0
    for log in Path("base").glob("events.*"):
        log.unlink()  # may be removed to save room
    assert extend("base", "longer") == 0
    assert learn("all", "whole") == 0
    same_bits("longer", "whole")
    rows, expected = (read_metrics(run) for run in ("longer", "whole"))
    told = rows.scenario == "task-incremental"
    pd.testing.assert_frame_equal(rows[told], expected[told])
    last = rows.episode > 2
    pd.testing.assert_frame_equal(rows[last], expected[last])
    assert rows[~told & ~last].n.unique().tolist() == [30]
    assert expected[~told & ~last].n.unique().tolist() == [15]


@pytest.mark.parametrize("given", [["--memory", "12"], ["--replay_frac", "0.3", "--hold_out", "0.2"]])
def test_what_was_kept_is_kept(given):
    assert learn("first", "base", *given) == 0
    assert extend("base", "longer") == 0
    assert learn("all", "whole", *given) == 0
    same_bits("longer", "whole")


def test_an_extended_run_is_extended_and_resumed(base):
    Path("one.yaml").write_text("dataset: digits\ntasks: [[5, 6]]\n")
    Path("two.yaml").write_text("dataset: digits\ntasks: [{name: last, classes: [7, 8, 9]}]\n")
    assert extend("base", "base-extended", "one") == 0
    assert extend("base-extended", "twice", "two") == 0
    assert learn("all", "whole") == 0
    same_bits("twice", "whole")
    # Killed before anything of the base was taken over.
    Path("killed").mkdir()
    shutil.copy("twice/config.yaml", "killed/config.yaml")
    assert start("killed", "--resume", "--quiet") == 0
    same_bits("killed", "whole")


def test_an_extension_that_was_killed_refuses_another_base(capsys, base):
    """Killed before it has copied anything, and its base replaced by a run of another seed."""
    assert extend("base", "longer") == 0
    for changed in (True, False):
        Path("killed").mkdir()
        shutil.copy("longer/config.yaml", "killed/config.yaml")
        if changed:
            shutil.move("base", "original")
            assert learn("first", "base", "--seed", "7") == 0
        else:
            shutil.rmtree("base")
        capsys.readouterr()
        assert start("killed", "--resume", "--quiet") == 2
        assert "base is not the run that killed extends: put it back" in capsys.readouterr().err
        assert not list(Path("killed").glob("members/*"))
        shutil.rmtree("killed")
    shutil.move("original", "base")
    assert start("longer", "--resume", "--quiet") == 0


def test_the_default_directory_is_beside_the_run(capsys, base):
    assert main(["--extend", "base", "--data_config", "more.yaml", "--quiet"]) == 0
    assert json.loads(Path("base-extended/summary.json").read_text())["tasks"] == 4
    with open("base-extended/episodes.csv") as file:
        assert [line["episode"] for line in csv.DictReader(file)] == ["1", "2", "3", "4"]
    assert main(["--extend", "base", "--data_config", "more.yaml"]) == 2
    assert "base-extended already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--extend", "nowhere", "--data_config", "more.yaml"], "--extend nowhere is not the directory of a finished"),
        (["--extend", "base"], "--extend needs --data_config with the tasks that are to join"),
        (["--extend", "base", "--data_config", "more.yaml", "--resume"], "--extend and --resume contradict each other"),
        (["--extend", "base", "--data_config", "more.yaml", "--epochs", "7"], "base/config.yaml has another epochs"),
        (["--extend", "base", "--data_config", "more.yaml", "--method", "er"], "config.yaml has another method"),
        (["--extend", "base", "--data_config", "turned.yaml"], "turned.yaml has dataset: rotated_digits, but the"),
        (["--extend", "base", "--data_config", "wrong.yaml"], "class 12"),
        (["--extend", "base", "--data_config", "more.yaml", "--run_dir", "base"], "--run_dir base is a run that"),
        (["--extend", "base", "--data_config", "more.yaml", "--run_dir", "base", "--overwrite"], "that is read here"),
        (["--extend", "atonce", "--data_config", "more.yaml"], "atonce has learned all tasks at once; only"),
        (["--extend", "full", "--data_config", "more.yaml"], "its setting tasks is 2; the stream has 4"),
        (["--extend", "old", "--data_config", "more.yaml"], "has no state to continue from"),
        (["--extend", "damaged", "--data_config", "more.yaml"], "is damaged"),
        (["--extend", "other", "--data_config", "more.yaml"], "the data are not those that other was trained on"),
    ],
)  # fmt: skip
def test_what_cannot_be_extended_is_refused(given, words, capsys, base):
    Path("turned.yaml").write_text("dataset: rotated_digits\ntasks: [[5, 6]]\n")
    Path("wrong.yaml").write_text("dataset: digits\ntasks: [[5, 12]]\n")
    for name in {"old", "damaged", "other"} & set(given):
        shutil.copytree("base", name)
    manifest = read_manifest(Path("base"))
    if "old" in given:
        files = {name: entry for name, entry in manifest.files.items() if not name.startswith("state/")}
        type(manifest)(manifest.episode, manifest.members, manifest.seconds, files).write(Path("old"))
    if "damaged" in given:
        next(Path("damaged/state").iterdir()).write_bytes(b"")
    if "other" in given:
        content = Path("other/config.yaml").read_bytes().replace(b"data_sha256:\n  1: ", b"data_sha256:\n  1: 0")
        Path("other/config.yaml").write_bytes(content)
        files = {**manifest.files, "config.yaml": Entry(len(content), hashlib.sha256(content).hexdigest())}
        type(manifest)(manifest.episode, manifest.members, manifest.seconds, files).write(Path("other"))
    if "atonce" in given:
        assert start("atonce", "--data_config", "first.yaml", *RECIPE[:-1]) == 0
    if "full" in given:
        Path("room.yaml").write_text("tasks: 2\nbn: per_task\n")
        assert learn("first", "full", "--method", "packnet", "--method_config", "room.yaml") == 0
    left = sorted(map(str, Path().rglob("*")))
    capsys.readouterr()
    assert main(given) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert sorted(map(str, Path().rglob("*"))) == left
