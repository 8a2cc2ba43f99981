"""Commands of benchmark.py that look at a study from anywhere, or end it; nothing here loads torch at its start."""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from records.lock import HERE
from studies.showing import lines_of
from studies.states import RUNNING, JobState, study_state
from studies.study_file import CANCEL, read_study
from utils.errors import handling, one_line, run_program
from utils.files import write_bytes
from utils.options import Parser

WAIT = 60.0  # seconds in which what is cancelled may save its state


def _parser(name: str, does: str) -> Parser:
    parser = Parser(prog=f"benchmark.py {name}", allow_abbrev=False, description=does)
    parser.add_argument("--store", metavar="DIR", required=True, help="the folder of the study")
    return parser


def _status(argv: Sequence[str]) -> int:
    parser = _parser("status", "Say which runs of a study are finished, running, failed, interrupted and waiting.")
    parser.add_argument("--all", action="store_true", help="show long lists whole (default: cut)")
    parser.add_argument("--json", action="store_true", help="print the same as JSON (default: for people)")
    options = parser.parse_known(argv)
    state = study_state(Path(options.store))
    if options.json:
        print(json.dumps(state.to_json(), indent=1))
    else:
        print("\n".join(lines_of(state, options.store, whole=options.all)))
    return 0


def _cancel(argv: Sequence[str]) -> int:
    options = _parser("cancel", "End all that works on a study; its command continues it.").parse_known(argv)
    store = Path(options.store)
    read_study(store)  # a folder without a study is refused
    write_bytes(store / CANCEL, b"")
    if count := _cancel_slurm(store):
        print(f"{count} jobs of Slurm cancelled", flush=True)
    asked, end = set[object](), time.monotonic() + WAIT
    while running := _ask(study_state(store).among(RUNNING), asked):
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    for job in running:
        who = " ".join(f"{key} {job.holder[key]}" for key in ("host", "process") if key in job.holder)
        print(one_line(f"still running: {job.job.name}, {who}"))
    print("the study still runs; it ends when these processes do" if running else "nothing of the study runs any more")
    return 1 if running else 0


def _ask(running: Sequence[JobState], asked: set[object]) -> Sequence[JobState]:
    """Ask the processes of this machine to end, each once; returns the jobs."""
    for process in {job.holder.get("process") for job in running if job.holder.get("host") == HERE} - asked:
        asked.add(process)
        with suppress(OSError, TypeError):  # it has ended, or belongs to another user
            os.kill(process, signal.SIGTERM)  # type: ignore[arg-type]
    return running


def _cancel_slurm(store: Path) -> int:
    """How many jobs of Slurm were cancelled."""
    try:
        slurm = importlib.import_module("studies.engines.slurm")
    except ImportError:
        return 0
    return int(slurm.cancel_slurm(store))


def _watch(argv: Sequence[str], terminal: object) -> int:
    options = _parser("watch", "Show a study until it ends, or until q or Ctrl-C is pressed.").parse_known(argv)
    from studies.watching import watch  # the library for terminals takes a moment to load

    return watch(Path(options.store), terminal)


def _collect(argv: Sequence[str]) -> int:
    parser = _parser("collect", "Write the tables and the report of what is finished, and run nothing.")
    parser.add_argument("--config", metavar="YAML", help="the grid (default: the one that the study was begun with)")
    parser.add_argument("--no_report", action="store_true", help="write no report.html (default: write it)")
    options = parser.parse_known(argv)
    from reporting.collecting import collect  # loads torch

    collect(Path(options.store), options.config, report=not options.no_report)
    return 0


def _program(body: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    return run_program("benchmark.py", lambda: body(argv))


def _watch_program(argv: Sequence[str]) -> int:
    # Programs escape control characters in what they print; the page consists of them.
    return _program(partial(_watch, terminal=sys.stdout), argv)


def _search(argv: Sequence[str]) -> int:
    from records.checkpoints import ENDING  # loads torch
    from studies.search import search
    from studies.study_options import add_engine_options, check_engine_options

    parser = _parser("search", "Search for settings on validation examples; test examples are not read.")
    parser.add_argument("--config", metavar="YAML", required=True, help="the search, see docs/search.md")
    add_engine_options(parser)
    options = parser.parse_known(argv)
    check_engine_options(options)
    with handling(signal.default_int_handler, *ENDING):  # like Ctrl-C: its runs end with it
        return search(options)


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "status": partial(_program, _status),
    "watch": _watch_program,
    "cancel": partial(_program, _cancel),
    "collect": partial(_program, _collect),
    "search": partial(_program, _search),
}
