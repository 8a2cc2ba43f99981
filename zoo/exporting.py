"""A zoo as files that run without this project: ONNX, torch.export.

    Zoo -> Shipped, one module for all tasks -> exported, answers compared with the zoo's -> a folder with a model card

Nothing is written before the exported network has answered like the zoo.
"""

import copy
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from net import count_parameters
from net.multihead import MultiHead, TaskWeights
from utils.errors import UserError, shortage
from utils.files import json_bytes, write_folder
from utils.seeding import generator
from zoo.card import model_card
from zoo.saved import SavedTask, Zoo

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
INPUT = "images"
TOLERANCE = 1e-4  # of a probability
_BATCHES = (1, 3, 17)  # sizes with which an exported network is checked
_LARGEST_ONNX = 2**31 - 2**24  # bytes of weights; one file of its format cannot have more than 2 GiB
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Answers = Callable[[Tensor], list[Tensor]]  # images -> probabilities of each task


class Part(nn.Module):
    """A member's trunk, with weights of its `own` for some tasks, and their heads: inputs -> [N, classes] by task."""

    def __init__(self, net: MultiHead, member: int, tasks: Sequence[int], own: TaskWeights) -> None:
        super().__init__()
        self.member, self.tasks = member, tuple(tasks)
        with net.for_task(own):
            self.trunk = copy.deepcopy(net.trunk)
        self.heads = nn.ModuleList(_head(net, task) for task in tasks)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        features = self.trunk(inputs)
        return [head(features) for head in self.heads]


def _head(net: MultiHead, task: int) -> nn.Module:
    if net.kind == "identity":
        return nn.Identity()
    rows = net.rows(task)
    values = net.head_values()
    head = nn.Linear(net.weight.shape[1], net.head_sizes[task], bias="bias" in values)
    head.load_state_dict({name: value.detach()[rows] for name, value in values.items()})
    return head


class Shipped(nn.Module):
    """A zoo as one module: images float32 [N, C, H, W] from 0 to 1 -> probabilities [N, classes] by `output_of`.

    Contains the normalisation, the members, and how their answers to each task are combined. A trunk is evaluated once
    for all its heads, and once more for each task with trunk weights of its own.
    """

    def __init__(self, zoo: Zoo, tasks: Sequence[SavedTask]) -> None:
        super().__init__()
        self._combinations = {task.number: zoo.combinations[task.number] for task in tasks}
        self._preprocess, self._scale = zoo.preprocess, 255 if zoo.images else 1
        self.frozen = nn.Identity() if zoo.frozen is None else zoo.frozen
        self.parts = nn.ModuleList()
        for member in zoo.members:
            if wanted := [task for task, one in self._combinations.items() if member.number in one.members]:
                net, own = zoo.net(member)
                groups = [[t for t in wanted if not own.get(t)], *([t] for t in wanted if own.get(t))]
                self.parts.extend(Part(net, member.number, group, own.get(group[0], {})) for group in groups if group)
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        inputs = self.frozen(self._preprocess(images * self._scale))
        found: dict[int, dict[int, Tensor]] = {task: {} for task in self._combinations}
        for part in self.parts:
            assert isinstance(part, Part)
            for task, outputs in zip(part.tasks, part(inputs), strict=True):
                found[task][part.member] = outputs
        return {output_of(task): combination([found[task][member] for member in combination.members])
                for task, combination in self._combinations.items()}  # fmt: skip


def output_of(task: int) -> str:
    """Name of the output of a task."""
    return f"task_{task}"


def ship(zoo: Zoo, out: Path, formats: Sequence[str], tasks: Sequence[SavedTask]) -> list[str]:
    """Export a zoo that is on the CPU, with its model card, into a folder that is new or empty.

    Returns a line about each file, for people. After a UserError nothing has been written: a file of the run is
    damaged, the exported network does not answer like the zoo, or the folder cannot be written.
    """
    zoo = zoo.in_fp32()
    shipped = Shipped(zoo, tasks)
    networks = exported(shipped, zoo, tasks, formats)
    files, notes = {}, {}
    for name, (content, differs) in networks.items():
        if not differs <= TOLERANCE:  # NaN is not
            raise UserError(
                f"{name} does not answer like the zoo: a probability differs by {differs:.1e}, more than "
                f"{TOLERANCE:g}; nothing was written"
            )
        files[name], notes[name] = content, f", at most {differs:.1e} from the zoo"
    outputs = {output_of(task.number): task for task in tasks}
    files["tasks.json"] = json_bytes({
        "input": {"name": INPUT, "dtype": "float32", "shape": ["N", *zoo.input_shape],
                  "range": [0, 1] if zoo.images else None, **({"columns": list(zoo.columns)} if zoo.columns else {})},
        "tasks": [{"number": task.number, "name": task.name, "output": output, "classes": list(task.classes)}
                  for output, task in outputs.items()],
    })  # fmt: skip
    files["README.md"] = model_card(zoo, outputs, count_parameters(shipped), list(networks)).encode()
    try:
        write_folder(Path(os.path.realpath(out)), files)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
    return [f"{out / name}: {len(content):,} bytes{notes.get(name, '')}" for name, content in files.items()]


def check_formats(formats: Sequence[str]) -> None:
    """Check that the packages for some formats are installed; a UserError names those that are not."""
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None] if "onnx" in formats else []
    if missing:
        raise UserError(
            f"{', '.join(missing)} must be installed to write ONNX: install requirements.txt, or use --format torch"
        )


def exported(
    shipped: Shipped, zoo: Zoo, tasks: Sequence[SavedTask], formats: Sequence[str]
) -> dict[str, tuple[bytes, float]]:
    """By name, files and their difference from the zoo, loaded again; a UserError if a format cannot hold a network."""
    outputs = [output_of(task.number) for task in tasks]
    if "onnx" in formats and sum(value.nbytes for value in shipped.state_dict().values()) > _LARGEST_ONNX:
        raise UserError("an ONNX file holds 2 GiB and the members have more; name fewer tasks, or use --format torch")
    made = {}
    logs = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the exporters' logs and warnings concern authors of networks only
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Two images: torch.export would make a batch size of one a constant.
            images = torch.zeros(2, *zoo.input_shape)
            program = torch.export.export(shipped, (images,), dynamic_shapes=({0: torch.export.Dim("N")},))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # would carry the paths of this machine
            for kind in formats:
                content, answers = _FORMATS[kind](program, outputs)
                made[FILES[kind]] = content, difference(answers, zoo, tasks)
    except Exception as error:  # whatever exporters cannot do with some network
        if isinstance(error, UserError) or shortage(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{zoo.path}: the network {zoo.config.net.model} cannot be exported ({reason})") from None
    finally:
        logging.disable(logs)
    return made


@torch.no_grad()
def difference(answers: Answers, zoo: Zoo, tasks: Sequence[SavedTask]) -> float:
    """The largest difference of a probability from the zoo's, for random images in batches of several sizes; or NaN."""
    rng, found = generator(0, "export"), []
    for count in _BATCHES:
        pixels = torch.randint(256, (count, *zoo.input_shape), generator=rng, dtype=torch.uint8)
        values = pixels.float() / 255
        expected = zoo.answers(zoo.stored(pixels if zoo.images else values), [task.number for task in tasks])
        for task, given in zip(tasks, answers(values), strict=True):
            right = expected[task.number].probabilities
            if given.shape != right.shape:
                raise ValueError(f"{output_of(task.number)} has the shape {list(given.shape)}")
            found.append((given - right).abs().max())
    return float(torch.stack(found).max())


def _onnx(program: ExportedProgram, outputs: Sequence[str]) -> tuple[bytes, Answers]:
    """The file, and what the network answers when it is loaded from there."""
    import onnx
    import onnxruntime

    made = torch.onnx.export(
        program, input_names=[INPUT], output_names=outputs, dynamic_shapes=({0: "N"},), dynamo=True, verbose=False
    )
    assert made is not None
    onnx.checker.check_model(made.model_proto, full_check=True)
    content = made.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return content, lambda images: [torch.from_numpy(p) for p in session.run(outputs, {INPUT: images.numpy()})]


def _torch(program: ExportedProgram, outputs: Sequence[str]) -> tuple[bytes, Answers]:
    """The file, and what the network answers when it is loaded from there."""
    file = io.BytesIO()
    torch.export.save(program, file)
    model = torch.export.load(io.BytesIO(file.getvalue())).module()
    return file.getvalue(), lambda images: list(model(images).values())


_FORMATS = {"onnx": _onnx, "torch": _torch}
