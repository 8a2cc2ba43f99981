"""The zoo of a run directory: its tasks, its members, and what they answer.

manifest.json + config.yaml + members/*.json -> Zoo; the weights of a member are read when it is first asked.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from datasets.images.stream import ImagePreprocess
from datasets.mixture import Mixture
from datasets.objectives import CrossEntropy
from datasets.task import Examples, StreamSpec
from evaluation.accuracy import HELD_OUT
from evaluation.measurements import Measurement
from evaluation.scenarios import DEFAULT_ROUTING, ROUTINGS, Answer, answer_of, task_log_probabilities
from methods.config import RunConfig
from net.multihead import MultiHead, TaskWeights
from records.configuration import saved_config
from records.directory import CONFIG
from records.manifest import TARGETS, Manifest, damaged, remedy
from records.members import (
    SavedMember,
    answering,
    facts_file,
    predictions_file,
    read_members,
    read_network,
    read_tensors_of,
    saved_net,
)
from records.run import opened
from records.tables import read_measurements
from training.prediction import outputs_of_heads
from utils.compute import Compute, pick_device
from utils.errors import UserError, unknown
from utils.settings import Range
from zoo.combine import COMBINE, TEMPERATURES, Combination, HeldOut, fitted, weighted_mean
from zoo.inputs import Images, as_stored

AUTO = "auto"
PLAIN = "mean", "none", None  # the mean with the weights of training


@dataclass(frozen=True)
class SavedTask:
    """A task that the zoo has learned."""

    number: int  # from 1, in the order of the stream
    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """Answers to N images.

    Attributes:
        probabilities: [N, C] of every output.
        outputs: C times the task and the class that an output stands for.
        chosen: [N] the output that is answered: the likeliest one, without a task the likeliest of the likeliest task.
    """

    probabilities: Tensor
    outputs: tuple[tuple[SavedTask, str], ...]
    chosen: Tensor

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each output."""
        return tuple(name for _, name in self.outputs)

    @property
    def labels(self) -> list[str]:
        """Name of the class of each image."""
        return [self.outputs[place][1] for place in self.chosen.tolist()]

    @property
    def tasks(self) -> list[SavedTask]:
        """Task of each image."""
        return [self.outputs[place][0] for place in self.chosen.tolist()]


class Zoo:
    """A run directory, ready to answer. Any method's: a single network is a zoo of one member.

    Attributes:
        path: the run directory.
        config: what it was run with.
        tasks: those that a member has learned, in order.
        members: those that answer, in the order of joining.
        combinations: by task, how they answer it together.
        combined_as: the arguments of `combined`.
    """

    def __init__(
        self, path: Path, config: RunConfig, manifest: Manifest, tasks: Sequence[SavedTask],
        members: Sequence[SavedMember], input_shape: tuple[int, int, int], device: torch.device,
    ) -> None:  # fmt: skip
        self.path, self.config, self.tasks, self.members = path, config, tuple(tasks), tuple(members)
        self.input_shape = input_shape
        self._manifest, self._compute = manifest, Compute(device)
        self._spec = StreamSpec(config.stream, input_shape, CrossEntropy(), ImagePreprocess(0, flip=False))
        self._loaded: dict[int, tuple[MultiHead, Mapping[int, TaskWeights]]] = {}
        self._by_number = {task.number: task for task in tasks}
        self.combinations: Mapping[int, Combination] = {task.number: self._plain(task.number) for task in tasks}
        self.combined_as: tuple[str, str, int | None] = PLAIN

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Zoo:
        """The zoo of a run directory, also of one that is still going on. No weights are read yet.

        Args:
            device: auto, cpu, cuda, cuda:N or mps.

        Raises:
            UserError: there is no run, nothing is complete yet, or a file is damaged.
        """
        path = Path(path)
        content, manifest = opened(path)
        config = saved_config(str(path / CONFIG), content)
        members = read_members(path, manifest)
        return cls(path, config, manifest, *_understood(path, members, config), pick_device(device))

    @property
    def device(self) -> torch.device:
        """Where members answer."""
        return self._compute.device

    @property
    def as_trained(self) -> Compute:
        """Where and in which precision more networks like the members are trained: in bf16 on a GPU, as they were."""
        return Compute(self.device, self.config.precision == "bf16" and self.device.type == "cuda")

    def task(self, task: str | int) -> SavedTask:
        """A task by its name or its number.

        Raises:
            UserError: there is no such task, or several.
        """
        named = [known for known in self.tasks if known.name == task]
        if len(named) > 1:
            numbers = ", ".join(str(known.number) for known in named)
            raise UserError(f"task {str(task)!r} is the name of several tasks; name one by its number: {numbers}")
        numbered = [known for known in self.tasks if str(known.number) == str(task)]
        if not named and not numbered:
            raise UserError(f"{self.path}: {unknown('task', task, [known.name for known in self.tasks])}")
        return (named or numbered)[0]

    def members_for(self, task: str | int | SavedTask) -> tuple[SavedMember, ...]:
        """The members that learned a task: those that answer it."""
        number = self._number(task)
        return tuple(member for member in self.members if number in member.tasks)

    def predict(self, images: Images, task: str | int, rule: str = DEFAULT_ROUTING) -> Prediction:
        """What the zoo says about images.

        Args:
            images: uint8 from 0 to 255 or floats from 0 to 1, as the network sees them: [N, C, H, W], [N, H, W, C], of
                one channel also [N, H, W]; array or tensor. They are normalised as in training.
            task: name or number; "auto" finds it, see evaluation/scenarios.py.
            rule: how it is found: entropy, confidence or energy.

        Raises:
            UserError: no such task or rule, or images that do not fit.
        """
        stored = as_stored(images, self.input_shape)
        if rule not in ROUTINGS:
            raise UserError(f"--routing: {unknown('rule', rule, ROUTINGS)}")
        if task == AUTO:
            return self.chosen(self.answers(stored, [known.number for known in self.tasks]), rule)
        known = self.task(task)
        probabilities = self.answers(stored, [known.number])[known.number].probabilities
        outputs = tuple((known, name) for name in known.classes)
        return Prediction(probabilities, outputs, probabilities.argmax(-1))

    def chosen(self, answers: Mapping[int, Answer], rule: str = DEFAULT_ROUTING) -> Prediction:
        """Which task, then which class; `answers`: of the tasks that it can be, on the same images."""
        known = [task for task in self.tasks if task.number in answers]
        of_task = task_log_probabilities([answers[task.number] for task in known], rule)
        parts = [answers[task.number].probabilities for task in known]
        starts = torch.tensor([0, *(part.shape[1] for part in parts)]).cumsum(0)[:-1].to(of_task.device)
        classes = torch.stack([part.argmax(-1) for part in parts], -1)
        task = of_task.argmax(-1, keepdim=True)
        chosen = (starts[task] + classes.gather(1, task)).squeeze(-1)
        both = torch.cat([of_task[:, i, None].exp() * part for i, part in enumerate(parts)], -1)
        return Prediction(both.float(), tuple((task, name) for task in known for name in task.classes), chosen)

    def answers(self, stored: Tensor, tasks: Sequence[int]) -> dict[int, Answer]:
        """What the zoo says about inputs, of whatever task they are, if they were of each of `tasks`.

        Args:
            stored: [N, C, H, W] from 0 to 255, see as_stored.
        """
        said: dict[int, dict[int, Tensor]] = {task: {} for task in tasks}
        for member in self.members:
            wanted = [task for task in tasks if member.number in self.combinations[task].members]
            for task, outputs in self.outputs(member, stored, wanted).items() if wanted else ():
                said[task][member.number] = outputs
        answers = {task: self._answer(self.combinations[task], by_member) for task, by_member in said.items()}
        if not all(answer.probabilities.isfinite().all() for answer in answers.values()):
            raise UserError(f"{self.path}: an answer is not finite; was a file of members/ changed?")
        return answers

    def _answer(self, combination: Combination, said: Mapping[int, Tensor]) -> Answer:
        outputs = [said[member] for member in combination.members]
        energies = [answer_of(part, self._spec.objective).energy for part in outputs]
        # Stacking has exponents instead of weights: its members count alike.
        weights = combination.weights if combination.biases is None else (1.0,) * len(outputs)
        return Answer(combination(outputs), weighted_mean(energies, weights))

    def combined(self, combine: str = "mean", temperature: str = "none", budget: int | None = None) -> Zoo:
        """The same zoo with another way to make one answer of its members', fitted on held-out examples.

        Args:
            combine: mean, weighted or stacked. temperature: none, task or member; see Combination.
            budget: at most so many members answer a task.

        Raises:
            UserError: no examples were held out.
        """
        if combine not in COMBINE:
            raise UserError(f"--combine: {unknown('way to combine', combine, COMBINE)}")
        if temperature not in TEMPERATURES:
            raise UserError(f"--temperature: {unknown('temperature', temperature, TEMPERATURES)}")
        if budget is not None and budget < 1:
            raise UserError(f"--budget is {budget}; at least one member must answer")
        other = copy.copy(self)
        other.combined_as = combine, temperature, budget
        other.combinations = {task.number: self._plain(task.number) for task in self.tasks}
        if other.combined_as != PLAIN:
            other.combinations = fitted(other.combinations, self.held_out, combine, temperature, budget)
        return other

    def _plain(self, task: int) -> Combination:
        members = self.members_for(self._by_number[task])
        return Combination(tuple(m.number for m in members), tuple(m.weight(task) for m in members))

    @cached_property
    def held_out(self) -> dict[int, HeldOut]:
        """What members said about held-out examples of their tasks, from the run directory.

        Raises:
            UserError: none were held out, or a file is damaged.
        """
        if not any(split == HELD_OUT for _, split in self.targets):
            raise UserError(
                f"{self.path} has no held-out examples, on which this is fitted; train with --hold_out 0.1, for example"
            )
        return self.said_about(HELD_OUT)

    def said_about(self, split: str) -> dict[int, HeldOut]:
        """What members said about the examples of a split, "test" or HELD_OUT, of their tasks, from the run directory.

        Raises:
            UserError: a file is damaged.
        """
        found: dict[int, dict[int, Tensor]] = {task.number: {} for task in self.tasks}
        for member in self.members:
            said = self.predictions(member)
            for task in member.tasks:
                found[task][member.number] = said[task, split].clamp_min(1e-12).log()
        return {task: HeldOut(said, self.targets[task, split]) for task, said in found.items()}

    @property
    def finished(self) -> bool:
        """Whether the run has done all its episodes."""
        return self._manifest.finished

    def measurements(self) -> list[Measurement]:
        """Rows of metrics.csv after the last episode of the zoo.

        Raises:
            UserError: the file is damaged.
        """
        rows, _ = read_measurements(self.path, self._manifest)
        return [row for row in rows if row.episode == self._manifest.episode]

    @cached_property
    def targets(self) -> dict[tuple[int, str], Tensor]:
        """What is right, [N] by (task, split), for the examples whose predictions are saved.

        Raises:
            UserError: the file is damaged.
        """
        found = {_split_of(self.path / TARGETS, key): value for key, value in self.tensors(TARGETS).items()}
        splits = {split for _, split in found}
        for task in {*self._by_number, *(task for task, _ in found)}:
            for split in splits | {"test"}:
                right, classes = found.get((task, split)), self._classes(task)
                if right is None or right.dtype != torch.long or right.ndim != 1 or not len(right) or not classes:
                    raise damaged(self.path, TARGETS, f"task_{task}/{split} is missing, or not of a task of the run")
                if not 0 <= right.min() <= right.max() < classes:
                    raise damaged(self.path, TARGETS, f"task_{task}/{split} has a class that is not 0 to {classes - 1}")
        return found

    def predictions(self, member: SavedMember) -> dict[tuple[int, str], Tensor]:
        """What a member said about examples of its tasks, probabilities [N, C] by (task, split), on the CPU.

        Raises:
            UserError: the file is damaged.
        """
        name = predictions_file(member.number)
        found = {_split_of(self.path / name, key): value for key, value in self.tensors(name).items()}
        expected = {key for key in self.targets if key[0] in member.tasks}
        known = expected | {(task, "train") for task in member.tasks}  # of these there are no targets
        if wrong := sorted(expected - found.keys()) + sorted(found.keys() - known):
            reason = "not there" if wrong[0] in expected else "of a task that the member has not seen"
            raise damaged(self.path, name, f"task_{wrong[0][0]}/{wrong[0][1]} is {reason}")
        for (task, split), said in found.items():
            count = len(self.targets[task, split] if split != "train" else said) if said.ndim else 0
            fits = said.dtype == torch.float32 and said.shape == (count, self._classes(task))
            if not fits or not (said >= 0).all() or not (said <= 1.001).all():
                reason = f"task_{task}/{split} are not {count} x {self._classes(task)} probabilities"
                raise damaged(self.path, name, reason)
        return found

    def _classes(self, task: int) -> int:
        tasks = self.config.data.tasks
        return len(tasks[task - 1].classes) if 0 < task <= len(tasks) else 0

    def tensors(self, name: str) -> dict[str, Tensor]:
        """A file of the run, on the CPU, as it is.

        Raises:
            UserError: it is damaged.
        """
        return read_tensors_of(self.path, self._manifest, name)

    def outputs(self, member: SavedMember, stored: Tensor, tasks: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of some heads of one member, [N, C] each, before softmax."""
        net, own = self.net(member)
        rows = torch.arange(len(stored), device=self._compute.device)
        here = stored.to(self._compute.device)
        data = Mixture([(0, Examples(here, rows, torch.zeros_like(rows)))])
        return outputs_of_heads(net, tasks, data, self._spec, self._compute, own)

    def net(self, member: SavedMember) -> tuple[MultiHead, Mapping[int, TaskWeights]]:
        """The network of a member, and what tasks have of their own in it; read from the disk once.

        Raises:
            UserError: its file is missing or damaged.
        """
        if member.number not in self._loaded:
            self._loaded[member.number] = read_network(self.path, self._manifest, member, self.config, self.device)
        return self._loaded[member.number]

    def _number(self, task: str | int | SavedTask) -> int:
        return task.number if isinstance(task, SavedTask) else self.task(task).number

    @cached_property
    def parameters(self) -> int:
        """Of all members that answer."""
        return sum(member.parameters for member in self.members)


def _split_of(path: Path, key: str) -> tuple[int, str]:
    """Of a file in predictions/: task_<number>/<split>."""
    match = re.fullmatch(r"task_([1-9][0-9]{0,8})/([A-Za-z0-9_-]+)", key)
    if match is None:
        raise UserError(f"{path} is damaged (it holds {key!r:.100}, which is of no task); {remedy(TARGETS)}")
    return int(match[1]), match[2]


def _understood(
    path: Path, members: Sequence[SavedMember], config: RunConfig
) -> tuple[list[SavedTask], Sequence[SavedMember], tuple[int, int, int]]:
    """Tasks, members that answer, and the shape of an input.

    Raises:
        UserError: a member does not belong to the run's config.yaml.
    """
    if not members:
        raise UserError(f"{path} has no members")
    for member in members:
        if wrong := _misfit(member, config, members[0]):
            raise damaged(path, facts_file(member.number), wrong)
    members = answering(members)
    tasks = {
        task[0]: SavedTask(*task)
        for member in members
        for task in zip(member.tasks, member.task_names, member.classes, strict=True)
    }
    channels, height, width = members[0].input_shape
    return [tasks[number] for number in sorted(tasks)], members, (channels, height, width)


def _misfit(member: SavedMember, config: RunConfig, first: SavedMember) -> str:
    """Why a member cannot be of the run, if it cannot."""
    known = [len(task.classes) for task in config.data.tasks]
    for task, classes in zip(member.tasks, member.classes, strict=True):
        if task > len(known):
            return f"tasks is {task}; it must be {Range(1, len(known)).describe()}"
        if len(classes) != known[task - 1]:
            return f"classes of task {task} are {len(classes)}, config.yaml has {known[task - 1]}"
    if member.net != saved_net(config.net):
        return "it has a net that config.yaml does not have"
    if len(member.input_shape) != 3 or any(side not in _SIDES for side in member.input_shape):
        return f"its input_shape is {member.input_shape}; it must be channels, height and width of an image"
    if member.input_shape != first.input_shape:
        return f"its input_shape is {member.input_shape}, other members have {first.input_shape}"
    return ""


_SIDES = Range(1, 1024)
