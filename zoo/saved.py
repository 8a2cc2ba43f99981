"""The zoo of a run directory: its tasks, its members, and what they answer.

manifest.json + config.yaml + members/*.json -> Zoo; the weights of a member are read when it is first asked.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product, zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets.arrays.scaling import ArrayPreprocess, ScaledNumbers
from datasets.images.stream import ImagePreprocess
from datasets.mixture import Mixture
from datasets.objectives import CrossEntropy, Objective, RealNumbers, Scores
from datasets.task import HELD_OUT, Examples, Preprocess, StreamSpec
from evaluation.scenarios import DEFAULT_ROUTING, ROUTINGS, Answer, answer_of, task_log_probabilities
from methods.config import RunConfig
from net import input_dtype
from net.multihead import MultiHead, TaskWeights
from records.configuration import saved_config
from records.directory import CONFIG
from records.manifest import TARGETS, Manifest, reading
from records.members import PREDICTIONS_FILE, SavedMember, answering, read_members, read_network, read_tensors_of
from records.run import opened, task_number
from training.features import FrozenFeatures, features_of
from training.prediction import outputs_of_heads
from utils.compute import Compute, pick_device
from utils.errors import UserError
from utils.options import check_choice
from zoo.combine import COMBINE, TEMPERATURES, Combination, MemberPredictions, fitted, weighted_mean
from zoo.inputs import Images, as_stored, read_images

AUTO = "auto"
PREPROCESS: Mapping[str, type[Preprocess]] = {
    kind.__name__: kind for kind in (ImagePreprocess, ArrayPreprocess, FrozenFeatures, Preprocess)
}
OBJECTIVES: Mapping[str, type[Objective]] = {kind.__name__: kind for kind in (CrossEntropy, RealNumbers, ScaledNumbers)}
PLAIN = "mean", "none", None  # the mean with the weights of training


@dataclass(frozen=True)
class SavedTask:
    """A task that the zoo has learned."""

    number: int  # from 1, in the order of the stream; 0 stands for all tasks
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
        path, config, manifest: of the run.
        tasks: those that a member has learned, in order.
        members: those that answer, in the order of joining.
        compute: the device on which members predict, and the precision: as in the run, see `in_fp32`.
        combinations: by task number, how the answers of its members are combined.
        combined_as: the arguments of `combined` that made these.
        input_shape: of one input, which is neither normalised nor padded.
        images, reads_files: whether inputs are images, and image files can be read as such.
        columns: the names of the features of a table, in the order of an input; () if they have none.
        of_classes: whether answers are classes, see `predict`; else they are real numbers, see `numbers`.
    """

    def __init__(
        self, path: Path, config: RunConfig, manifest: Manifest, tasks: Sequence[SavedTask],
        members: Sequence[SavedMember], objective: Objective, preprocess: Preprocess, device: torch.device,
    ) -> None:  # fmt: skip
        self.path, self.config, self.manifest = path, config, manifest
        self.tasks, self.members = tuple(tasks), tuple(members)
        self.input_shape = preprocess.stored_shape(members[0].input_shape)
        self.compute = Compute(device, config.precision == "bf16")
        self._features = preprocess if isinstance(preprocess, FrozenFeatures) else None
        self.preprocess = preprocess.images if isinstance(preprocess, FrozenFeatures) else preprocess
        self.images = isinstance(self.preprocess, ImagePreprocess)
        # Squares of grey or colour, as files become.
        self.reads_files = self.images and self.input_shape[0] in (1, 3) and len({*self.input_shape[1:]}) == 1
        self._spec = StreamSpec(config.stream, members[0].input_shape, objective, preprocess)
        self.of_classes = isinstance(objective, CrossEntropy)
        self.columns: tuple[str, ...] = getattr(self.preprocess, "columns", ())
        self._loaded: dict[int, tuple[MultiHead, Mapping[int, TaskWeights]]] = {}
        self.combinations: Mapping[int, Combination] = self._plain()
        self.combined_as: tuple[str, str, int | None] = PLAIN

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> "Zoo":
        """The zoo of a run directory, on auto, cpu, cuda, cuda:N or mps; the run may be unfinished.

        A UserError if no episode is complete, a file is damaged, or answers are neither classes nor numbers. No weights
        are read yet.
        """
        path = Path(path).expanduser()
        content, manifest = opened(path)
        objective, preprocess = str(content.get("objective")), str(content.get("preprocess"))
        if objective not in OBJECTIVES or preprocess not in PREPROCESS:
            raise UserError(
                f"{path} was trained with {objective} on inputs made by {preprocess}; a saved zoo needs "
                f"{' or '.join(OBJECTIVES)} and {' or '.join(PREPROCESS)}: read this run with Run.load"
            )
        on = pick_device(device)
        config = saved_config(str(path / CONFIG), content)
        members = answering(read_members(path, manifest))
        if not members:
            raise UserError(f"{path} has no members")
        facts = [task for m in members for task in zip(m.tasks, m.task_names, m.classes, strict=True)]
        tasks = {number: SavedTask(number, name, classes) for number, name, classes in sorted(facts)}
        with reading(path, CONFIG):
            made = PREPROCESS[preprocess].saved(f"{path / CONFIG}: inputs", content.get("inputs", {}))
            learned = OBJECTIVES[objective].saved(f"{path / CONFIG}: targets", content.get("targets", {}), on)
        return cls(path, config, manifest, [*tasks.values()], members, learned, made, on)

    @property
    def device(self) -> torch.device:
        return self.compute.device

    def in_fp32(self) -> "Zoo":
        """The same zoo, predicting in fp32 whatever the precision of the run, as exported networks do."""
        other = copy.copy(self)
        other.compute = Compute(self.device)
        return other

    def task(self, task: str | int) -> SavedTask:
        """A task by its number or its name, see `task_number`; a UserError if there is none, or several."""
        known = {known.number: known for known in self.tasks}
        return known[task_number(self.path, task, {number: one.name for number, one in known.items()})]

    def finds(self, task: str | int) -> bool:
        """Whether the task is to be found ("auto"); a UserError if that is also the name of a task."""
        if task == AUTO and any(known.name == AUTO for known in self.tasks):
            raise UserError(
                f"{self.path} has a task named {AUTO}; write name={AUTO} for it, or number={AUTO} to find it"
            )
        return task in (AUTO, f"number={AUTO}")

    def members_for(self, task: str | int) -> tuple[SavedMember, ...]:
        """The members that have learned a task, by its name or number."""
        number = self.task(task).number
        return tuple(member for member in self.members if number in member.tasks)

    def predict(self, images: Images, task: str | int, rule: str = DEFAULT_ROUTING) -> Prediction:
        """Predict the classes of images; a UserError if they do not fit, there are no classes, or no such task or rule.

        Args:
            images: uint8 from 0 to 255 or floats from 0 to 1: [N, C, H, W], [N, H, W, C], of one channel also
                [N, H, W]; array or tensor, of the size that the networks were trained on, not normalised. Or image
                files and images of Pillow, one or a list, of any size: they are read as in training.
            task: number or name, see `task_number`; "auto" finds it, see evaluation/scenarios.py, or asks the head
                that all tasks share.
            rule: how it is found: entropy, confidence or energy.
        """
        self.check_classes()
        stored = self.stored(images)
        check_choice("--routing", "rule", rule, ROUTINGS)
        if self.finds(task):
            if self.shared:
                return self._by_shared_head(stored)
            return self._routed(self.answers(stored, [known.number for known in self.tasks]), rule)
        known = self.task(task)
        probabilities = self.answers(stored, [known.number])[known.number].probabilities
        return Prediction(probabilities, tuple((known, name) for name in known.classes), probabilities.argmax(-1))

    def numbers(self, inputs: Images, task: str | int) -> Tensor:
        """The real numbers that the zoo answers, [N, D] in the unit of the targets; a UserError as of `predict`."""
        if self.of_classes:
            raise UserError(f"{self.path} answers with classes, not with numbers; ask Zoo.predict")
        number = self.task(task).number
        outputs, one = self._outputs_of_members(self.stored(inputs), [number])[number], self.combinations[number]
        answers = weighted_mean([self._spec.objective.predict(outputs[m]) for m in one.members], one.weights)
        self._check_finite([answers])
        return answers

    def check_classes(self) -> None:
        """UserError if answers are real numbers."""
        if not self.of_classes:
            raise UserError(
                f"{self.path} was trained with {type(self._spec.objective).__name__}, and this needs classes; numbers "
                "are answered by predict.py --task NAME, and by Zoo.numbers"
            )

    def check_reads_files(self) -> None:
        """UserError if inputs cannot be read from image files."""
        if not self.reads_files:
            raise UserError(
                f"{self.path} takes inputs of shape {list(self.input_shape)}, no files: give arrays to Zoo.predict"
            )

    def stored(self, inputs: Images) -> Tensor:
        """Inputs as the stream of the run stores them, see read_images and as_stored."""
        if not isinstance(inputs, (Tensor, np.ndarray)):
            self.check_reads_files()
            return read_images(inputs, self.input_shape)
        return as_stored(inputs, self.input_shape, self.images)

    @property
    def shared(self) -> bool:
        """Whether all tasks share a head, so that no task has to be found."""
        return all(member.heads != "task" for member in self.members)

    def _by_shared_head(self, stored: Tensor) -> Prediction:
        """The answers of a head that all tasks share; an output that tasks name differently has all these names."""
        newest = self.tasks[-1].number
        names = zip_longest(*(task.classes for task in self.tasks))
        classes = tuple("/".join(dict.fromkeys(filter(None, of_output))) for of_output in names)
        every = SavedTask(0, "all tasks", classes)
        probabilities = self.answers(stored, [newest])[newest].probabilities
        return Prediction(probabilities, tuple((every, name) for name in classes), probabilities.argmax(-1))

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
        """The zoo's answers to inputs (see `stored`) as if they were of each of `tasks`; a UserError if not finite."""
        outputs = self._outputs_of_members(stored, tasks)
        answers = {task: self._answer(self.combinations[task], by_member) for task, by_member in outputs.items()}
        self._check_finite([answer.probabilities for answer in answers.values()])
        return answers

    def _check_finite(self, answers: Iterable[Tensor]) -> None:
        if not all(answer.isfinite().all() for answer in answers):
            raise UserError(f"{self.path}: an answer is not finite; was a file of members/ changed?")

    def _outputs_of_members(self, stored: Tensor, tasks: Sequence[int]) -> dict[int, dict[int, Tensor]]:
        """By task and member, the outputs before softmax, [N, C]."""
        outputs: dict[int, dict[int, Tensor]] = {task: {} for task in tasks}
        if self.frozen is not None:  # once for all members
            stored = features_of(self.frozen, stored, self.preprocess, self.device)
        for member in self.members:
            wanted = [task for task in tasks if member.number in self.combinations[task].members]
            for task, of_member in self._outputs(member, stored, wanted).items() if wanted else ():
                outputs[task][member.number] = of_member
        return outputs

    @cached_property
    def frozen(self) -> nn.Module | None:
        """The frozen network, whose features are the members' inputs; None if these take the images themselves."""
        return None if self._features is None else self._features.trunk(self.config.net, self.device)

    def _outputs(self, member: SavedMember, stored: Tensor, tasks: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of some heads of a member before softmax, [N, C] by task."""
        net, own = self.net(member)
        rows = torch.arange(len(stored), device=self.device)
        inputs = stored.to(self.device) if self.images else stored.to(self.device, input_dtype(net.trunk))
        data = Mixture([(0, Examples(inputs, rows, torch.zeros_like(rows)))])
        return outputs_of_heads(net, tasks, data, self._spec, self.compute, own)

    def _answer(self, combination: Combination, by_member: Mapping[int, Tensor]) -> Answer:
        outputs = [by_member[member] for member in combination.members]
        energies = [answer_of(part, self._spec.objective).energy for part in outputs]
        # Stacking has exponents instead of weights: its members count alike.
        weights = combination.weights if combination.biases is None else (1.0,) * len(outputs)
        return Answer(combination(outputs), weighted_mean(energies, weights))

    def combined(self, combine: str = "mean", temperature: str = "none", budget: int | None = None) -> "Zoo":
        """The same zoo with another way to combine its members' answers, fitted on held-out examples (UserError: none).

        Args:
            combine: mean, weighted or stacked. temperature: none, task or member; see Combination.
            budget: at most so many members answer a task.
        """
        check_choice("--combine", "way to combine", combine, COMBINE)
        check_choice("--temperature", "temperature", temperature, TEMPERATURES)
        if budget is not None and budget < 1:
            raise UserError(f"--budget is {budget}; at least one member must answer")
        other = copy.copy(self)
        other.combined_as, other.combinations = (combine, temperature, budget), self._plain()
        if other.combined_as != PLAIN:
            self.check_classes()
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
        """By task, the members' saved predictions on a split, "test" or HELD_OUT; a UserError if there are none."""
        if not any(name == split for _, name in self.targets):
            raise UserError(f"{self.path} has saved no predictions on {split} examples")
        found: dict[int, dict[int, Tensor]] = {task.number: {} for task in self.tasks}
        for member in self.members:
            predictions = self.predictions(member)
            for task in member.tasks:
                found[task][member.number] = predictions[task, split].clamp_min(1e-12).log()
        return {task: MemberPredictions(logs, self.targets[task, split]) for task, logs in found.items()}

    def test_scores(self) -> dict[int, Scores]:
        """By task, the scores of the members' saved predictions on its test examples, combined as in this zoo."""
        return self._scores(self.saved_predictions("test"))

    def held_out_scores(self) -> dict[int, Scores]:
        """The same on its held-out examples; a UserError if none were held out."""
        return self._scores(self.held_out)

    def _scores(self, found: Mapping[int, MemberPredictions]) -> dict[int, Scores]:
        return {task: CrossEntropy().evaluate(saved.of(self.combinations[task]), saved.targets)
                for task, saved in found.items()}  # fmt: skip

    @cached_property
    def targets(self) -> dict[tuple[int, str], Tensor]:
        """Targets, [N] by (task, split), of the examples whose predictions are saved."""
        with reading(self.path, TARGETS):
            found = self._by_task_and_split(TARGETS)
            if any(values.dtype != torch.int64 or values.ndim != 1 for values in found.values()):
                raise ValueError("targets must be whole numbers, [N]")
            return found

    def predictions(self, member: SavedMember) -> dict[tuple[int, str], Tensor]:
        """Saved predictions of a member on examples of its tasks, probabilities [N, C] by (task, split), on the CPU."""
        name, splits = PREDICTIONS_FILE.format(member.number), {split for _, split in self.targets}
        with reading(self.path, name):
            found = self._by_task_and_split(name)
            for (task, classes), split in product(zip(member.tasks, member.classes, strict=True), splits):
                if found[task, split].shape != (len(self.targets[task, split]), len(classes)):
                    raise ValueError(f"task_{task}/{split} has shape {list(found[task, split].shape)}")
            return found

    def _by_task_and_split(self, name: str) -> dict[tuple[int, str], Tensor]:
        """The tensors task_<number>/<split> of a file in predictions/."""
        found = read_tensors_of(self.path, self.manifest, name)
        parts = {key: key.removeprefix("task_").partition("/") for key in found}
        return {(int(task), split): found[key] for key, (task, _, split) in parts.items()}

    def net(self, member: SavedMember) -> tuple[MultiHead, Mapping[int, TaskWeights]]:
        """The network of a member, and trunk weights that belong to single tasks; read from the disk once."""
        if member.number not in self._loaded:
            self._loaded[member.number] = read_network(self.path, self.manifest, member, self.config, self.device)
        return self._loaded[member.number]
