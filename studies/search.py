"""Search for settings on validation examples: random, or by a tree of Parzen estimators, with successive halving.

    YAML -> Search -> trial (values) -> ordinary runs of a grid with data.validation -> score -> next trial

Test examples are read by no run (datasets/validation.py). All that is known of a search is in a journal in the store,
so that a search that was ended goes on.

Sources: Bergstra et al. 2011 (TPE), Jamieson & Talwalkar 2016 and Li et al. 2020 (successive halving, without waiting
for a rung to be full), Akiba et al. 2019 (Optuna).
"""

import argparse
import json
import math
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from records.configuration import fingerprint
from records.lock import locked
from records.summary import figure
from studies.engines import ENGINES
from studies.grid_file import PROJECT
from studies.planned import Grid, PlannedJob
from studies.schedule import run_jobs
from studies.search_file import METRIC, RUNGS, Halving, Parameter, Search, SearchSubject, length, load_search
from studies.search_tables import write_outcome
from studies.statistics import mean_interval
from studies.store import check_run
from studies.study_file import CANCEL, LOGS, STUDY, Study, check_kind, read_study, study_job
from studies.study_options import resources_of
from utils.errors import TrainingError, UserError, one_line
from utils.seeding import derive_seed

if TYPE_CHECKING:
    import optuna

JOURNAL = "search.journal"
Execute = Callable[[Sequence[PlannedJob]], None]


def search(options: argparse.Namespace, execute: Execute | None = None) -> int:
    """Search as the YAML file `options.config` says, in the folder `options.store`; returns 0.

    `execute` makes the runs of processes and returns when all have ended, whether they failed or not; without, they are
    made on the engine of the options. A trial with a run that failed, as training may diverge, is worse than all
    others. UserError if the input is wrong, TrainingError if the presets cannot be run.
    """
    store = Path(options.store)
    config = load_search(options.config, store)
    with locked(store):
        (store / CANCEL).unlink(missing_ok=True)
        for subject in config.subjects:
            study = opened(config, subject)
            search_one(config, subject, study, execute or _on_engine(config, options))
            write_outcome(config, {each.name: opened(config, each).trials for each in config.subjects})
    print(f"the outcome is in {store / 'table.md'}, {store / 'search.csv'} and {store / 'best-*.yaml'}")
    return 0


def opened(config: Search, subject: SearchSubject) -> "optuna.Study":
    """The Optuna study of a subject, loaded from the journal or new; UserError if it is of another search."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = config.store / JOURNAL
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):  # the last line was not written to its end
        path.write_bytes(content[: content.rfind(b"\n") + 1])
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(
        storage=storage, study_name=subject.name, direction="maximize", load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(), pruner=optuna.pruners.NopPruner(),
    )  # fmt: skip
    presets = [fingerprint(run.config) for run in config.plan(subject, {}).runs]
    asked = json.loads(json.dumps([subject.content, presets, [vars(each) for each in config.space], config.sampler,
                                   vars(config.halving), config.at_once], default=str))  # fmt: skip
    if study.user_attrs.setdefault("search", asked) != asked:
        raise UserError(
            f"{config.store} has another search for {subject.name} than {config.path}; name another --store"
        )
    study.set_user_attr("search", asked)
    return study


def search_one(config: Search, subject: SearchSubject, study: "optuna.Study", execute: Execute) -> None:
    """All trials of a subject that are not complete, `at_once` at a time."""
    while len(study.trials) < config.trials or any(trial.state.name == "RUNNING" for trial in study.trials):
        known = study.trials
        begun = [trial for trial in known if trial.state.name == "RUNNING"]
        first = begun[0].number if begun else len(known)
        last = min(config.trials, (first // config.at_once + 1) * config.at_once)
        going = [draw(config, subject, study, trial.number, trial._trial_id) for trial in begun]
        going += [draw(config, subject, study, number) for number in range(len(known), last)]
        for rung in range(config.halving.rungs):
            grids = [planned(config, subject, values, config.halving.shares[rung]) for _, values in going]
            jobs = {run.name: job for grid in grids if grid for job in grid.jobs for run in job.runs if job.missing}
            execute(list({job.name: job for job in jobs.values()}.values()))
            next_rung = []
            for (trial, values), grid in zip(going, grids, strict=True):
                result = measured(grid, trial) if grid else None
                if result is None and trial.number == 0:
                    raise TrainingError(f"{subject.name}: the presets cannot be run, see {config.store / 'logs'}")
                if told(config, subject, study, trial, rung, result):
                    next_rung.append((trial, values))
            going = next_rung


def planned(config: Search, subject: SearchSubject, values: Mapping[str, Any], share: float) -> Grid | None:
    """The runs of a trial; None for values that are accepted one by one, but not together."""
    try:
        grid = config.plan(subject, values, share)
    except UserError as error:
        print(one_line(f"failed: {subject.name}: {error}"), file=sys.stderr)
        return None
    for run in grid.runs:
        check_run(run)
    return grid


def draw(
    config: Search, subject: SearchSubject, study: "optuna.Study", number: int, begun: int | None = None
) -> tuple["optuna.trial.Trial", dict[str, Any]]:  # fmt: skip
    """A trial, new or `begun` with that id, and its values: the presets are those of the first, which has none."""
    import optuna

    study.sampler = _sampler(config, derive_seed(0, "search", subject.name, number) % 2**32)
    trial = study.ask() if begun is None else optuna.trial.Trial(study, begun)
    for key, distribution in trial.distributions.items():
        if not distribution.single():  # killed while it was drawn: what is left is drawn after what is known
            study.sampler.sample_independent(study, study.trials[number], key, distribution)
    return trial, {each.key: each.value(drawn(each, trial)) for each in config.space} if number else {}


def drawn(parameter: Parameter, trial: "optuna.trial.Trial") -> Any:
    """A draw, the same each time: uniform, or uniform in the logarithm; of choices by their place."""
    if parameter.choices:
        return trial.suggest_categorical(parameter.key, range(len(parameter.choices)))
    if parameter.whole:
        low, high, step = (int(part) for part in (parameter.low, parameter.high, parameter.step or 1))
        return trial.suggest_int(parameter.key, low, high, step=step, log=parameter.log)
    return trial.suggest_float(parameter.key, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def measured(grid: Grid, trial: "optuna.trial.Trial") -> dict[str, Any] | None:
    """The score of a trial at a rung and what it cost; None if a run failed.

    The score is the main metric at the end, the mean over tasks, streams and seeds; ± is over seeds.
    """
    if any(not run.finished for run in grid.runs):
        return None
    scores: dict[int, list[float]] = {}
    summaries = [run.summary for run in grid.runs]
    if len(metrics := {(found["metric"], found["higher_is_better"]) for found in summaries}) > 1:
        raise UserError(f"streams of different metrics, {', '.join(sorted(name for name, _ in metrics))}, have no mean")
    for run, found in zip(grid.runs, summaries, strict=True):
        scores.setdefault(run.config.seed, []).append(figure(found, "avg_acc_final"))
    mean, half = mean_interval([float(np.mean(values)) for values in scores.values()])
    trial.set_user_attr(METRIC, list(*metrics))
    unit, each = length(grid.runs[0])
    return {
        "score": mean, "half": None if math.isnan(half) else half, "runs": len(grid.runs), "unit": unit, "length": each,
        "seconds": sum(found["total_seconds"] for found in summaries),
    }  # fmt: skip


def told(
    config: Search, subject: SearchSubject, study: "optuna.Study", trial: "optuna.trial.Trial", rung: int,
    result: Mapping[str, Any] | None,
) -> bool:  # fmt: skip
    """Record what a trial reached at a rung; returns whether it is run at the next one."""
    import optuna

    step, last = config.halving.factor**rung, rung == config.halving.rungs - 1
    if max(study.trials[trial.number].intermediate_values, default=0) > step:
        return True  # it went on before the search was interrupted
    score = math.nan if result is None else result["score"]
    higher = result is None or trial.user_attrs[METRIC][1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # after a break what is known is told again
        trial.set_user_attr(RUNGS, [*trial.user_attrs.get(RUNGS, [])[:rung], result])
        trial.report(score if higher else -score, step)
    # The presets run at full length, so that the others can be compared with them.
    stays = result is not None and (last or trial.number == 0 or _among_best(study, trial.number, step, config.halving))
    if not stays:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    elif last:
        study.tell(trial, score if higher else -score)
    shown = (
        "failed"
        if result is None
        else f"{trial.user_attrs[METRIC][0]} {score:.4f} after {result['length']} {result['unit']}"
    )
    ends = "" if last or result is None else ", goes on" if stays else ", ends"
    print(f"{subject.name}: trial {trial.number} of {config.trials}: {shown}{ends}", flush=True)
    return stays and not last


def _among_best(study: "optuna.Study", number: int, step: int, halving: Halving) -> bool:
    """Whether a trial is among the best 1 / factor of those that have come to a rung, itself included; at least one is.

    Trials come to a rung in the order of their numbers. Optuna's own pruner notes a trial as gone on before it decides,
    so that it lets one go on whose search was killed in between.
    """
    came = [trial.intermediate_values.get(step, math.nan) for trial in study.trials[: number + 1]]
    scores = sorted((score for score in came if not math.isnan(score)), reverse=True)
    return came[-1] >= scores[max(1, len(scores) // halving.factor) - 1]


def _sampler(config: Search, seed: int) -> "optuna.samplers.BaseSampler":
    """A sampler for one trial, seeded by its number, so that a resumed search draws the same values."""
    import optuna

    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=config.at_once > 1)


def _on_engine(config: Search, options: argparse.Namespace) -> Execute:
    """A function that makes runs on the engine of the command line."""

    def execute(jobs: Sequence[PlannedJob]) -> None:
        if not jobs:
            return
        (config.store / LOGS).mkdir(parents=True, exist_ok=True)
        _note(config, options, jobs)
        engine = ENGINES[options.engine](resources_of(options))
        with closing(run_jobs(jobs, engine, config.store, PROJECT / f"{config.program}.py")) as ended:
            for end in ended:
                if end.failure:
                    print(one_line(f"failed: {end.name}: {end.failure}"), file=sys.stderr)

    return execute


def _note(config: Search, options: argparse.Namespace, jobs: Sequence[PlannedJob]) -> None:
    """Add jobs to study.json, which other commands read."""
    check_kind(config.store, search=True)
    known = read_study(config.store).jobs if (config.store / STUDY).exists() else ()
    every = {job.name: job for job in (*known, *map(study_job, jobs))}
    command = shlex.join(["python", "benchmark.py", "search", "--config", config.path, "--store", str(config.store)])
    path = str(Path(config.path).resolve())
    study = Study(command, path, False, config.program, options.engine, tuple(every.values()), search=True)
    study.write(config.store)
