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


def choose_launch(
    net: MultiHead, task_id: int, source: TrainSource, spec: StreamSpec, recipe: Recipe, compute: Compute,
    no_graph_reason: str = "", rule: StepRule | None = None,
) -> tuple[Compute, str]:  # fmt: skip
    """The Compute to train with, and in words how steps are launched, "" where there is no choice.

    A few trial steps, which may change `net`, show whether steps on a CUDA device can be captured.
    """
    if compute.device.type != "cuda":
        return compute, ""
    rule, one_by_one = rule or StepRule(), "steps launched one operation at a time"
    if no_graph_reason:
        return compute, f"{one_by_one} ({no_graph_reason})"
    size, count = recipe.batch_size(len(source)), WARM_UP + 2
    trial, rng = replace(compute, captured=True), generator(0, "trial")
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
        reason = " ".join(str(error).split())[:120]
        return compute, f"{one_by_one} (a CUDA graph cannot hold one: {reason})"
    return trial, "steps launched as CUDA graphs"
