"""Frozen features: a stream of images becomes a table of what a timm model with the weights of a file makes of them."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

import distill
import export
import forget
import predict
from datasets import build_stream
from modelzoo import main
from records.invocation import parse
from records.run import Run
from training import features
from training.features import task_stream
from utils.errors import UserError
from utils.torchvision_ops import declare_missing_operators
from zoo import Zoo

declare_missing_operators()
timm = importlib.import_module("timm")
CPU = torch.device("cpu")
MODEL = "test_efficientnet"
MEAN, STD = 0.3, 0.4


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights with a classifier: by the names of timm, and by others in the same order."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    state = timm.create_model(MODEL, num_classes=7, in_chans=1).state_dict()
    safetensors.torch.save_file(state, folder / "named.safetensors")
    renamed = {f"tensor_{place}": value for place, value in enumerate(state.values()) if value.ndim}  # no counters
    torch.save(renamed, folder / "renamed.pth")
    torch.save({"epoch": 3, "state_dict": state}, folder / "checkpoint.pth")
    torch.save(dict(enumerate(state.values())), folder / "numbered.pth")
    torch.save({**state, "conv_stem.weight": state["conv_stem.weight"].to_sparse()}, folder / "sparse.pth")
    torch.save({**state, "conv_stem.weight": state["conv_stem.weight"] / 0}, folder / "infinite.pth")
    torch.save({**state, "conv_stem.weight": state["conv_stem.weight"].int()}, folder / "whole.pth")
    for name in ("named.safetensors", "checkpoint.pth"):
        (folder / f"half_{name}").write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])
    return folder


@pytest.fixture
def given(weights, tmp_path, monkeypatch):
    """Writes a dataset YAML and a hyperparameter YAML of frozen features, and returns the options that name them."""
    monkeypatch.chdir(tmp_path)

    def written(data="{dataset: digits, tasks: [[0, 1], [2, 3]], pad: 4}", **changes):
        Path("d.yaml").write_text(data)
        net = {"model": f"timm/{MODEL}", "weights": str(weights / "named.safetensors"), "frozen": True, "mean": MEAN,
               "std": STD, "dropout": 0.0, "batch": 8, "epochs": 2}  # fmt: skip
        Path("h.yaml").write_text(yaml.safe_dump({k: v for k, v in {**net, **changes}.items() if v is not None}))
        return ["--data_config", "d.yaml", "--hp_config", "h.yaml", "--samples", "20", "--continual"]

    return written


def stream_of(options, seed=0):
    config = parse(options).config
    return task_stream(config.data, config.net, seed, CPU)


def twin(images, weights):
    """Features that timm makes of images [N, 1, 8, 8], uint8, with four black pixels on every side."""
    model = timm.create_model(MODEL, num_classes=7, in_chans=1).eval()
    model.load_state_dict(safetensors.torch.load_file(weights / "named.safetensors"))
    padded = torch.nn.functional.pad(images.float() / 255, [4] * 4)
    with torch.no_grad():
        return model.forward_head(model.forward_features((padded - MEAN) / STD), pre_logits=True)


def test_the_inputs_are_the_features_of_timm(given, weights):
    """Of every split, in test mode and without augmentation; targets stay."""
    options = given()
    stream, images = stream_of(options), build_stream(parse(options).config.data, 0, CPU)
    for task, before in zip(stream.tasks, images.tasks, strict=True):
        for name, part in before.splits.items():
            made = task.splits[name]
            torch.testing.assert_close(
                made.store[made.rows], twin(part.store[part.rows], weights), rtol=1e-4, atol=1e-5
            )
            assert torch.equal(made.targets, part.targets)
    assert stream.spec.input_shape == tuple(stream.tasks[0].test.store.shape[1:])


def test_rotations_have_features_of_their_own(given, weights):
    options = given("{dataset: rotated_digits, tasks: 3, pad: 4}")
    stream, images = stream_of(options), build_stream(parse(options).config.data, 0, CPU)
    part, made = images.tasks[2].test, stream.tasks[2].test
    black = torch.cat([part.store.flatten(1), part.store.new_zeros(len(part.store), 1)], 1)
    turned = black[:, part.view].unflatten(1, (1, 8, 8))[part.rows]
    assert not torch.equal(turned, part.store[part.rows])
    torch.testing.assert_close(made.store[made.rows], twin(turned, weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["renamed.pth", "checkpoint.pth"])
def test_weights_are_found_by_their_order_too(name, given, weights):
    """A state dict of torch, whose names are others or which lies in a checkpoint."""
    named, other = stream_of(given()), stream_of(given(weights=str(weights / name)))
    assert torch.equal(named.tasks[0].test.store, other.tasks[0].test.store)


def test_features_are_computed_once(given, monkeypatch):
    """The second stream reads them; other data, weights, or pixel statistics are others."""
    options, count = given(), [0]
    compute = features.features_of

    def counting(*arguments):
        count[0] += 1
        return compute(*arguments)

    monkeypatch.setattr(features, "features_of", counting)
    first = stream_of(options)
    assert count == [2]  # training images and test images
    again = stream_of(options)
    assert count == [2]
    assert torch.equal(first.tasks[1].train_eval.store, again.tasks[1].train_eval.store)
    assert first.fingerprints() == again.fingerprints()
    stream_of(given(std=0.5))
    assert count == [4]
    stream_of([*given(), "--set", "data.tasks=[[0, 1], [2, 4]]"])
    assert count == [6]


@pytest.mark.parametrize("harm", ["flipped", "cut", "foreign", "nothing"])
def test_a_damaged_file_is_made_anew(harm, given):
    options = given()
    first = stream_of(options).tasks[0].test.store
    one, other = sorted(Path("data/cache").glob("*.safetensors"))
    whole = {path: path.read_bytes() for path in (one, other)}
    for path, neighbour in ((one, other), (other, one)):
        content = whole[path]
        bad = {"flipped": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:], "cut": content[:100],
               "foreign": whole[neighbour], "nothing": b""}  # fmt: skip
        path.write_bytes(bad[harm])
    assert torch.equal(stream_of(options).tasks[0].test.store, first)
    assert {path: path.read_bytes() for path in Path("data/cache").iterdir()} == whole


def test_a_folder_that_cannot_be_written_costs_only_time(given):
    options = given()
    Path("data").write_text("a file in place of the folder")
    assert len(stream_of(options).tasks) == 2


def test_weights_that_train_begin_as_in_the_file(given, weights):
    """After no step worth mentioning they are those of the file, normalised with the statistics of the weights."""
    options = given(frozen=None, lr=1e-9, epochs=1)
    assert main([*options, "--method", "finetune", "--quiet", "--run_dir", "run"]) == 0
    net, _ = Zoo.load("run").net(Zoo.load("run").members[-1])
    state = safetensors.torch.load_file(weights / "named.safetensors")
    for name, value in net.trunk.model.named_parameters():
        torch.testing.assert_close(value.detach(), state[name], rtol=1e-3, atol=1e-5)
    assert Run.load("run").config["inputs"]["normalize"] == {"mean": [MEAN], "sd": [STD]}


@pytest.mark.parametrize("method", ["zoo", "er", "closed_form"])
def test_a_run_on_frozen_features_is_asked_about_images(method, given, weights):
    """predict.py and Zoo.predict take images; the heads are applied to the features of timm."""
    options = given(widths=[] if method == "closed_form" else [16])
    assert main([*options, "--method", method, "--quiet", "--run_dir", "run"]) == 0
    config = parse(options).config
    part = build_stream(config.data, 0, CPU).tasks[1].test
    images = part.store[part.rows][:30]
    zoo = Zoo.load("run")
    found = zoo.predict(images, 2).probabilities
    inputs, expected = twin(images, weights), torch.zeros(30, 2)
    for member in zoo.members_for(2):
        net, _ = zoo.net(member)
        expected += net(inputs, torch.full((30,), 2))[:, :2].softmax(1) / len(zoo.members_for(2))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-4)
    Image.fromarray(images[0, 0].numpy()).save("one.png")
    assert predict.main(["run", "one.png", "--task", "2", "--out", "p.csv"]) == 0
    np.testing.assert_allclose(float(Path("p.csv").read_text().splitlines()[1].split(",")[4]), found[0, 0], atol=1e-4)


def test_programs_for_a_finished_run(given, weights, capsys):
    """A task can be forgotten and retrained, an export has the frozen network in it, and a student makes no sense."""
    content = (weights / "named.safetensors").read_bytes()
    Path("w.safetensors").write_bytes(content)
    options = [*given(weights="w.safetensors"), "--tasks_per_round", "2"]
    assert main([*options, "--quiet", "--run_dir", "run"]) == 0
    assert forget.main(["run", "--task", "1", "--retrain", "--quiet"]) == 0
    assert export.main(["run", "--out", "out", "--format", "torch"]) == 0
    assert distill.main(["run", "--quiet"]) == 2
    assert "frozen features" in capsys.readouterr().err
    Path("w.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    Image.new("L", (8, 8)).save("one.png")
    assert predict.main(["run", "one.png", "--task", "1"]) == 2
    assert "w.safetensors has changed since the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"weights": "none.pth"}, "none.pth cannot be read: No such file"),
        ({"weights": "d.yaml"}, "d.yaml is no safetensors file, and no state dict"),
        ({"model": "timm/test_resnet"}, "does not fit timm/test_resnet: "),
        ({"weights": None}, "frozen: features of random weights"),
        ({"mean": [0.1, 0.2, 0.3]}, "mean: is for 3 channels; the images have 1"),
        ({"mean": None}, "mean and std: give both"),
        ({"frozen": None, "widths": [4]}, "widths: is for the network on frozen features"),
        ({"widths": [-1]}, "widths: layer 1 is -1"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, line, given):
    with pytest.raises(UserError, match=r"^h\.yaml: ") as caught:
        stream_of(given(**changes))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("half_named.safetensors", "is no safetensors file, and no state dict"),
        ("half_checkpoint.pth", "is no safetensors file, and no state dict"),
        ("numbered.pth", "is no safetensors file, and no state dict"),
        ("sparse.pth", "is no safetensors file, and no state dict"),
        ("infinite.pth", "conv_stem.weight has values that are not finite"),
        ("whole.pth", "does not fit timm/test_efficientnet: conv_stem.weight is of torch.int32"),
    ],
)
def test_a_damaged_file_of_weights_is_one_line(name, line, given, weights):
    with pytest.raises(UserError, match=r"^h\.yaml: weights: ") as caught:
        stream_of(given(weights=str(weights / name)))
    assert line in str(caught.value)


def test_sequences_have_no_frozen_features(given):
    options = given("{dataset: algorithmic, tasks: [argmax]}")
    with pytest.raises(UserError, match=r"h\.yaml: mean and std: are for images"):
        stream_of([option for option in options if option not in ("--samples", "20")])
