"""Collect a study: tables and the report of what is finished."""

import shlex
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from records.manifest import read_manifest
from records.run import Run
from records.task_config import TaskRunConfig
from reporting import one_line_errors
from studies.grid import load_grid
from studies.paper_tables import write_paper
from studies.papers import Paper, load_paper
from studies.planned import Grid, PlannedRun
from studies.store import write_tables
from studies.study_file import failed_jobs, failure_of, read_study
from studies.task_tables import write_task_tables
from utils.errors import UserError

_REPORTED = 500  # more would be a page that takes minutes to draw, and that nobody can read


def collect(store: Path, config: str | None = None, *, report: bool = True) -> None:
    """Write results.csv, table.md, table.tex and, if asked, report.html of what is finished in a store; runs nothing.

    The grid is that of study.json, or the YAML file `config`. UserError if the store holds no study.
    """
    if not store.is_dir():
        raise UserError(f"--store {store} does not exist")
    study = None if config else read_study(store)
    if study and study.search:
        raise UserError(f"--store {store} holds a search; what it has found is in search.csv and table.md")
    paper = load_paper(study.config, store, study.smoke, study.data_dir) if study and study.paper else None
    grid = paper.grid if paper else load_grid(config or study.config, store)  # type: ignore[union-attr]
    command = (
        study.command
        if study
        else shlex.join(["python", "benchmark.py", "--config", str(config), "--store", str(store)])
    )
    failed = failed_jobs(store)
    failures = {
        run.name: failure_of(store, job.name)
        for job in grid.processes
        if job.name in failed for run in job.runs if not run.finished
    }  # fmt: skip
    with one_line_errors(str(store), store):
        tables(paper, grid, store, failures, command)
        print(f"tables are in {store / 'table.md'}, {store / 'table.tex'} and {store / 'results.csv'}")
        if report and not (study and study.smoke):  # nobody should see the curves of a quick version
            make_report(grid.runs, store, command)


def tables(paper: Paper | None, grid: Grid, store: Path, failures: Mapping[str, str], command: str) -> None:
    """Write the tables of a grid; those of a published table are printed as well."""
    if grid.program == "train_task":
        write_task_tables(grid, store, failures, command)
    elif paper is None:
        write_tables(grid, store, failures, command)
    else:
        print(f"\n{write_paper(paper, store, failures, command)}\n")


def episodes(run: PlannedRun) -> int:
    """The number of complete episodes of a run."""
    manifest = read_manifest(run.directory)
    return 0 if manifest is None else manifest.episode


def make_report(runs: Sequence[PlannedRun], store: Path, command: str) -> None:
    """Write the report of the finished runs, unless they are too many for one page."""
    labels: dict[Path, list[str]] = {}  # several rows of the tables may be the same run, which is shown once
    for run in runs:
        labels.setdefault(run.directory, []).append(run.label)
    manifests = ((run, read_manifest(run.directory)) for run in {run.directory: run for run in runs}.values())
    shown = (run for run, manifest in manifests if manifest and manifest.finished and manifest.episode)
    runs = list(islice(shown, _REPORTED + 1))
    if len(runs) > _REPORTED:
        print(f"there is no report, as there are more than {_REPORTED} runs: report.py makes one of those it is given")
        return
    from reporting.groups import compare  # imported here, as drawing libraries take a second to load
    from reporting.page import of_several_runs
    from reporting.task_page import of_task_runs

    if runs and isinstance(runs[0].config, TaskRunConfig):
        page = of_task_runs([Run.load(run.directory) for run in runs], command)
        print(f"the report is {page.write(store)}")
    elif runs:
        names = {run.directory: " = ".join(labels[run.directory]) for run in runs}
        comparisons = compare([run.directory for run in runs], labels=names)
        print(f"the report is {of_several_runs(comparisons, command).write(store)}")
