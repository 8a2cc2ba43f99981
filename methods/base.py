"""The interface of a continual-learning method: it learns from episodes and predicts tasks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.objectives import Scored, Scores
from datasets.task import Episode, Examples, StreamSpec, Task
from evaluation.anytime import Anytime
from evaluation.members import Learned, Member
from methods.config import BaseConfig, RunConfig
from methods.memory.audit import Budget, blind, to_predict
from methods.memory.replay import ReplayMemory
from net import build_net
from net.images.timm_trunk import TimmTrunk
from net.multihead import MultiHead
from training.loop import not_finite
from training.monitor import Checkpoints, Monitor
from training.prediction import predict_examples
from training.recipe import Recipe
from training.steps import StepRule
from utils.compute import Compute
from utils.errors import TrainingError, UserError
from utils.seeding import seeded
from utils.settings import NoSettings
from utils.trees import Tree


@dataclass(frozen=True)
class Storage:
    """What a method stores at the end of an episode."""

    examples: int  # training examples kept for later episodes
    bytes: int  # of these examples
    parameters: int
    members_per_prediction: float  # networks evaluated for one test example, mean over tasks
    parameters_per_prediction: float  # of the trunk and one head of each of these networks, mean over tasks


@dataclass(frozen=True)
class Requirements:
    """The objectives, networks and optimizers that a method can learn with; by default all."""

    classes: bool = False  # targets are class numbers, and outputs a score of each class
    layers: tuple[type[nn.Module], ...] = ()  # the trunk has a layer of one of these kinds; () allows any trunk
    own_heads: bool = False  # each task has a head of its own
    biases: bool = False  # heads have biases
    optimizers: tuple[str, ...] = ()  # the recipe's is one of these; () allows any


@dataclass(frozen=True)
class Context:
    """What every method is built from."""

    config: RunConfig
    spec: StreamSpec
    compute: Compute


class Method(ABC):
    """A continual-learning algorithm. It sees a stream only through the episodes it is given.

    Attributes:
        options: the fields of RunConfig that this method reads and others do not.
        Settings: a settings class with the keys of config/method/<name>.yaml.
        modes: continual, multi-task or both.
        scenarios: what it can learn without a head for each task, see datasets/scenarios.py.
        no_graph_reason: why the steps of this method cannot be CUDA graphs; "" if they can.
        saved_attributes: names of the attributes that hold what it has learned: nested containers of tensors and
            plain values; each is an empty dict at first, unless `__init__` sets it.
        untrained: by task id, predictions of the first network on the test inputs before training, [N, C].
        new_members: networks of the last episode, to be saved, with predictions on the test inputs of their tasks.
        train_scores: by task id, the scores of the method on the training examples that are kept.
        anytime: scores answers within an episode; None without --evaluate_every.
        test_inputs: by task id, test examples of all tasks revealed so far; the targets are hidden.
    """

    requires: ClassVar[Requirements] = Requirements()
    options: ClassVar[frozenset[str]] = frozenset()
    Settings: ClassVar[type] = NoSettings
    modes: ClassVar[frozenset[str]] = frozenset({"continual", "multi-task"})
    scenarios: ClassVar[frozenset[str]] = frozenset({"task"})
    no_graph_reason: ClassVar[str] = ""
    saved_attributes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, context: Context) -> None:
        self.config, self.spec, self.compute = context.config, context.spec, context.compute
        self.settings: Any = self.config.settings  # an instance of Settings
        self.recipe = self.config.hp
        self.checkpoints = Checkpoints()
        self.anytime: Anytime | None = None
        self.memory = self.new_memory()
        self.new_members: list[Member] = []
        self.train_scores: dict[int, Scores] = {}
        self.untrained: dict[int, Tensor] = {}
        self.test_inputs: dict[int, Examples] = {}
        for name in self.saved_attributes:
            setattr(self, name, {})

    def rule(self) -> StepRule:
        """The rule of the steps in which the next task is learned."""
        return StepRule()

    def new_network(self, head_sizes: Mapping[int, int]) -> MultiHead:
        """An untrained network on the device; UserError if the method cannot learn with it."""
        net = new_network(self.config, self.spec, head_sizes)
        check_requirements(type(self), self.spec, net, self.recipe)
        return net.to(self.compute.device)

    def first_network(self) -> MultiHead:
        """The first network before training, once more, after its episode."""
        with seeded(self.config.seed, "member", 0):
            return self.new_network({task: predictions.shape[-1] for task, predictions in self.untrained.items()})

    def new_memory(self) -> ReplayMemory:
        """The replay memory, empty."""
        return ReplayMemory(self.budget(), self.config.seed)

    def budget(self) -> Budget:
        """How many training examples of past tasks are kept."""
        return Budget(fraction=0.0)

    def learn(self, episode: Episode, monitor: Monitor) -> Learned:
        """Train on the new tasks and on the examples kept of earlier ones.

        TrainingError if training diverges, BudgetError if other training examples are read or too many are kept.
        """
        self.reveal(episode)
        with self.memory.auditor.lending(episode) as lent:
            return self.train(lent, monitor)

    def reveal(self, episode: Episode) -> None:
        """Begin an episode: note its tasks' test inputs, and drop the networks of the last episode."""
        self.new_members = []
        self.memory.changed.clear()
        self.test_inputs.update({task.id: blind(task.test) for task in episode.new})

    def revisit(self, episodes: Sequence[Episode]) -> None:
        """Reveal these episodes and keep their examples as `learn` would, without any training."""
        for episode in episodes:
            self.reveal(episode)
        self.memory.revisit(episodes)

    @abstractmethod
    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        """Train for `learn`; the training examples of the episode are on loan until this returns."""

    def predict(self, task: Task) -> Tensor:
        """Predictions on the task's test inputs, [N, C]; reads nothing else of the task and changes nothing."""
        return self.answer(to_predict(task))

    @abstractmethod
    def answer(self, task: Task) -> Tensor:
        """Predict for `predict`; the task has no readable training examples or targets."""

    @abstractmethod
    def storage(self) -> Storage:
        """What the method stores now."""

    def state_dict(self) -> dict[str, Tree]:
        """All that the method needs to continue after this episode, by part.

        A part that has not changed since the last call is None, so that the cost need not grow with the stream.
        """
        attributes = {name: getattr(self, name) for name in self.saved_attributes}
        return {"method": attributes, "train_scores": plain_scores(self.train_scores)}

    def load_state_dict(self, state: Mapping[str, Tree], episodes: Sequence[Episode]) -> None:
        """Continue after `episodes` from what `state_dict` returned then.

        The episodes are revealed once more, for the replay memory to find its examples.
        """
        for name in self.saved_attributes:
            setattr(self, name, state["method"][name])
        self.revisit(episodes)
        self.train_scores = scores_from(state["train_scores"])

    def ask(self, net: MultiHead, task_id: int, examples: Examples, where: str) -> Tensor:
        """Predictions of a network, [N, C]; TrainingError, which `where` opens, if they are not finite.

        The last step can destroy a network whose losses were all finite.
        """
        predictions = predict_examples(net, task_id, examples, self.spec, self.compute)
        if not predictions.isfinite().all():
            raise TrainingError(f"{where}: {not_finite('the prediction', 'after training', self.recipe, self.compute)}")
        return predictions


def plain_scores(by_task: Mapping[int, Scores]) -> Tree:
    """Scores by task as part of a state."""
    return {t: {name: astuple(scored) for name, scored in scores.items()} for t, scores in by_task.items()}


def scores_from(state: Tree) -> dict[int, Scores]:
    """The inverse of `plain_scores`."""
    return {t: {name: Scored(*scored) for name, scored in scores.items()} for t, scores in state.items()}


def new_network(config: BaseConfig, spec: StreamSpec, head_sizes: Mapping[int, int]) -> MultiHead:
    """A network of a run, on the CPU; UserError if its architecture does not fit the inputs of the stream.

    A timm model begins with the weights of a file if there is one.
    """
    net = build_net(
        config.net.model, spec.input_shape, config.net.settings, head_sizes, spec.heads, spec.asked,
        getattr(config, "settings", None),
    )  # fmt: skip
    for trunk in net.modules():
        if isinstance(trunk, TimmTrunk) and config.net.settings.weights is not None:
            trunk.load_weights(config.net.settings.weights)
    return net


def check_requirements(method: type[Method], spec: StreamSpec, net: MultiHead, recipe: Recipe) -> None:
    """UserError if a method cannot learn with the objective, the network or the optimizer."""
    needs, trunk = method.requires, net.trunk
    if needs.classes and spec.objective.energy(torch.zeros(1, 2)) is None:
        lack = f"targets that are classes; {type(spec.objective).__name__} has none"
    elif needs.layers and not any(isinstance(module, needs.layers) for module in trunk.modules()):
        kinds = " or ".join(kind.__name__.strip("_") for kind in needs.layers)
        lack = f"a network with layers of the kind {kinds}; {type(trunk).__name__} has none"
    elif needs.own_heads and net.kind != "task":
        lack = f"a head for each task; this network has {net.kind} heads"
    elif needs.biases and "bias" not in net.head_values():
        lack = f"heads with biases; {type(trunk).__name__} has none"
    elif needs.optimizers and recipe.optimizer not in needs.optimizers:
        lack = f"the optimizer {' or '.join(needs.optimizers)}, not {recipe.optimizer}"
    else:
        return
    raise UserError(f"the method {method.__name__} needs {lack}")
