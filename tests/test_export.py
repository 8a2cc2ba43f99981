"""What is exported answers like the zoo, its model card says what holds of it, and nothing is left half-done."""

import contextlib
import errno
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import ExifTags, Image

from datasets.images.digits import rotated_digits
from datasets.images.settings import HALF, Normalisation
from datasets.images.stream import ImagePreprocess
from datasets.mixture import Mixture
from datasets.objectives import CrossEntropy
from export import main
from net import build_net, settings_class
from records.checkpoints import RunCheckpoints
from records.manifest import Manifest
from tests.tables import read_metrics
from tests.test_report import Stopped, stop_after
from tests.test_resume import options, start, write_configs
from tests.toys import toy_config
from utils.seeding import seeded
from zoo import SavedMember, SavedTask, Zoo
from zoo.card import plain_text
from zoo.exporting import FILES, Shipped, difference, exported
from zoo.inputs import read_image

CPU = torch.device("cpu")
STACKED = ["--combine", "stacked", "--temperature", "task", "--budget", "2"]
FITTED = ["--combine", "weighted", "--temperature", "member"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Runs of three tasks, the second with a class more, and exports of them."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as told:
        patch.chdir(folder)
        write_configs()
        assert start("zoo", *options("zoo"), "--tasks_per_round", "3", "--hold_out", "0.25") == 0
        assert start("packnet", *options("packnet")) == 0
        told.truncate(0)
        assert main(["zoo", "--out", "plain"]) == 0
        assert main(["zoo", "--out", "new/stacked", *STACKED]) == 0
        assert main(["zoo", "--out", "fitted", *FITTED, "--task", "3", "--task", "rotated by 0°"]) == 0
        Path("subnets").mkdir()
        assert main(["packnet", "--out", "subnets"]) == 0
    assert len(told.getvalue().splitlines()) == 4 * 4
    return folder


def the_zoo(here, name):
    """What was exported there."""
    zoo = Zoo.load(here / ("packnet" if name == "subnets" else "zoo"), "cpu")
    how = {"new/stacked": ("stacked", "task", 2), "fitted": ("weighted", "member")}
    return zoo.combined(*how.get(name, ()))


def by_onnx(folder):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": images}), strict=True))


def by_torch(folder):
    model = torch.export.load(folder / "model.pt2").module()
    return lambda images: {name: p.detach().numpy() for name, p in model(torch.from_numpy(images)).items()}


def of_test(here):
    """Task -> its test images, uint8, and the right classes."""
    stream = rotated_digits(Zoo.load(here / "zoo", "cpu").config.data, 0, CPU)
    return {task.id: (Mixture([(task.id, task.test)]).inputs(slice(None)), task.test.targets) for task in stream.tasks}


EXPORTS = ["plain", "new/stacked", "fitted", "subnets"]


@pytest.mark.parametrize("load", [by_onnx, by_torch])
@pytest.mark.parametrize("name", EXPORTS)
def test_the_files_answer_like_the_zoo(name, load, here):
    zoo, answers = the_zoo(here, name), load(here / name)
    tasks = json.loads((here / name / "tasks.json").read_text())["tasks"]
    for number, (images, _) in of_test(here).items():
        for count in (1, 3, 17):
            said = answers(images[:count].numpy().astype(np.float32) / 255)
            assert list(said) == [task["output"] for task in tasks]
            for task in tasks:
                expected = zoo.predict(images[:count], task["number"]).probabilities.numpy()
                np.testing.assert_allclose(said[task["output"]], expected, rtol=0, atol=1e-4, err_msg=str(number))
    assert the_zoo(here, "plain").predict(images, 1).probabilities.std(0).min() > 0.005  # answers do differ


@pytest.mark.parametrize("name", EXPORTS)
def test_tasks_are_told_to_programs(name, here):
    found = json.loads((here / name / "tasks.json").read_text())
    assert found["input"] == {"name": "images", "dtype": "float32", "shape": ["N", 1, 8, 8], "range": [0, 1]}
    expected = [
        {"number": 1, "name": "rotated by 0°", "output": "task_1", "classes": ["0", "1"]},
        {"number": 2, "name": "rotated by 10°", "output": "task_2", "classes": ["0", "1", "2"]},
        {"number": 3, "name": "rotated by 20°", "output": "task_3", "classes": ["2", "3"]},
    ]
    assert found["tasks"] == [task for task in expected if name != "fitted" or task["number"] != 2]


def test_the_lines_on_the_card_run_as_they_stand(here):
    folder = here / "fitted"
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert [file in snippet for snippet, file in zip(snippets[1:], FILES.values(), strict=True)] == [True, True]
    done = subprocess.run([sys.executable, "-c", "\n".join(snippets)], cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    tasks = json.loads((folder / "tasks.json").read_text())["tasks"]
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(tasks)
    for line, task in zip(lines, 2 * tasks, strict=True):
        label = "'(" + "|".join(task["classes"]) + ")'"
        assert re.fullmatch(re.escape(task["name"]) + rf" \[{label}, {label}, {label}\]", line)


@pytest.mark.parametrize("size", [(8, 8), (31, 20), (5, 40), (9, 100)])
def test_the_lines_on_the_card_make_of_a_file_what_the_program_makes_of_it(size, here, tmp_path):
    """A photograph that is transparent in places, of a camera that was turned."""
    pixels = np.random.default_rng(0).integers(256, size=(*size, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned)
    lines = re.search(r"```python\n(.*?)```", (here / "plain/README.md").read_text(), flags=re.DOTALL)[1]
    found = {}
    exec(lines, found)
    image = found["image_of"](tmp_path / "a.png")
    assert image.dtype == np.float32
    np.testing.assert_allclose(255 * image, read_image(tmp_path / "a.png", (1, 8, 8)), atol=1e-3)


def table(card, title):
    """Rows of the first table after a title."""
    rows = card.split(title)[1].split("\n|", 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("name", EXPORTS)
def test_the_figures_on_the_card_hold_for_what_is_exported(name, here):
    card = (here / name / "README.md").read_text()
    *rows, mean = table(card, "## Accuracy")
    answers, images = by_onnx(here / name), of_test(here)
    measured = read_metrics(here / ("packnet" if name == "subnets" else "zoo"))
    last = measured.query("split == 'test' and episode == 3")
    for title, networks, count, accuracy, ece in rows:
        task = int(title.split()[0])
        pixels, targets = images[task]
        said = answers(pixels.numpy().astype(np.float32) / 255)[f"task_{task}"]
        assert accuracy == f"{(said.argmax(1) == targets.numpy()).mean():.4f}"
        assert int(count) == len(targets)
        assert int(networks) == len(the_zoo(here, name).combinations[task].members)
        row = last.query("scenario == 'task-incremental' and task == @task").iloc[0]
        assert title == f"{task} {row.task_name}"
        if name in ("plain", "subnets"):
            assert (accuracy, ece) == (f"{row.accuracy:.4f}", f"{row.ece:.4f}")
    assert float(mean[3]) == pytest.approx(np.mean([float(row[3]) for row in rows]), abs=1e-4)
    if name in ("plain", "subnets"):
        scenarios = last.groupby("scenario").accuracy.mean()
        told = dict(table(card, "Without being told"))
        assert told == {x: f"{scenarios[x]:.4f}" for x in ("routed-class", "task-identification")}
        assert "As the run measured it" in card
    else:
        assert "routed-class" not in card
        assert "Computed from what the run saved" in card


def test_the_card_says_how_it_was_made(here):
    card = (here / "new/stacked/README.md").read_text()
    assert "training images a class: at most 8\n- held out of them, so that" in card
    assert "no network was trained on them: a share of 0.25" in card
    facts = dict(table(card, "## Training"))
    zoo = the_zoo(here, "new/stacked")
    used = {member for one in zoo.combinations.values() for member in one.members}
    assert facts["networks"] == f"{len(used)} of the 3 that answer in the run"
    assert facts["combination"] == "stacked; temperatures: task; networks a task: at most 2"
    parameters = sum(member.parameters for member in zoo.members if member.number in used)
    assert int(facts["parameters"].replace(",", "")) <= parameters
    assert {"method": "zoo", "net.model": "conv", "hp.epochs": "3", "seed": "0"}.items() <= facts.items()
    assert f"torch {torch.__version__}" in facts["versions"]
    plain = dict(table((here / "plain/README.md").read_text(), "## Training"))
    assert int(plain["parameters"].replace(",", "")) == sum(member.parameters for member in zoo.members)
    assert 'no "none of these"' in card


def test_a_run_that_is_not_finished_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_configs()
    monkeypatch.setattr(RunCheckpoints, "stop_if_asked", stop_after(2))
    with pytest.raises(Stopped):
        start("run", *options("zoo"))
    assert main(["run", "--out", "out", "--format", "torch"]) == 0
    card = Path("out/README.md").read_text()
    assert "**The run is not finished:** this is its state after episode 2." in card
    assert [row[0] for row in table(card, "tasks, for programs")] == ["1 rotated by 0°", "2 rotated by 10°"]
    measured = read_metrics("run").query("scenario == 'task-incremental' and split == 'test' and episode == 2")
    assert [row[3] for row in table(card, "after episode 2 (")[:-1]] == [f"{x:.4f}" for x in measured.accuracy]


def test_a_run_in_bf16_is_exported_in_fp32_and_the_card_says_so(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs()
    assert start("run", *options("zoo"), "--precision", "bf16") == 0
    assert main(["run", "--out", "out", "--format", "torch"]) == 0
    assert "trained in bf16; here they compute in fp32" in Path("out/README.md").read_text()
    assert "bf16" not in (here / "plain/README.md").read_text()
    zoo, images = Zoo.load("run", "cpu"), of_test(here)[1][0]
    answer = by_torch(Path("out"))(images.numpy().astype(np.float32) / 255)["task_1"]
    np.testing.assert_allclose(answer, zoo.in_fp32().predict(images, 1).probabilities, rtol=0, atol=1e-6)
    assert np.abs(answer - zoo.predict(images, 1).probabilities.numpy()).max() > 1e-4


def test_no_path_of_this_machine_is_in_the_files(here):
    for file in (here / "plain").iterdir():
        content = file.read_bytes()
        assert str(Path.cwd()).encode() not in content
        assert str(here).encode() not in content


def random_zoo(model, shape, preprocess=ImagePreprocess(0, flip=False)):  # noqa: B008
    """A network that nobody has trained, with answers that differ."""
    tasks = [SavedTask(1, "one", ("a", "b")), SavedTask(2, "two", ("a", "b", "c"))]
    names, classes = tuple(task.name for task in tasks), tuple(task.classes for task in tasks)
    member = SavedMember(0, 1, False, (1, 2), (1.0, 1.0), names, classes, {"model": model}, shape, 0)
    zoo = Zoo(Path("none"), toy_config(), Manifest(), tasks, [member], CrossEntropy(), preprocess, CPU)
    with seeded(0, "net"), torch.no_grad():
        net = build_net(model, shape, settings_class(model)(), {1: 2, 2: 3}).eval()
        features = net.trunk(torch.randn(32, *shape))
        net.weight *= 3 / (features @ net.weight.T).std()
    zoo.net = lambda member: (net, {})
    return zoo


def test_the_normalisation_of_each_channel_and_the_padding_are_exported():
    """Images whose normalised channels are equal are answered alike by networks of both normalisations."""
    own = Normalisation((0.25, 0.5, 0.75), (0.4, 0.7, 1.0))
    made = ImagePreprocess(0, False, 4, own), ImagePreprocess(0, False, 0, HALF)
    zoos = [random_zoo("conv", (3, 32, 32), preprocess) for preprocess in made]
    (network, _), (plain, _) = (exported(Shipped(z, z.tasks), z, z.tasks, ["onnx"])["model.onnx"] for z in zoos)
    images = np.random.default_rng(0).random((5, 3, 24, 24), dtype=np.float32)
    black = np.zeros((5, 3, 32, 32), dtype=np.float32)
    black[:, :, 4:28, 4:28] = images
    mean, sd = (np.array(values, dtype=np.float32).reshape(3, 1, 1) for values in (own.mean, own.sd))
    same = (black - mean) / sd * 0.25 + 0.5
    answers = [onnxruntime.InferenceSession(content).run(None, {"images": inputs})
               for content, inputs in ((network, images), (plain, same))]  # fmt: skip
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert answers[0][0].std(0).max() > 0.001


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("conv", (1, 28, 28)),
        ("conv", (3, 32, 32)),
        ("conv", (3, 84, 84)),
        ("conv", (3, 40, 40)),  # a grid that is pooled to 2x2
        ("wrn16_4", (3, 32, 32)),
        ("resnet18_nf20", (3, 32, 32)),
        ("timm/test_resnet", (3, 32, 32)),
    ],
    ids=str,
)
def test_every_network_can_be_exported(model, shape):
    zoo = random_zoo(model, shape)
    networks = exported(Shipped(zoo, zoo.tasks), zoo, zoo.tasks, list(FILES))
    assert list(networks) == ["model.onnx", "model.pt2"]
    assert all(differs <= 1e-4 for _, differs in networks.values())


def test_the_check_sees_every_task_and_what_is_not_a_number():
    zoo = random_zoo("conv", (1, 8, 8))
    shipped = Shipped(zoo, zoo.tasks)

    def off(by):
        def answers(images):
            one, two = (said.detach() for said in shipped(images).values())
            two[-1, 0] += by * (len(images) == 17)
            return [one, two]

        return difference(answers, zoo, zoo.tasks)

    assert off(0) < 1e-6
    assert off(0.5) == pytest.approx(0.5, abs=1e-6)
    assert np.isnan(off(np.nan))


@pytest.mark.parametrize("answer", [1e-3, float("nan"), ValueError("no such operator")])
def test_a_network_that_answers_otherwise_is_not_written(answer, here, tmp_path, monkeypatch, capsys):
    def found(*arguments):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("zoo.exporting.difference", found)
    words = ["conv cannot be exported", "no such operator"]
    if not isinstance(answer, Exception):
        words = [
            f"model.pt2 does not answer like the zoo: a probability differs by {answer:.1e}",
            "nothing was written",
        ]
    refused([str(here / "packnet"), "--out", str(tmp_path / "a/b"), "--format", "torch", "--task", "1"], words, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("happens", "code", "told"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped by SIGTERM; repeat the command"),
        (lambda: torch.empty(2**60), 1, "not enough memory"),
    ],
)
def test_a_signal_or_a_lack_of_memory_is_not_blamed_on_the_network(
    happens, code, told, here, tmp_path, monkeypatch, capsys
):
    """At the place where exporters fail in any way with a network that they cannot export."""
    monkeypatch.setattr("torch.export.export", lambda *given, **named: happens())
    given = [str(here / "packnet"), "--out", str(tmp_path / "out"), "--format", "torch", "--task", "1"]
    assert main(given) == code
    assert capsys.readouterr().err.startswith(f"export.py: {told}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", ["tasks.json", "README.md"])
def test_a_full_disk_leaves_nothing(fails, here, tmp_path, monkeypatch, capsys):
    def full(path, content):
        if path.name == fails:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_bytes(content)

    monkeypatch.setattr("utils.files.write_bytes", full)
    given = [str(here / "packnet"), "--out", str(tmp_path / "out"), "--format", "torch", "--task", "1"]
    refused(given, [f"--out {tmp_path / 'out'} cannot be written: No space left on device"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_torch_alone_needs_no_other_package(here, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnx") else find(name))
    given = [str(here / "packnet"), "--out", str(tmp_path / "out")]
    words = ["onnx, onnxscript, onnxruntime must be installed to write ONNX", "use --format torch"]
    refused(given, words, capsys)
    assert main([*given, "--format", "torch", "--task", "2"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.pt2", "tasks.json", "README.md"}
    card = (tmp_path / "out/README.md").read_text()
    assert "onnx" not in card.lower()
    assert "can be told from the image" not in card  # there is one task
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*/out/model\.pt2: [\d,]+ bytes, at most \d\.\de[-+]\d\d from the zoo", lines[0])
    assert re.fullmatch(r".*/out/tasks\.json: [\d,]+ bytes", lines[1])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{here}/nothing --out {tmp}/x", ["nothing is not the directory of a run", "config.yaml"]),
        ("{here} --out {tmp}/x", ["is not the directory of a run"]),
        ("{here}/zoo", ["arguments are required: --out"]),
        ("--out {tmp}/x", ["arguments are required: RUN"]),
        ("{here}/zoo --out {here}/plain", ["--out", "plain exists; remove it, or name another folder"]),
        ("{here}/zoo --out {here}/d.yaml", ["d.yaml exists"]),
        ("{here}/zoo --out {here}/d.yaml/x", ["d.yaml/x cannot be used: Not a directory"]),
        ("{here}/zoo --out {tmp}/x\0", ["cannot be used", "null"]),
        ("{here}/zoo --out {tmp}/x --format onxx", ["--format: unknown format 'onxx'; did you mean 'onnx'?", "both"]),
        ("{here}/zoo --out {tmp}/x --fromat onnx", ["unknown option --fromat; did you mean --format?"]),
        ("{here}/zoo --out {tmp}/x --task 4", ["unknown task '4'"]),
        ("{here}/zoo --out {tmp}/x --combine mode", ["--combine", "unknown way to combine 'mode'"]),
        ("{here}/zoo --out {tmp}/x --temperature hot", ["--temperature", "unknown temperature 'hot'"]),
        ("{here}/zoo --out {tmp}/x --budget 0", ["--budget is 0; it must be a whole number at least 1"]),
        ("{here}/zoo --out {tmp}/x --budget two", ["--budget is 'two'"]),
        ("{here}/packnet --out {tmp}/x --combine stacked", ["no held-out examples", "--hold_out 0.1"]),
    ],
)
def test_wrong_input_is_refused_in_one_line(given, words, here, tmp_path, capsys):
    refused([part.format(here=here, tmp=tmp_path) for part in given.split(" ")], words, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_member_is_refused_in_one_line(here, tmp_path, capsys):
    path = here / "zoo/members/member_001.safetensors"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused([str(here / "zoo"), "--out", str(tmp_path / "x")], ["member_001.safetensors is damaged"], capsys)
    finally:
        path.write_bytes(content)
    assert list(tmp_path.iterdir()) == []


def refused(given, words, capsys):
    assert main(given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("export.py: ")
    assert len(captured.err.splitlines()) == 1
    assert [word for word in words if word not in captured.err] == [], captured.err


def test_names_mean_nothing_to_markdown():
    assert plain_text("a|b\n# <i>`c`") == r"a\|b \# \<i\>\`c\`"
    assert plain_text("rotated by 10°") == "rotated by 10°"
