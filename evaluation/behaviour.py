"""What a network answers to the questions of documents."""

import torch

from datasets.objectives import Scores
from datasets.task import Task
from evaluation.bootstrap import averages
from evaluation.subject import Subject, schema_lacks
from net.multihead import MultiHead
from training.prediction import outputs_on


@torch.no_grad()
def behaviour(subject: Subject) -> Scores:
    """Accuracy, probability and logit of the right answer, and how far the network is from the exact distribution.

        KL = sum_a p(a | document) (log p(a | document) - log q(a))

    p is that of the schema, which knows the tree of a sentence, and q the network's; means over documents.
    """
    examples = subject.task.test
    assert examples.schema is not None  # see `obstacle`
    schema, columns = examples.schema.rows(examples.rows), list[torch.Tensor]()
    parts = outputs_on(subject.net, subject.task.id, examples, subject.spec, subject.compute)
    start = 0
    for part in parts:
        here = slice(start, start := start + len(part))
        outputs = part.squeeze(1).to(torch.promote_types(part.dtype, torch.float32))
        logs, right = outputs.log_softmax(-1), examples.targets[here]
        exact = schema.probabilities[here].to(logs.dtype)
        ratio = exact.clamp_min(torch.finfo(exact.dtype).tiny).log() - logs.gather(1, schema.answers[here])
        hits = outputs.argmax(-1) == right.squeeze(1)
        probability, logit = logs.gather(1, right).exp(), outputs.gather(1, right)
        kl = (exact * ratio).sum(-1)  # an answer of probability 0 adds 0
        columns.append(torch.stack([hits.to(logs.dtype), probability.squeeze(1), logit.squeeze(1), kl]))
    return averages(dict(zip(("accuracy", "probability", "logit", "kl"), torch.cat(columns, 1), strict=True)))


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked about a task; "" if it can."""
    return schema_lacks(task)
