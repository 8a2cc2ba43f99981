"""Small networks on algorithms: loading them from a folder, and writing those of a run as they are published.

from zoo.tiny import load_2nd_argmax
load_2nd_argmax(hidden_size=16, length=10, zoo_dir="runs")(torch.randn(100, 10)).argmax(-1)

A folder holds run directories of train_task.py, files <task>_<hidden size>_<length>_<examples>_<seed>.pth, or both.
"""

import io
import os
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from net.multihead import MultiHead
from net.sequences.handcrafted import handcrafted_2nd_argmax
from net.sequences.published import to_published
from records.directory import CONFIG, holds_run
from records.tiny import HANDCRAFTED, PUBLISHED_NAME, Stored, best_of, networks_for, stored_in
from utils.errors import UserError, expanded
from utils.files import write_folder

PUBLISHED = "published"


class TinyNetwork(nn.Module):
    """inputs [B, length] -> outputs [B, C] of a network of one task, in test mode.

    Inputs are float32 numbers, or int64 tokens; outputs the score of each class before softmax, or one number.

    Attributes:
        net: the network; `net.trunk` is all of it but the head.
        task: the algorithm.
        n_seqs, seed: training examples seen, and the seed; None for handcrafted weights.
        path: of the file.
    """

    def __init__(self, net: MultiHead, task: str, n_seqs: int | None, seed: int | None, path: Path) -> None:
        super().__init__()
        self.net, self.task, self.n_seqs, self.seed, self.path = net, task, n_seqs, seed, path
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of the only head."""
        return self.net(inputs, torch.ones(len(inputs), dtype=torch.long, device=inputs.device))  # type: ignore[no-any-return]


def load(
    task: str, hidden_size: int, length: int, n_seqs: int | None = None, seed: int | None = None, *,
    zoo_dir: str | Path,
) -> TinyNetwork:  # fmt: skip
    """A network of a folder, on the CPU; a UserError lists what there is if none fits.

    Args:
        task: the algorithm, such as 2nd_argmax.
        hidden_size: of a transformer its width.
        n_seqs: training examples seen; by default those of the network that was trained longest.
        seed: by default the one with the best main score on the development examples.
        zoo_dir: the folder; those in it are searched as well.
    """
    found, net = best_of(networks_for(Path(expanded(str(zoo_dir))), task, hidden_size, length, n_seqs, seed))
    return TinyNetwork(net, found.task, found.n_seqs, found.seed, found.path)


load_2nd_argmax = partial(load, "2nd_argmax")
load_argmedian = partial(load, "argmedian")
load_median = partial(load, "median")
load_longest_cycle = partial(load, "longest_cycle")


def load_handcrafted_2nd_argmax(length: int) -> TinyNetwork:
    """A network whose weights were written down; a UserError lists the lengths."""
    return TinyNetwork(handcrafted_2nd_argmax(length), "2nd_argmax", None, None, Path(HANDCRAFTED))


def publish(run: Path, out: Path) -> list[str]:
    """Write the checkpoints of a run in the published format to a folder that is new or empty; a line for each file."""
    found = stored_in(run) if holds_run(run) else []
    if not found:
        what = "has no checkpoints of a network on an algorithm" if holds_run(run) else f"has no {CONFIG}"
        raise UserError(f"{run} {what}; only runs of train_task.py that began with drawn weights have such networks")
    heads = getattr(found[0].run.net.settings, "heads", 1) if found[0].run else 1
    if heads > 1:
        raise UserError(f"{run} has {heads} attention heads, of which published files say nothing; those have one")
    files = {PUBLISHED_NAME.format(**vars(stored)): _published(stored) for stored in found}
    try:
        write_folder(Path(os.path.realpath(out)), files)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
    return [f"{out / name}: {len(content):,} bytes" for name, content in files.items()]


def _published(stored: Stored) -> bytes:
    file = io.BytesIO()
    torch.save(to_published(stored.read()[0]), file)
    return file.getvalue()
