"""Finished runs on other things than images: programs work with them, or say in one line what they need."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import datasets
import distill
import export
import forget
import modelzoo
import predict
from datasets.objectives import CrossEntropy
from datasets.task import Preprocess, StreamSpec, Table, Task, TaskStream
from net import TRUNKS
from records import Run
from tests.toys import TOKENS, TokenTrunk, number_stream, table, token_stream
from utils.errors import UserError
from utils.seeding import generator
from zoo import Zoo

WIDTH = 4
PROGRAMS = {
    "predict": lambda run: predict.main([run, "a.png", "--task", "1"]),
    "export": lambda run: export.main([run, "--out", "out", "--format", "torch"]),
    "distill": lambda run: distill.main([run, "--quiet", "--run_dir", "student"]),
    "forget": lambda run: forget.main([run, "--task", "1", "--retrain", "--quiet", "--run_dir", "less"]),
}


def values_stream(tasks, heads="task", kind=torch.float32):
    """Classes of four numbers: which is the largest."""
    made = []
    for number in range(1, tasks + 1):
        values = torch.randn(104, WIDTH, generator=generator(0, "values", number)).to(kind)
        train, test = (table(part, part.argmax(1)) for part in values.split([64, 40]))
        made.append(Task(number, f"task {number}", WIDTH, Table(train), {"train": train, "test": test}))
    return TaskStream(StreamSpec("values", (WIDTH,), CrossEntropy(), Preprocess(), heads), tuple(made))


def words_stream(tasks):
    """Classes of four tokens, which an embedding reads: the last one, shifted."""
    spec = StreamSpec("words", (4,), CrossEntropy(), Preprocess())
    made = []
    for task in token_stream(tasks, frozen=True).tasks:
        splits = {name: replace(part, targets=part.targets[:, -1], slices={}) for name, part in task.splits.items()}
        made.append(Task(task.id, task.name, TOKENS, Table(splits["train"]), splits))
    return TaskStream(spec, tuple(made))


class WordTrunk(TokenTrunk):
    def forward(self, tokens):
        return super().forward(tokens)[:, -1]


KINDS = {
    "values": values_stream,
    "shared": lambda tasks: values_stream(tasks, "shared"),
    "words": words_stream,
    "doubles": lambda tasks: values_stream(tasks, kind=torch.float64),
    "numbers": lambda tasks: number_stream(tasks, heads="shared"),
    "tokens": lambda tasks: token_stream(tasks, heads="shared"),
}
MODELS = {"tokens": "tokens", "words": "words"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that trains on two tasks of a kind of stream, in this folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TRUNKS, "tokens", TokenTrunk)
    monkeypatch.setitem(TRUNKS, "words", WordTrunk)
    Image.new("L", (8, 8)).save("a.png")

    def made(kind, *more, model=None):
        def build(config, seed, device):
            stream = KINDS[kind](len(config.tasks))
            return replace(stream, tasks=tuple(task for task in stream.tasks if task.id not in config.forgotten))

        monkeypatch.setitem(datasets.STREAMS, kind, build)
        for name, tasks in (("d", "[[0, 1], [0, 1]]"), ("more", "[[0, 1]]")):
            Path(f"{name}.yaml").write_text(f"dataset: {kind}\ntasks: {tasks}\n")
        Path("hp.yaml").write_text(f"model: {model or MODELS.get(kind, 'mlp')}\nepochs: 3\nbatch: 8\nlr: 0.01\n")
        given = ["--data_config", "d.yaml", "--hp_config", "hp.yaml", "--continual", "--quiet", "--run_dir", "run"]
        return modelzoo.main([*given, *more])

    return made


@pytest.mark.parametrize("kind", ["values", "shared", "words"])
def test_a_zoo_of_classes_answers_whatever_its_inputs_are(kind, run, capsys):
    assert run(kind) == 0
    zoo, stream = Zoo.load("run", "cpu"), KINDS[kind](2)
    for task in stream.tasks:
        saved = [load_file(f"run/predictions/member_{m.number:03d}.safetensors")[f"task_{task.id}/test"]
                 for m in zoo.members_for(task.id)]  # fmt: skip
        inputs = task.test.store[task.test.rows]
        for given in (inputs, inputs.numpy(), inputs.double()):
            found = zoo.predict(given, task.id).probabilities
            np.testing.assert_allclose(found, torch.stack(saved).double().mean(0), atol=2e-6)
        assert len(zoo.predict(inputs[0], "auto").labels) == 1
    with pytest.raises(UserError, match="inputs have values that are not finite"):
        zoo.predict(torch.full((1, 4), torch.nan), 1)
    with pytest.raises(UserError, match=r"takes inputs of shape \[4\], no files"):
        zoo.predict(["a.png"], 1)
    capsys.readouterr()
    for name, program in PROGRAMS.items():
        code, told = program("run"), capsys.readouterr().err
        if name == "predict" or (name, kind) == ("export", "words"):
            assert (code, told.count("\n")) == (2, 1)
            expected = {
                "predict": "takes inputs of shape [4], no files: give arrays to Zoo.predict",
                "export": "words cannot be exported",
            }
            assert expected[name] in told
        else:
            assert (name, code, told) == (name, 0, "")
    assert [task.number for task in Zoo.load("less").tasks] == [2]
    assert len(Zoo.load("student").predict(inputs, 2).labels) == 40
    if kind != "words":
        card = Path("out/README.md").read_text()
        assert "An input goes in" in card
        assert "PIL" not in card
        answers = torch.export.load("out/model.pt2").module()(inputs)
        torch.testing.assert_close(answers["task_2"], zoo.predict(inputs, 2).probabilities, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["numbers", "tokens"])
def test_what_has_no_classes_is_one_line_and_not_damaged(kind, run, capsys):
    assert run(kind) == 0
    for name, program in PROGRAMS.items():
        capsys.readouterr()
        assert program("run") == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        if kind == "tokens":
            assert "run was trained with Tokens on inputs made by Preprocess; a saved zoo needs CrossEntropy" in told
        elif name != "predict":
            assert "run was trained with RealNumbers, and this needs classes" in told
        assert "damaged" not in told


def test_a_zoo_of_real_numbers_answers_with_numbers(run):
    assert run("numbers") == 0
    zoo, task = Zoo.load("run", "cpu"), KINDS["numbers"](2).tasks[0]
    found = zoo.numbers(task.test.store[task.test.rows], 1)
    np.testing.assert_allclose(found, Run.load("run").predictions(1), atol=2e-6)
    for refused in (lambda: zoo.predict(task.test.store, 1), lambda: zoo.combined("stacked")):
        with pytest.raises(UserError, match="this needs classes"):
            refused()


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"doubles"}))
def test_runs_of_any_kind_are_extended(kind, run):
    """Heads that tasks share are read as such; the first episodes stay as they are."""
    assert run(kind) == 0
    assert modelzoo.main(["--extend", "run", "--data_config", "more.yaml", "--quiet"]) == 0
    assert modelzoo.main(["--verify", "run-extended"]) == 0
    for member in ("000", "001"):
        name = f"members/member_{member}.safetensors"
        assert (Path("run-extended") / name).read_bytes() == (Path("run") / name).read_bytes()


@pytest.mark.parametrize("model", ["conv", "wrn16_4", "timm/test_resnet"])
def test_networks_of_images_refuse_other_inputs_in_one_line(model, run, capsys):
    assert run("values", model=model) == 2
    told = f"modelzoo.py: hp.yaml: model: {model} takes images, channels x height x width; the inputs are 4: try mlp\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(("kind", "given"), [("doubles", "torch.float64"), ("tokens", "torch.int64")])
def test_inputs_of_another_kind_than_the_network_takes_are_refused_in_one_line(kind, given, run, capsys):
    assert run(kind, model="mlp") == 2
    told = f"modelzoo.py: hp.yaml: model: mlp takes numbers of torch.float32; the inputs are {given}\n"
    assert capsys.readouterr().err == told
