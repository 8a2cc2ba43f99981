"""Answering without being told the task: which task an input is of, then which class.

What the heads of all tasks say about the same inputs -> a rule -> p(task), p(class) = p(task) p(class | task).

The scenarios are those of van de Ven, Tuytelaars & Tolias, "Three types of incremental learning", 2022:

    task-incremental     the task is told; which class of it?
    class-incremental    nothing is told; which class of which task?
    domain-incremental   nothing is told, and all tasks have the same classes; which class?
    task-identification  nothing is told; which task? (part of the class-incremental scenario)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.objectives import Objective, Scores, scores
from evaluation.measurements import CLASS_INCREMENTAL, DOMAIN_INCREMENTAL, TASK_IDENTIFICATION


@dataclass(frozen=True)
class Answer:
    """What the members that learned a task say about N inputs, of whatever task they are."""

    probabilities: Tensor  # [N, C]
    energy: Tensor  # [N] mean over members of log sum_c exp(output c)


def confidence(answer: Answer) -> Tensor:
    """log max_c p(c), [N]: the surest head has it (Hendrycks & Gimpel 2017)."""
    return answer.probabilities.amax(-1).log()


def entropy(answer: Answer) -> Tensor:
    """sum_c p(c) log p(c), [N], nats: the head with the lowest entropy has it."""
    return torch.special.xlogy(answer.probabilities, answer.probabilities).sum(-1)


def energy(answer: Answer) -> Tensor:
    """log sum_c exp(output c), [N], mean over members: the head with the largest outputs has it (Liu et al. 2020)."""
    return answer.energy


# How much speaks for a task. docs/using.md compares them.
ROUTINGS: dict[str, Callable[[Answer], Tensor]] = {"entropy": entropy, "confidence": confidence, "energy": energy}
DEFAULT_ROUTING = "entropy"


def task_log_probabilities(answers: Sequence[Answer], rule: str = DEFAULT_ROUTING) -> Tensor:
    """log p(task), [N, T]: softmax over the tasks of what speaks for each of them."""
    return torch.stack([ROUTINGS[rule](answer) for answer in answers], -1).double().log_softmax(-1)


def score_without_task(
    answers: Mapping[int, Answer], tasks: Tensor, targets: Tensor, *, same_classes: bool, rule: str = DEFAULT_ROUTING
) -> dict[str, dict[int, Scores]]:  # fmt: skip
    """Scores of answers for which the task was not told.

    The class is the likeliest one of the likeliest task; in the domain-incremental scenario the likeliest one of
    p(class) = sum_t p(t) p(class | t). `loss` is -log p of what is right, with p(task) the softmax of what the rule
    gives: it has no temperature, so `loss` and `ece` say less than the accuracy does.

    Args:
        answers: of each task that it can be, on the same N inputs.
        tasks, targets: the right ones, [N]; tasks that are not in `answers` are not scored.
        same_classes: whether all tasks of the stream have the same ones: there is a domain-incremental scenario.

    Returns:
        By scenario and task; the task-incremental scenario is not among them.
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
    # Of what is right, of what was answered, whether they are the same.
    measured = {
        TASK_IDENTIFICATION: (of_task[here, right], of_task[here, task], task == right),
        CLASS_INCREMENTAL: (
            of_task[here, right] * of_class[here, right, targets],
            of_task[here, task] * of_class[here, task, chosen],
            (task == right) & (chosen == targets),
        ),
    }  # fmt: skip
    if same_classes:
        whatever = torch.einsum("nt,ntc->nc", of_task.to(of_class.dtype), of_class)
        chosen = whatever.argmax(-1)
        measured[DOMAIN_INCREMENTAL] = whatever[here, targets], whatever[here, chosen], chosen == targets
    return {
        scenario: {number: found for number, found in zip(answers, scores(right, len(answers), *parts), strict=True)
                   if found is not None}
        for scenario, parts in measured.items()
    }  # fmt: skip


def answer_of(outputs: Tensor, objective: Objective) -> Answer:
    """What one network says, whose head of the task has these outputs, [N, C]."""
    energy = objective.energy(outputs)
    assert energy is not None
    return Answer(objective.predict(outputs), energy)


def unanswered(guess: Tensor) -> Answer:
    """The answer of a task that no member has learned: the uninformed prediction, [N, C], and no energy."""
    return Answer(guess, torch.full((len(guess),), -math.inf, device=guess.device))
