"""The stream of languages: documents with a question, drawn fresh while a network trains, and frozen for evaluation.

    {dataset: languages, tasks: [{language: recall, pairs: 8}, {language: treecall, relations: [parent]}], symbols: 256}

The tasks share their tokens, and only the answer is scored. Training examples depend on the seed of the run,
development and test examples of a language are the same in all runs. Frozen examples have a schema, fresh ones none.
With `withheld` pairs, test examples ask for these and all others for the rest.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.config import DataConfig
from datasets.objectives import Tokens
from datasets.schema import Schema
from datasets.synthetic.amounts import Amounts
from datasets.synthetic.associative_recall import AssociativeRecall
from datasets.synthetic.language import FIRST_SYMBOL, Documents, Language
from datasets.synthetic.treecall import Treecall
from datasets.task import TEST, TRAIN, Examples, Generator, Preprocess, StreamSpec, Table, Task, TaskStream
from datasets.validation import random_stream
from utils.errors import UserError, unknown
from utils.seeding import generator, on_device
from utils.settings import Range, declarations, optional, plain, read, setting

LANGUAGES: dict[str, type[Language]] = {"recall": AssociativeRecall, "treecall": Treecall}
_OPTIONAL = {name: optional(kind.Settings, f"{kind.__name__}Keys") for name, kind in LANGUAGES.items()}


@dataclass(frozen=True)
class LanguageTask:
    """One task of a stream, as written in the dataset YAML; what it does not say, the stream says."""

    language: str = setting(tuple(LANGUAGES), "name of the language")
    name: str | None = setting(str, "name of the task", default=None)
    settings: Any = None  # those of the language that are given
    label_noise: ClassVar[float] = 0.0


class LanguageList:
    """The tasks of a stream: names of languages, or mappings with `language` and its settings."""

    @staticmethod
    def read(where: str, value: object) -> tuple[LanguageTask, ...]:
        """The checked tasks; a UserError names the wrong one."""
        if not isinstance(value, list) or not value:
            raise UserError(f"{where} must be a list with at least one language, such as [recall]")
        path = where.removesuffix(": tasks")
        return tuple(LanguageList._task(f"{path}: task {number}", entry) for number, entry in enumerate(value, 1))

    @staticmethod
    def _task(where: str, entry: object) -> LanguageTask:
        content = entry if isinstance(entry, Mapping) else {"language": entry}
        if "language" not in content:
            raise UserError(f"{where}: key 'language' is missing")
        name = content["language"]
        if not isinstance(name, str) or name not in LANGUAGES:
            raise UserError(f"{where}: {unknown('language', name, LANGUAGES)}")
        return read(LanguageTask, where, content, _OPTIONAL[name])


@dataclass(frozen=True)
class LanguageConfig(DataConfig):
    """Which languages, in which order."""

    tasks: tuple[Any, ...] = setting(LanguageList, "the languages")

    def language(self, task: int) -> Language:
        """The language of a task, by its place; UserError if there is none with such settings."""
        asked, given = self.tasks[task], {}
        kind = LANGUAGES[asked.language]
        with self.naming(task):
            for part in (self.settings, asked.settings):
                for key, declared in declarations(kind.Settings).items():
                    if (value := getattr(part, key, None)) is not None:
                        # What the stream says was checked for any of the languages that have the key.
                        given[key] = declared.check(key, value) if isinstance(declared.accepts, Range) else value
            return kind(kind.Settings(**given))

    @contextmanager
    def naming(self, task: int) -> Iterator[None]:
        """Begin what a UserError says with the file and the task, by its place."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.path}: task {task + 1}: {error}") from None

    def baselines(self, task: int) -> dict[str, float]:
        return self.language(task).baselines()


# Keys of the dataset YAML: settings of languages, which hold where a task has none of its own, and amounts.
_keys: type = object
for _kind in LANGUAGES.values():
    _keys = optional(_kind.Settings, "LanguageKeys", bases=(_keys,))
LanguageSettings = make_dataclass("LanguageSettings", (), bases=(Amounts, _keys), frozen=True)


@dataclass(frozen=True)
class FreshDocuments(Generator):
    """Documents of a language, drawn on the device: `length` tokens, then the position that is scored."""

    language: Language
    length: int
    withheld: bool  # whether they ask for withheld pairs
    epoch_size: int
    device: torch.device

    def draw(self, n: int, rng: torch.Generator) -> Examples:
        documents = self.language.draw(n, on_device(rng, self.device), self.withheld)
        return examples_of(documents, self.length)

    def frozen(self, n: int, seed: int, *name: object) -> Examples:
        """`n` examples with their schema from the random stream `name` of `seed`, the same on every device."""
        rng = generator(seed, "languages", *name)
        documents = self.language.draw(n, rng, self.withheld)
        replacements = self.language.replacements(documents, rng)
        return examples_of(documents, self.length, replacements).to(self.device)


def examples_of(documents: Documents, length: int, replacements: Mapping[str, Tensor] | None = None) -> Examples:
    """Documents as examples of `length` tokens; with a schema if there are tokens that could stand in for others."""
    tokens = F.pad(documents.tokens, (0, length - documents.tokens.shape[1]))
    inputs = torch.cat([tokens, documents.asked.unsqueeze(1)], 1)
    schema = None
    if replacements is not None:
        positions, answers, probabilities, known = documents[1:]
        schema = Schema(positions, replacements, answers, probabilities, known)
    rows = torch.arange(len(inputs), device=inputs.device)
    return Examples(inputs, rows, documents.right.unsqueeze(1), schema=schema)


def documents_of(examples: Examples) -> Documents:
    """The documents of examples that have a schema."""
    assert examples.schema is not None
    schema = examples.schema.rows(examples.rows)
    tokens = examples.store[examples.rows, :-1]
    return Documents(tokens, dict(schema.positions), schema.answers, schema.probabilities, schema.known)


def languages(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """The stream whose tasks the dataset YAML names; UserError if there are no such languages."""
    assert isinstance(config, LanguageConfig)
    own = config.settings
    _check_used(config)
    spoken = [config.language(place) for place in range(len(config.tasks))]
    length = max(language.longest for language in spoken)
    vocabulary = FIRST_SYMBOL + max(language.symbols for language in spoken)
    tasks = []
    for number, (task, language) in enumerate(zip(config.tasks, spoken, strict=True), 1):
        if number not in config.numbers:
            continue
        fresh = FreshDocuments(language, length, False, own.epoch_examples, device)
        splits, said = {}, (task.language, plain(language.settings))
        for split, count in own.splits.items():
            own_seed, name = random_stream(config, split, seed)
            source = replace(fresh, withheld=name == TEST and language.settings.withheld > 0)
            with config.naming(number - 1):
                splits[split] = source.frozen(count, own_seed, *said, name)
        tasks.append(Task(number, _name(task), vocabulary, fresh if own.fresh else Table(splits[TRAIN]), splits))
    spec = StreamSpec(config.stream, (length + 1,), Tokens(), Preprocess(), heads="identity", asked=1)
    return TaskStream(spec, tuple(tasks), validated=config.validation > 0)


languages.Settings = LanguageSettings  # type: ignore[attr-defined]
languages.Config = LanguageConfig  # type: ignore[attr-defined]


def _check_used(config: LanguageConfig) -> None:
    """UserError if the stream has a setting that none of its languages has."""
    named = {task.language for task in config.tasks}
    used = {key for name in named for key in declarations(LANGUAGES[name].Settings)}
    for key in declarations(_keys):
        if getattr(config.settings, key) is not None and key not in used:
            raise UserError(f"{config.path}: {key} means nothing to {' or '.join(sorted(named))}; leave it out")


def _name(task: LanguageTask) -> str:
    """The name of a task: the given one, or its language and what sets it apart."""
    keys = declarations(type(task.settings))
    given = {key: value for key in keys if (value := getattr(task.settings, key)) is not None}
    said = {key: " and ".join(value) if isinstance(value, tuple) else value for key, value in given.items()}
    words = ", ".join(f"{key} {value}" for key, value in said.items())
    return task.name or (f"{task.language} ({words})" if words else task.language)
