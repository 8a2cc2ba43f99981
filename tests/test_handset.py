"""Networks with weights written down recall by the mechanism that they are built for."""

from functools import partial

import pytest
import torch

from datasets.synthetic.associative_recall import AssociativeRecall
from datasets.synthetic.language import FIRST_SYMBOL
from net.sequences.handset import direct, induction
from net.sequences.sites import Write, run
from utils.errors import UserError

COUNT, SITE = 64, "blocks.1.input"
NETWORKS = {
    "induction": induction,
    "direct": direct,
    "direct late": partial(direct, idle=1),
}


def drawn(ask, spare=0):
    """Documents of one to six pairs with the position that is asked about, and `spare` positions behind them."""
    language = AssociativeRecall(AssociativeRecall.Settings(symbols=20, pairs=6, fewest_pairs=1, ask=ask))
    rng = torch.Generator().manual_seed(0)
    documents = language.draw(COUNT, rng, withheld=False)
    tokens = torch.nn.functional.pad(documents.tokens, (0, spare))
    return language, documents, torch.cat([tokens, documents.asked.unsqueeze(1)], 1), rng


def made(name, language, ask, spare=0):
    return NETWORKS[name](language.longest + spare, FIRST_SYMBOL + language.symbols, ask=ask).trunk


def right(outputs, documents):
    """The probability of the answer."""
    return outputs[:, 0].softmax(-1).gather(1, documents.right.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("ask", ["key", "value"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_they_are_always_right(name, ask):
    for spare in (0, 3):
        language, documents, inputs, _ = drawn(ask, spare)
        assert right(made(name, language, ask, spare)(inputs), documents).min() > 0.999


# Where the original query is known at the input of layer 1. A network of induction that is asked for what is before a
# value finds the value itself, at which the key is known already.
KNOWN = {
    ("induction", "key"): ("target", "target"),
    ("induction", "value"): ("original_query", "original_query"),
    ("direct", "key"): ("query", "target"),
    ("direct", "value"): ("query", "target"),
    ("direct late", "key"): ("original_query", "target"),
    ("direct late", "value"): ("original_query", "target"),
}


@pytest.mark.parametrize(("name", "ask"), KNOWN)
@torch.no_grad()
def test_what_moves_where(name, ask):
    """One token is replaced, and one position before layer 1 is given back what it was: does the answer come back?"""
    language, documents, inputs, rng = drawn(ask)
    net, rows = made(name, language, ask), torch.arange(COUNT)
    clean = run(net, inputs, read=[SITE]).activations[SITE]
    for item, known in zip(("original_query", "target"), KNOWN[name, ask], strict=True):
        corrupted = inputs.clone()
        corrupted[rows, documents.positions[item]] = language.replacements(documents, rng)[item]
        assert right(net(corrupted), documents).max() < 0.001
        for place in ("original_query", "target", "divider", "query"):
            positions = documents.positions[place]
            write = {SITE: Write(clean[rows, positions], rows, positions)}
            restored = right(run(net, corrupted, write=write).outputs, documents)
            assert (restored > 0.999).all() if place == known else (restored < 0.001).all()


@pytest.mark.parametrize("make", [induction, direct])
def test_what_can_be_asked(make):
    with pytest.raises(UserError, match="ask is 'answer'; it must be key or value"):
        make(9, 10, ask="answer")
