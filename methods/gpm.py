"""Gradient projection memory: a layer's weights move only at right angles to the layer's inputs for past tasks.

Saha, Garg & Roy, "Gradient Projection Memory for Continual Learning", ICLR 2021.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.objectives import Objective
from datasets.task import Task
from methods.base import Requirements
from methods.single import NormRule, SingleNet
from methods.subnets import freeze_others
from net.multihead import MultiHead
from training.batches import Batch
from training.optimizers import trained_parameters
from training.prediction import predict_examples
from training.recipe import Recipe
from utils.seeding import generator
from utils.settings import Range, setting

Layer = nn.Conv2d | nn.Linear


def projectable(trunk: nn.Module) -> dict[str, Layer]:
    """Layers that apply one matrix to (patches of) their input, by name of their weight."""
    return {
        f"{name}.weight": module
        for name, module in trunk.named_modules()
        if isinstance(module, nn.Linear)
        or (type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros")
    }


def columns(layer: Layer, inputs: Tensor) -> Tensor:
    """The vectors that a layer's matrix, [out, d], is applied to: [d, n], one column per position of each example."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2).T
    assert not isinstance(layer.padding, str)
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    return patches.transpose(0, 1).flatten(1)


def extended(basis: Tensor, gram: Tensor, threshold: float) -> Tensor:
    """The basis with as few new directions as make it hold the share `threshold` of the energy of the inputs.

        |B'R|^2 >= threshold |R|^2   (squared Frobenius norms)

    `basis` is that of earlier tasks, orthonormal [d, r']; `gram` is R R', [d, d] float64, of the inputs R of the layer,
    see `columns`. Saha et al. (2021), eq. 5 and 9.
    """
    total = gram.trace()
    missing = threshold * total - (basis * (gram @ basis)).sum()
    if missing <= 1e-9 * total:
        return basis
    outside = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - basis @ basis.T
    rest = outside @ gram @ outside
    try:
        energy, directions = torch.linalg.eigh(rest)
        energy, directions = energy.flip(0).clamp_min(0), directions.flip(1)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # Some libraries' eigh does not converge on many zero rows, which come from channels that are always zero.
        directions, energy, _ = torch.linalg.svd(rest)
    more = int((energy.cumsum(0) < missing - 1e-9 * total).sum()) + 1
    # Orthonormal again: rounding errors must not add up over tasks.
    return torch.linalg.qr(torch.cat([basis, directions[:, :more]], 1)[:, : len(gram)]).Q


class Projected(NormRule):
    """Replaces the gradient g of each layer's matrix by g - (g B) B', B the layer's basis; the heads are free.

    Weight decay is added to the gradient before the projection: momentum sums projected gradients only, so that the
    step is at right angles to the basis, too.
    """

    def __init__(self, bases: Mapping[str, Tensor], l2_reg: float) -> None:
        self.bases, self.l2_reg = bases, l2_reg

    def begin(self, net: MultiHead) -> None:
        super().begin(net)
        layers = projectable(net.trunk)
        freeze_others(net.trunk, self.bases)
        self._pairs = [(layers[name].weight, basis) for name, basis in self.bases.items()]

    def adapt(self, recipe: Recipe) -> Recipe:
        return replace(recipe, l2_reg=0.0)

    @torch.no_grad()
    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        pairs = [(p.grad, p.detach()) for p in trained_parameters(net) if p.grad is not None]
        torch._foreach_add_([gradient for gradient, _ in pairs], [values for _, values in pairs], alpha=self.l2_reg)
        for weight, basis in self._pairs:
            assert weight.grad is not None
            matrix = weight.grad.flatten(1)
            weight.grad.sub_(((matrix @ basis) @ basis.T).view(weight.shape))


class GPM(SingleNet):
    """A single network; after each task the main directions of each layer's inputs are added to the layer's basis."""

    @dataclass(frozen=True)
    class Settings(SingleNet.Settings):
        bn: str = setting(("freeze_after_first", "per_task"), "with shared statistics inputs of old tasks would change")
        threshold: float = setting(
            Range(0, 1, whole=False, open_low=True), "share of the inputs' energy in the basis after task 1"
        )
        threshold_step: float = setting(Range(0, 1, whole=False), "added to the threshold with every task")
        basis_examples: int = setting(Range(1), "training examples of the task that are looked at")

    # Adam scales each value by itself, which turns the step out of the right angle.
    scenarios = frozenset({"task"})
    requires = Requirements(layers=(nn.Conv2d, nn.Linear), own_heads=True, optimizers=("sgd",))
    saved_attributes = (*SingleNet.saved_attributes, "bases")

    bases: dict[str, Tensor]  # [d, r], by name of the weight

    def rule(self) -> NormRule:
        return Projected(self.bases, self.recipe.l2_reg) if self.bases else NormRule()

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        rng = generator(self.config.seed, "basis", task.id)
        chosen = torch.randperm(len(task.train_eval), generator=rng)[: self.settings.basis_examples]
        threshold = min(1.0, self.settings.threshold + self.settings.threshold_step * (len(self.seen) - 1))
        layers = projectable(net.trunk)
        grams: dict[str, Tensor] = {}

        def add(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # In parts: patches take as much more memory than the input as the kernel has places.
            for part in inputs[0].detach().split(16):
                R = columns(layers[name], part.double())
                grams[name] = grams.get(name, 0) + R @ R.T

        hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
        predict_examples(net, task.id, task.train_eval.subset(chosen), self.spec, self.compute)  # `add` sees the inputs
        for hook in hooks:
            hook.remove()
        for name, gram in grams.items():
            basis = self.bases.get(name, gram.new_zeros(len(gram), 0))
            self.bases[name] = extended(basis.double(), gram, threshold).to(layers[name].weight.dtype)
        return 0

    def extra_parameters(self) -> int:
        """The bases."""
        return sum(basis.numel() for basis in self.bases.values())
