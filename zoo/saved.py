"""The zoo of a run directory: its tasks, its members, and what they answer.

manifest.json + config.yaml + members/*.json -> Zoo; the weights of a member are read when it is first asked.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from datasets.images import ImagePreprocess
from datasets.objectives import CrossEntropy
from datasets.task import Examples, Mixture, StreamSpec
from methods.evaluation import HELD_OUT
from methods.scenarios import RULE, RULES, Answer, answer_of, task_log_probabilities
from methods.steps import Compute
from methods.training import outputs_of_heads
from net import build_net
from net.multihead import MultiHead, Own
from utils.compute import pick_device
from utils.config import RunConfig, saved_config
from utils.errors import UserError, unknown
from utils.manifest import TARGETS, Manifest, checked, read_manifest, remedy
from utils.monitor import Row
from utils.run_directory import CONFIG, holds_run, read_config, read_measurements
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
class SavedMember:
    """A network of the zoo, on the disk."""

    number: int
    episode: int
    tasks: tuple[int, ...]
    weights: tuple[float, ...]  # in the mean that answers each of the tasks
    parameters: int
    model: str

    def weight(self, task: int) -> float:
        """In the mean that answers a task."""
        return self.weights[self.tasks.index(task)]


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
        self._loaded: dict[int, tuple[MultiHead, Mapping[int, Own]]] = {}
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
        if not holds_run(path):
            raise UserError(f"{path} is not the directory of a run (it has no {CONFIG})")
        manifest = read_manifest(path)
        if manifest is None or not manifest.episode:
            raise UserError(f"{path}: no episode is complete yet")
        config = saved_config(str(path / CONFIG), read_config(path))
        facts = [_facts(path, manifest, number) for number in range(manifest.members)]
        try:
            return cls(path, config, manifest, *_understood(facts), pick_device(device))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"{path / 'members'} cannot be read ({type(error).__name__}: {error}); was it made by an older version?"
            ) from None

    @property
    def device(self) -> torch.device:
        """Where members answer."""
        return self._compute.device

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

    def predict(self, images: Images, task: str | int, rule: str = RULE) -> Prediction:
        """What the zoo says about images.

        Args:
            images: uint8 from 0 to 255 or floats from 0 to 1, as the network sees them: [N, C, H, W], [N, H, W, C], of
                one channel also [N, H, W]; array or tensor. They are normalised as in training.
            task: name or number; "auto" finds it, see methods/scenarios.py.
            rule: how it is found: entropy, confidence or energy.

        Raises:
            UserError: no such task or rule, or images that do not fit.
        """
        stored = as_stored(images, self.input_shape)
        if rule not in RULES:
            raise UserError(f"--rule: {unknown('rule', rule, RULES)}")
        if task == AUTO:
            return self.chosen(self.answers(stored, [known.number for known in self.tasks]), rule)
        known = self.task(task)
        probabilities = self.answers(stored, [known.number])[known.number].probabilities
        outputs = tuple((known, name) for name in known.classes)
        return Prediction(probabilities, outputs, probabilities.argmax(-1))

    def chosen(self, answers: Mapping[int, Answer], rule: str = RULE) -> Prediction:
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
        return {task: self._answer(self.combinations[task], by_member) for task, by_member in said.items()}

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
        targets = self.predictions(TARGETS)
        if not any(name.endswith(f"/{HELD_OUT}") for name in targets):
            raise UserError(
                f"{self.path} has no held-out examples, on which this is fitted; train with --hold_out 0.1, for example"
            )
        return self.said_about(HELD_OUT)

    def said_about(self, split: str) -> dict[int, HeldOut]:
        """What members said about the examples of a split, "test" or HELD_OUT, of their tasks, from the run directory.

        Raises:
            UserError: a file is damaged.
        """
        targets = self.predictions(TARGETS)
        found: dict[int, dict[int, Tensor]] = {task.number: {} for task in self.tasks}
        for member in self.members:
            tensors = self.predictions(f"predictions/member_{member.number:03d}.safetensors")
            for task in member.tasks:
                found[task][member.number] = tensors[f"task_{task}/{split}"].clamp_min(1e-12).log()
        return {task: HeldOut(said, targets[f"task_{task}/{split}"]) for task, said in found.items()}

    @property
    def finished(self) -> bool:
        """Whether the run has done all its episodes."""
        return self._manifest.finished

    def measurements(self) -> list[Row]:
        """Rows of metrics.csv after the last episode of the zoo.

        Raises:
            UserError: the file is damaged.
        """
        rows, _ = read_measurements(self.path, self._manifest)
        return [row for row in rows if row.episode == self._manifest.episode]

    def predictions(self, name: str) -> dict[str, Tensor]:
        """A file of predictions/, on the CPU.

        Raises:
            UserError: it is damaged.
        """
        try:
            return safetensors.torch.load(checked(self.path, self._manifest, name))
        except UserError:
            raise
        except Exception as error:  # whatever the library finds wrong with it
            raise UserError(f"{self.path / name} is damaged ({error}); {remedy(name)}") from None

    def outputs(self, member: SavedMember, stored: Tensor, tasks: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of some heads of one member, [N, C] each, before softmax."""
        net, own = self.net(member)
        rows = torch.arange(len(stored), device=self._compute.device)
        here = stored.to(self._compute.device)
        data = Mixture([(0, Examples(here, rows, torch.zeros_like(rows)))])
        return outputs_of_heads(net, tasks, data, self._spec, self._compute, own)

    def net(self, member: SavedMember) -> tuple[MultiHead, Mapping[int, Own]]:
        """The network of a member, and what tasks have of their own in it; read from the disk once.

        Raises:
            UserError: its file is missing or damaged.
        """
        if member.number not in self._loaded:
            self._loaded[member.number] = self._read(member)
        return self._loaded[member.number]

    def _read(self, member: SavedMember) -> tuple[MultiHead, Mapping[int, Own]]:
        name = f"members/member_{member.number:03d}.safetensors"
        sizes = {number: len(self._by_number[number].classes) for number in member.tasks}
        try:
            tensors = safetensors.torch.load(checked(self.path, self._manifest, name))
            own: dict[int, dict[str, Tensor]] = {}
            for key in [key for key in tensors if key.startswith("task_")]:
                task, _, tensor = key.removeprefix("task_").partition("/")
                own.setdefault(int(task), {})[tensor] = tensors.pop(key).to(self._compute.device)
            with torch.random.fork_rng(devices=[]):
                net = build_net(member.model, self.input_shape, self.config.hyper.dropout, sizes)
            net.load_state_dict(tensors)
        except UserError:
            raise
        except Exception as error:  # whatever the library finds wrong with it
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.path / name} is damaged ({reason}); {remedy(name)}") from None
        return net.to(self._compute.device).eval(), own

    def _number(self, task: str | int | SavedTask) -> int:
        return task.number if isinstance(task, SavedTask) else self.task(task).number

    @cached_property
    def parameters(self) -> int:
        """Of all members that answer."""
        return sum(member.parameters for member in self.members)


def _facts(path: Path, manifest: Manifest, number: int) -> dict[str, Any]:
    name = f"members/member_{number:03d}.json"
    try:
        return dict(json.loads(checked(path, manifest, name)))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path / name} is damaged ({error}); {remedy(name)}") from None


def _understood(
    facts: Iterable[Mapping[str, Any]],
) -> tuple[list[SavedTask], list[SavedMember], tuple[int, int, int]]:
    """Tasks, members that answer, and the shape of an input, from the members' JSON files."""
    tasks: dict[int, SavedTask] = {}
    members: list[SavedMember] = []
    shapes = set()
    for fact in facts:
        if fact["replaces_earlier"]:
            members, tasks = [], {}
        for number, name, classes in zip(fact["tasks"], fact["task_names"], fact["classes"], strict=True):
            tasks[number] = SavedTask(number, str(name), tuple(map(str, classes)))
        members.append(
            SavedMember(
                fact["member"],
                fact["episode"],
                tuple(fact["tasks"]),
                tuple(map(float, fact["weights"])),
                fact["parameters"],
                fact["net"],
            )
        )
        shapes.add(tuple(map(int, fact["input_shape"])))
    ((channels, height, width),) = shapes
    return [tasks[number] for number in sorted(tasks)], members, (channels, height, width)
