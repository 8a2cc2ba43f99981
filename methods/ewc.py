"""Elastic weight consolidation: parameters that mattered for past tasks are held back by springs.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017; the online form is that of
Schwarz et al., "Progress & Compress", ICML 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from datasets.mixture import Mixture
from datasets.objectives import Objective
from datasets.task import Task
from methods.base import Requirements
from methods.single import NormRule, SingleNet, shared_parameters
from net.multihead import MultiHead, grown
from training.batches import Batch
from training.recipe import Recipe
from utils.errors import UserError
from utils.seeding import generator
from utils.settings import Range, setting

_AT_ONCE = 16  # examples whose gradients are held together
Values = dict[str, Tensor]  # by name of the parameter


@torch.no_grad()  # the gradients themselves are not to be differentiated
def fisher(net: MultiHead, inputs: Tensor, targets: Tensor, task_id: int, form: str, rng: torch.Generator) -> Values:
    """Diagonal of the Fisher information of the parameters that tasks share: mean squared gradients over examples.

        exact      F_i = 1/N sum_x sum_y p(y|x) (d log p(y|x) / d theta_i)^2
        sample     one y per x, drawn from p(y|x)
        empirical  y is the target

    `inputs`, [N, *input], are preprocessed; `targets`, [N], are class numbers. The network is put in test mode: batch
    normalisation uses its running statistics.

    Source: Kirkpatrick et al. (2017), eq. 3; on the forms: van de Ven (2025), arXiv 2502.11756.
    """
    net.eval()
    classes = net.head_sizes[task_id]
    parameters = {name: parameter.detach() for name, parameter in shared_parameters(net).items()}

    def log_likelihood(chosen: Values, image: Tensor, label: Tensor) -> Tensor:
        ids = torch.full((1,), task_id, device=image.device)
        outputs = functional_call(net, chosen, (image[None], ids))
        return F.log_softmax(outputs[0, :classes].float(), 0).gather(0, label[None])[0]

    gradients = vmap(grad(log_likelihood), in_dims=(None, 0, 0), randomness="error")
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for images, labels in zip(inputs.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True):
        ids = torch.full((len(images),), task_id, device=images.device)
        likelihoods = net(images, ids)[:, :classes].float().softmax(1)
        weighted = [(labels, torch.ones(len(images), device=images.device))]
        if form == "exact":
            weighted = [(torch.full_like(labels, label), likelihoods[:, label]) for label in range(classes)]
        elif form == "sample":
            drawn = torch.multinomial(likelihoods.cpu(), 1, generator=rng).flatten()
            weighted = [(drawn.to(labels.device), weighted[0][1])]
        for label, weights in weighted:
            for name, value in gradients(parameters, images, label).items():
                total[name] += torch.einsum("n,n...->...", weights, value.square())
    return {name: value / len(inputs) for name, value in total.items()}


class Springs(NormRule):
    """Adds the penalty  strength/2 sum_i (F_i theta_i^2 - 2 G_i theta_i)  to the loss.

    With F (`stiffness`) the sum of all past tasks' F_k and G (`pull`) that of F_k theta*_k, this is up to a constant
    strength/2 sum_k sum_i F_ki (theta_i - theta*_ki)^2, at a cost that does not grow with the tasks.

    With `proximal` it is not differentiated; a proximal step follows each step of the optimizer, which led to theta':

        theta <- argmin  penalty(theta) + |theta - theta'|^2 / (2 h) = (theta' + h strength G) / (1 + h strength F)

    with h = rate / (1 - momentum), the learning rate that momentum adds up to, so that both have the same stationary
    points (forward-backward splitting, Combettes & Wajs 2005). A gradient step of the penalty would diverge once
    rate * strength * F exceeds about 2, as sums over tasks do sooner or later. Without `proximal` the gradient of the
    penalty is added to that of the loss, as in the paper, for any optimizer.
    """

    def __init__(self, strength: float, stiffness: Values, pull: Values, proximal: bool = True) -> None:
        self.strength, self.stiffness, self.pull, self.proximal = strength, stiffness, pull, proximal

    def begin(self, net: MultiHead) -> None:
        super().begin(net)
        held = {name: p for name, p in shared_parameters(net).items() if name in self.stiffness}
        self._parameters: list[Tensor] = list(held.values())
        self._stiffness = [grown(self.stiffness[name], p) * self.strength for name, p in held.items()]
        self._pull = [grown(self.pull[name], p) * self.strength for name, p in held.items()]

    @torch.no_grad()
    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        if self._parameters and not self.proximal:
            force = torch._foreach_mul(self._stiffness, [p.detach() for p in self._parameters])
            torch._foreach_sub_(force, self._pull)
            torch._foreach_add_([p.grad for p in self._parameters if p.grad is not None], force)

    @torch.no_grad()
    def finish(self, net: MultiHead, rate: float | Tensor) -> None:
        if not self._parameters or not self.proximal:
            return
        h = rate / (1 - self.recipe.momentum)
        torch._foreach_add_(self._parameters, torch._foreach_mul(self._pull, h))
        torch._foreach_div_(self._parameters, torch._foreach_add(torch._foreach_mul(self._stiffness, h), 1.0))


def proximal(settings: Any, recipe: Recipe) -> bool:
    """Whether the penalty is minimised in proximal steps; UserError if the optimizer does not allow it."""
    if settings.penalty == "proximal" and recipe.optimizer != "sgd":
        raise UserError(f"settings.penalty: proximal needs the optimizer sgd, not {recipe.optimizer}; make it gradient")
    return bool(settings.penalty == "proximal")


PENALTIES = ("proximal", "gradient")


class EWC(SingleNet):
    """Elastic weight consolidation: one spring per past task and parameter."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(SingleNet.Settings):
        strength: float = setting(Range(0, whole=False), "lambda of eq. 3")
        penalty: str = setting(PENALTIES, "how it is minimised, see Springs", default="proximal")
        fisher: str = setting(("exact", "sample", "empirical"), "which labels the Fisher information is of")
        fisher_examples: int = setting(Range(1), "training examples that it is measured on")

    requires = Requirements(classes=True)  # the Fisher information is that of a distribution over classes
    saved_attributes = (*SingleNet.saved_attributes, "importance", "_pull")

    importance: Values  # of the shared parameters, summed over tasks
    _pull: Values

    def rule(self) -> NormRule:
        held = self.common(self.importance), self.common(self._pull)
        return Springs(self.settings.strength, *held, proximal(self.settings, self.recipe))

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        rng = generator(self.config.seed, "fisher", task.id)
        chosen = torch.randperm(len(task.train_eval), generator=rng)[: self.settings.fisher_examples]
        data = Mixture([(task.id, task.train_eval.subset(chosen))])
        inputs = self.spec.preprocess(data.inputs(slice(0, len(chosen))))
        found = fisher(net, inputs, data.targets, task.id, self.settings.fisher, rng)
        self.consolidate(found, shared_parameters(net))
        return len(chosen) * (task.num_outputs if self.settings.fisher == "exact" else 1)

    def consolidate(self, found: Values, place: Mapping[str, Tensor]) -> None:
        """Add the springs of a task with Fisher information `found`, at rest at the parameters `place`."""
        for name, value in found.items():
            pull = value * place[name].detach()
            self.importance[name] = grown(self.importance.get(name), value) + value
            self._pull[name] = grown(self._pull.get(name), value) + pull

    def extra_parameters(self) -> int:
        """Importance and pull: two values a parameter."""
        return sum(value.numel() for value in [*self.importance.values(), *self._pull.values()])


class OnlineEWC(EWC):
    """Online EWC: one spring per parameter, at rest at the last task's end; earlier tasks' stiffness decays.

    F~_t = decay F~_{t-1} + F_t,   penalty  strength/2 sum_i F~_{t-1,i} (theta_i - theta*_{t-1,i})^2
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(EWC.Settings):
        decay: float = setting(Range(0, 1, whole=False), "of the springs, with every task")

    def consolidate(self, found: Values, place: Mapping[str, Tensor]) -> None:
        for name, value in found.items():
            self.importance[name] = self.settings.decay * grown(self.importance.get(name), value) + value
            self._pull[name] = self.importance[name] * place[name].detach()
