"""The zoo of a run directory: its tasks, its members, and what they answer.

manifest.json + config.yaml + members/*.json -> Zoo; the weights of a member are read when it is first asked.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from datasets.config import class_name
from datasets.images.stream import ImagePreprocess
from datasets.mixture import Mixture
from datasets.objectives import CrossEntropy, Scores
from datasets.task import HELD_OUT, Examples, StreamSpec
from evaluation.scenarios import DEFAULT_ROUTING, ROUTINGS, Answer, answer_of, task_log_probabilities
from methods.config import RunConfig
from net.multihead import MultiHead, TaskWeights
from records.configuration import saved_config
from records.directory import CONFIG
from records.manifest import TARGETS, Manifest
from records.members import PREDICTIONS_FILE, SavedMember, answering, read_members, read_network, read_tensors_of
from records.run import opened
from training.prediction import outputs_of_heads
from utils.compute import Compute, pick_device
from utils.errors import UserError, unknown
from utils.options import check_choice
from zoo.combine import COMBINE, TEMPERATURES, Combination, MemberPredictions, fitted, weighted_mean
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
        outputs: the task and the class of each of the C outputs.
        chosen: [N] the predicted output: the likeliest one; if the task was not given, the likeliest one of the
            likeliest task.
    """

    probabilities: Tensor
    outputs: tuple[tuple[SavedTask, str], ...]
    chosen: Tensor

    @property
    def classes(self) -> tuple[str, ...]:
        """The class name of each output."""
        return tuple(name for _, name in self.outputs)

    @property
    def labels(self) -> list[str]:
        """The name of the predicted class of each image."""
        return [self.outputs[output][1] for output in self.chosen.tolist()]

    @property
    def tasks(self) -> list[SavedTask]:
        """The task of the predicted class of each image."""
        return [self.outputs[output][0] for output in self.chosen.tolist()]


class Zoo:
    """The networks of a run directory, ready to predict; the one network of other methods is a zoo of one member.

    Weights and predictions are read when they are first needed: a UserError names a file that is missing or damaged.

    Attributes:
        path: the run directory.
        config, manifest: of the run.
        tasks: those that a member has learned, in order.
        members: those that answer, in the order of joining.
        device: on which members predict.
        combinations: by task number, how the answers of its members are combined.
        combined_as: the arguments of `combined` that made these.
    """

    def __init__(
        self, path: Path, config: RunConfig, manifest: Manifest, tasks: Sequence[SavedTask],
        members: Sequence[SavedMember], input_shape: tuple[int, int, int], device: torch.device,
    ) -> None:  # fmt: skip
        self.path, self.config, self.manifest = path, config, manifest
        self.tasks, self.members = tuple(tasks), tuple(members)
        self.input_shape, self.device = input_shape, device
        self._spec = StreamSpec(config.stream, input_shape, CrossEntropy(), ImagePreprocess(0, flip=False))
        self._loaded: dict[int, tuple[MultiHead, Mapping[int, TaskWeights]]] = {}
        self.combinations: Mapping[int, Combination] = self._plain()
        self.combined_as: tuple[str, str, int | None] = PLAIN

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> "Zoo":
        """The zoo of a run directory, which may be of an unfinished run. No weights are read yet.

        Args:
            device: auto, cpu, cuda, cuda:N or mps.

        Raises:
            UserError: there is no run, no episode is complete yet, or a file is damaged.
        """
        path = Path(path)
        content, manifest = opened(path)
        config = saved_config(str(path / CONFIG), content)
        members = answering(read_members(path, manifest))
        if not members:
            raise UserError(f"{path} has no members")
        shape = members[0].input_shape
        if len(shape) != 3:
            raise UserError(f"{path} was trained on inputs of shape {list(shape)}; only images can be asked about")
        facts = [task for m in members for task in zip(m.tasks, m.task_names, m.classes, strict=True)]
        tasks = {number: SavedTask(number, name, classes) for number, name, classes in sorted(facts)}
        return cls(path, config, manifest, [*tasks.values()], members, shape, pick_device(device))

    @property
    def as_trained(self) -> Compute:
        """The device with the precision in which the members were trained: bf16 is used on a GPU only."""
        return Compute(self.device, self.config.precision == "bf16" and self.device.type == "cuda")

    def task(self, task: str | int) -> SavedTask:
        """A task by its name or its number; a UserError if there is none, or several."""
        named = [known for known in self.tasks if class_name(known.name) == class_name(str(task))]
        if len(named) > 1:
            numbers = ", ".join(str(known.number) for known in named)
            raise UserError(f"task {str(task)!r} is the name of several tasks; name one by its number: {numbers}")
        found = named or [known for known in self.tasks if str(known.number) == str(task)]
        if not found:
            raise UserError(f"{self.path}: {unknown('task', task, [known.name for known in self.tasks])}")
        return found[0]

    def members_for(self, task: str | int) -> tuple[SavedMember, ...]:
        """The members that have learned a task, by its name or number."""
        number = self.task(task).number
        return tuple(member for member in self.members if number in member.tasks)

    def predict(self, images: Images, task: str | int, rule: str = DEFAULT_ROUTING) -> Prediction:
        """Predict the classes of images.

        Args:
            images: uint8 from 0 to 255 or floats from 0 to 1: [N, C, H, W], [N, H, W, C], of one channel also
                [N, H, W]; array or tensor, of the size that the networks were trained on, not normalised.
            task: name or number; "auto" finds it, see evaluation/scenarios.py.
            rule: how it is found: entropy, confidence or energy.

        Raises:
            UserError: no such task or rule, or images that do not fit.
        """
        stored = as_stored(images, self.input_shape)
        check_choice("--routing", "rule", rule, ROUTINGS)
        if task == AUTO:
            return self._routed(self.answers(stored, [known.number for known in self.tasks]), rule)
        known = self.task(task)
        probabilities = self.answers(stored, [known.number])[known.number].probabilities
        return Prediction(probabilities, tuple((known, name) for name in known.classes), probabilities.argmax(-1))

    def _routed(self, answers: Mapping[int, Answer], rule: str) -> Prediction:
        """The likeliest class of the likeliest task, from the answers of all tasks."""
        of_task = task_log_probabilities([answers[task.number] for task in self.tasks], rule)
        parts = [answers[task.number].probabilities for task in self.tasks]
        both = torch.cat([of_task[:, i, None].exp() * part for i, part in enumerate(parts)], -1)
        outputs = [(i, task, name) for i, task in enumerate(self.tasks) for name in task.classes]
        place = torch.tensor([i for i, _, _ in outputs], device=both.device)  # [C], of the task of each output
        chosen = both.masked_fill(place != of_task.argmax(-1, keepdim=True), -1).argmax(-1)
        return Prediction(both.float(), tuple((task, name) for _, task, name in outputs), chosen)

    def answers(self, stored: Tensor, tasks: Sequence[int]) -> dict[int, Answer]:
        """The zoo's answers to inputs of any task, as if they were of each of `tasks`.

        Args:
            stored: [N, C, H, W] from 0 to 255, see as_stored.

        Raises:
            UserError: an answer is not finite.
        """
        outputs: dict[int, dict[int, Tensor]] = {task: {} for task in tasks}  # by task and member
        for member in self.members:
            wanted = [task for task in tasks if member.number in self.combinations[task].members]
            for task, of_member in self._outputs(member, stored, wanted).items() if wanted else ():
                outputs[task][member.number] = of_member
        answers = {task: self._answer(self.combinations[task], by_member) for task, by_member in outputs.items()}
        if not all(answer.probabilities.isfinite().all() for answer in answers.values()):
            raise UserError(f"{self.path}: an answer is not finite; was a file of members/ changed?")
        return answers

    def _outputs(self, member: SavedMember, stored: Tensor, tasks: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of some heads of a member before softmax, [N, C] by task."""
        net, own = self.net(member)
        rows = torch.arange(len(stored), device=self.device)
        data = Mixture([(0, Examples(stored.to(self.device), rows, torch.zeros_like(rows)))])
        return outputs_of_heads(net, tasks, data, self._spec, Compute(self.device), own)

    def _answer(self, combination: Combination, by_member: Mapping[int, Tensor]) -> Answer:
        outputs = [by_member[member] for member in combination.members]
        energies = [answer_of(part, self._spec.objective).energy for part in outputs]
        # Stacking has exponents instead of weights: its members count alike.
        weights = combination.weights if combination.biases is None else (1.0,) * len(outputs)
        return Answer(combination(outputs), weighted_mean(energies, weights))

    def combined(self, combine: str = "mean", temperature: str = "none", budget: int | None = None) -> "Zoo":
        """The same zoo with another way to combine its members' answers, fitted on held-out examples.

        Args:
            combine: mean, weighted or stacked. temperature: none, task or member; see Combination.
            budget: at most so many members answer a task.

        Raises:
            UserError: no examples were held out.
        """
        check_choice("--combine", "way to combine", combine, COMBINE)
        check_choice("--temperature", "temperature", temperature, TEMPERATURES)
        if budget is not None and budget < 1:
            raise UserError(f"--budget is {budget}; at least one member must answer")
        other = copy.copy(self)
        other.combined_as, other.combinations = (combine, temperature, budget), self._plain()
        if other.combined_as != PLAIN:
            other.combinations = fitted(other.combinations, self.held_out, combine, temperature, budget)
        return other

    def _plain(self) -> dict[int, Combination]:
        asked = {task.number: [m for m in self.members if task.number in m.tasks] for task in self.tasks}
        return {task: Combination(tuple(m.number for m in members), tuple(m.weight(task) for m in members))
                for task, members in asked.items()}  # fmt: skip

    @cached_property
    def held_out(self) -> dict[int, MemberPredictions]:
        """By task, the members' saved predictions on its held-out examples; a UserError if none were held out."""
        if not any(split == HELD_OUT for _, split in self.targets):
            raise UserError(
                f"{self.path} has no held-out examples, on which this is fitted; train with --hold_out 0.1, for example"
            )
        return self.saved_predictions(HELD_OUT)

    def saved_predictions(self, split: str) -> dict[int, MemberPredictions]:
        """By task, the members' saved predictions on a split, "test" or HELD_OUT."""
        found: dict[int, dict[int, Tensor]] = {task.number: {} for task in self.tasks}
        for member in self.members:
            predictions = self.predictions(member)
            for task in member.tasks:
                found[task][member.number] = predictions[task, split].clamp_min(1e-12).log()
        return {task: MemberPredictions(logs, self.targets[task, split]) for task, logs in found.items()}

    def test_scores(self) -> dict[int, Scores]:
        """By task, the scores of the members' saved predictions on its test examples, combined as in this zoo."""
        found = self.saved_predictions("test")
        return {task: CrossEntropy().evaluate(saved.of(self.combinations[task]), saved.targets)
                for task, saved in found.items()}  # fmt: skip

    @cached_property
    def targets(self) -> dict[tuple[int, str], Tensor]:
        """Targets, [N] by (task, split), of the examples whose predictions are saved."""
        return self._by_task_and_split(TARGETS)

    def predictions(self, member: SavedMember) -> dict[tuple[int, str], Tensor]:
        """Saved predictions of a member on examples of its tasks, probabilities [N, C] by (task, split), on the CPU."""
        return self._by_task_and_split(PREDICTIONS_FILE.format(member.number))

    def _by_task_and_split(self, name: str) -> dict[tuple[int, str], Tensor]:
        """The tensors task_<number>/<split> of a file in predictions/."""
        found = read_tensors_of(self.path, self.manifest, name)
        parts = [(key.removeprefix("task_").partition("/"), values) for key, values in found.items()]
        return {(int(task), split): values for (task, _, split), values in parts}

    def net(self, member: SavedMember) -> tuple[MultiHead, Mapping[int, TaskWeights]]:
        """The network of a member, and trunk weights that belong to single tasks; read from the disk once."""
        if member.number not in self._loaded:
            self._loaded[member.number] = read_network(self.path, self.manifest, member, self.config, self.device)
        return self._loaded[member.number]
