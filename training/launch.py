"""How training steps are launched: one operation at a time, or whole steps as CUDA graphs."""

from __future__ import annotations

from dataclasses import replace

from datasets.mixture import Mixture
from datasets.task import StreamSpec, TrainSource
from net.multihead import MultiHead
from training.batches import batches
from training.optimizers import make_optimizer
from training.recipe import Recipe
from training.steps import WARM_UP, GradientSteps, Rule
from utils.compute import Compute
from utils.seeding import generator


def choose_launch(
    net: MultiHead, task_id: int, source: TrainSource, spec: StreamSpec, hyper: Recipe, compute: Compute,
    waits: str = "",
) -> tuple[Compute, str]:  # fmt: skip
    """Find out whether training steps of a network can be captured, by capturing one.

    Args:
        net: a trial network on the device; its weights may be changed.
        waits: why the method's steps cannot be captured, if so.

    Returns:
        What to run with, and how steps are launched, for people; "" where there is no choice.
    """
    if compute.device.type != "cuda":
        make_optimizer(net, hyper, hyper.lr)  # torch loads a second's worth of modules, which is not training
        return compute, ""
    if waits:
        return compute, f"steps launched one operation at a time ({waits})"
    captured, rng = replace(compute, captured=True), generator(0, "trial")
    data = Mixture([(task_id, source.epoch(rng))])
    try:
        with captured.training_stream():
            steps = GradientSteps(net.train(), spec, hyper, captured, WARM_UP + 2, Rule())
            for batch in batches(data, spec, hyper.batch, rng, augment=False):
                for _ in range(WARM_UP + 2):
                    steps(batch)
                break
            steps.take_loss()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        return compute, f"steps launched one operation at a time (a CUDA graph cannot hold one: {reason})"
    return captured, "steps launched as CUDA graphs"
