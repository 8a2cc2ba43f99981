"""Runs of train_task.py that differ in data and network, sorted into cells, whose best run is chosen by development."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from records.configuration import determining
from records.run import Run
from records.summary import figure
from records.task_summary import by_development
from studies.grid_file import RATE, in_words

Options = Mapping[str, Any]
_LONG = 12  # the most characters of a value that stands above a panel
_ROOM = 22  # characters above a panel


@dataclass(frozen=True)
class SweepCell:
    """The finished runs that differ in learning rate and seed only."""

    network: str
    panel: str  # the settings of the data that differ, in words; "" if none do
    size_key: str  # the setting of the network that is on the x axis; "" if none varies
    size: float | None
    runs: Sequence[Run]

    @cached_property
    def best(self) -> Run | None:
        """The best on the development examples; without such examples the only run, None if there are several."""
        if len(self.runs) == 1:
            return self.runs[0]
        chosen = [run for run in self.runs if run.summary["dev"] is not None]
        return max(chosen, key=lambda run: by_development(run.summary)) if chosen else None

    @property
    def result(self) -> dict[str, Any]:
        """What is known of the best run, by title of a column; empty without one."""
        if (run := self.best) is None:
            return {}
        found = run.summary
        return {
            "network": self.network, **({"data": self.panel} if self.panel else {}),
            **({_name(self.size_key): self.size} if self.size_key else {}),
            "learning rate": run.config["hp"]["lr"], "seed": run.config["seed"], "runs": len(self.runs),
            "development": found["dev"], "test": figure(found, "avg_acc_final"), "± error": found["test_stderr"],
            "parameters": found["parameters_total"], "state bytes": found.get("state_bytes"),
            "examples": found["examples"],
        }  # fmt: skip


def differs(runs: Sequence[Run]) -> bool:
    """Whether runs of one stream differ in their data or networks, not only in how and with which seed they learned."""
    return any(key.startswith(("data.", "net.")) for key in _differing([_options(run) for run in runs]))


def cells(runs: Sequence[Run]) -> list[SweepCell]:
    """The cells of the finished runs of one stream: by network in the order of the runs, data, and size."""
    finished = [run for run in runs if run.finished]
    options = [_options(run) for run in finished]
    data = [key for key in _differing(options) if key.startswith("data.")]
    panels = _panels([tuple(own.get(key) for key in data) for own in options], data)
    by_name: dict[str, list[int]] = defaultdict(list)
    for place, run in enumerate(finished):
        by_name[_network(run)].append(place)
    sizes = {
        name: _size_key([options[place] for place in places], [panels[place] for place in places])
        for name, places in by_name.items()
    }
    found: dict[tuple[str, str, str, Any], list[Run]] = defaultdict(list)
    for name, places in by_name.items():
        key = sizes[name] or next((key for key in sizes.values() if key and key in options[places[0]]), "")
        own = [{**options[place], "panel": panels[place]} for place in places]
        rest = [each for each in _differing(own) if not each.startswith(("data.", "panel")) and each != key]
        shown = [each for each in rest if not _determined(own, each, ("panel", key))]
        for place in places:
            words = in_words({each: options[place].get(each) for each in shown})
            network, size = ", ".join([name, *words]), options[place].get(key)
            found[network, panels[place], key, size].append(finished[place])
    order = {panel: number for number, panel in enumerate(sorted(set(panels), key=natural))}
    networks = {network: number for number, (network, *_) in enumerate(found)}
    every = [SweepCell(network, panel, key, size, own) for (network, panel, key, size), own in found.items()]
    return sorted(every, key=lambda cell: (networks[cell.network], order[cell.panel], cell.size or 0))


def best_of(own: Iterable[SweepCell]) -> Run | None:
    """The best run of several cells on development examples; None if that cannot be said."""
    found = [run for cell in own if (run := cell.best) is not None]
    if len(found) < 2:
        return found[0] if found else None
    chosen = [run for run in found if run.summary["dev"] is not None]
    return max(chosen, key=lambda run: by_development(run.summary)) if chosen else None


def size_names(own: Sequence[SweepCell]) -> str:
    """What the sizes of these cells are: width, or hidden_size or width."""
    return " or ".join(dict.fromkeys(_name(cell.size_key) for cell in own if cell.size_key))


def _options(run: Run) -> Options:
    """Everything that determines the result but for seed and learning rate; what is no single value as text.

    Settings of parts of a network, such as its mixers, have keys of their own: net.mixers.2.window.
    """
    found = dict(determining(run.config))
    for key, value in list(found.items()):
        if key.startswith("net.") and isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
            del found[key]
            found |= {f"{key}.{place}.{own}": part[own] for place, part in enumerate(value, 1) for own in part}
    plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in found.items()}
    return {key: value for key, value in plain.items() if key not in ("seed", RATE, "stream")}


def _network(run: Run) -> str:
    """The name of its hyperparameter YAML, else of the model."""
    net = run.config["net"]
    return Path(net["path"]).stem if net.get("path") else str(net["model"])


def _differing(options: Sequence[Options]) -> list[str]:
    """The keys whose values are not the same in all."""
    keys = dict.fromkeys(key for own in options for key in own)
    return [key for key in keys if len({own.get(key) for own in options}) > 1]


def _determined(options: Sequence[Options], key: str, by: Sequence[str]) -> bool:
    """Whether the values of `by` say what the value of a key is."""
    known: dict[tuple[Any, ...], set[Any]] = defaultdict(set)
    for own in options:
        known[tuple(own.get(each) for each in by)].add(own.get(key))
    return all(len(values) == 1 for values in known.values())


def _size_key(options: Sequence[Options], panels: Sequence[str]) -> str:
    """The number of the network that has the most values and does not follow from the data; "" if there is none."""
    own = [{**each, "panel": panel} for each, panel in zip(options, panels, strict=True)]
    keys = [key for key in _differing(own) if key.startswith("net.") and not _determined(own, key, ("panel",))]
    counts = {key: len({each.get(key) for each in own}) for key in keys if all(_number(each.get(key)) for each in own)}
    return max(counts, key=lambda key: counts[key], default="")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _panels(values: Sequence[tuple[Any, ...]], keys: Sequence[str]) -> list[str]:
    """In words, the settings of the data of each run: as few as tell them apart, or one more if there is room."""
    plain = [place for place, key in enumerate(keys) if all(len(str(own[place])) <= _LONG for own in values)]
    counted = range(len(plain) + 1)
    words = [[", ".join(in_words({keys[at]: own[at] for at in plain[:count]})) for own in values] for count in counted]
    enough = next((count for count in counted if len(set(words[count])) == len(set(values))), None)
    if enough is None:
        numbers = {own: number for number, own in enumerate(dict.fromkeys(values), 1)}
        return [f"data {numbers[own]}" for own in values]
    more = words[min(enough + 1, len(plain))]
    return more if enough and max(map(len, more)) <= _ROOM else words[enough]


def natural(text: str) -> list[tuple[int, float, str]]:
    """A key that sorts numbers within words by their size."""
    return [(0, float(word), "") if _is_number(word) else (1, 0.0, word) for word in text.replace(",", " ").split()]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _name(key: str) -> str:
    return key.rpartition(".")[2]
