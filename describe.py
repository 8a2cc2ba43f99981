"""Draw the documents of languages, keep them in a folder that any program can read, and describe them.

dataset YAML -> TaskStream of languages -> DIR/1-recall/{language.json, arrays.safetensors, train.safetensors, ...}
"""

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from datasets import build_stream
from datasets.arrangement import arranged
from datasets.synthetic.language import ANSWER, Language
from datasets.synthetic.languages import LanguageConfig, documents_of
from datasets.synthetic.saved_language import language_files
from datasets.task import Examples, Task
from records.invocation import parse
from utils.errors import UserError, one_line, run_program
from utils.files import write_folder
from utils.options import Parser, whole
from utils.settings import Range
from zoo.options import check_new, repeatable

_SHOWN = 3  # documents of each language


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 if the input is wrong; 130 or 143 if stopped."""
    return run_program("describe.py", lambda: describe(arguments(argv)), "interrupted; nothing was written")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; a UserError names a wrong one."""
    parser = Parser(prog="describe.py", allow_abbrev=False,
                    description="Draw the documents of languages, keep and describe them.")  # fmt: skip
    add = parser.add_argument
    add("data_config", metavar="YAML", help="a dataset YAML of languages, such as "
        "config/dataset/associative_recall.yaml")  # fmt: skip
    add("--out", metavar="DIR", required=True,
        help="where the files go: a folder that does not exist or is empty (needed)")  # fmt: skip
    add("--seed", metavar="N", type=partial(whole, "--seed", accepted=Range(0)), default=0,
        help="of the training documents, as in a run; the others are always the same (default: 0)")  # fmt: skip
    add("--set", metavar="KEY=VALUE", action="append", default=[], dest="changes",
        help="any setting of the data, such as data.pairs=4; can be given several times (default: none)")  # fmt: skip
    return parser.parse_known(argv)


@repeatable()
def describe(options: argparse.Namespace) -> None:
    """Check, draw, write, print."""
    asked, out = _config(options), Path(options.out)
    check_new(out, "folder")
    stream, config = build_stream(asked, options.seed, torch.device("cpu")), arranged(asked, options.seed)
    write_folder(out, language_files(config, stream, options.seed))
    for task in stream.tasks:
        language = config.language(task.id - 1)
        for line in (f"{task.id}. {task.name}", *_table(language, task), *_documents(language, task.test), ""):
            print(one_line(line) if line.strip() == line else line)
    print(one_line(out))


def _config(options: argparse.Namespace) -> LanguageConfig:
    """The languages that are asked for."""
    for text in options.changes:
        if not text.startswith("data."):
            raise UserError(f"--set {text}: only settings of the data matter here, such as data.pairs=4")
    changes = [part for text in options.changes for part in ("--set", text)]
    data = parse([f"--data_config={options.data_config}", *changes]).config.data
    if not isinstance(data, LanguageConfig):
        raise UserError(f"{options.data_config}: dataset is {data.dataset!r}; describe.py describes languages")
    return data


def _table(language: Language, task: Task) -> Iterator[str]:
    """A line for each statistic, with a column for each split."""
    columns = [{"documents": len(part), **language.statistics(documents_of(part))} for part in task.splits.values()]
    width = max(map(len, columns[0]))
    yield "  ".join(["", " " * width, *(f"{split:>9}" for split in task.splits)])
    for name in columns[0]:
        yield "  ".join(["", name.ljust(width), *(f"{_shown(column[name]):>9}" for column in columns)])


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _documents(language: Language, examples: Examples) -> Iterator[str]:
    """Some documents in words, without what fills them up."""
    documents = documents_of(examples).kept(slice(_SHOWN))
    for tokens, answer in zip(documents.tokens.tolist(), documents.positions[ANSWER].tolist(), strict=True):
        yield "  " + " ".join(language.word(token) for token in tokens[: answer + 2])


if __name__ == "__main__":
    sys.exit(main())
