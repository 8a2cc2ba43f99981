"""GDumb: what a memory alone is worth.

Prabhu, Torr & Dokania, "GDumb: A Simple Approach that Questions Our Progress in Continual Learning", ECCV 2020.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from datasets.task import Episode, Table, TrainSource
from methods.bounds import Cumulative
from methods.config import KEPT
from methods.memory.audit import Budget, limited
from methods.memory.replay import ReplayMemory
from utils.settings import Range, setting


class GDumb(Cumulative):
    """Fills a memory that is balanced over classes; in every episode a new network is trained on the memory alone.

    It is trained by the recipe of the run: without the paper's restarts of the cosine, CutMix and clipped gradients.
    What is kept is repeated to about as many examples as the new task has, so that epochs are as long as elsewhere.
    A task of which nothing is kept any more is answered with the uninformed prediction.
    """

    @dataclass(frozen=True)
    class Settings:
        memory_per_class: int = setting(Range(1), "examples of each class of each task that are kept")
        buffer: str = setting(("balanced", "class_reservoir"), "which examples are kept, see ReplayMemory")

    options = Cumulative.options | KEPT.keys()

    def budget(self) -> Budget:
        return limited(self.config) or Budget(per_class=self.settings.memory_per_class)

    def new_memory(self) -> ReplayMemory:
        shared = self.spec.heads != "task"
        return ReplayMemory(self.budget(), self.config.seed, self.settings.buffer, shared_classes=shared)

    def sources(self, episode: Episode) -> Mapping[int, TrainSource]:
        for task in episode.new:
            self.memory.add(task)
        self.forget()
        repeat = max(1, sum(len(task.train) for task in episode.new) // self.memory.size()[0])
        # In the order of the task's own examples: a memory of all of them is trained on as Cumulative does.
        orders = {task: self.memory.positions[task].argsort() for task in self.memory.tasks}
        return {task: Table(self.memory.examples(task).subset(order), repeat) for task, order in orders.items()}
