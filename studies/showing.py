"""The state of a study in lines for people."""

from collections.abc import Callable, Sequence

from tqdm import tqdm

from studies.states import FAILED, INTERRUPTED, RUNNING, JobState, StudyState
from utils.errors import one_line

_LINES = 10  # of a list that is cut


def lines_of(state: StudyState, store: str, *, whole: bool = False) -> list[str]:
    """The study, its totals, and a list of the running, failed and interrupted jobs; `whole`: not cut."""
    lines = [one_line(f"{store}: {state.study.command} (engine {state.study.engine})"), totals(state)]
    shown: dict[str, Callable[[JobState], str]] = {
        RUNNING: lambda job: f"{name(job)}: {who(job)}, {job.progress}, {left(state.remaining(job))}",
        FAILED: lambda job: f"{name(job)}: {one_line(job.failure)}",
        INTERRUPTED: lambda job: f"{name(job)}: {job.progress}",
    }
    for kind, show in shown.items():
        lines += _list(kind, [show(job) for job in state.among(kind)], whole)
    return lines


def _list(title: str, entries: Sequence[str], whole: bool) -> list[str]:
    some = entries if whole else entries[:_LINES]
    more = [f"  ... and {len(entries) - len(some)} more; --all shows them"] if len(some) < len(entries) else []
    return [f"{title}:", *(f"  {entry}" for entry in some), *more] if entries else []


def totals(state: StudyState) -> str:
    """How many runs there are in each state, and the remaining time."""
    counts = ", ".join(f"{count} {kind}" for kind, count in state.counts.items())
    if state.done == 1:
        return f"{len(state.runs)} runs: {counts}"
    at_a_time = max(1, len(state.among(RUNNING)))
    return f"{len(state.runs)} runs: {counts}; {left(state.left)} with {at_a_time} at a time"


def left(seconds: float | None) -> str:
    """The remaining time in words."""
    return "time left unknown" if seconds is None else f"about {tqdm.format_interval(seconds)} left"


def name(job: JobState) -> str:
    """The name of a job on one line."""
    return one_line(job.job.name)


def who(job: JobState) -> str:
    """The process that works on a job."""
    return one_line(f"{job.holder.get('host', 'unknown host')} {job.holder.get('process', '')}".strip())
