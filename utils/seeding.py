"""Named random streams: every random draw of a run is seeded by its name, not by its position in the program.

A member is the same whatever ran before it: adding a method, an evaluation or a log line changes no draw. Members of
one zoo never share an initialisation.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *name: object) -> int:
    """A 63-bit seed for the stream `name` of the run `seed`; different names are independent."""
    text = "/".join(map(str, (seed, *name)))
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big") >> 1


def generator(seed: int, *name: object) -> torch.Generator:
    """A CPU generator for explicit draws (data order, selection), the same on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, *name))


def on_device(rng: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator itself for the CPU, else one on the device whose seed it draws."""
    if device.type == "cpu":
        return rng
    return torch.Generator(device).manual_seed(int(torch.randint(2**63 - 1, (), generator=rng)))


@contextmanager
def seeded(seed: int, *name: object) -> Iterator[None]:
    """Seed torch's global generators (initialisation, dropout) and restore their states afterwards, on all devices."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seed, *name))
        yield
