"""Answering without the task: first the task of an input is identified, then its class.

Answers of the heads of all tasks to an input -> routing rule -> p(task); p(class) = p(task) p(class | task).

Heads that were trained with the task told are asked without it. This is not class- or domain-incremental learning,
where all tasks share a head (--scenario class, domain); only the questions are those of van de Ven, Tuytelaars &
Tolias, "Three types of incremental learning", 2022:

    routed-class         which class of which task?
    routed-domain        which class, where all tasks have the same ones: the likeliest of the likeliest task,
                         which is the answer of routed-class with a wrong task forgiven
    routed-domain-sum    the same, the likeliest class of sum_t p(t) p(class | t)
    task-identification  which task?
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.objectives import Objective, Scores, scores
from evaluation.measurements import ROUTED_CLASS, ROUTED_DOMAIN, ROUTED_DOMAIN_SUM, TASK_IDENTIFICATION


@dataclass(frozen=True)
class Answer:
    """Mean outputs of the members that learned a task, on N inputs that may be of other tasks."""

    probabilities: Tensor  # [N, C]
    energy: Tensor  # [N] mean over members of log sum_c exp(output c)


def confidence(answer: Answer, widest: int) -> Tensor:
    """log max_c p(c), [N], as a share of log C: chooses the most confident head (Hendrycks & Gimpel 2017)."""
    return answer.probabilities.amax(-1).log() * _unit(answer, widest)


def entropy(answer: Answer, widest: int) -> Tensor:
    """sum_c p(c) log p(c), [N], as a share of log C: chooses the head with the lowest entropy."""
    return torch.special.xlogy(answer.probabilities, answer.probabilities).sum(-1) * _unit(answer, widest)


def energy(answer: Answer, widest: int) -> Tensor:
    """log mean_c exp(output c), [N], mean over members: chooses the largest outputs (Liu et al. 2020)."""
    return answer.energy - math.log(answer.probabilities.shape[-1])


def _unit(answer: Answer, widest: int) -> float:
    """1 / log C, times log C of the widest task, so that nothing changes where all tasks have as many classes."""
    return math.log(max(2, widest)) / math.log(max(2, answer.probabilities.shape[-1]))


# The evidence for a task, from the answer of its C classes and the number of classes of the widest task. The uninformed
# answer is worth the same with any C: with fewer classes every answer has a lower entropy, also to unfamiliar inputs.
# docs/using.md compares the rules.
ROUTINGS: dict[str, Callable[[Answer, int], Tensor]] = {"entropy": entropy, "confidence": confidence, "energy": energy}
DEFAULT_ROUTING = "entropy"


def task_log_probabilities(answers: Sequence[Answer], rule: str = DEFAULT_ROUTING) -> Tensor:
    """log p(task), [N, T]: log-softmax over the tasks of the evidence for each of them."""
    widest = max(answer.probabilities.shape[-1] for answer in answers)
    return torch.stack([ROUTINGS[rule](answer, widest) for answer in answers], -1).double().log_softmax(-1)


def score_without_task(
    answers: Mapping[int, Answer], tasks: Tensor, targets: Tensor, *, same_classes: bool, rule: str = DEFAULT_ROUTING
) -> dict[str, dict[int, Scores]]:  # fmt: skip
    """Scores of the scenarios in which the task is not given, by scenario and task.

    The prediction is the likeliest class of the likeliest task; `loss` is -log p of the correct answer, and for
    routed-domain p is that of the likeliest task. The rule has no temperature, so p(task) is not
    calibrated, and `loss` and `ece` say less than the accuracy does.

    `answers` are those of the candidate tasks on the same N inputs, `tasks` and `targets` the correct ones, [N]; inputs
    of other tasks are not scored.
    """
    candidates = torch.tensor(list(answers), device=tasks.device)
    known = torch.isin(tasks, candidates)
    tasks, targets = tasks[known], targets[known]
    parts = [Answer(answer.probabilities[known], answer.energy[known]) for answer in answers.values()]
    widest = max(part.probabilities.shape[1] for part in parts)
    of_task = task_log_probabilities(parts, rule).exp()  # [N, T]
    of_class = torch.stack([F.pad(p.probabilities, (0, widest - p.probabilities.shape[1])) for p in parts], 1)
    here = torch.arange(len(tasks), device=tasks.device)
    right = (tasks.unsqueeze(-1) == candidates).int().argmax(-1)
    task = of_task.argmax(-1)
    chosen = of_class[here, task].argmax(-1)
    # By scenario: p(correct answer), p(prediction), and whether the prediction is correct.
    measured = {
        TASK_IDENTIFICATION: (of_task[here, right], of_task[here, task], task == right),
        ROUTED_CLASS: (
            of_task[here, right] * of_class[here, right, targets],
            of_task[here, task] * of_class[here, task, chosen],
            (task == right) & (chosen == targets),
        ),
    }  # fmt: skip
    if same_classes:
        summed = torch.einsum("nt,ntc->nc", of_task.to(of_class.dtype), of_class)
        for scenario, p in {ROUTED_DOMAIN: of_class[here, task], ROUTED_DOMAIN_SUM: summed}.items():
            measured[scenario] = p[here, targets], p.amax(-1), p.argmax(-1) == targets
    return {
        scenario: {number: found for number, found in zip(answers, scores(right, len(answers), *parts), strict=True)
                   if found is not None}
        for scenario, parts in measured.items()
    }  # fmt: skip


def answer_of(outputs: Tensor, objective: Objective) -> Answer:
    """The answer of a network from the outputs of the head of a task, [N, C]."""
    energy = objective.energy(outputs)
    assert energy is not None
    return Answer(objective.predict(outputs), energy)
