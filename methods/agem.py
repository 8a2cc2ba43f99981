"""A-GEM and MEGA: the gradient of the new task is turned towards that of a batch of past tasks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from datasets.objectives import Objective
from methods.single import NormRule, ReplayNet
from net.multihead import MultiHead
from training.batches import Batch
from training.optimizers import trained_parameters

Gradient = Sequence[Tensor]


def dot(one: Gradient, other: Gradient) -> Tensor:
    """Scalar product over all parameters, float32."""
    products = torch._foreach_mul(list(one), list(other))
    return torch.stack([product.sum(dtype=torch.float32) for product in products]).sum()


def project(gradient: Gradient, reference: Gradient, *losses: Tensor) -> tuple[Tensor, Tensor]:
    """Factors a, b of the gradient a g + b g_ref: g where g.g_ref >= 0, else its part at right angles to g_ref.

        g - (g.g_ref / g_ref.g_ref) g_ref   if g.g_ref < 0

    Chaudhry et al. (2019), "Efficient Lifelong Learning with A-GEM", eq. 11.
    """
    product, square = dot(gradient, reference), dot(reference, reference)
    factor = torch.where(product < 0, -product / square.clamp_min(torch.finfo(square.dtype).tiny), 0.0)
    return torch.ones_like(factor), factor


def rotate(gradient: Gradient, reference: Gradient, loss: Tensor, reference_loss: Tensor) -> tuple[Tensor, Tensor]:
    """Factors a, b of the gradient a g + b g_ref: g turned towards g_ref, further for a larger loss on past tasks.

    The angle phi from g maximises  l cos(phi) + l_ref cos(theta - phi), theta the angle between g and g_ref:
    tan(phi) = l_ref sin(theta) / (l + l_ref cos(theta)). The length stays that of g.

    Guo et al. (2020), "Improved Schemes for Episodic Memory-based Lifelong Learning" (MEGA-II), eq. 6 ff.
    """
    tiny = torch.finfo(torch.float32).tiny
    size, reference_size = dot(gradient, gradient).sqrt(), dot(reference, reference).sqrt()
    cosine = (dot(gradient, reference) / (size * reference_size).clamp_min(tiny)).clamp(-1, 1)
    sine = (1 - cosine**2).sqrt()
    angle = torch.atan2(reference_loss * sine, loss + reference_loss * cosine)
    # In the plane of g and g_ref: |g| (cos(angle) g/|g| + sin(angle) (g_ref/|g_ref| - cosine g/|g|) / sine).
    along = torch.where(sine > 1e-6, angle.sin() / sine.clamp_min(1e-6), 0.0)
    turned = torch.where(sine > 1e-6, angle.cos() - along * cosine, 1.0)
    return turned, along * size / reference_size.clamp_min(tiny)


class NewTaskLoss(NormRule):
    """The loss is that of the new task; replayed examples only change the gradient, see `adjust`."""

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        new, _ = batch.halves()
        self.new_loss = objective.loss(net(new.inputs, new.task_ids), new.targets)
        return self.new_loss

    def reference(self, net: MultiHead, past: Batch, objective: Objective) -> tuple[Tensor, Gradient]:
        """The loss on replayed examples, and its gradient."""
        with self.autocast():
            loss = objective.loss(net(past.inputs, past.task_ids), past.targets)
        return loss.detach(), torch.autograd.grad(loss, trained_parameters(net))


class Turned(NewTaskLoss):
    """The gradient g becomes a g + b g_ref: `factors` returns a, b from g, g_ref and the losses that they are of."""

    def __init__(self, factors: Callable[[Gradient, Gradient, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.factors = factors

    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        _, past = batch.halves()
        if not len(past):  # the memory is still empty
            return
        reference_loss, reference = self.reference(net, past, objective)
        gradient = [parameter.grad for parameter in trained_parameters(net) if parameter.grad is not None]
        a, b = self.factors(gradient, reference, self.new_loss.detach(), reference_loss)
        torch._foreach_mul_(gradient, a)
        torch._foreach_add_(gradient, torch._foreach_mul(list(reference), b))


class AGEM(ReplayNet):
    """Averaged gradient episodic memory (A-GEM)."""

    def rule(self) -> NormRule:
        return Turned(project) if self.replaying else NormRule()


class MEGA(ReplayNet):
    """Mixed stochastic gradients, second scheme (MEGA-II)."""

    def rule(self) -> NormRule:
        return Turned(rotate) if self.replaying else NormRule()
