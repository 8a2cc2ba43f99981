"""Plan a grid of train_task.py: cells, whose seeds and learning rates are trained by one process."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from net import TRUNKS
from records.configuration import fingerprint, value_at
from records.task_config import TaskRunConfig
from records.task_invocation import PROGRAM, parse
from records.task_plan import of_one_task
from studies.grid_file import (
    RATE,
    DirectoryNames,
    Options,
    arguments,
    distinct,
    in_words,
    read_seeds,
    read_streams,
    undashed,
)
from studies.planned import Grid, PlannedJob, PlannedRun
from studies.published import PublishedTable, published_for, read_published
from utils.errors import UserError

AXES = ("program", "streams", "hyperparams", "seeds", "vary", "together", "rates", "published")
# Options that the grid or the program sets itself.
_OWN = {
    "data_config",
    "hp_config",
    "seed",
    "seeds",
    "rates",
    "run_dir",
    "overwrite",
    "resume",
    "verify",
    "quiet",
    "zoo_dir",
    "n_seqs",
}
OPTIONS = Options({of.option: of for of in PROGRAM.options().values() if of.option not in _OWN}, rates=True)


def plan(path: str, content: Mapping[str, Any], store: Path) -> Grid:
    """The cells of every stream, network and combination of the varied values; UserError names the file and the key."""
    common = {key: OPTIONS.check(path, key, value, AXES) for key, value in content.items() if key not in AXES}
    pairings, seeds = read_streams(path, content, OPTIONS), _consecutive(path, read_seeds(path, content))
    axes, jobs, names = dict[str, list[tuple[str, ...]]](), list[PlannedJob](), DirectoryNames(store)
    for pairing in pairings:
        files = {"data_config": pairing.path, "hp_config": pairing.hyper}
        rates = pairing.rates or pairing.vary.get(RATE, ())
        several = pairing._replace(vary={key: values for key, values in pairing.vary.items() if key != RATE})
        for values in several.combinations:
            given = {**common, **pairing.options, **values}
            if rates:  # what varies wins, as for other settings
                given.pop(RATE, None)
            job = _cell(path, store, names, {**files, **given}, in_words(values), rates, seeds)
            jobs.append(job)
            table = job.runs[0].table
            axes[table] = list(dict.fromkeys([*axes.get(table, ()), *several.axes]))
    streams = dict.fromkeys(job.runs[0].config.stream for job in jobs)
    published = read_published(path, content.get("published", {}), [*streams, *axes])
    for job in jobs:
        _check_axes(path, job.runs[0], published)
    notes = [f"{key} {value}" for key, value in common.items()]
    notes += [
        f"{Path(pairing.path).stem}, {Path(pairing.hyper).stem}: {key} {value}"
        for pairing in pairings for key, value in pairing.options.items()
    ]  # fmt: skip
    return Grid(distinct(path, jobs), "; ".join(notes) or "all defaults", "train_task", axes, published)


def _consecutive(path: str, seeds: Sequence[int]) -> Sequence[int]:
    if list(seeds) != list(range(seeds[0], seeds[0] + len(seeds))):
        raise UserError(f"{path}: seeds is {seeds}; those that are trained together follow each other, such as [3, 4]")
    return seeds


def _cell(
    path: str, store: Path, names: DirectoryNames, given: Mapping[str, Any], label: Sequence[str],
    rates: Sequence[float], seeds: Sequence[int],
) -> PlannedJob:  # fmt: skip
    """The process of one cell; with several learning rates it has a run for each of them and each seed."""
    words, runs = arguments(given), list[PlannedRun]()
    stream, net = Path(given["data_config"]).stem, Path(given["hp_config"]).stem
    name = ""
    for rate in rates or (None,):
        own = [] if rate is None else [f"--set={RATE}={rate}"]
        shown = ", ".join([*label, *in_words({} if rate is None else {RATE: rate})]) or net
        config = _config(f"{path}: {stream}: {shown}", [*words, *own])
        if not name:  # what stands in the names of its folders does not count in that of the cell
            among = ("seed", RATE) if rates else ("seed",)
            name = names.name((stream, net, ", ".join(label)), fingerprint(config, among))
        for seed in seeds:
            part = f"{name}/seed{seed}" if rate is None else f"{name}/lr{float(rate)}/seed{seed}"
            alone = (*words, *own, f"--seed={seed}", f"--run_dir={store / part}")
            runs.append(PlannedRun(store / part, part, shown, net, replace(config, seed=seed), alone))
    words += [f"--seed={seeds[0]}", f"--seeds={len(seeds)}"]
    if len(rates) > 1:
        words += [f"--rates={','.join(map(str, rates))}", f"--run_dir={store / name}"]
    else:  # as train_task.py names the directories of one learning rate, and that of one run
        folder = runs[0].directory if len(seeds) == 1 else runs[0].directory.parent
        words += [*own, f"--run_dir={folder}"]
    first = runs[0].config
    together = hasattr(TRUNKS.get(first.net.model), "stacked") and first.hp.decayed == "all"
    return PlannedJob(name, tuple(words), tuple(runs), ", ".join(label) or net, together)


def _config(where: str, words: Sequence[str]) -> TaskRunConfig:
    try:
        invocation = parse(words)
        return of_one_task(invocation.config, invocation.command)
    except UserError as error:
        raise UserError(f"{where}: {undashed(error)}") from None


def _check_axes(path: str, run: PlannedRun, published: Mapping[str, PublishedTable]) -> None:
    config = run.config
    table = published_for(published, run)
    for key in () if table is None else (table.rows, table.columns):
        with suppress(AttributeError):
            value_at(config, key)
            continue
        raise UserError(f"{path}: published: {config.stream}: there is no setting {key!r}")
