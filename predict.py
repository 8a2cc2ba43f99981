"""Ask a saved zoo about images.

RUN -> Zoo
images or folders -> decoded, a chunk ahead of the networks -> probabilities -> CSV, or a line an image
"""

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import argparse
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.images.files import reasons
from evaluation.scenarios import DEFAULT_ROUTING, ROUTINGS
from utils.errors import UserError, one_line, run_program
from utils.files import csv_bytes, written_whole
from utils.options import Parser, check_choice, whole
from zoo import Prediction, Zoo
from zoo.inputs import find_images, read_image
from zoo.options import add_combination, add_machine, check_new, repeatable

_CHUNK_BYTES, _CHUNK_IMAGES = 64 << 20, 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if some files could not be read; 2 if the input is wrong; 130 or 143 if stopped."""
    return run_program("predict.py", lambda: predict(arguments(argv)), "interrupted; nothing was written")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; a UserError names a wrong one."""
    parser = Parser(prog="predict.py", allow_abbrev=False, description="Ask a saved zoo about images.")
    add = parser.add_argument
    add("run", metavar="RUN", help="a run directory")
    add("images", metavar="IMAGE_OR_FOLDER", nargs="+", help="image files, and folders with all that is in them; of "
        "any size: the shorter side is scaled to what the networks were trained on and the middle cut out")  # fmt: skip
    add("--task", metavar="NAME", required=True,
        help="number or name of the task of the images, or number=N or name=NAME; auto finds it, or asks the head that "
        "all tasks share (needed)")  # fmt: skip
    add("--out", metavar="CSV",
        help="file, task, class, probability, and one column a class (default: lines on stdout)")  # fmt: skip
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
    zoo.check_reads_files()
    check_choice("--routing", "rule", options.routing, ROUTINGS)
    task = options.task if zoo.finds(options.task) else zoo.task(options.task).number
    found = [find_images(Path(given)) for given in options.images]
    files = [file for images, _ in found for file in images]
    out = None if options.out is None else Path(options.out)
    if out is not None:
        check_new(out, "file")
    skipped: list[str] = []
    try:
        with nullcontext() if out is None else written_whole(out) as file:
            for first, (names, images) in enumerate(decoded(files, zoo.input_shape, skipped)):
                answer = zoo.predict(images, task, options.routing)
                if file is None:
                    print_lines(names, answer, options.top)
                else:
                    file.write(csv_bytes(rows(names, answer, header=not first)))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
    if unused := reasons(sum((others for _, others in found), Counter())):
        print(f"predict.py: not looked at: {unused}", file=sys.stderr)
    for line in skipped:
        print(one_line(f"predict.py: {line}"), file=sys.stderr)
    if out is not None:
        print(one_line(f"{len(files) - len(skipped):,} images of {len(files):,} files: {out}"))
    if skipped:
        print(f"predict.py: {len(skipped):,} of {len(files):,} files were skipped", file=sys.stderr)
    return 1 if skipped else 0


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

    size = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // math.prod(shape)))
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


def rows(files: Sequence[Path], prediction: Prediction, *, header: bool) -> Iterator[list[str]]:
    """The CSV rows of some images, after the header row if `header`."""
    several = len({task.number for task, _ in prediction.outputs}) > 1
    if header:
        names = [f"{task.number} {task.name}: {name}" if several else name for task, name in prediction.outputs]
        yield ["file", "task", "class", "probability", *(f"p({name})" for name in names)]
    for file, chosen, p in zip(files, prediction.chosen.tolist(), prediction.probabilities.tolist(), strict=True):
        task, name = prediction.outputs[chosen]
        shown = str(file).encode("utf-8", "backslashreplace").decode()  # a file name may be bytes that are no text
        label = f"{task.number} {task.name}" if several else task.name
        yield [shown, label, name, f"{p[chosen]:.6g}", *(f"{value:.6g}" for value in p)]


def print_lines(files: Sequence[Path], prediction: Prediction, top: int) -> None:
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
