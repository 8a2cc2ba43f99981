"""The stream of languages: documents with a question, drawn fresh while a network trains, and frozen for evaluation.

    {dataset: languages, tasks: [{language: recall, pairs: 8}, {language: treecall, relations: [parent]}], symbols: 256}

The tasks share their tokens, and a network scores the answer alone. Training examples depend on the seed of the run;
development and test examples are the same in all runs, and have a schema. With `withheld` pairs, test examples ask for
these and all others for the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from datasets.config import DataConfig
from datasets.objectives import Tokens
from datasets.schema import Schema
from datasets.synthetic.associative_recall import AssociativeRecall
from datasets.synthetic.language import FIRST_SYMBOL, Documents, Language
from datasets.synthetic.treecall import Treecall
from datasets.task import DEV, TEST, TRAIN, Examples, Generator, Preprocess, StreamSpec, Table, Task, TaskStream
from utils.errors import UserError, unknown
from utils.seeding import generator, on_device
from utils.settings import Range, counts, declarations, optional, read, setting

LANGUAGES: dict[str, type[Language]] = {"recall": AssociativeRecall, "treecall": Treecall}
_COUNT = counts(Range(1, 10**8))
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
        path, found = where.removesuffix(": tasks"), []
        for number, entry in enumerate(value, 1):
            content = entry if isinstance(entry, Mapping) else {"language": entry}
            if (name := content.get("language")) not in LANGUAGES:
                raise UserError(f"{path}: task {number}: {unknown('language', name, LANGUAGES)}")
            found.append(read(LanguageTask, f"{path}: task {number}", content, _OPTIONAL[name]))
        return tuple(found)


@dataclass(frozen=True)
class LanguageConfig(DataConfig):
    """Which languages, in which order."""

    tasks: tuple[Any, ...] = setting(LanguageList, "the languages")

    def language(self, task: int) -> Language:
        """The language of a task, by its place; UserError if there is none with such settings."""
        asked = self.tasks[task]
        kind, given = LANGUAGES[asked.language], {}
        for part in (self.settings, asked.settings):
            for key in declarations(kind.Settings):
                if getattr(part, key, None) is not None:
                    given[key] = getattr(part, key)
        try:
            return kind(kind.Settings(**given))
        except UserError as error:
            raise UserError(f"{self.path}: task {task + 1}: {error}") from None

    def baselines(self, task: int) -> dict[str, float]:
        return self.language(task).baselines()


@dataclass(frozen=True)
class Amounts:
    """How many examples there are; the settings of languages hold where a task has none of its own."""

    fresh: bool = setting(bool, "train on fresh examples; false: on the frozen training examples", default=True)
    train_examples: int = setting(_COUNT, "frozen training examples of a task", default=1 << 14)
    dev_examples: int = setting(_COUNT, "development examples of a task", default=1 << 10)
    test_examples: int = setting(_COUNT, "test examples of a task", default=3000)
    epoch_examples: int = setting(_COUNT, "fresh examples that are drawn at once", default=1 << 14)

    @property
    def splits(self) -> dict[str, int]:
        """The number of examples of each split."""
        return {TRAIN: self.train_examples, DEV: self.dev_examples, TEST: self.test_examples}


LanguageSettings: type = Amounts
for _kind in LANGUAGES.values():
    LanguageSettings = optional(_kind.Settings, "LanguageSettings", bases=(LanguageSettings,))


@dataclass(frozen=True)
class FreshDocuments(Generator):
    """Documents of a language, drawn on the device: `length` tokens, then the position that is scored."""

    language: Language
    length: int
    withheld: bool  # whether they ask for withheld pairs
    epoch_size: int
    device: torch.device

    def draw(self, n: int, rng: torch.Generator) -> Examples:
        return self._examples(self.documents(n, on_device(rng, self.device)))

    def documents(self, n: int, rng: torch.Generator) -> Documents:
        """Documents with their schema, on the device of the generator."""
        return self.language.draw(n, rng, self.withheld)

    def frozen(self, n: int, seed: int, *name: object) -> Examples:
        """`n` examples with their schema from the random stream `name` of `seed`, the same on every device."""
        rng = generator(seed, "languages", *name)
        documents = self.documents(n, rng)
        replacements = self.language.replacements(documents, rng)
        examples = self._examples(documents)
        schema = Schema(documents.positions, replacements, documents.answers, documents.probabilities)
        return replace(examples, schema=schema).to(self.device)

    def _examples(self, documents: Documents) -> Examples:
        tokens = F.pad(documents.tokens, (0, self.length - documents.tokens.shape[1]))
        inputs = torch.cat([tokens, documents.asked.unsqueeze(1)], 1)
        return Examples(inputs, torch.arange(len(inputs), device=inputs.device), documents.right.unsqueeze(1))


def languages(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """The stream whose tasks the dataset YAML names; UserError if there are no such languages."""
    assert isinstance(config, LanguageConfig)
    own = config.settings
    spoken = [config.language(place) for place in range(len(config.tasks))]
    length = max(language.longest for language in spoken)
    vocabulary = FIRST_SYMBOL + max(language.symbols for language in spoken)
    tasks = []
    for number, (task, language) in enumerate(zip(config.tasks, spoken, strict=True), 1):
        if number in config.forgotten:
            continue
        splits = {}
        for split, count in own.splits.items():
            withheld = split == TEST and language.settings.withheld > 0
            source = FreshDocuments(language, length, withheld, own.epoch_examples, device)
            splits[split] = source.frozen(count, seed if split == TRAIN else 0, number, split)
        fresh = FreshDocuments(language, length, False, own.epoch_examples, device)
        tasks.append(Task(number, _name(task), vocabulary, fresh if own.fresh else Table(splits[TRAIN]), splits))
    spec = StreamSpec(config.stream, (length + 1,), Tokens(), Preprocess(), heads="identity", asked=1)
    return TaskStream(spec, tuple(tasks))


languages.Settings = LanguageSettings  # type: ignore[attr-defined]
languages.Config = LanguageConfig  # type: ignore[attr-defined]


def _name(task: LanguageTask) -> str:
    """The name of a task: the given one, or its language and what sets it apart."""
    keys = declarations(type(task.settings))
    given = {key: value for key in keys if (value := getattr(task.settings, key)) is not None}
    words = ", ".join(f"{key} {value}" for key, value in given.items())
    return task.name or (f"{task.language} ({words})" if words else task.language)
