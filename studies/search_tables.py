"""What a search found: a row a trial, tables of the best, and YAML files that are ready to use."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from studies.grid_file import file_name, read_seeds
from studies.search_file import KEYS, METRIC, RUNGS, Search, SearchSubject
from utils.files import csv_bytes, write_bytes
from utils.yaml_files import load_yaml

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Trials = Mapping[SearchSubject, Sequence["FrozenTrial"]]
PRESETS = "presets"
_SHOWN = 5  # of the best trials
_SEEDS = 5  # of the comparison on test data


def write_outcome(search: Search, found: Mapping[str, Sequence["FrozenTrial"]]) -> None:
    """Write search.csv, table.md, the best settings of each subject and grids that test them; `found`: by name."""
    trials = {subject: found.get(subject.name, ()) for subject in search.subjects}
    write_bytes(search.store / "search.csv", csv_bytes(_rows(search, trials)))
    best = {subject: each for subject in search.subjects if (each := ranked(search, trials[subject]))}
    for subject, (first, *_) in best.items():
        write_bytes(best_path(search, subject), _best(search, subject, values_of(search, first)))
    for hyper in dict.fromkeys(subject.hyper for subject in best):
        chosen = {subject: values_of(search, best[subject][0]) for subject in best if subject.hyper == hyper}
        content = yaml.safe_dump(comparison(search, hyper, chosen), sort_keys=False, width=120)
        head = "# The settings that were found beside the presets, on test examples.\n"
        write_bytes(search.store / f"compare-{Path(hyper).stem}.yaml", (head + content).encode())
    write_bytes(search.store / "table.md", _table(search, trials).encode())


def values_of(search: Search, trial: "FrozenTrial") -> dict[str, Any]:
    """The values of a trial by dotted key; none of the presets."""
    return {each.key: each.value(trial.params[each.key]) for each in search.space if each.key in trial.params}


def results_of(trial: "FrozenTrial") -> list[dict[str, Any]]:
    """The results of a trial at its rungs, but for one at which a run failed."""
    return [result for result in trial.user_attrs.get(RUNGS, []) if result is not None]


def ranked(search: Search, trials: Sequence["FrozenTrial"]) -> list["FrozenTrial"]:
    """The trials that ran at full length, the best first; of equals the one that was drawn first."""
    whole = [trial for trial in trials if len(results_of(trial)) == search.halving.rungs]
    sign = 1 if not whole or whole[0].user_attrs[METRIC][1] else -1
    return sorted(whole, key=lambda trial: (-sign * results_of(trial)[-1]["score"], trial.number))


def best_path(search: Search, subject: SearchSubject) -> Path:
    """The file with the best settings of a network, for --hp_config."""
    return search.store / f"{file_name(['best', *subject_words(subject)])}.yaml"


def subject_words(subject: SearchSubject) -> tuple[str, str]:
    """The network and the method of a subject."""
    net, _, label = subject.name.partition(", ")
    return net, label


def comparison(search: Search, hyper: str, chosen: Mapping[SearchSubject, Mapping[str, Any]]) -> dict[str, Any]:
    """A grid that compares, with other seeds and on test examples, the presets of a network with the values found."""
    (first, _), *_ = chosen.items()
    base = {key: value for key, value in _tested(first.content).items() if key not in (*KEYS, "methods", "seeds")}
    base |= {key: [_tested(entry) for entry in base[key]] for key in ("streams", "hyperparams")}
    used = read_seeds(search.path, first.content)
    start = 0 if min(used) >= _SEEDS else max(used) + 1
    seeds = list(range(start, start + _SEEDS))
    if search.program == "train_task":
        (entry,) = base["hyperparams"]
        given = dict(entry) if isinstance(entry, dict) else {}
        return {**base, "hyperparams": [entry, {**given, "hp_config": str(best_path(search, first))}], "seeds": seeds}
    methods = []
    for subject, values in chosen.items():
        entry = _tested(subject.entry)
        methods += [entry, {**entry, "label": f"{entry['label']}, found", **values}]
    return {**base, "methods": methods, "seeds": seeds}


def _tested(entry: Any) -> Any:
    """An entry of a grid without what a search sets apart, for runs on all tasks and on test examples."""
    apart = [prefix + key for prefix in ("", "data.") for key in ("validation", "first_tasks")]
    return {key: value for key, value in entry.items() if key not in apart} if isinstance(entry, Mapping) else entry


def _best(search: Search, subject: SearchSubject, values: Mapping[str, Any]) -> bytes:
    """The YAML file of the network with the best values; those of a method stand in its first lines, as options."""
    content = load_yaml(subject.hyper)
    content |= {key.partition(".")[2]: value for key, value in values.items() if not key.startswith("settings.")}
    others = [f"--set={key}={json.dumps(value)}" for key, value in values.items() if key.startswith("settings.")]
    head = f"# {subject.name}: found on validation examples by {search.path}.\n"
    head += f"# Use it with {shlex.join(others)}\n" * bool(others)
    return (head + yaml.safe_dump(content, sort_keys=False)).encode()


def _rows(search: Search, trials: Mapping[SearchSubject, Sequence["FrozenTrial"]]) -> list[list[object]]:
    keys = [each.key for each in search.space]
    rows: list[list[object]] = [
        ["net", "method", "trial", "state", *keys, "rung", "length", "unit", "metric", "score", "half_width", "runs",
         "seconds"]
    ]  # fmt: skip
    for subject, found in trials.items():
        for trial in found:
            results, values = results_of(trial), values_of(search, trial)
            last = results[-1] if results else {}
            failed = len(results) < len(trial.user_attrs.get(RUNGS, []))
            state = {"COMPLETE": "complete", "RUNNING": "running"}.get(trial.state.name, "ended")
            rows.append([
                *subject_words(subject), trial.number, "failed" if failed else state, *map(values.get, keys),
                len(results) - 1 if results else None, last.get("length"), last.get("unit"),
                trial.user_attrs.get(METRIC, [None])[0], last.get("score"), last.get("half"),
                sum(result["runs"] for result in results), sum(result["seconds"] for result in results),
            ])  # fmt: skip
    return rows


def _table(search: Search, trials: Mapping[SearchSubject, Sequence["FrozenTrial"]]) -> str:
    """The best trials of each subject beside the presets, and what they cost."""
    lines = []
    for subject, found in trials.items():
        best = ranked(search, found)
        if not best:
            continue
        metric, higher = best[0].user_attrs[METRIC]
        keys = [each.key for each in search.space]
        lines += [f"## {subject.name}", "", f"| trial | {' | '.join(keys)} | {metric} on validation examples |"]
        lines += ["| --- " * (len(keys) + 1) + "| ---: |"]
        shown = [*best[:_SHOWN], *(trial for trial in best[_SHOWN:] if not trial.number)]
        for trial in shown:
            values, result = values_of(search, trial), results_of(trial)[-1]
            half = f" ± {result['half']:.4f}" if result["half"] is not None else ""
            words = [str(values.get(key, PRESETS)) for key in keys]
            lines.append(f"| {trial.number or PRESETS} | {' | '.join(words)} | {result['score']:.4f}{half} |")
        lines += ["", f"{'Higher' if higher else 'Lower'} is better. {_spent(search, found)}", ""]
    lines.append(_note(search))
    return "\n".join(lines)


def _note(search: Search) -> str:
    data = search.plan(search.subjects[0], {}).runs[0].config.data
    limit = f", and nothing after the first {data.first_tasks} tasks" if data.first_tasks else ""
    return (
        f"Validation examples are a share of {data.validation:g} of the training examples; test examples were not read"
        f"{limit}. The score is the mean over seeds, ± the half-width of its 95 % t-interval. The best of many scores "
        "is too good by chance: compare on test examples with benchmark.py --config "
        f"{search.store / 'compare-<net>.yaml'}. Settings that were not searched for are the presets.\n"
    )


def _spent(search: Search, trials: Sequence["FrozenTrial"]) -> str:
    results = [result for trial in trials for result in results_of(trial)]
    runs, seconds = sum(result["runs"] for result in results), sum(result["seconds"] for result in results)
    lengths = sum(result["runs"] * result["length"] for result in results)
    rungs = f", halved at {', '.join(f'{share:.2g}' for share in search.halving.shares[:-1])} of the length"
    return (
        f"{len(trials)} trials by {search.sampler}{rungs * (search.halving.rungs > 1)}: {runs} runs, {lengths:,} "
        f"{results[0]['unit']}, {seconds:,.0f} s of training and evaluation."
    )
