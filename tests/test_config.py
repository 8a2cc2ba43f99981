"""YAML files and command line -> RunConfig. What is refused is tested through the command line in test_bad_input.py."""

import re
from pathlib import Path

import pytest

from methods import METHODS, with_settings
from utils.config import RANGES, load_dataset_config, load_hyper_config
from utils.errors import UserError, unknown
from utils.options import _parser, parse

PROJECT = Path(__file__).parent.parent


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_the_command_line_wins_over_the_yaml_which_wins_over_the_defaults(tmp_path):
    path = write(tmp_path, "h.yaml", "model: conv\nepochs: 7\n")
    assert parse(["--hp_config", path]).config.hyper.epochs == 7
    assert parse(["--hp_config", path, "--epochs", "3"]).config.hyper.epochs == 3
    assert parse([]).config.hyper.epochs == 100


def test_the_authors_files_are_read_unchanged(tmp_path):
    hyper = load_hyper_config(
        write(
            tmp_path, "default.yaml",
            'model: "wrn16_4"\nepochs: 200\nbatch: 16\nlr: 0.01\nl2_reg: 0.00001\ndropout: 0.2\n',
        ),
        {},
    )  # fmt: skip
    assert (hyper.model, hyper.epochs, hyper.batch, hyper.lr, hyper.l2_reg, hyper.dropout) == (
        "wrn16_4", 200, 16, 0.01, 1e-5, 0.2,
    )  # fmt: skip
    stream = load_dataset_config(
        write(tmp_path, "noise.yaml", 'dataset: "cifar100"\ntasks: [[104, 130], [6, 7, 14],\n        [3, 42]]\n')
    )
    assert [task.classes for task in stream.tasks] == [(104, 130), (6, 7, 14), (3, 42)]


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001", "1.e-05", "+1e-5"])
def test_numbers_are_numbers_however_they_are_written(tmp_path, text):
    assert load_hyper_config(write(tmp_path, "h.yaml", f"model: conv\nl2_reg: {text}\n"), {}).l2_reg == 1e-5


def test_a_run_is_named_after_what_distinguishes_it():
    invocation = parse(["--seed", "4", "--method", "isolated"])
    assert invocation.run_dir == Path("runs/split_digits-conv-isolated-seed4")


def test_one_epoch_is_trained_without_augmentation():
    assert parse(["--epochs", "2"]).config.augment
    assert not parse(["--epochs", "1"]).config.augment
    assert not parse(["--epochs", "2", "--no_augment"]).config.augment


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_range_accepts_its_ends_and_nothing_beyond(name):
    limits = RANGES[name]
    assert (limits.low in limits) == (not limits.open_low)
    assert limits.low - 1 not in limits
    assert (limits.high in limits) == (limits.high < float("inf") and not limits.open_high)
    assert float("nan") not in limits
    assert str(f"{limits.low:g}") in limits.describe()


def test_every_option_is_explained_with_its_default():
    for action in _parser()._actions:
        if action.dest != "help":
            assert "(default: " in action.help, action.dest


def test_an_unknown_name_suggests_the_nearest():
    assert unknown("method", "zo", ["zoo", "isolated"]) == (
        "unknown method 'zo'; did you mean 'zoo'? (known: isolated, zoo)"
    )
    assert unknown("method", "qqq", ["zoo"]) == "unknown method 'qqq' (known: zoo)"


def test_a_deeply_nested_file_is_refused(tmp_path):
    path = write(tmp_path, "d.yaml", "tasks: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(UserError, match=r"nested too deeply|not valid YAML"):
        load_dataset_config(path)


def test_every_shipped_file_says_how_to_run_it():
    for path in (PROJECT / "config" / "dataset").glob("*.yaml"):
        text = path.read_text()
        assert text.startswith("#"), path
        assert f"--data_config config/dataset/{path.name}" in text, path
        assert "s on " in text or "not measured yet" in text, path
        assert load_dataset_config(str(path)).tasks
    for path in (PROJECT / "config" / "hyperparam").glob("*.yaml"):
        assert path.read_text().startswith("#"), path
        assert load_hyper_config(str(path), {}).model


def test_every_method_with_settings_has_a_file_and_every_file_a_method():
    """Each setting has its source beside it."""
    files = {path.stem for path in (PROJECT / "config/method").glob("*.yaml")}
    assert files == {name for name, method in METHODS.items() if method.settings}
    for name in files:
        lines = (PROJECT / f"config/method/{name}.yaml").read_text().splitlines()
        assert all(
            re.fullmatch(r"# .+|\w+: \S+  # .+|streams:  # .+|  \w+: {.+}(  # --.+)?", line) for line in lines
        ), name


def test_a_stream_can_have_settings_of_its_own(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("bn: shared\nstrength: 1\ndamping: 0.1\nstreams: {split_digits: {strength: 5}}\n")
    config = parse(["--method", "si", "--continual"]).config
    assert with_settings(config, str(path)).settings == {"bn": "shared", "strength": 5.0, "damping": 0.1}
    other = parse(["--method", "si", "--data_config", str(PROJECT / "config/dataset/rotated_digits.yaml")]).config
    assert with_settings(other, str(path)).settings["strength"] == 1.0
