"""Languages in folders that any program can read: JSON and arrays, nothing that runs.

DIR/1-recall/language.json          which language, its settings, tokens, facts, and statistics of each split
             arrays.safetensors     what was drawn once, such as the pairs that are withheld
             train.safetensors      documents of a split: tokens [N, L], positions.ITEM [N], replacements.ITEM [N],
                                    answers [N, A], probabilities [N, A]; see datasets/schema.py
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from datasets.synthetic.language import ANSWER, FIRST_SYMBOL, ITEMS, SPECIAL, Documents, Language
from datasets.synthetic.languages import LANGUAGES, LanguageConfig, documents_of, examples_of
from datasets.task import Examples, Task, TaskStream
from utils.errors import UserError, unknown
from utils.files import json_bytes, tensor_bytes
from utils.settings import plain, read

FORMAT = 1
DESCRIPTION, ARRAYS, SPLIT = "language.json", "arrays.safetensors", "{}.safetensors"


class SavedLanguage(NamedTuple):
    """A language that was read, and its documents."""

    language: Language
    splits: dict[str, Examples]  # by name, each with its schema
    description: dict[str, Any]  # the content of language.json


def language_files(config: LanguageConfig, stream: TaskStream, seed: int) -> dict[str, bytes]:
    """By name the files of a folder with a folder for each task of a stream, whose training examples have that seed."""
    files = dict[str, bytes]()
    for task in stream.tasks:
        language, asked = config.language(task.id - 1), config.tasks[task.id - 1]
        folder = f"{task.id}-{asked.language}"
        files[f"{folder}/{DESCRIPTION}"] = json_bytes(described(asked.language, language, task, seed))
        files[f"{folder}/{ARRAYS}"] = tensor_bytes(language.arrays())
        for split, examples in task.splits.items():
            files[f"{folder}/{SPLIT.format(split)}"] = tensor_bytes(_tensors(examples))
    return files


def described(name: str, language: Language, task: Task, seed: int) -> dict[str, Any]:
    """What is known of a language and the documents of a task, for JSON."""
    splits = {}
    for split, examples in task.splits.items():
        documents = documents_of(examples)
        splits[split] = {"documents": len(examples), "statistics": language.statistics(documents)}
    return {
        "format": FORMAT,
        "language": name,
        "task": task.name,
        "settings": plain(language.settings),
        "seed": seed,
        "vocabulary": {
            "size": task.num_outputs,  # of the stream, maybe more than the language has
            "special": {word: token for token, word in enumerate(SPECIAL)},
            "first_symbol": FIRST_SYMBOL,
            "symbols": language.symbols,
        },
        "splits": splits,
        "baselines": language.baselines(),
        "facts": language.facts(),
    }


def _tensors(examples: Examples) -> dict[str, Tensor]:
    assert examples.schema is not None
    schema = examples.schema.rows(examples.rows)
    parts = {"positions": schema.positions, "replacements": schema.replacements, "known": schema.known}
    found = {f"{part}.{item}": values for part, own in parts.items() for item, values in own.items()}
    tokens = examples.store[examples.rows, :-1]
    return {"tokens": tokens, **found, "answers": schema.answers, "probabilities": schema.probabilities}


def read_language(folder: Path) -> SavedLanguage:
    """The language in the folder of a task, and its documents; UserError if a file is missing or damaged.

    The language is made from its settings; what it draws once must be what was saved.
    """
    path = folder / DESCRIPTION
    with _reading(path):
        description = json.loads(path.read_bytes())
        if (written := description["format"]) != FORMAT:
            raise UserError(f"{path} has format {written!r}; this version reads {FORMAT}")
        if (name := description["language"]) not in list(LANGUAGES):
            raise UserError(f"{path}: {unknown('language', name, LANGUAGES)}")
        settings = read(LANGUAGES[name].Settings, f"{path}: settings", description["settings"])
        try:
            language = LANGUAGES[name](settings)
        except UserError as error:
            raise UserError(f"{path}: settings: {error}") from None
        splits = list(description["splits"])
        if not all(re.fullmatch("[a-z_]+", split) for split in splits):
            raise ValueError("a split has a name that is none")
    drawn, saved = language.arrays(), _arrays(folder / ARRAYS)
    if drawn.keys() != saved.keys() or not all(torch.equal(drawn[key], saved[key]) for key in drawn):
        raise UserError(f"{folder / ARRAYS} is not what {name} draws with these settings: it is damaged, or of another "
                        "version")  # fmt: skip
    return SavedLanguage(language, {split: _examples(folder, split, language) for split in splits}, description)


def _examples(folder: Path, split: str, language: Language) -> Examples:
    path = folder / SPLIT.format(split)
    tensors = _arrays(path)
    with _reading(path):
        positions, replacements, known = (
            {key.removeprefix(part): values for key, values in tensors.items() if key.startswith(part)}
            for part in ("positions.", "replacements.", "known.")
        )
        documents = Documents(tensors["tokens"], positions, tensors["answers"], tensors["probabilities"], known)
        if fault := _fault(documents, replacements, language):
            raise ValueError(fault)
        return examples_of(documents, documents.tokens.shape[1], replacements)


def _fault(documents: Documents, replacements: Mapping[str, Tensor], language: Language) -> str:
    """What is wrong with documents that were read; "" if nothing is."""
    tokens, positions, answers, probabilities, known = documents
    if tokens.dim() != 2 or answers.dim() != 2 or probabilities.shape != answers.shape:
        return "tokens, answers or probabilities are no tables"
    if positions.keys() != set(ITEMS) or not replacements.keys() <= set(ITEMS):
        return f"it must have positions of {', '.join(ITEMS)}, and replacements of some of them"
    (count, length), end = tokens.shape, FIRST_SYMBOL + language.symbols
    whole = {"tokens": tokens, "answers": answers, **positions, **replacements}
    if any(values.dtype != torch.int64 or len(values) != count for values in whole.values()):
        return f"all but the probabilities must be int64, of {count} documents"
    single = [*positions.values(), *replacements.values(), *known.values()]
    if any(values.shape != (count,) for values in single):
        return "a document has one position and one replacement of an item"
    if not all(_within(values, 0, end) for values in (tokens, answers, *replacements.values())):
        return f"tokens must be from 0 to {end - 1}"
    if not all(_within(values, -1, length) for values in positions.values()) or not _within(
        positions[ANSWER], 1, length
    ):
        return f"positions must be from -1 to {length - 1}, and there must be an answer"
    if probabilities.dtype != torch.float32 or not ((probabilities >= 0) & (probabilities <= 1)).all():
        return "probabilities must be float32, from 0 to 1"
    return ""


def _within(values: Tensor, low: int, end: int) -> bool:
    return bool(((values >= low) & (values < end)).all())


def _arrays(path: Path) -> dict[str, Tensor]:
    with _reading(path):
        return safetensors.torch.load(path.read_bytes())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in reading a file into one line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is missing; describe.py writes such a folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from None
