"""Draw figures, tables and one page from run directories.

one run       -> RUN/report.html, RUN/figures/
several runs  -> their common folder: report.html, figures/
--format      -> a table on stdout instead

All of it can be made again at any time from the run directories alone.
"""

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from records.directory import read_config
from records.resume import other_run
from records.summary import load_isolated
from records.task_config import METHOD
from studies.tables import WRITERS
from utils.errors import UserError, run_program
from utils.options import Parser, check_choice

if TYPE_CHECKING:
    from reporting.groups import Comparison
    from reporting.layout import Page

FORMATS = ("html", *WRITERS)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 if the input is wrong."""
    given = sys.argv[1:] if argv is None else argv
    return run_program("report.py", lambda: report(arguments(given), shlex.join(["python", "report.py", *given])))


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options; a UserError names a wrong one."""
    parser = Parser(prog="report.py", allow_abbrev=False, description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="a run directory, or a folder of them")
    add("--isolated", metavar="RUN", help="isolated networks to compare with (default: those that the run was compared "
        "with, or that are among the runs)")  # fmt: skip
    add("--out", metavar="DIR", help="where the page goes (default: the run, or the common folder of the runs)")
    add("--format", metavar="F", default="html", help=f"{', '.join(FORMATS)}: the page, or only a table, on stdout "
        "(default: html)")  # fmt: skip
    options = parser.parse_known(argv)
    check_choice("--format", "format", options.format, FORMATS)
    return options


def report(options: argparse.Namespace, command: str) -> None:
    """Read the runs, draw and write; `command` is shown on the page."""
    from records.run import find_runs
    from reporting import one_line_errors

    with one_line_errors(", ".join(options.runs), options.out or options.runs[0]):
        paths = [path for given in options.runs for path in find_runs(Path(given))]
        if options.format != "html":
            print(table_of(paths, options, command), end="")
            return
        common = os.path.commonpath([path.absolute() for path in paths])
        folder = paths[0] if len(paths) == 1 else Path(common if len(options.runs) > 1 else options.runs[0])
        print(page_of(paths, options.isolated, command).write(Path(options.out or folder)))


def page_of(paths: Sequence[Path], isolated: str | None, command: str) -> "Page":
    """The page of the runs at these paths."""
    from records.run import Run, measured
    from reporting import page, task_page

    watched = [read_config(path).get("method") == METHOD for path in paths]
    if any(watched):
        if not all(watched):
            path = paths[watched.index(False)]
            raise UserError(f"{path} is a run of modelzoo.py, others are of train_task.py; make a report for each kind")
        if isolated is not None:
            raise UserError("--isolated is for runs of modelzoo.py; leave it out")
        shown = [path for path in paths if measured(path)] or paths
        for path in [path for path in paths if path not in shown]:
            print(f"{path} has no results yet and is left out", file=sys.stderr)
        return task_page.of_task_runs([Run.load(path) for path in shown], command)
    if len(paths) > 1:
        return page.of_several_runs(compared(paths, isolated), command)
    run = Run.load(paths[0]).renumbered()
    alone = isolated_of(run.config, isolated)
    return page.of_one_run(run if alone is None else run.against(alone), command)


def table_of(paths: Sequence[Path], options: argparse.Namespace, command: str) -> str:
    """The table of the finished runs in --format."""
    tables = [table for comparison in compared(paths, options.isolated) if (table := comparison.table()).rows]
    if not tables:
        raise UserError("none of the runs is finished, so there is no table yet; --format html shows how far they are")
    return WRITERS[options.format](tables, [], command)


def compared(paths: Sequence[Path], isolated: str | None) -> "list[Comparison]":
    """The runs side by side."""
    from records.run import find_runs
    from reporting.groups import compare

    return compare(paths, find_runs(Path(isolated)) if isolated else ())


def isolated_of(config: Mapping[str, Any], given: str | None) -> Mapping[int, float] | None:
    """The main metric of the isolated networks to compare a run with: those given, or those its config.yaml names."""
    path = other_run(config, "compared_with") if given is None else Path(given)
    try:
        return None if path is None else load_isolated(path, config)
    except UserError:
        if given is not None:
            raise
        return None  # moved or changed since; a finished run has the figures in its summary


if __name__ == "__main__":
    sys.exit(main())
