"""One network for all tasks: what finetuning and the methods against forgetting have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from datasets.task import Episode, Examples, Task
from evaluation.members import Member
from methods.base import Context, Learned, Method, Storage
from methods.memory.audit import Budget
from net import BatchNorm, count_parameters
from net.multihead import MultiHead, TaskWeights
from training.batches import Joined, Replays
from training.loop import train_member
from training.monitor import Monitor
from training.steps import StepRule
from utils.errors import TrainingError
from utils.seeding import generator, seeded
from utils.settings import Range, setting
from utils.trees import Tree


class NormRule(StepRule):
    """Batch normalisation that stays as the first task has left it, if asked to."""

    frozen = False

    def begin(self, net: MultiHead) -> None:
        for module in net.modules():
            if isinstance(module, BatchNorm):
                module.train(not self.frozen)
                for parameter in module.parameters():
                    parameter.requires_grad_(not self.frozen)


class SingleNet(Method):
    """A trunk that every task goes on training, and a head per task.

    Only the heads of the tasks that an episode trains on are in that episode's network: the others have
    no gradient, no momentum and no weight decay.

    The setting `bn` says what batch normalisation does, which all tasks share: `shared` follows the newest
    task; `freeze_after_first` stays, statistics and weights, as the first task has left it; `per_task`
    keeps a copy for each task. A method whose trunk differs from task to task in more than that says so in `own`.
    """

    @dataclass(frozen=True)
    class Settings:
        """Of the method, see config/method/."""

        bn: str = setting(
            ("shared", "per_task", "freeze_after_first"),
            "what batch normalisation does, see the class",
        )

    modes: ClassVar[frozenset[str]] = frozenset({"continual"})
    saved_attributes: ClassVar[tuple[str, ...]] = ("_heads", "_sizes", "_norms", "_seen")

    def __init__(self, setting: Context) -> None:
        super().__init__(setting)
        self._trunk: nn.Module | None = None
        self._heads: dict[int, tuple[Tensor, Tensor]] = {}  # weight [C, D] and bias [C], by `_head_of` a task
        self._sizes: dict[int, int] = {}  # number of outputs of each task
        self._norms: dict[int, dict[str, Tensor]] = {}  # batch normalisation of each task, with bn: per_task
        self._seen: list[int] = []  # no more of a task than its number outlives its episode

    # What methods differ in.

    def rule(self, task: Task) -> NormRule:
        """What is done in every step while a task is learned."""
        return NormRule()

    def heads_with(self, task: Task) -> list[int]:
        """Tasks whose heads are trained, or needed, together with a new one."""
        return [task.id]

    def past(self, task: Task) -> Replays | Joined | None:
        """Batches of past tasks, one for every step."""
        return None

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        """The task has been learned; returns how many gradients of single examples this took."""
        return 0

    def task_weights(self, task_id: int) -> TaskWeights:
        """What of the trunk is not the newest where the task is answered."""
        return self._norms.get(task_id, {})

    # What they share.

    def trial_rule(self, task: Task) -> StepRule:
        """The rule of the first task, on a network of its own."""
        return self.rule(task)

    def common(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of values by name of the parameter, those of parameters that all tasks have in common."""
        own = norm_state(self._trunk) if self._norms and self._trunk is not None else {}
        return {name: value for name, value in values.items() if name not in own}

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        """Train the network on the new task."""
        (task,) = episode.new
        name = ("member", episode.number - 1)
        with seeded(self.config.seed, *name):
            net = self.network(self.heads_with(task), {task.id: task.num_outputs})
            if not self._seen:
                self.untrained = {task.id: self.ask(net, task.id, task.test, "the untrained network")}
            rule = self.rule(task)
            rule.frozen = self.settings.bn == "freeze_after_first" and bool(self._seen)
            try:
                stats = train_member(
                    net, [(task.id, task.train)], self.spec, self.recipe, self.compute, self.config.seed, name,
                    monitor, rule=rule, past=self.past(task),
                    checkpoints=self.checkpoints,
                )  # fmt: skip
            except TrainingError as error:
                raise TrainingError(f"episode {episode.number} (task {task.id}): {error}") from None
        self._keep_heads(net)
        self._seen.append(task.id)
        if self.settings.bn == "per_task":
            self._norms[task.id] = {name: value.clone() for name, value in norm_state(net.trunk).items()}
        stats = replace(stats, gradients=stats.gradients + self.after(task, net, rule))
        seen = tuple(self._seen)
        number, net = episode.number - 1, self.network(seen)
        own = {task_id: self.task_weights(task_id) for task_id in seen}
        member = Member(number, episode.number, seen, net, (1.0,) * len(seen), replaces=True, task_weights=own)
        for task_id in seen:
            member.predictions[task_id, "test"] = self._asked(task_id, self.test_inputs[task_id], episode.number)
        self.new_members = [member]
        return Learned((task.id,), {}, stats, changed=seen)

    def answer(self, task: Task) -> Tensor:
        """Predictions of the network as the last episode has left it. [N, C]"""
        if self.new_members:
            return self.new_members[-1].predictions[task.id, "test"]
        return self._asked(task.id, task.test, len(self._seen))

    def _asked(self, task_id: int, examples: Examples, episode: int) -> Tensor:
        net = self.network([task_id])
        with net.for_task(self.task_weights(task_id)):
            return self.ask(net, task_id, examples, f"episode {episode} (task {task_id})")

    def state_dict(self) -> dict[str, Tree]:
        assert self._trunk is not None
        return {**super().state_dict(), "trunk": dict(self._trunk.state_dict())}

    def load_state_dict(self, state: Mapping[str, Tree], episodes: Sequence[Episode]) -> None:
        super().load_state_dict(state, episodes)
        with torch.random.fork_rng(devices=[]):
            self.network([], self._sizes)
        assert self._trunk is not None
        self._trunk.load_state_dict(state["trunk"])

    def storage(self) -> Storage:
        """One network; what a method needs beside it is added by the method."""
        heads = sum(weight.numel() + bias.numel() for weight, bias in self._heads.values())
        trunk = count_parameters(self._trunk) if self._trunk is not None else 0
        norms = sum(value.numel() for state in self._norms.values() for value in state.values())
        return Storage(*self.memory.size(), trunk + heads + norms, 1.0, trunk + heads // max(1, len(self._heads)))

    def network(self, tasks: Sequence[int], new: Mapping[int, int] | None = None) -> MultiHead:
        """The trunk, shared by all networks made here, with the heads of some tasks.

        Args:
            new: width of the head of tasks that have none yet.
        """
        sizes = {task: self._sizes[task] for task in tasks if task in self._sizes} | dict(new or {})
        if self._trunk is None:
            net = self.new_network(sizes)
            self._trunk = net.trunk
            return net
        features = next(iter(self._heads.values()))[0].shape[1]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            net = MultiHead(self._trunk, features, sizes, self.spec.heads)
            for task in new or {}:
                # The same, however many other heads the network has.
                bound = 1 / math.sqrt(features)
                net.weight[net.rows(task)].uniform_(-bound, bound, generator=generator(self.config.seed, "head", task))
            net.to(self.compute.device)
            for task in sizes:
                if (head := self._head_of(task)) in self._heads:
                    net.weight[net.rows(task)], net.bias[net.rows(task)] = self._heads[head]
        return net

    def _head_of(self, task: int) -> int:
        """The number of a task's head: that of the task, or 0 for the one of all tasks."""
        return task if self.spec.heads == "task" else 0

    def _keep_heads(self, net: MultiHead) -> None:
        self._sizes.update(net.head_sizes)
        for task in net.head_sizes:
            rows = net.rows(task)
            self._heads[self._head_of(task)] = net.weight.detach()[rows].clone(), net.bias.detach()[rows].clone()


class ReplayNet(SingleNet):
    """A single network that keeps some examples of past tasks.

    The memory is filled when an episode ends: while a task is learned all its examples are at hand, so
    what is replayed is of past tasks only. `memory` or `memory_per_class` of the command line wins over the
    setting `memory_per_class`.
    """

    options = frozenset({"memory", "memory_per_class"})

    # Statistics of a batch with several tasks belong to none of them.
    @dataclass(frozen=True)
    class Settings(SingleNet.Settings):
        """Of the method, see config/method/."""

        bn: str = setting(("shared", "freeze_after_first"), "what batch normalisation does, see SingleNet")
        memory_per_class: int = setting(Range(1), "examples of each class of each past task that are kept")
        buffer: str = setting(
            ("balanced", "reservoir"),
            "as many of each class, or every example seen equally likely",
        )
        replay_batch: int = setting(Range(1, 65536), "replayed examples in every step")

    def budget(self) -> Budget:
        total, per_class = self.config.memory, self.config.memory_per_class
        if total is None and per_class is None:
            per_class = self.settings.memory_per_class
        return Budget(total=total, per_class=per_class)

    def heads_with(self, task: Task) -> list[int]:
        return [*self.memory.tasks, task.id]

    def past(self, task: Task) -> Replays | Joined | None:
        if not self.memory.tasks:
            return None
        rng = generator(self.config.seed, "member", len(self._seen), "replay")
        size = self.settings.replay_batch
        return Replays(self.memory.mixture(), self.spec, size, rng, augment=self.recipe.augments)

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        self.memory.add(task)
        return 0


def norm_state(trunk: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics of batch normalisation, by name."""
    return {
        f"{name}.{key}": value
        for name, module in trunk.named_modules()
        if isinstance(module, BatchNorm)
        for key, value in module.state_dict(keep_vars=False).items()
    }
