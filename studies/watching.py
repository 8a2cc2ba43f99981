"""A page on the terminal that follows a study."""

import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from studies.showing import left, lines_of, name, totals, who
from studies.states import FAILED, FINISHED, RUNNING, JobState, StudyState, study_state
from studies.study_file import CANCEL
from utils.errors import one_line

_REFRESH, _PLAIN = 2.0, 30.0  # seconds between two pages, and between two lines where there is no terminal
_ENDED, _ELSE = 5, 20  # lines of a list of ended jobs, and of all but the running ones


def watch(store: Path, stream: Any, refresh: float = _REFRESH, plain: float = _PLAIN) -> int:
    """Follow a study until it ends or is cancelled, or until q or Ctrl-C; 0. UserError if the store holds none.

    Without a terminal the `stream` gets a line every `plain` seconds.
    """
    console, state = Console(file=stream), study_state(store)
    try:
        if not console.is_terminal:
            while not _over(state, store):
                print(totals(state), flush=True)
                time.sleep(plain)
                state = study_state(store, state)
        else:
            with _keys() as pressed, Live(page(state, str(store), console.height), console=console, screen=True,
                                          auto_refresh=False) as live:  # fmt: skip
                while not _over(state, store) and not pressed(refresh):
                    state = study_state(store, state)
                    live.update(page(state, str(store), console.height), refresh=True)
    except KeyboardInterrupt:
        pass
    print("\n".join(lines_of(state, str(store))))
    return 0


def _over(state: StudyState, store: Path) -> bool:
    return state.over or ((store / CANCEL).exists() and not state.counts[RUNNING])


def page(state: StudyState, store: str, height: int = 50) -> RenderableType:
    """The study with its bar, the running jobs with theirs, and the last ended and failed ones."""
    running = state.among(RUNNING)
    ended = sorted(state.among(FINISHED), key=lambda job: max(run.since for run in job.runs))[::-1][:_ENDED]
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=1.0, completed=state.done, width=40), f"{state.done:.0%}")
    parts: list[RenderableType] = [Text(one_line(f"{store}: {state.study.command}"), style="bold", no_wrap=True)]
    parts += [bar, Text(totals(state))]
    parts += _section("running", running, _running(state, running[: max(3, height - _ELSE)]))
    parts += _section("finished last", ended, [[name(job), _length(job)] for job in ended])
    failed = state.among(FAILED)
    parts += _section("failed", failed, [[name(job), one_line(job.failure)] for job in failed[-_ENDED:]])
    return Group(*parts, Text("\nq ends this page, not the study", style="dim"))


def _running(state: StudyState, jobs: Sequence[JobState]) -> list[list[RenderableType]]:
    return [
        [name(job), ProgressBar(total=1.0, completed=job.done, width=20), job.progress, left(state.remaining(job)),
         who(job)]
        for job in jobs
    ]  # fmt: skip


def _section(title: str, jobs: Sequence[JobState], rows: Sequence[Sequence[RenderableType]]) -> list[RenderableType]:
    if not jobs:
        return []
    table = Table.grid(padding=(0, 2))
    for row in rows:
        # Brackets in a name would be read as markup.
        table.add_row(*(Text(cell, no_wrap=True) if isinstance(cell, str) else cell for cell in row))
    return [Text(f"\n{title} ({len(jobs)})", style="bold"), table]


def _length(job: JobState) -> str:
    return f"{job.seconds:.0f} s"


@contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits so many seconds and says whether q was pressed; keys are not shown meanwhile."""
    if not sys.stdin.isatty():
        yield lambda seconds: time.sleep(seconds)
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield _pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while (rest := end - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], rest)[0] and sys.stdin.read(1) in ("q", "Q"):
            return True
    return False
