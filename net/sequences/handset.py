"""Networks of two layers of attention with weights written down, which recall by a known mechanism.

Their residual stream is made of subspaces with a direction for each token or each position, and each layer adds one
such direction: the squared norm of the stream is 2 before the first layer and grows by one in each that is not idle,
so that what RMS norm multiplies with is known. An attention layer has the keys k = u, the normalised stream itself:

    score(t, s) = (M u_t + b) . u_s / sqrt(d)

They are the positive controls of evaluations that ask how a network recalls.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from net import build_net
from net.multihead import MultiHead
from net.sequences.mixers.attention import Attention
from net.sequences.model import SequenceModel
from utils.errors import UserError

_SCORE = 60.0  # of a key that is looked for; where there is none, the first position has half of it: others get e^-30
_LOGIT = 30.0  # of the answer; that of other tokens is 0
_ASKED = {"key": 1, "value": -1}  # from what is asked about to the answer, in positions

Place = Mapping[str, slice]  # of the subspaces


def induction(length: int, vocabulary: int, ask: str = "key") -> MultiHead:
    """An induction network, in test mode, of one task, 1: documents of `length` tokens and the position asked about.

    Layer 0 adds to each position the token before it. In layer 1 the query looks for the position whose token before is
    the query's, and copies the token there; with `ask` = "value" for the earlier position with the query's own token,
    and it copies the token before.

    UserError if `ask` is neither key nor value. Source of the mechanism: Olsson et al., "In-context learning and
    induction heads" (2022).
    """
    _checked(ask)
    net, place = _blank({"token": vocabulary, "position": length, "before": vocabulary, "output": vocabulary}, 2)
    first, second = _mixers(net)
    _attend(first, 2, _shifted(place, "position", -1), _copied(place, "token", "before"))
    if ask == "key":
        look, copy = _matched(place, "token", "before"), _copied(place, "token", "output")
    else:
        look, copy = _same_token(place), _copied(place, "before", "output")
    _attend(second, 3, look, copy, default=place["position"].start)
    return net


def direct(length: int, vocabulary: int, ask: str = "key", idle: int = 0) -> MultiHead:
    """A network of direct retrieval, in test mode, of one task, 1: documents of `length` tokens and the position asked.

    After `idle` layers that do nothing, the query looks for the earlier position with its own token, and copies which
    it is; in the next layer it looks for the position after that (with `ask` = "value" before it), and copies the token
    there. At the input of layer 1 the query knows that position without idle layers; with one, nothing has moved.

    UserError if `ask` is neither key nor value. Source of the mechanism: Arora et al. (2025), section 4.
    """
    _checked(ask)
    sizes = {"token": vocabulary, "position": length, "found": length, "output": vocabulary}
    net, place = _blank(sizes, idle + 2)
    first, second = _mixers(net)[idle:]
    start = place["position"].start
    _attend(first, 2, _same_token(place), _copied(place, "position", "found"), default=start)
    _attend(second, 3, _shifted(place, "found", _ASKED[ask]), _copied(place, "token", "output"), default=start)
    return net


def _checked(ask: str) -> None:
    if ask not in _ASKED:
        raise UserError(f"ask is {ask!r}; it must be key or value")


def _blank(sizes: Mapping[str, int], layers: int) -> tuple[MultiHead, Place]:
    """A network whose layers do nothing, and where its subspaces of these sizes are; it reads out the last one."""
    ends = torch.tensor(list(sizes.values())).cumsum(0).tolist()
    place = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
    width, vocabulary, length = ends[-1], sizes["token"], sizes["position"]
    settings = SequenceModel.Settings(
        width=width, layers=layers, mixers=(Attention.Settings("attention"),), state_mixer="none", norm="rms",
        positions=True, tied=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        net = build_net("sequence", (length + 1,), settings, {1: vocabulary}, "identity", 1)
    weights = dict(net.trunk.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            weight.fill_("norm" in name)
        weights["embed.weight"][:, place["token"]] = torch.eye(vocabulary)
        weights["positions"][:, place["position"]] = torch.eye(length)
        answer = _LOGIT / _scale(width, 4)  # two layers have added to the stream where it is read out
        weights["unembed.weight"][:, place["output"]] = answer * torch.eye(vocabulary)
    return net.eval(), place


def _mixers(net: MultiHead) -> Sequence[Attention]:
    return [block.mixer for block in net.trunk.blocks]  # type: ignore[union-attr]


def _scale(width: int, squared: int) -> float:
    """What RMS norm multiplies a stream of that squared norm with."""
    return math.sqrt(width / squared)


@torch.no_grad()
def _attend(mixer: Attention, squared: int, look: Tensor, copy: Tensor, default: int | None = None) -> None:
    """Weights with which a layer looks for keys and copies values; `default`: a direction that is looked for, by half.

    `squared`: the squared norm of the stream before the layer.
    """
    width, scale = mixer.width, _scale(mixer.width, squared)
    unit = _SCORE * math.sqrt(width) / scale
    mixer.qkv_proj.weight.copy_(torch.cat([unit / scale * look, torch.eye(width), copy / scale]))
    if default is not None:
        mixer.qkv_proj.bias[default] = unit / 2
    mixer.out_proj.weight.copy_(torch.eye(width))


def _zeros(place: Place) -> Tensor:
    width = max(part.stop for part in place.values())
    return torch.zeros(width, width)


def _copied(place: Place, source: str, into: str) -> Tensor:
    """The map of the stream that moves one subspace into another one of the same size."""
    found, size = _zeros(place), place[source].stop - place[source].start
    found[place[into], place[source]] = torch.eye(size)
    return found


_matched = _copied  # a query with a direction of one subspace looks for keys with the same one of the other


def _shifted(place: Place, source: str, step: int) -> Tensor:
    """A query that knows a position looks for the one `step` positions after it."""
    found, size = _zeros(place), place[source].stop - place[source].start
    found[place["position"], place[source]] = torch.diag(torch.ones(size - abs(step)), -step)
    return found


def _same_token(place: Place) -> Tensor:
    """A query looks for other positions with its own token: what it gains by the token it loses at itself twice."""
    return _copied(place, "token", "token") - 2 * _copied(place, "position", "position")
