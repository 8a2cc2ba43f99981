"""Ask a saved zoo about images, or about the rows of a file of arrays.

RUN -> Zoo
images or folders -> decoded, a chunk ahead of the networks -> probabilities -> CSV, or a line an image
--data FILE -> rows, a chunk at a time                      -> the same
"""

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import argparse
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.arrays.files import Names, read_inputs
from datasets.arrays.stream import ArraySettings
from datasets.images.files import reasons
from evaluation.scenarios import DEFAULT_ROUTING, ROUTINGS
from utils.errors import UserError, one_line, run_program
from utils.files import csv_bytes, written_whole
from utils.options import Parser, check_choice, whole
from zoo import Prediction, SavedTask, Zoo
from zoo.inputs import find_images, read_image
from zoo.options import add_combination, add_machine, check_new, repeatable

CHUNK_BYTES, _CHUNK_IMAGES = 64 << 20, 1024
Named = tuple[Sequence[object], Tensor]  # what inputs are called, and these


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if some files could not be read; 2 if the input is wrong; 130 or 143 if stopped."""
    return run_program("predict.py", lambda: predict(arguments(argv)), "interrupted; nothing was written")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; a UserError names a wrong one."""
    parser = Parser(prog="predict.py", allow_abbrev=False, description="Ask a saved zoo about images or arrays.")
    add = parser.add_argument
    add("run", metavar="RUN", help="a run directory")
    # An argument with any number of values takes none where options stand before them.
    of_arrays = any(given.partition("=")[0] == "--data" for given in (sys.argv[1:] if argv is None else argv))
    parser.set_defaults(images=[])
    if not of_arrays:
        add("images", metavar="IMAGE_OR_FOLDER", nargs="+",
            help="image files, and folders with all that is in them; of any size: the shorter side is scaled to what "
            "the networks were trained on and the middle cut out")  # fmt: skip
    add("--data", metavar="FILE", help="in place of images a file of arrays, npz, parquet or csv, with the features as "
        "in the run's own file, else under the name X; rows are numbered from 0 (default: images)")  # fmt: skip
    add("--task", metavar="NAME", required=True,
        help="number or name of the task of the images, or number=N or name=NAME; auto finds it, or asks the head that "
        "all tasks share (needed)")  # fmt: skip
    add("--out", metavar="CSV",
        help="file or row, task, class, probability, and one column a class; or file or row, task, and real numbers "
        "(default: lines on stdout)")  # fmt: skip
    add("--top", metavar="K", type=partial(whole, "--top"), default=3,
        help="classes in a line on stdout, the likeliest first (default: 3)")  # fmt: skip
    add("--routing", metavar="NAME", default=DEFAULT_ROUTING,
        help=f"how --task auto finds the task: {', '.join(ROUTINGS)} (default: {DEFAULT_ROUTING})")  # fmt: skip
    add_combination(parser)
    add_machine(parser, "as many as there are cores")
    return parser.parse_known(argv)


@repeatable()
def predict(options: argparse.Namespace) -> int:
    """Check everything that can be wrong, then read and classify the images; 1 if some could not be read, else 0."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    zoo = Zoo.load(options.run, options.device).combined(options.combine, options.temperature, options.budget)
    check_choice("--routing", "rule", options.routing, ROUTINGS)
    if finds := zoo.finds(options.task):
        zoo.check_classes()
    task = options.task if finds else zoo.task(options.task).number
    out = None if options.out is None else Path(options.out)
    if options.data is not None:
        inputs = arrays_of(zoo, Path(options.data))
        if out is not None:
            check_new(out, "file")
        answer(zoo, task, options, out, chunks_of(inputs), "row")
        if out is not None:
            print(one_line(f"{len(inputs):,} rows of {options.data}: {out}"))
        return 0
    zoo.check_reads_files()
    found = [find_images(Path(given)) for given in options.images]
    files = [file for images, _ in found for file in images]
    if out is not None:
        check_new(out, "file")
    skipped: list[str] = []
    answer(zoo, task, options, out, decoded(files, zoo.input_shape, skipped), "file")
    if unused := reasons(sum((others for _, others in found), Counter())):
        print(f"predict.py: not looked at: {unused}", file=sys.stderr)
    for line in skipped:
        print(one_line(f"predict.py: {line}"), file=sys.stderr)
    if out is not None:
        print(one_line(f"{len(files) - len(skipped):,} images of {len(files):,} files: {out}"))
    if skipped:
        print(f"predict.py: {len(skipped):,} of {len(files):,} files were skipped", file=sys.stderr)
    return 1 if skipped else 0


def answer(
    zoo: Zoo, task: str | int, options: argparse.Namespace, out: Path | None, parts: Iterable[Named], what: str
) -> None:  # fmt: skip
    """Write or print the answers to names and inputs, part by part; `what` the names are."""
    try:
        with nullcontext() if out is None else written_whole(out) as file:
            for first, (names, inputs) in enumerate(parts):
                header = "" if first else what
                if not zoo.of_classes:
                    write_numbers(file, zoo.task(task), names, zoo.numbers(inputs, task), header)
                    continue
                found = zoo.predict(inputs, task, options.routing)
                if file is None:
                    print_lines(names, found, options.top)
                else:
                    file.write(csv_bytes(rows(names, found, header)))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None


def arrays_of(zoo: Zoo, path: Path) -> Tensor:
    """The features of a file of arrays, [N, ...]."""
    own = zoo.config.data.settings
    return torch.from_numpy(read_inputs(path, own.names if isinstance(own, ArraySettings) else Names(), zoo.columns))


def chunks_of(inputs: Tensor) -> Iterator[Named]:
    """Numbers and inputs of rows, some at a time."""
    size = max(1, CHUNK_BYTES // inputs[0].nbytes)
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        yield range(start, start + len(part)), part


def decoded(files: Sequence[Path], shape: tuple[int, ...], skipped: list[str]) -> Iterator[tuple[list[Path], Tensor]]:
    """Names and images, [n, C, H, W] uint8, of the files that can be read, some at a time.

    Threads decode the next chunk while the networks work on this one: Pillow does not hold the interpreter's lock.
    `skipped` gets a line for each file that cannot be read.
    """

    def read(path: Path) -> Tensor | str:
        try:
            return read_image(path, shape)
        except UserError as error:
            return str(error)

    size = max(1, min(_CHUNK_IMAGES, CHUNK_BYTES // math.prod(shape)))
    chunks = [files[start : start + size] for start in range(0, len(files), size)]
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(files), unit=" images", disable=None) as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow warns of metadata that nothing here reads
        coming = pool.map(read, chunks[0])
        for chunk, following in zip(chunks, [*chunks[1:], []], strict=True):
            current, coming = coming, pool.map(read, following)  # these are decoded from now on
            found = list(zip(chunk, current, strict=True))
            skipped += [image for _, image in found if isinstance(image, str)]
            good = [(path, image) for path, image in found if isinstance(image, Tensor)]
            if good:
                yield [path for path, _ in good], torch.stack([image for _, image in good])
            bar.update(len(chunk))


def rows(names: Sequence[object], prediction: Prediction, header: str) -> Iterator[list[str]]:
    """The CSV rows of some images or rows, after the header row if `header` says what their names are."""
    several = len({task.number for task, _ in prediction.outputs}) > 1
    if header:
        outputs = [f"{task.number} {task.name}: {name}" if several else name for task, name in prediction.outputs]
        yield [header, "task", "class", "probability", *(f"p({name})" for name in outputs)]
    for file, chosen, p in zip(names, prediction.chosen.tolist(), prediction.probabilities.tolist(), strict=True):
        task, name = prediction.outputs[chosen]
        label = f"{task.number} {task.name}" if several else task.name
        yield [as_text(file), label, name, f"{p[chosen]:.6g}", *(f"{value:.6g}" for value in p)]


def write_numbers(
    file: BinaryIO | None, task: SavedTask, names: Sequence[object], answers: Tensor, header: str
) -> None:  # fmt: skip
    """Write or print the real numbers answered, [N, D]; `header` says what their names are, if they need a header."""
    found = [(as_text(name), [f"{value:.6g}" for value in values])
             for name, values in zip(names, answers.tolist(), strict=True)]  # fmt: skip
    if file is None:
        for name, values in found:
            print(one_line(f"{name}: {task.number} {task.name}: {', '.join(values)}"))
        return
    numbers = ["value"] if answers.shape[1] == 1 else [f"value {number}" for number in range(answers.shape[1])]
    head = [[header, "task", *numbers]] if header else []
    file.write(csv_bytes([*head, *([name, task.name, *values] for name, values in found)]))


def as_text(name: object) -> str:
    """The name of an input as a text: a file name may be bytes that are no text."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def print_lines(files: Sequence[object], prediction: Prediction, top: int) -> None:
    """Print file, task and the `top` likeliest classes of each image.

    If the task was not given, the classes are those of the likeliest task, with p(task) p(class | task).
    """
    for file, chosen, p in zip(files, prediction.chosen.tolist(), prediction.probabilities.tolist(), strict=True):
        task = prediction.outputs[chosen][0]
        of_task = [i for i, (other, _) in enumerate(prediction.outputs) if other == task]
        best = sorted(of_task, key=lambda i: -p[i])[:top]
        classes = ", ".join(f"{prediction.outputs[i][1]} {p[i]:.4f}" for i in best)
        print(one_line(f"{file}: {f'{task.number} ' if task.number else ''}{task.name}: {classes}"))


if __name__ == "__main__":
    sys.exit(main())
