"""Turn a saved zoo into files that run without this project: ONNX, torch.export, and a model card.

RUN -> Zoo -> one module -> DIR/{model.onnx, model.pt2, tasks.json, README.md}
"""

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, one_line, run_program
from utils.options import Parser, check_choice
from zoo import Zoo
from zoo.exporting import FILES, check_formats, ship
from zoo.options import add_combination, check_new, repeatable
from zoo.saved import PLAIN
from zoo.tiny import PUBLISHED, publish

BOTH = "both"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 if the input is wrong, or what is exported does not answer like the zoo; 130 or 143 if stopped."""
    return run_program("export.py", lambda: export(arguments(argv)), "interrupted; nothing was written")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; a UserError names a wrong one."""
    parser = Parser(prog="export.py", allow_abbrev=False,
                    description="Turn a saved zoo into files that run without this project.")  # fmt: skip
    add = parser.add_argument
    add("run", metavar="RUN", help="a run directory")
    add("--out", metavar="DIR", required=True,
        help="where the files go: a folder that does not exist or is empty (needed)")  # fmt: skip
    add("--format", metavar="F", default=BOTH, help=f"{', '.join(FILES)}, {BOTH}, or {PUBLISHED}: the checkpoints of a "
        f"run of train_task.py, as networks on algorithms are published (default: {BOTH})")  # fmt: skip
    add("--task", metavar="NAME", action="append", default=[], dest="tasks",
        help="number or name of a task to export (or number=N, name=NAME); can be repeated (default: all)")  # fmt: skip
    add_combination(parser)
    return parser.parse_known(argv)


@repeatable()
def export(options: argparse.Namespace) -> None:
    """Export, check, write."""
    check_choice("--format", "format", options.format, (*FILES, BOTH, PUBLISHED))
    formats = tuple(FILES) if options.format == BOTH else (options.format,)
    out = Path(options.out)
    if options.format == PUBLISHED:
        if options.tasks or (options.combine, options.temperature, options.budget) != PLAIN:
            raise UserError(f"--format {PUBLISHED} is of the network of one task; leave --task and combinations out")
        check_new(out, "folder")
        for line in publish(Path(options.run).expanduser(), out):
            print(one_line(line))
        return
    check_formats(formats)
    check_new(out, "folder")
    zoo = Zoo.load(options.run, "cpu").combined(options.combine, options.temperature, options.budget)
    zoo.check_classes()
    named = {zoo.task(name).number for name in options.tasks}
    for line in ship(zoo, out, formats, [task for task in zoo.tasks if task.number in named or not named]):
        print(one_line(line))


if __name__ == "__main__":
    sys.exit(main())
