"""The same net, data, batch size and epochs as other people's code trains them.

    python perf/peers.py [--repeats 3]

Conv net, 28x28 grey images, random crops, batch 16, on the CPU. avalanche-lib 0.6.0 is installed into an
environment of its own. Every run is a process of its own, one after the other, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import venv
from pathlib import Path

import torch
from common import PROJECT, in_turn, ratio, title

AVALANCHE = PROJECT / ".venv-avalanche"
PACKAGES = ("avalanche-lib==0.6.0", "torch==2.13.0", "torchvision==0.28.0")
IMAGES, EPOCHS = 3200, 2
WORKERS = (0, 1, 2)


def installed() -> Path:
    """The Python of the environment with avalanche-lib, made now if it is not there."""
    python, done = AVALANCHE / "bin" / "python", AVALANCHE / "installed"
    if not done.exists():
        print("installing avalanche-lib (about two minutes) ...", flush=True)
        venv.create(AVALANCHE, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        done.touch()
    return python


def rate(python: Path, name: str, workers: int) -> float:
    """Images per second, in a fresh process."""
    command = [python, PROJECT / "perf" / "peer.py", name, IMAGES, EPOCHS, workers]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of measurements (default: 3)")
    options = parser.parse_args()
    own, theirs = Path(sys.executable), installed()
    rows = [("this project", own, "zoo", 0)]
    rows += [(f"avalanche-lib 0.6.0, {n} workers", theirs, "avalanche", n) for n in WORKERS]
    rows += [(f"DataLoader and Pillow, {n} workers", own, "loader", n) for n in WORKERS]
    columns = in_turn([lambda row=row: rate(*row[1:]) for row in rows], options.repeats)  # type: ignore[misc]
    print(f"Against others: images/s, conv net, 28x28, batch 16. {title(torch.device('cpu'))}")
    print(f"{'':<34} {'images/s':>9} {'ours over it':>13}")
    for (label, *_), column in zip(rows, columns, strict=True):
        print(f"{label:<34} {statistics.median(column):>9,.0f} {ratio(columns[0], column):>13.2f}")


if __name__ == "__main__":
    main()
