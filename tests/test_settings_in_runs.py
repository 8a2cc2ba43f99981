"""Runs whose images are normalised and padded in an unusual way, and whose tasks the seed has drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import distill
import export
import forget
import predict
from datasets import build_stream
from datasets.mixture import Mixture
from modelzoo import main
from records import Run
from zoo import Zoo

UNUSUAL = "normalize: {mean: 0.1, sd: 0.2752}\npad: 2\n"
DRAWN = "class_order: seed\ntask_order: seed\nsamples_per_task: 40\n"
TASKS = "tasks: [[0, 1], {classes: [2, 3, 4], label_noise: 0.5}, [5, 6]]\n"
GIVEN = ["--data_config", "d.yaml", "--hp_config", "hp.yaml", "--threads", "1", "--quiet"]


def write_configs():
    Path("d.yaml").write_text(f"dataset: digits\n{TASKS}{UNUSUAL}{DRAWN}")
    Path("more.yaml").write_text(f"dataset: digits\ntasks: [[7, 8]]\n{UNUSUAL}{DRAWN}")
    Path("hp.yaml").write_text("model: conv\nepochs: 2\nbatch: 8\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of the zoo with seed 3."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_configs()
        given = [*GIVEN, "--continual", "--seed", "3", "--hold_out", "0.25", "--tasks_per_round", "2"]
        assert main([*given, "--run_dir", "run"]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def run(made, tmp_path, monkeypatch):
    """A copy of it in the current folder, as run/."""
    monkeypatch.chdir(tmp_path)
    write_configs()
    shutil.copytree(made, "run")


def images_of(path):
    """By task number, the test images of a run as uint8 [N, 1, 8, 8]."""
    config = Zoo.load(path, "cpu").config
    stream = build_stream(config.data, config.seed, torch.device("cpu"))
    return {task.id: Mixture([(task.id, task.test)]).inputs(slice(0, len(task.test))) for task in stream.tasks}


def saved_answer(path, number):
    """The mean of what the members' files say about the test images of a task."""
    cached, weights = [], []
    for file in sorted(Path(path, "members").glob("*.json")):
        facts = json.loads(file.read_text())
        if number in facts["tasks"]:
            weights.append(facts["weights"][facts["tasks"].index(number)])
            predictions = load_file(Path(path, "predictions", file.with_suffix(".safetensors").name))
            cached.append(predictions[f"task_{number}/test"].double().numpy())
    return np.average(cached, 0, weights)


def test_a_loaded_zoo_normalises_and_pads_as_its_run_did():
    zoo, images = Zoo.load("run", "cpu"), images_of("run")
    assert zoo.input_shape == (1, 8, 8)
    assert zoo.members[0].input_shape == (1, 12, 12)
    for number, pixels in images.items():
        expected = saved_answer("run", number)
        np.testing.assert_allclose(zoo.predict(pixels, number).probabilities.numpy(), expected, atol=2e-6)
    Image.fromarray(pixels[0, 0].numpy()).save("digit.png")
    np.testing.assert_allclose(zoo.predict("digit.png", number).probabilities[0].numpy(), expected[0], atol=2e-6)


def test_the_program_predicts_files_as_the_run_did(capsys):
    (number, pixels), *_ = images_of("run").items()
    for place, image in enumerate(pixels[:5]):
        Image.fromarray(image[0].numpy()).save(f"{place}.png")
    files = [f"{place}.png" for place in range(5)]
    assert predict.main(["run", *files, "--task", f"number={number}", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    classes = Zoo.load("run", "cpu").task(number).classes
    for file, answer in zip(files, saved_answer("run", number), strict=False):
        line = next(line for line in said.splitlines() if file in line)
        assert classes[answer.argmax()] in line


def test_exported_files_take_images_as_they_are_and_answer_as_the_run_did():
    assert export.main(["run", "--out", "out"]) == 0
    session = onnxruntime.InferenceSession("out/model.onnx")
    by_torch = torch.export.load("out/model.pt2").module()
    assert json.loads(Path("out/tasks.json").read_text())["input"]["shape"] == ["N", 1, 8, 8]
    for number, pixels in images_of("run").items():
        inputs, expected = pixels.float() / 255, saved_answer("run", number)
        (answer,) = session.run([f"task_{number}"], {"images": inputs.numpy()})
        np.testing.assert_allclose(answer, expected, atol=1e-4)
        with torch.no_grad():
            np.testing.assert_allclose(by_torch(inputs)[f"task_{number}"].numpy(), expected, atol=1e-4)
    card = Path("out/README.md").read_text()
    assert "mean 0.1, standard deviation 0.2752, after 2 black pixels on every side" in card
    assert "training images a task: at most 40" in card
    noisy = next(task.number for task in Zoo.load("run", "cpu").tasks if len(task.classes) == 3)
    assert f"- task {noisy}: a share of 0.5 of the training labels" in card
    assert card.count("of the training labels was replaced") == 1


def test_the_files_of_a_run_say_which_classes_its_tasks_have():
    """config.yaml keeps what was written; names of tasks are the classes that were drawn."""
    config, done = yaml.safe_load(Path("run/config.yaml").read_text()), Run.load("run")
    assert [task["classes"] for task in config["data"]["tasks"]] == [[0, 1], [2, 3, 4], [5, 6]]
    assert (config["seed"], config["data"]["class_order"], config["data"]["task_order"]) == (3, "seed", "seed")
    names = [task.name for task in Zoo.load("run", "cpu").tasks]
    assert list(done.task_names) == names
    assert names != ["0/1", "2/3/4", "5/6"]
    assert sorted("/".join(names).split("/")) == list("0123456")


def test_a_student_learns_the_tasks_that_were_drawn(capsys):
    assert distill.main(["run", "--run_dir", "student", "--epochs", "1", "--quiet"]) == 0
    student, zoo = Zoo.load("student", "cpu"), Zoo.load("run", "cpu")
    assert student.tasks == zoo.tasks
    for number, pixels in images_of("student").items():
        found = student.predict(pixels, number).probabilities.numpy()
        np.testing.assert_allclose(found, saved_answer("student", number), atol=2e-6)
    assert distill.main(["run", "--run_dir", "other", "--seed", "4", "--quiet"]) == 2
    assert "--seed 4: the tasks of run were drawn from its seed (class_order: seed)" in capsys.readouterr().err


def test_a_drawn_task_can_be_forgotten():
    """Members trained again see the same other tasks; the forgotten one is the one of that number in the run."""
    before, images = Zoo.load("run", "cpu"), images_of("run")
    assert forget.main(["run", "--task", "number=2", "--retrain", "--run_dir", "left", "--quiet"]) == 0
    left = Zoo.load("left", "cpu")
    assert left.config.data.forgotten == (2,)
    assert [task for task in before.tasks if task.number != 2] == list(left.tasks)
    again = images_of("left")
    assert again.keys() == {1, 3}
    for number, pixels in again.items():
        assert torch.equal(pixels, images[number])
        found = left.predict(pixels, number).probabilities.numpy()
        np.testing.assert_allclose(found, saved_answer("left", number), atol=2e-6)


def test_no_task_joins_tasks_that_were_drawn(capsys):
    assert main(["--extend", "run", "--data_config", "more.yaml", "--run_dir", "longer", "--quiet"]) == 2
    assert "the tasks of run were drawn from its seed (class_order: seed), all at once" in capsys.readouterr().err
    assert not Path("longer").exists()


def test_another_seed_draws_other_tasks_and_a_resumed_run_is_the_same(capsys):
    resumed = ["--resume", "--run_dir", "run", "--threads", "1", "--quiet"]
    assert main(resumed) == 0
    assert main([*resumed, *GIVEN[:2], "--set", "data.pad=1"]) == 2
    assert "another data.pad" in capsys.readouterr().err
    given = [*GIVEN, "--method", "finetune", "--continual", "--epochs", "1"]
    for seed in (3, 4):
        assert main([*given, "--seed", str(seed), "--run_dir", f"seed{seed}"]) == 0
    names = {path: Run.load(path).task_names for path in ("run", "seed3", "seed4")}
    assert names["run"] == names["seed3"] != names["seed4"]


def test_padded_images_can_also_be_learned_by_networks_of_one_input_size():
    given = [*GIVEN, "--method", "er", "--continual", "--memory_per_class", "2", "--seed", "3", "--run_dir", "mlp"]
    Path("hp.yaml").write_text("model: mlp\nepochs: 1\nbatch: 8\nwidths: [16]\n")
    assert main(given) == 0
    zoo = Zoo.load("mlp", "cpu")
    for number, pixels in images_of("mlp").items():
        expected = load_file("mlp/predictions/member_002.safetensors")[f"task_{number}/test"]
        np.testing.assert_allclose(zoo.predict(pixels, number).probabilities.numpy(), expected.numpy(), atol=2e-6)
