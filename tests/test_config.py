"""YAML files and command line -> RunConfig. What is refused is tested through the command line in test_bad_input.py."""

import json
import re
import time
from pathlib import Path

import pytest
import yaml

from methods import METHOD_OPTIONS, METHODS
from records.configuration import hyperparameters, plain_config
from records.invocation import configure, options, parse, with_settings
from utils.errors import UserError, unknown
from utils.settings import Range, declarations, flat, plain
from utils.yaml_files import parse_yaml

PROJECT = Path(__file__).parent.parent


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_the_command_line_wins_over_the_yaml_which_wins_over_the_defaults(tmp_path):
    path = write(tmp_path, "h.yaml", "model: conv\nepochs: 7\n")
    assert parse(["--hp_config", path]).config.hp.epochs == 7
    assert parse(["--hp_config", path, "--epochs", "3"]).config.hp.epochs == 3
    assert parse([]).config.hp.epochs == 100


def test_the_authors_files_are_read_unchanged(tmp_path):
    hyper = write(
        tmp_path, "default.yaml",
        'model: "wrn16_4"\nepochs: 200\nbatch: 16\nlr: 0.01\nl2_reg: 0.00001\ndropout: 0.2\n',
    )  # fmt: skip
    data = write(tmp_path, "noise.yaml", 'dataset: "cifar100"\ntasks: [[104, 130], [6, 7, 14],\n        [3, 42]]\n')
    config = parse(["--hp_config", hyper, "--data_config", data]).config
    assert (config.net.model, config.net.settings.dropout) == ("wrn16_4", 0.2)
    assert (config.hp.epochs, config.hp.batch, config.hp.lr, config.hp.l2_reg) == (200, 16, 0.01, 1e-5)
    assert [task.classes for task in config.data.tasks] == [(104, 130), (6, 7, 14), (3, 42)]


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001", "1.e-05", "+1e-5"])
def test_numbers_are_numbers_however_they_are_written(tmp_path, text):
    path = write(tmp_path, "h.yaml", f"model: conv\nl2_reg: {text}\n")
    assert parse(["--hp_config", path]).config.hp.l2_reg == 1e-5
    assert parse([f"--set=hp.l2_reg={text}"]).config.hp.l2_reg == 1e-5


def test_every_setting_can_be_set_by_its_dotted_key():
    """Each key of config.yaml that a run is determined by, set to the value that it has, gives the same run."""
    given = ["--continual", "--method", "er"]
    usual = with_settings(parse(given))
    unread = {"data.path", "data.forgotten", "net.path", "data.tasks"} | (METHOD_OPTIONS - METHODS["er"].options)
    keys = {key: value for key, value in flat(plain_config(usual)) if key not in unread}
    assert {"hp.lr", "net.width", "settings.replay_batch", "data.samples", "memory"} <= keys.keys()
    for key, value in keys.items():
        changed = with_settings(parse([*given, f"--set={key}={json.dumps(value)}"])) if value is not None else usual
        assert changed == usual, key


def test_set_wins_over_files_and_changes_what_it_names(tmp_path):
    path = write(tmp_path, "h.yaml", "{model: conv, lr: 0.5, width: 8}")
    changes = ["--set", "hp.lr=0.25", "--set", "net.width=16", "--set", "seed=9", "--set", "settings.strength=3"]
    config = with_settings(parse(["--hp_config", path, "--method", "ewc", "--continual", *changes]))
    assert (config.hp.lr, config.net.settings.width, config.seed, config.settings.strength) == (0.25, 16, 9, 3.0)
    path = write(tmp_path, "mlp.yaml", "{model: mlp, widths: [100, 100], init: xavier}")
    for changes, widths in (([], (100, 100)), (["--set", "net.widths=[400,300]"], (400, 300))):
        config = with_settings(parse(["--hp_config", path, *changes]))
        assert (config.net.settings.widths, config.net.settings.init) == (widths, "xavier")
        assert plain_config(config)["net"]["widths"] == list(widths)
        assert hyperparameters(config)["net.widths"] == str(list(widths))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hp.lrr=1", "--set: unknown key 'lrr'; did you mean 'lr'?"),
        ("hp.lr=-1", "--set hp.lr is -1; it must be a number"),
        ("hp.lr", "write a key and a value"), ("net.widht=1", "unknown key 'widht'; did you mean 'width'?"),
        ("hp=3", "--set hp: hp has keys; write --set hp.KEY=VALUE"), ("ask=3", "ask has keys"),
        ("hq.lr=1", "unknown part 'hq' (known: ask, data, hp"), ("sed=1", "unknown key 'sed'; did you mean 'seed'?"),
        ("data.forgotten=1", "unknown key 'forgotten' (known: blur, class_order, data_dir, dataset,"),
        ("net.path=x", "--set: unknown key 'path' (known: dropout, model, norm, width)"),
        ("net.width=[", "is not valid YAML"), ("data.samples=x", "--set data.samples is 'x'"),
    ],
)  # fmt: skip
def test_a_wrong_set_is_one_line(text, words):
    with pytest.raises(UserError) as error:
        parse(["--set", text])
    assert words in str(error.value)


def test_the_same_run_from_python_and_from_the_command_line():
    from_python = configure(method="zoo", continual=True, epochs=3, no_augment=True, set={"hp.lr": 0.5})
    assert with_settings(from_python) == with_settings(
        parse(["--method", "zoo", "--continual", "--epochs", "3", "--no_augment", "--set", "hp.lr=0.5"])
    )
    with pytest.raises(UserError, match="unknown option 'epoch'; did you mean 'epochs'"):
        configure(epoch=3)


def test_a_run_is_named_after_what_distinguishes_it():
    invocation = parse(["--seed", "4", "--method", "isolated"])
    assert invocation.run_dir == Path("runs/split_digits-conv-isolated-seed4")


def test_one_epoch_is_trained_without_augmentation():
    assert parse(["--epochs", "2"]).config.hp.augment
    assert not parse(["--epochs", "1"]).config.hp.augment
    assert not parse(["--epochs", "2", "--no_augment"]).config.hp.augment


RANGES = {key: declared.accepts for key, declared in options().items() if isinstance(declared.accepts, Range)}


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_range_accepts_its_ends_and_nothing_beyond(name):
    limits = RANGES[name]
    assert (limits.low in limits) == (not limits.open_low)
    assert limits.low - 1 not in limits
    assert (limits.high in limits) == (limits.high < float("inf") and not limits.open_high)
    assert float("nan") not in limits
    assert str(f"{limits.low:g}") in limits.describe()


def test_every_option_is_explained_with_its_default():
    for declared in options().values():
        assert "(default: " in declared.help or "(default " in declared.help, declared.option


def test_an_unknown_name_suggests_the_nearest():
    assert unknown("method", "zo", ["zoo", "isolated"]) == (
        "unknown method 'zo'; did you mean 'zoo'? (known: isolated, zoo)"
    )
    assert unknown("method", "qqq", ["zoo"]) == "unknown method 'qqq' (known: zoo)"


def test_a_deeply_nested_file_is_refused(tmp_path):
    path = write(tmp_path, "d.yaml", "tasks: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(UserError, match=r"nested too deeply|not valid YAML"):
        parse(["--data_config", path])


def test_every_shipped_file_says_how_to_run_it():
    for path in (PROJECT / "config" / "dataset").glob("*.yaml"):
        text = path.read_text()
        assert text.startswith("#"), path
        assert f"--data_config config/dataset/{path.name}" in text, path
        assert "s on " in text or "not measured yet" in text, path
        assert parse(["--data_config", str(path)]).config.data.tasks
    for path in (PROJECT / "config" / "hyperparam").glob("*.yaml"):
        assert path.read_text().startswith("#"), path
        assert parse(["--hp_config", str(path)]).config.net.model


def test_every_method_with_settings_has_a_file_and_every_file_a_method():
    """Each setting has its source beside it."""
    files = {path.stem for path in (PROJECT / "config/method").glob("*.yaml")}
    assert files == {name for name, method in METHODS.items() if declarations(method.Settings)}
    for name in files:
        lines = (PROJECT / f"config/method/{name}.yaml").read_text().splitlines()
        assert all(
            re.fullmatch(r"# .+|\w+: \S+  # .+|streams:  # .+|  \w+: {.+}(  # --.+)?", line) for line in lines
        ), name


def test_a_stream_can_have_settings_of_its_own(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("bn: shared\nstrength: 1\ndamping: 0.1\nstreams: {split_digits: {strength: 5}}\n")
    given = ["--method", "si", "--continual", "--method_config", str(path)]
    assert plain(with_settings(parse(given)).settings) == {
        "bn": "shared", "outputs": "seen", "strength": 5.0, "penalty": "proximal", "damping": 0.1,
    }  # fmt: skip
    other = [*given, "--data_config", str(PROJECT / "config/dataset/rotated_digits.yaml")]
    assert with_settings(parse(other)).settings.strength == 1.0


def test_checks_of_many_keys_take_no_longer_than_reading_them(tmp_path):
    def seconds(read, given):
        begin = time.process_time()
        assert read(given)
        return time.process_time() - begin

    keys = "".join(f"key{number}: 1\n" for number in range(20_000))
    assert seconds(lambda text: parse_yaml("x", text), keys) < 2 * seconds(yaml.safe_load, keys)  # comparing all: 3
    classes = ", ".join(f"c{number}" for number in range(20_000))
    text = f"{{dataset: image_folder, root: mine, image_size: 8, tasks: [[{classes}]]}}"
    path = write(tmp_path, "d.yaml", text)
    assert seconds(lambda path: configure(data_config=path), path) < 4 * seconds(yaml.safe_load, text)  # all pairs: 9
