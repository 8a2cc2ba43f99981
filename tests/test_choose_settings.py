"""Settings are chosen without a look at test data or at the later tasks."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.toys import toy_stream

sys.path.append(str(Path(__file__).resolve().parent.parent / "docs"))
import choose_settings

from methods import METHODS
from records.configuration import method_settings
from utils.settings import declarations


def rows(examples):
    """A toy task has a store of its own, so rows of it are examples."""
    return set(examples.rows.tolist())


@pytest.mark.parametrize("samples", [None, 4])
def test_validation_data_are_training_examples_of_early_tasks_that_are_not_trained_on(samples):
    stream = toy_stream(8, count=60)
    found = choose_settings.validation_stream(stream, samples)
    assert [task.id for task in found.tasks] == [1, 2, 3, 4]
    for task, given in zip(found.tasks, stream.tasks, strict=False):
        trained, held = task.train_eval, task.test
        assert trained.store is held.store is given.train_eval.store is not given.test.store
        assert rows(trained) & rows(held) == set()
        assert rows(task.train.epoch(torch.Generator())) == rows(trained)
        assert held.targets.equal(given.train_eval.targets[held.rows])
        counts = torch.bincount(trained.targets)
        assert counts.tolist() == [samples or 48 // task.num_outputs] * task.num_outputs
        assert len(torch.bincount(held.targets).unique()) == 1


def test_a_short_stream_is_tuned_on_three_tasks():
    assert len(choose_settings.validation_stream(toy_stream(5), None).tasks) == 3


def test_a_class_without_validation_data_is_refused():
    with pytest.raises(SystemExit, match="task 1 has a class without examples to hold out; try fewer --samples"):
        choose_settings.validation_stream(toy_stream(3, count=12), 4)


def test_what_is_chosen_is_what_a_run_reads(tmp_path):
    """And the presets of other streams, the settings and their comments stay."""
    path = tmp_path / "ewc.yaml"
    before = (choose_settings.CONFIGS / "ewc.yaml").read_text()
    path.write_text(before)
    choose_settings.write_down(path, "toy", {"strength": 12.5, "fisher": "sample"}, "--samples 4 --epochs 2")

    def settings(path, stream):
        return {key: given.value for key, given in method_settings(str(path), stream).items()}

    assert settings(path, "toy")["strength"] == 12.5
    assert settings(path, "toy")["fisher"] == "sample"
    for stream in [*yaml.safe_load(before)["streams"], "no such stream"]:
        original = str(choose_settings.CONFIGS / "ewc.yaml")
        assert settings(path, stream) == settings(original, stream)
    assert "  toy: {strength: 12.5, fisher: sample}  # --samples 4 --epochs 2\n" in path.read_text()
    assert set(before.splitlines()) <= set(path.read_text().splitlines())
    choose_settings.write_down(path, "toy", {"strength": 1.0}, "--samples 9")
    assert path.read_text().count("  toy:") == 1


def test_everything_that_is_tried_is_a_setting_of_the_method():
    for method, tried in choose_settings.TRIED.items():
        for key, values in tried.items():
            for value in values:
                declarations(METHODS[method].Settings)[key].check(f"{method}: {key}", value)


def test_the_recipe_is_written_down_without_paths_of_data():
    argv = [
        "--data_config",
        "a.yaml",
        "--samples",
        "4",
        "--data_dir",
        "/somewhere",
        "--epochs",
        "2",
        "--methods",
        "ewc",
        "si",
    ]
    assert choose_settings.recipe_of(argv) == "--samples 4 --epochs 2"
