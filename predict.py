"""Ask a saved zoo about images.

RUN -> Zoo
images or folders -> decoded, a chunk ahead of the networks -> probabilities -> CSV, or a line an image
"""

from __future__ import annotations

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import argparse
import csv
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.scenarios import DEFAULT_ROUTING, ROUTINGS
from utils.errors import UserError, one_line, run_program, unknown
from utils.files import written_whole
from utils.options import Parser, whole
from utils.settings import Range
from zoo import Prediction
from zoo.inputs import find_images, read_image
from zoo.options import add_combination, combined
from zoo.saved import AUTO

_CHUNK_BYTES, _CHUNK_IMAGES = 64 << 20, 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if some files could not be read; 2 if the input is wrong."""
    return run_program("predict.py", lambda: predict(arguments(argv)), "interrupted; nothing was written")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: names the option.
    """
    parser = Parser(prog="predict.py", allow_abbrev=False, description="Ask a saved zoo about images.")
    add = parser.add_argument
    add("run", metavar="RUN", help="a run directory")
    add("images", metavar="IMAGE_OR_FOLDER", nargs="+", help="image files, and folders with all that is in them; of "
        "any size: the shorter side is scaled to what the networks were trained on and the middle cut out")  # fmt: skip
    add("--task", metavar="NAME", help="name or number of the task that the images are of; auto finds it (needed)")
    add(
        "--out", metavar="CSV", help="file, task, class, probability, and one column a class (default: lines on stdout)"
    )
    add("--top", metavar="K", default="3", help="classes in a line on stdout, the likeliest first (default: 3)")
    add("--routing", metavar="NAME", default=DEFAULT_ROUTING,
        help=f"how --task auto finds the task: {', '.join(ROUTINGS)} (default: {DEFAULT_ROUTING})")  # fmt: skip
    add_combination(parser)
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--threads", metavar="N", help="CPU threads (default: as many as there are cores)")
    options = parser.parse_known(argv, (), "")
    if options.task is None:
        raise UserError("--task is missing: the name or the number of a task of the zoo, or auto")
    options.top = whole("--top", options.top)
    if options.threads is not None:
        options.threads = whole("--threads", options.threads, Range(1, 1024))
    if options.routing not in ROUTINGS:
        raise UserError(f"--routing: {unknown('rule', options.routing, ROUTINGS)}")
    return options


def predict(options: argparse.Namespace) -> int:
    """Everything that can be wrong is checked before the first image is read.

    Raises:
        UserError: the zoo cannot be read, there is no such task or image, or nothing can be written.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    zoo = combined(options, options.device)
    task = options.task if options.task == AUTO else zoo.task(options.task).number
    files = [file for given in options.images for file in find_images(Path(given))]
    out = None if options.out is None else Path(options.out)
    if out is not None:
        check_absent(out)
    skipped: list[str] = []
    try:
        with nullcontext(None) if out is None else written_whole(out) as file:
            table = Table(file) if file is not None else Lines(options.top)
            for names, images in decoded(files, zoo.input_shape, skipped):
                table.add(names, zoo.predict(images, task, options.routing))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer has nowhere to go
        print("predict.py: nobody reads the output any more (broken pipe)", file=sys.stderr)
        return 1
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
    for line in skipped:
        print(one_line(f"predict.py: {line}"), file=sys.stderr)
    if out is not None:
        print(one_line(f"{len(files) - len(skipped):,} images of {len(files):,} files: {out}"))
    if skipped:
        print(f"predict.py: {len(skipped):,} of {len(files):,} files were skipped", file=sys.stderr)
    return 1 if skipped else 0


def check_absent(out: Path) -> None:
    """
    Raises:
        UserError: something is there.
    """
    try:
        out.lstat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # ValueError: a null character is part of no path
        raise UserError(f"--out {out} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    raise UserError(f"--out {out} exists; remove it, or name another file")


def decoded(
    files: Sequence[Path], shape: tuple[int, int, int], skipped: list[str]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Names and images, [n, C, H, W] uint8, of the files that can be read; why not of the others, in `skipped`.

    Threads decode the next chunk while the networks work on this one: Pillow does not hold the interpreter's lock.
    """

    def read(path: Path) -> Tensor | str:
        try:
            return read_image(path, shape)
        except UserError as error:
            return str(error)

    size = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // (shape[0] * shape[1] * shape[2])))
    chunks = [files[start : start + size] for start in range(0, len(files), size)]
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(files), unit=" images", disable=None) as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow's: of metadata that nothing here reads
        ahead: list[list[Future[Tensor | str]]] = []
        for i, chunk in enumerate(chunks):
            ahead += [[pool.submit(read, path) for path in later] for later in chunks[i + len(ahead) : i + 2]]
            found = [future.result() for future in ahead.pop(0)]
            skipped += [image for image in found if isinstance(image, str)]
            good = [(path, image) for path, image in zip(chunk, found, strict=True) if isinstance(image, Tensor)]
            if good:
                yield [path for path, _ in good], torch.stack([image for _, image in good])
            bar.update(len(chunk))


class Table:
    """A CSV file: a header, a row an image."""

    def __init__(self, file: IO[str]) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        self._begun = False

    def add(self, files: Sequence[Path], prediction: Prediction) -> None:
        """Rows of some images."""
        if not self._begun:
            self._writer.writerow(
                ["file", "task", "class", "probability", *(f"p({name})" for name in columns(prediction))]
            )
            self._begun = True
        chosen = prediction.chosen.tolist()
        for file, place, p in zip(files, chosen, prediction.probabilities.tolist(), strict=True):
            task, name = prediction.outputs[place]
            # The name may be bytes that are no text.
            shown = str(file).encode("utf-8", "backslashreplace").decode()
            self._writer.writerow([shown, task.name, name, f"{p[place]:.6g}", *(f"{value:.6g}" for value in p)])


class Lines:
    """On stdout: file, task, and the likeliest classes."""

    def __init__(self, top: int) -> None:
        self._top = top

    def add(self, files: Sequence[Path], prediction: Prediction) -> None:
        """Lines of some images; without a task the classes are those of the likeliest one, and their probability is
        that of task and class.
        """
        for file, place, p in zip(files, prediction.chosen.tolist(), prediction.probabilities.tolist(), strict=True):
            task = prediction.outputs[place][0]
            mine = [i for i, (other, _) in enumerate(prediction.outputs) if other == task]
            best = sorted(mine, key=lambda i: -p[i])[: self._top]
            said = ", ".join(f"{prediction.outputs[i][1]} {p[i]:.4f}" for i in best)
            print(one_line(f"{file}: {task.number} {task.name}: {said}"))


def columns(prediction: Prediction) -> list[str]:
    """Names of the outputs; with the task where there are several."""
    several = len({task.number for task, _ in prediction.outputs}) > 1
    return [f"{task.number} {task.name}: {name}" if several else name for task, name in prediction.outputs]


if __name__ == "__main__":
    sys.exit(main())
