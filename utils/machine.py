"""How busy the machine is, and so how threads wait and how many of them a network uses.

OpenMP's threads spin while they wait for each other, which is fastest while each has its own core. Beside other
processes the awaited thread may not be running, and training slows down up to fifty times; threads must then sleep
while they wait, which costs a third of the speed on a quiet machine. The choice changes no bit of a result, but must
be made before torch is loaded, so nothing here imports anything heavy.
"""

import os
import re
import time
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from pathlib import Path

# If one of these is set, the user has chosen how threads wait.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_SECONDS = 0.1  # between two readings of /proc/stat, which counts hundredths
_ROOM = 0.5  # cores that other processes may use before spinning threads conflict with them
# Multiply-adds of a forward pass that justify one more thread; see docs/performance.md.
WORK_OF_A_THREAD = 32_000_000


@dataclass(frozen=True)
class Load:
    """The load of the machine when a program starts."""

    cores: int  # that the program may use
    others: float  # cores among them that other processes use
    threads: int  # that the program would use

    @property
    def busy(self) -> bool:
        """Whether the threads would share cores with other processes."""
        return self.others + self.threads >= self.cores + _ROOM


_notice: str | None = None  # set if the machine was busy when the program started


def choose_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads sleep while they wait if the machine is busy, unless the user has chosen; before torch is loaded."""
    global _notice
    load = measured_load(environment)
    if load.busy:
        how = "as the environment says"
        if not any(name in environment for name in WAITING):
            environment["OMP_WAIT_POLICY"], how = "passive", "without spinning"
        _notice = f"busy: {load.others:.1f} of {load.cores} cores in use by others; threads wait {how}"


def notice() -> str | None:
    """One line for the header of a run if the machine was busy when the program started."""
    return _notice


def measured_load(environment: MutableMapping[str, str]) -> Load:
    """Measure the load: on Linux over a tenth of a second, elsewhere the average of the last minute."""
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
    """How many of `cores` were in use between two readings of /proc/stat, see proc_stat(5)."""
    first, last = _times(before), _times(after)
    used = 0.0
    for core in first.keys() & last.keys() & set(cores):
        spent = [late - early for early, late in zip(first[core], last[core], strict=True)]
        user, nice, system, idle, iowait, irq, softirq, steal = spent  # steal: by others on the host of this machine
        worked = user + nice + system + irq + softirq + steal
        used += worked / max(1, worked + idle + iowait)
    return used


def _times(stat: str) -> dict[int, list[int]]:
    """For each core, hundredths of a second of user, nice, system, idle, iowait, irq, softirq and steal."""
    lines = re.findall(r"^cpu(\d+) (.*)", stat, re.MULTILINE)
    return {int(core): [int(time) for time in times.split()[:8]] for core, times in lines}


def threads_for(work: int, most: int, least: int = WORK_OF_A_THREAD) -> int:
    """Threads of a training step, by the multiply-adds of its forward pass alone: results do not depend on the load."""
    return max(1, min(most, work // least))
