"""How busy the machine is, what that means for the threads of a program, and how many of them a network is worth.

OpenMP's threads spin while they wait for each other, which is the fastest way as long as each has a core of its own.
Beside other processes the thread that is waited for may not be running, and training slows down to a fiftieth; there
threads have to sleep while they wait, which costs a third of the speed on a quiet machine. How they wait does not
change a bit of a result, but has to be decided before torch is loaded: nothing here loads anything heavy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from pathlib import Path

# With one of these the user has decided how threads wait.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_SECONDS = 0.1  # that the machine is looked at; /proc/stat counts hundredths
_ROOM = 0.5  # cores that others may use before threads that spin get into their way
# Multiply-adds of a forward pass below which a thread is not worth waking; see docs/performance.md.
WORK_OF_A_THREAD = 32_000_000


@dataclass(frozen=True)
class Load:
    """What a program finds when it starts.

    Attributes:
        cores: that it may use.
        others: how many of these other processes use, 1.5 for one and half of another.
        threads: that it would use.
    """

    cores: int
    others: float
    threads: int

    @property
    def busy(self) -> bool:
        """Whether the threads would have to share cores with other processes."""
        return self.others + self.threads >= self.cores + _ROOM


_found: tuple[Load, bool] | None = None  # when the program started, and whether threads were told to sleep


def choose_waiting(environment: MutableMapping[str, str] | None = None) -> None:
    """Let the threads of this process sleep while they wait if the machine is busy, unless the user has decided.

    Args:
        environment: where that is written, before torch is loaded (default: that of the process).
    """
    global _found
    environment = os.environ if environment is None else environment
    load = look(environment)
    sleeps = load.busy and not any(name in environment for name in WAITING)
    if sleeps:
        environment["OMP_WAIT_POLICY"] = "passive"
    _found = load, sleeps


def notice() -> str | None:
    """One line for people if the machine was busy when the program started."""
    if _found is None or not _found[0].busy:
        return None
    load, sleeps = _found
    threads = "threads wait without spinning" if sleeps else "threads wait as the environment says"
    return f"busy: {load.others:.1f} of {load.cores} cores in use by others; {threads}"


def look(environment: MutableMapping[str, str]) -> Load:
    """The load of the machine now; on Linux over a tenth of a second, elsewhere over the last minute."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    asked = environment.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = min(int(asked), len(cores)) if asked.isdecimal() and int(asked) else len(cores)
    try:
        before = Path("/proc/stat").read_text()
        time.sleep(_SECONDS)
        others = cores_in_use(before, Path("/proc/stat").read_text(), cores)
    except (OSError, ValueError):
        others = min(os.getloadavg()[0], len(cores)) if hasattr(os, "getloadavg") else 0.0
    return Load(len(cores), others, threads)


def cores_in_use(before: str, after: str, cores: Collection[int]) -> float:
    """How many of `cores` were in use between two readings of /proc/stat, while this process slept.

    Time that the host of a virtual machine gave to others (steal) counts as used.

    Source: proc_stat(5).
    """
    first, last = _times(before), _times(after)
    used = 0.0
    for core in cores:
        if core in first and core in last:
            spent = [late - early for early, late in zip(first[core], last[core], strict=True)]
            user, nice, system, idle, iowait, irq, softirq, steal = spent
            worked = user + nice + system + irq + softirq + steal
            used += worked / max(1, worked + idle + iowait)
    return used


def _times(stat: str) -> dict[int, list[int]]:
    """By core, hundredths of a second of user, nice, system, idle, iowait, irq, softirq and steal."""
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu") and not line.startswith("cpu ")]
    return {int(name.removeprefix("cpu")): [int(time) for time in times[:8]] for name, *times in lines}


def threads_for(work: int, most: int) -> int:
    """How many threads a training step gets: by its work alone, so that the same run has as many wherever it is busy.

    Args:
        work: multiply-adds of the forward pass of one batch.
        most: cores, or what else limits them.
    """
    return max(1, min(most, work // WORK_OF_A_THREAD))
