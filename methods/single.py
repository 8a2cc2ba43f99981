"""One network for all tasks: the base of finetuning and of the methods against forgetting."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.mixture import Mixture
from datasets.scenarios import SCENARIOS
from datasets.task import Episode, Examples, Table, Task, TrainSource
from evaluation.anytime import Moment
from evaluation.members import Learned, Member
from methods.base import Method, Storage, plain_scores, scores_from
from methods.config import KEPT
from methods.memory.audit import Budget, limited
from methods.memory.replay import BUFFERS, ReplayMemory
from methods.memory.slots import SlotReplays
from net import BatchNorm, count_parameters
from net.multihead import MultiHead, TaskWeights
from training.batches import Replays
from training.loop import Training, TrainingStats, arrival_order
from training.monitor import Monitor, Watch
from training.steps import StepRule
from utils.errors import TrainingError, UserError
from utils.seeding import generator, seeded
from utils.settings import Range, setting
from utils.trees import Tree

Heads = dict[int, tuple[Tensor, ...]]  # weight [C, D] and, if any, bias [C] by task, or at 0 those of all tasks


class NormRule(StepRule):
    """Trains batch normalisation, or with `frozen` keeps its weights and statistics."""

    frozen = False

    def begin(self, net: MultiHead) -> None:
        for module in net.modules():
            if isinstance(module, BatchNorm):
                module.train(not self.frozen).requires_grad_(not self.frozen)


class SingleNet(Method):
    """A trunk that is trained on one task after another, and a head per task.

    The network of an episode has only the heads that are trained in it: the others get no gradient, no momentum and
    no weight decay.

    The setting `bn` says what happens to batch normalisation, which all tasks share: `shared`: it follows the newest
    task; `freeze_after_first`: its statistics and weights stay as after the first task; `per_task`: each task keeps
    a copy. A method whose trunk differs from task to task in more than that overrides `task_weights`, and
    `weights_in_training` if the network in training does not show what the newest task uses.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        bn: str = setting(("shared", "per_task", "freeze_after_first"), "what batch normalisation does, see the class")
        outputs: str = setting(
            ("seen", "new", "all"), "with --scenario class, which outputs compete for a new example: classes seen, "
            "those of its task, or all of the stream", default="seen",
        )  # fmt: skip

    options: ClassVar[frozenset[str]] = frozenset({"evaluate_every"})
    modes: ClassVar[frozenset[str]] = frozenset({"continual"})
    scenarios: ClassVar[frozenset[str]] = frozenset(SCENARIOS)
    saved_attributes: ClassVar[tuple[str, ...]] = ("_heads", "_sizes", "_norms", "_optimizer")

    _trunk: nn.Module  # from the first task on
    _heads: Heads
    _sizes: dict[int, int]  # number of outputs of each task learned, in their order
    _optimizer: dict[str, Tree]  # its state by name of the parameter, with reset_optimizer: false
    _norms: dict[int, dict[str, Tensor]]  # batch normalisation of each task, with bn: per_task

    @property
    def seen(self) -> list[int]:
        """Ids of the tasks learned so far."""
        return list(self._sizes)

    # Methods override these.

    def rule(self) -> NormRule:
        return NormRule()

    def old_heads(self) -> Sequence[int]:
        """Past tasks whose heads are trained, too, while a new task is learned."""
        return ()

    def sources(self, task: Task) -> list[tuple[int, TrainSource]]:
        """What the network is trained on, by task, besides the batches of `past`."""
        return [(task.id, task.train)]

    @property
    def replaying(self) -> bool:
        """Whether kept examples are replayed while the next task is learned."""
        return bool(self.memory.tasks)

    def past(self, task: Task) -> Sequence[Replays]:
        """Batches of kept examples, one of each for every step; asked for only where there are such."""
        return ()

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        """Called when a task has been learned; returns how many gradients of single examples this took."""
        return 0

    def task_weights(self, task_id: int) -> TaskWeights:
        """The trunk's weights for a task where they differ from the newest ones."""
        return self._norms.get(task_id, {})

    def weights_in_training(self, rule: NormRule) -> TaskWeights:
        """The trunk's weights for the task that is being learned where they differ from the newest ones."""
        return {}

    def answering(self, tasks: Sequence[int]) -> MultiHead:
        """The network that answers some tasks; its trunk has the weights of `task_weights` while it is asked."""
        return self.network(tasks)

    def answering_now(self, net: MultiHead, rule: NormRule) -> MultiHead:
        """The network that would answer all tasks if training ended now; `net` is in training."""
        return self.network(self.seen, net.head_sizes, net)

    def extra_parameters(self) -> int:
        """Parameters that the method stores besides the network."""
        return 0

    # All methods share these.

    def common(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of values by name of the parameter, those of parameters that all tasks share."""
        own = next(iter(self._norms.values()), {})
        return {name: value for name, value in values.items() if name.removeprefix("trunk.") not in own}

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        """Train the network on the new task."""
        (task,) = episode.new
        name = ("member", episode.number - 1)
        with seeded(self.config.seed, *name):
            width = len(task.output_names) if self.settings.outputs == "all" else task.num_outputs
            net = self.network(self.old_heads(), {task.id: width})
            if not self.seen:
                self.untrained = {task.id: self.ask(net, task.id, task.test, "the untrained network")}
            past = self.past(task) if self.replaying else ()
            rule = self.rule()
            if self.settings.outputs == "new":
                net.restrict(task.id, task.train_eval.targets.unique())
            rule.frozen = self.settings.bn == "freeze_after_first" and bool(self.seen)
            try:
                training = Training(
                    net, self.sources(task), self.spec, self.recipe, self.compute, self.config.seed, name,
                    rule=rule, past=past, monitor=monitor, checkpoints=self.checkpoints, before=self._optimizer,
                    watch=self._watch(task, net, rule),
                )  # fmt: skip
                stats = training.complete()
            except TrainingError as error:
                raise TrainingError(f"episode {episode.number} (task {task.id}): {error}") from None
        net.restrict(task.id, None)
        if not self.recipe.reset_optimizer:
            goes_on = shared_parameters(net)
            self._optimizer = {name: s for name, s in training.optimizer_state().items() if name in goes_on}
        self.keep_heads(net)
        if self.settings.bn == "per_task":
            self._norms[task.id] = norm_state(net.trunk)
        stats = replace(stats, gradients=stats.gradients + self.after(task, net, rule))
        return self.learned(episode, stats, training.watched)

    def keep_heads(self, net: MultiHead) -> None:
        """Keep the heads of a network, whose tasks count as learned."""
        self._sizes.update(net.head_sizes)
        self._heads.update(self.heads_of(net))

    def learned(self, episode: Episode, stats: TrainingStats, watched: Iterable[tuple[int, int, Tree]] = ()) -> Learned:
        """The record of an episode that has ended: the network is asked about all tasks seen."""
        seen = tuple(self.seen)
        own = {other: self.task_weights(other) for other in seen}
        tested = {(other, "test"): self._asked(other, self.test_inputs[other], episode.number) for other in seen}
        net, weights = self.answering(seen), (1.0,) * len(seen)
        self.new_members = [Member(episode.number - 1, episode.number, seen, net, weights, True, tested, own)]
        moments = self._moments(watched, stats, tested)
        return Learned((episode.new[0].id,), {}, stats, changed=seen, moments=moments)

    def _watch(self, task: Task, net: MultiHead, rule: NormRule) -> Watch | None:
        """Asks the network in training about every task seen and the new one; None without --evaluate_every."""
        if (anytime := self.anytime) is None:
            return None
        own = {other: self.task_weights(other) for other in self.seen}
        inputs = {other: self.test_inputs[other].subset(anytime.chosen(other)) for other in [*own, task.id]}

        def ask() -> Tree:
            whole = self.answering_now(net, rule)
            found = {}
            for other, examples in inputs.items():
                with whole.for_task(own[other] if other in own else self.weights_in_training(rule)):
                    predictions = self.ask(whole, other, examples, f"asked about task {other} on the way")
                found[other] = anytime.scores(other, predictions)
            return plain_scores(found)

        return Watch(anytime.every, ask)

    def _moments(
        self, watched: Iterable[tuple[int, int, Tree]], stats: TrainingStats, tested: Mapping[tuple[int, str], Tensor]
    ) -> list[Moment]:
        """What was answered on the way, and at the end of the episode; nothing without --evaluate_every."""
        if (anytime := self.anytime) is None:
            return []
        end = {task: anytime.scores(task, found[anytime.chosen(task)]) for (task, _), found in tested.items()}
        on_the_way = [Moment(steps, examples, scores_from(found)) for steps, examples, found in watched]
        return [*on_the_way, Moment(stats.steps, stats.images, end)]

    def answer(self, task: Task) -> Tensor:
        """Predictions of the network after the last episode. [N, C]"""
        if self.new_members:
            return self.new_members[-1].predictions[task.id, "test"]
        return self._asked(task.id, task.test, len(self.seen))

    def _asked(self, task_id: int, examples: Examples, episode: int) -> Tensor:
        net = self.answering([task_id])
        with net.for_task(self.task_weights(task_id)):
            return self.ask(net, task_id, examples, f"episode {episode} (task {task_id})")

    def state_dict(self) -> dict[str, Tree]:
        return {**super().state_dict(), "trunk": dict(self._trunk.state_dict())}

    def load_state_dict(self, state: Mapping[str, Tree], episodes: Sequence[Episode]) -> None:
        super().load_state_dict(state, episodes)
        with torch.random.fork_rng(devices=[]):
            self._trunk = self.new_network(self._sizes).trunk
        self._trunk.load_state_dict(state["trunk"])

    def storage(self) -> Storage:
        """One network, and the method's extra parameters."""
        heads = sum(value.numel() for head in self._heads.values() for value in head)
        trunk = count_parameters(self._trunk)
        norms = sum(value.numel() for state in self._norms.values() for value in state.values())
        parameters = trunk + heads + norms + self.extra_parameters()
        return Storage(*self.memory.size(), parameters, 1.0, trunk + heads // len(self._heads))

    def network(
        self, tasks: Sequence[int], new: Mapping[int, int] | None = None, trained: MultiHead | None = None
    ) -> MultiHead:
        """A network of the one trunk, the heads of some tasks, and new heads of these widths by task.

        With `trained`, a network in training, its heads are taken as they are now.
        """
        sizes = {task: self._sizes[task] for task in tasks} | dict(new or {})
        if self.spec.heads == "growing":
            sizes = dict.fromkeys(sizes, max([*self._sizes.values(), *sizes.values()]))
        heads = self._heads if trained is None else {**self._heads, **self.heads_of(trained)}
        if not heads:
            net = self.new_network(sizes)
            self._trunk = net.trunk
            return net
        features = next(iter(heads.values()))[0].shape[1]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            net = MultiHead(self._trunk, features, sizes, self.spec.heads)
            for task, width in (new or {}).items():
                # From a stream of its own, so that it does not depend on the other heads.
                bound = net.head_bound(width)
                net.weight[net.rows(task)].uniform_(-bound, bound, generator=generator(self.config.seed, "head", task))
            net.to(self.compute.device)
        self.put_heads(net, heads)
        return net

    @torch.no_grad()
    def put_heads(self, net: MultiHead, heads: Heads) -> None:
        """Give a network these heads, of those of its tasks; others, and new outputs of a growing head, stay."""
        for task in net.head_sizes:
            if (head := self.head_of(task)) in heads:
                for value, kept in zip(net.head_values().values(), heads[head], strict=True):
                    value[net.rows(task).start :][: len(kept)] = kept

    def heads_of(self, net: MultiHead) -> Heads:
        """A copy of the heads of a network."""
        rows = {self.head_of(task): net.rows(task) for task in net.head_sizes}
        values = net.head_values().values()
        return {head: tuple(value.detach()[r].clone() for value in values) for head, r in rows.items()}

    def head_of(self, task: int) -> int:
        """The number of a task's head: the task's id, or 0 where all tasks share one."""
        return task if self.spec.heads == "task" else 0


class ReplayNet(SingleNet):
    """A single network that keeps some examples of past tasks.

    With `fill: after` the memory is filled at the end of an episode, so that only examples of past tasks are replayed;
    with `during` while examples arrive, in the first epoch, so that the memory does not depend on where a task ends.
    An option of the command line such as `memory` takes precedence over the setting `memory_per_class`.
    """

    options = SingleNet.options | KEPT.keys()

    # No `per_task`: the statistics of a batch of several tasks belong to none of them.
    @dataclass(frozen=True, kw_only=True)
    class Settings(SingleNet.Settings):
        bn: str = setting(("shared", "freeze_after_first"), "what batch normalisation does, see SingleNet")
        memory_per_class: int = setting(Range(1), "examples of each class of each past task that are kept")
        buffer: str = setting(BUFFERS, "which examples are kept, see ReplayMemory")
        fill: str = setting(("after", "during"), "when examples of a task are kept, see ReplayNet", default="after")
        replay_batch: Any = setting(Range(1, 65536), "replayed examples in every step")

    def budget(self) -> Budget:
        return limited(self.config) or Budget(per_class=self.settings.memory_per_class)

    def new_memory(self) -> ReplayMemory:
        order = self._arriving if self.during else None
        shared = self.spec.heads != "task"
        return ReplayMemory(self.budget(), self.config.seed, self.settings.buffer, order=order, shared_classes=shared)

    @property
    def during(self) -> bool:
        """Whether the memory is filled while examples arrive."""
        return bool(self.settings.fill == "during")

    def _arriving(self, task: Task) -> Tensor:
        return arrival_order(len(task.train_eval), self.recipe, self.config.seed, ("member", task.id - 1))

    @property
    def replaying(self) -> bool:
        return self.during or super().replaying

    def old_heads(self) -> Sequence[int]:
        return self.memory.tasks

    def past(self, task: Task) -> Sequence[Replays]:
        size = self.settings.replay_batch
        return [self.arriving(task, size) if self.during else self.replays(self.memory.mixture(), size)]

    def arriving(self, task: Task, size: int, *, noted: bool = False) -> Replays:
        """Batches of what the memory holds while the examples of a task arrive, see SlotReplays."""
        if not isinstance(task.train, Table):
            raise UserError("settings.fill: during needs tasks with a table of examples; these are drawn without end")
        batch, rng = self.recipe.batch_size(len(task.train)), self._replay_stream()
        return SlotReplays(
            *self.memory.arrivals(task), self.spec, batch, size, rng, augment=self.recipe.augments,
            repeat=self.recipe.steps_per_batch, noted=noted,
        )  # fmt: skip

    def _replay_stream(self, *name: object) -> torch.Generator:
        return generator(self.config.seed, "member", len(self.seen), "replay", *name)

    def replays(self, data: Mixture, size: int, *name: object, recorded: Tensor | None = None) -> Replays:
        """Batches of examples of past tasks for the next task; `name` extends that of their random stream."""
        rng = self._replay_stream(*name)
        return Replays(data, self.spec, size, rng, augment=self.recipe.augments, recorded=recorded)

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        self.memory.add(task)
        return 0


def shared_parameters(net: MultiHead) -> dict[str, Tensor]:
    """The trained parameters that all tasks share, by name: those of the trunk, and of a head that all tasks have."""
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    return {name: p for name, p in trained.items() if net.kind != "task" or name.startswith("trunk.")}


def norm_state(trunk: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and statistics of batch normalisation, by name."""
    norms = tuple(f"{name}." for name, module in trunk.named_modules() if isinstance(module, BatchNorm))
    return {name: value.clone() for name, value in trunk.state_dict().items() if name.startswith(norms)}
