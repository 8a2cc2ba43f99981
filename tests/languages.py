"""Documents of associative recall, and subjects that are asked about them."""

from dataclasses import replace

import torch

from datasets.objectives import Tokens
from datasets.synthetic.associative_recall import AssociativeRecall
from datasets.synthetic.language import FIRST_SYMBOL
from datasets.synthetic.languages import FreshDocuments
from datasets.task import Preprocess, StreamSpec, Table, Task
from evaluation.subject import Subject
from tests.toys import CPU


def language(**settings):
    return AssociativeRecall(AssociativeRecall.Settings(**{"symbols": 16, "pairs": 3, **settings}))


def sizes(spoken):
    """Tokens of a document, and how many different ones there are."""
    return spoken.longest, FIRST_SYMBOL + spoken.symbols


def task(spoken, count):
    documents = FreshDocuments(spoken, spoken.longest, False, count, torch.device("cpu")).frozen(count, 0, "test")
    return Task(1, "recall", sizes(spoken)[1], Table(documents), {"test": documents})


def subject(net, asked_about, **more):
    spec = StreamSpec("languages", (asked_about.test.store.shape[1],), Tokens(), Preprocess(), "identity", asked=1)
    return Subject(net.eval(), asked_about, spec, CPU, **more)


def without_schema(asked_about):
    return asked_about.with_splits(test=replace(asked_about.test, schema=None))
