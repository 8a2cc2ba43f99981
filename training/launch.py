"""How training steps are launched: one operation at a time, or whole steps as CUDA graphs."""

from dataclasses import replace

from datasets.mixture import Mixture
from datasets.task import StreamSpec, TrainSource
from net.multihead import MultiHead
from training.batches import batches
from training.recipe import Recipe
from training.steps import WARM_UP, GradientSteps, StepRule
from utils.compute import Compute
from utils.seeding import generator

_FEW = 2  # examples: enough for every kind of network to take a step


def choose_launch(
    net: MultiHead, task_id: int, source: TrainSource, spec: StreamSpec, recipe: Recipe, compute: Compute,
    no_graph_reason: str = "", rule: StepRule | None = None,
) -> tuple[Compute, str]:  # fmt: skip
    """Take a trial step, and on a CUDA device find out whether such steps can be captured.

    Args:
        net: a trial network on the device; its weights may be changed.
        no_graph_reason: why the method's steps cannot be captured; "" if they can.
        rule: the method's rule for its first task.

    Returns:
        The Compute to train with, and a description of how steps are launched; "" where there is no choice.
    """
    on_gpu, rule = compute.device.type == "cuda", rule or StepRule()
    one_by_one = "steps launched one operation at a time"
    if on_gpu and no_graph_reason:
        return compute, f"{one_by_one} ({no_graph_reason})"
    # On a CPU the first step loads a second's worth of modules of torch, which is not training.
    size, count = (recipe.batch_size(len(source)), WARM_UP + 2) if on_gpu else (_FEW, 1)
    trial, rng = replace(compute, captured=on_gpu), generator(0, "trial")
    data = Mixture([(task_id, source.epoch(rng))])
    batch = next(batches(data, spec, size, rng, augment=False, count=size))
    try:
        with trial.training_stream():
            rule.begin(net.train())
            steps = GradientSteps(net, spec, recipe, trial, count, rule)
            for _ in range(count):
                steps(batch)
            steps.take_loss()
    except RuntimeError as error:
        if not on_gpu:
            raise
        reason = " ".join(str(error).split())[:120]
        return compute, f"{one_by_one} (a CUDA graph cannot hold one: {reason})"
    return trial, "steps launched as CUDA graphs" if on_gpu else ""
