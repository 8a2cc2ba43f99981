"""Sites: activations with names, which can be read and overwritten while a network computes.

    found = run(net, inputs, read=["blocks.1.input"], write={"blocks.0.mixer.output": Write(values, rows, positions)})
    found.outputs, found.activations["blocks.1.input"]

Networks with sites have `sites()`, their names in the order in which they are computed, and `tapped(inputs, tap)`, the
forward pass in which each activation is replaced by tap(name, activation). Those of SequenceModel, [B, L, ...]:

    blocks.1.input                               the residual stream before the layer
    blocks.1.mixer.input, blocks.1.mixer.output  what the sequence mixer gets, and what it adds to the stream
    blocks.1.mixer.heads                         [B, L, H, d / H], what its heads have read, before they are joined
    blocks.1.state.input, blocks.1.state.output  the same of the state mixer, if there is one
    blocks.1.output                              the residual stream after the layer

Those of the transformer of attention alone are named alike; those of a recurrent network are its states, `states.3`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Tap = Callable[[str, Tensor], Tensor]


class Write(NamedTuple):
    """Values that replace those of a site: all of them, or those of some rows, or of some rows each at a position."""

    values: Tensor  # [B, L, ...], or of R rows [R, L, ...] or [R, ...]
    rows: Tensor | None = None  # [R] int64
    positions: Tensor | None = None  # [R] int64


class Ran(NamedTuple):
    """What a network computed."""

    outputs: Tensor
    activations: dict[str, Tensor]  # by site; of one that is overwritten, those that are there then


class HasSites(Protocol):
    """A network with sites."""

    def sites(self) -> tuple[str, ...]: ...

    def tapped(self, inputs: Tensor, tap: Tap) -> Tensor: ...


def run(
    net: HasSites, inputs: Tensor, read: Iterable[str] = (), write: Mapping[str, Write] | None = None
) -> Ran:  # fmt: skip
    """Outputs of a network, and the activations at the sites `read`, where `write` replaces activations.

    KeyError for a site that the network does not have.
    """
    tap, activations = recorder(net, read, write or {})
    return Ran(net.tapped(inputs, tap), activations)


def recorder(net: HasSites, read: Iterable[str], write: Mapping[str, Write]) -> tuple[Tap, dict[str, Tensor]]:
    """A tap that overwrites and reads activations, and where it keeps those that it has read."""
    wanted, activations = set(read), dict[str, Tensor]()
    if unknown := {*wanted, *write} - set(net.sites()):
        raise KeyError(f"there is no site {min(unknown)}; there are {', '.join(net.sites())}")

    def tap(site: str, values: Tensor) -> Tensor:
        if (change := write.get(site)) is not None:
            values = overwritten(values, change)
        if site in wanted:
            activations[site] = values
        return values

    return tap, activations


def overwritten(activations: Tensor, change: Write) -> Tensor:
    """Activations with other values."""
    if change.rows is None and change.positions is not None:
        raise ValueError("positions without rows: which rows are to be overwritten there?")
    places = [place for place in (change.rows, change.positions) if place is not None]
    return activations.index_put(tuple(places), change.values) if places else change.values


class Hook(NamedTuple):
    """Where a site is in the modules of a network."""

    module: nn.Module
    enters: bool  # the site is its input; or else its output
    heads: int = 0  # the last axis of the activations is split into so many


@contextmanager
def hooked(hooks: Mapping[str, Hook], tap: Tap) -> Iterator[None]:
    """Within this context the modules of a network hand their activations to a tap."""
    with ExitStack() as stack:
        for site, hook in hooks.items():
            handle = _attached(site, hook, tap)
            stack.callback(handle.remove)
        yield


def _attached(site: str, hook: Hook, tap: Tap) -> RemovableHandle:
    def tapped(values: Tensor) -> Tensor:
        return tap(site, values.unflatten(-1, (hook.heads, -1))).flatten(-2) if hook.heads else tap(site, values)

    def entering(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (tapped(arguments[0]), *arguments[1:])

    def leaving(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        return tapped(output)

    return (
        hook.module.register_forward_pre_hook(entering) if hook.enters else hook.module.register_forward_hook(leaving)
    )
