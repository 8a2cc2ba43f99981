"""Small networks on algorithms in a folder: published files, and checkpoints of runs of train_task.py.

folder -> Stored, one for each network, none of them read -> those that fit -> the best seed -> MultiHead
"""

import hashlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from datasets.synthetic.algorithmic import AlgorithmConfig, AlgorithmSettings, AlgorithmTask, algorithmic
from datasets.synthetic.algorithms import ALGORITHMS, MAP
from datasets.task import DEV
from net import build_net
from net.config import NetConfig
from net.multihead import MultiHead
from net.sequences.handcrafted import handcrafted_2nd_argmax
from net.sequences.published import from_published
from net.sequences.rnn import RNN
from records.configuration import saved_config
from records.directory import CONFIG, holds_run, read_config
from records.manifest import checked, read_manifest, reading
from records.members import CHECKPOINT_FILE, checkpoint_steps
from records.task_config import METHOD, TaskRunConfig
from training.prediction import predict_examples
from utils.compute import Compute
from utils.errors import UserError, expanded, shortage
from utils.settings import plain

PUBLISHED_NAME = "{task}_{hidden_size}_{length}_{n_seqs}_{seed}.pth"
_PUBLISHED = re.compile(rf"({'|'.join(ALGORITHMS)})_(\d{{1,4}})_(\d{{1,3}})_(\d{{1,18}})_(\d{{1,18}})\.pth")
_SIZES = {"rnn": "hidden_size", "attention_only": "width"}  # what counts as the hidden size
HANDCRAFTED = "handcrafted"  # in place of a folder
_SHOWN = 30  # values in an error message


class Begin(NamedTuple):
    """The network with which training begins."""

    state: Mapping[str, Tensor]  # of the MultiHead
    path: str  # of the file, or HANDCRAFTED
    sha256: str | None  # of its content


@dataclass(frozen=True)
class Stored:
    """A network in a file, which is not read yet."""

    path: Path
    task: str  # an algorithm
    hidden_size: int  # of a transformer its width
    length: int
    n_seqs: int  # training examples seen
    seed: int
    run: TaskRunConfig | None = None  # whose checkpoint this is; None for a published file

    def read(self, heads: int = 1) -> tuple[MultiHead, NetConfig, str]:
        """The network, in test mode and with the one task 1; its description; and the checksum of the file.

        `heads`: attention heads, of which the weights in a published file say nothing.
        """
        outputs = ALGORITHMS[self.task].outputs(self.length)
        if self.run is not None:
            directory, name = self.path.parent.parent, f"checkpoints/{self.path.name}"
            content = checked(directory, read_manifest(directory), name)  # type: ignore[arg-type]
            described, state = self.run.net, safetensors.torch.load(content)
        else:
            content = _content(self.path)
            described, state = self._published(_state_dict(self.path, content), outputs, heads)
        with torch.random.fork_rng(devices=[]):
            net = build_net(described.model, (self.length,), described.settings, {1: outputs})
        with reading(self.path.parent, self.path.name):
            net.load_state_dict(state)
        return net.eval(), described, hashlib.sha256(content).hexdigest()

    def _published(
        self, state: Mapping[str, Tensor], outputs: int, heads: int
    ) -> tuple[NetConfig, Mapping[str, Tensor]]:  # fmt: skip
        """The network in a published file; UserError if it is not the one that the name of the file promises."""
        recurrent = "rnn.weight_ih_l0" in state
        try:
            found = from_published(state, self.length if recurrent else None, heads)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        size = getattr(found.settings, _SIZES[found.model])
        told = {"hidden size": self.hidden_size, "length": self.length, "outputs": outputs}
        held = {"hidden size": size, "length": found.shape[0], "outputs": found.outputs}
        for name, value in told.items():
            if held[name] != value:
                raise UserError(f"{self.path}: {name} is {held[name]} in its weights; its name says {value}")
        if recurrent == (ALGORITHMS[self.task].inputs == MAP):
            raise UserError(f"{self.path}: a network of the kind {found.model} cannot learn {self.task}")
        return NetConfig(model=found.model, settings=found.settings), found.state


def find_networks(folder: Path) -> list[Stored]:
    """All small networks on algorithms in a folder and the folders in it; UserError if there is no such folder.

    Runs that began from another network are left out: how many examples that one had seen is not known.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one with runs of train_task.py or files {PUBLISHED_NAME}")
    found: list[Stored] = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        if holds_run(Path(place)):
            folders.clear()
            found += stored_in(Path(place))
            continue
        for name in sorted(files):
            if match := _PUBLISHED.fullmatch(name):
                size, length, n_seqs, seed = map(int, match.groups()[1:])
                found.append(Stored(Path(place) / name, match[1], size, length, n_seqs, seed))
    return found


def stored_in(run: Path) -> list[Stored]:
    """The checkpoints of a run of train_task.py on an algorithm, finished or not; none of another run."""
    if f"method: {METHOD}".encode() not in (run / CONFIG).read_bytes():
        return []
    content, manifest = read_config(run), read_manifest(run)
    config: TaskRunConfig = saved_config(str(run / CONFIG), content, TaskRunConfig)
    if manifest is None or config.net.model not in _SIZES or not isinstance(config.data, AlgorithmConfig):
        return []
    if config.begun_from is not None:
        return []
    (task,), own, recipe = config.data.tasks, config.data.settings, config.hp
    examples = own.epoch_examples if own.fresh else own.train_examples
    size, length = getattr(config.net.settings, _SIZES[config.net.model]), task.length or own.length
    found = []
    for step in checkpoint_steps(manifest):
        seen = recipe.seen(step, examples, recipe.batch_size(examples))
        found.append(Stored(run / CHECKPOINT_FILE.format(step), task.task, size, length, seen, config.seed, config))
    return found


def networks_for(
    folder: Path, task: str, hidden_size: int, length: int, n_seqs: int | None = None, seed: int | None = None
) -> list[Stored]:
    """The networks of a folder that fit, one for each seed; by default those that were trained longest.

    A UserError lists the values for which there are networks, or the files if several have the same seed.
    """
    found, told = find_networks(folder), ""
    if not found:
        raise UserError(f"{folder} has neither runs of train_task.py on algorithms nor files {PUBLISHED_NAME}")
    asked = {"task": task, "hidden_size": hidden_size, "length": length, "seed": seed, "n_seqs": n_seqs}
    for name, value in asked.items():
        known = sorted({getattr(stored, name) for stored in found})
        if value is None and name == "n_seqs":
            value = known[-1]
        if value is not None and value not in known:
            shown = ", ".join(map(str, known)) if len(known) <= _SHOWN else f"{known[0]} to {known[-1]}"
            raise UserError(f"{folder} has no network of {name} {value}{told}; it has {name} {shown}")
        if value is not None:
            found = [stored for stored in found if getattr(stored, name) == value]
            told += f"{', ' if told else ' with '}{name} {value}"
    by_seed: dict[int, Stored] = {}
    for stored in found:
        if (other := by_seed.setdefault(stored.seed, stored)) is not stored:
            both = f"{other.path} and {stored.path}"
            raise UserError(f"{folder} has several networks{told}, seed {stored.seed}: {both}; name a smaller folder")
    return [stored for _, stored in sorted(by_seed.items())]


def first_network(folder: str, config: TaskRunConfig, n_seqs: int | None) -> Begin:
    """The network of a folder, or the handcrafted one, that fits a run of one task; UserError if there is none."""
    if not isinstance(config.data, AlgorithmConfig) or config.net.model not in _SIZES:
        what = f"{config.net.model} on {config.data.dataset}"
        raise UserError(f"--zoo_dir holds {' and '.join(_SIZES)} networks on algorithms; this one is {what}")
    (task,), settings, key = config.data.tasks, config.net.settings, _SIZES[config.net.model]
    length, size = task.length or config.data.settings.length, getattr(config.net.settings, key)
    if folder == HANDCRAFTED:
        if task.task != "2nd_argmax":
            raise UserError(f"--zoo_dir {HANDCRAFTED}: there are handcrafted networks for 2nd_argmax, not {task.task}")
        net = handcrafted_2nd_argmax(length)
        found = NetConfig(model="rnn", settings=RNN.Settings(hidden_size=net.weight.shape[1]))
        begin, where = Begin(net.state_dict(), HANDCRAFTED, None), f"--zoo_dir {HANDCRAFTED}: length {length}"
    else:
        (stored,) = networks_for(Path(expanded(folder)), task.task, size, length, n_seqs, config.seed)
        net, found, sha256 = stored.read(getattr(settings, "heads", 1))
        begin, where = Begin(net.state_dict(), str(stored.path.absolute()), sha256), str(stored.path)
    held, wanted = ({"model": one.model, **plain(one.settings)} for one in (found, config.net))
    for key, value in held.items():
        if wanted.get(key) != value:
            raise UserError(f"{where}: {key} is {value}; --hp_config and --set say {wanted.get(key)}")
    return begin


def best_of(found: Sequence[Stored], heads: int = 1) -> tuple[Stored, MultiHead]:
    """The network with the best main score on the development examples, of equals that of the smallest seed."""
    nets = [stored.read(heads)[0] for stored in found]
    if len(found) == 1:
        return found[0], nets[0]
    scores = [development_score(stored, net) for stored, net in zip(found, nets, strict=True)]
    place = max(range(len(found)), key=lambda place: scores[place])
    return found[place], nets[place]


def development_score(stored: Stored, net: MultiHead) -> float:
    """The main score on the development examples that all runs share; the higher the better."""
    readout = stored.run is not None and stored.run.data.settings.readout
    settings = AlgorithmSettings(length=stored.length, readout=readout, train_examples=1, test_examples=1)
    config = AlgorithmConfig(dataset="algorithmic", tasks=(AlgorithmTask(stored.task),), settings=settings)
    stream = algorithmic(config, 0, torch.device("cpu"))
    (task,), objective = stream.tasks, stream.spec.objective
    examples = task.splits[DEV]
    predictions = predict_examples(net, task.id, examples, stream.spec, Compute(torch.device("cpu")))
    score = next(iter(objective.evaluate(predictions, examples.targets).values())).value
    return score if next(iter(objective.metrics.values())).higher_is_better else -score


def _state_dict(path: Path, content: bytes) -> dict[str, Tensor]:
    """The tensors in a file of torch.save; one that holds anything else is refused, and no code in it runs."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged files make of torch's readers
        if lack := shortage(error):
            raise UserError(f"{path} cannot be read: {lack}") from None
        raise UserError(f"{path} is damaged, or holds more than weights; only state dicts are read") from None
    named = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, Tensor) and value.is_floating_point() for value in state.values()):
        raise UserError(f"{path} holds no weights by name; only state dicts are read")
    return dict(state)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
