"""The parts of a page, and how it is written: one HTML file that needs no other, and its figures as files."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from datasets.validation import NOTICE
from records.run import Run
from reporting import style
from reporting.drawing import DrawnFigure
from reporting.slider import Slider
from studies.tables import Cell
from utils.errors import printable
from utils.files import check_own, csv_bytes, write_bytes, yaml_bytes


@dataclass(frozen=True)
class Sheet:
    """A table of the page, and its data, which the page offers as CSV; without rows it is left out."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    data: pd.DataFrame
    foot: Sequence[str] = ()
    notes: Sequence[str] = ()
    text: bool = False  # cells hold text, which is set flush left


@dataclass(frozen=True)
class Section:
    """A heading, tables, figures and figures with a slider."""

    title: str
    tables: Sequence[Sheet | None] = ()
    pictures: Sequence[DrawnFigure] = ()
    sliders: Sequence[Slider] = ()

    @property
    def filled(self) -> bool:
        """Whether there is anything below the heading; without it the page leaves the heading out."""
        return any(table and table.rows for table in self.tables) or bool(self.pictures or self.sliders)


@dataclass(frozen=True)
class Page:
    """The values that the template page.html fills in."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    command: str
    warnings: Sequence[str]
    configuration: Sequence[tuple[str, str]]
    tiles: Sequence[tuple[str, str, str]] = ()  # title, value, note: the numbers at the top of the page of one run
    palette: Sequence[tuple[str, str]] = ()  # colours of tasks: on a light and on a dark ground

    def write(self, folder: Path) -> Path:
        """Write report.html and figures/ and return the path of the page; OSError if the folder cannot be written."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["link"] = _link
        themed = [light for light, dark in self.palette if light != dark]
        svgs = dict[str, Markup]()
        check_own(folder / "figures")
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for picture in chain(*(section.pictures for section in self.sections)):
            name, (svg, png) = picture.name, style.svg_and_png(picture.drawn)
            svgs[name] = Markup(style.inline(svg, name, picture.title, themed))  # matplotlib has escaped its texts
            files = {"png": png, "svg": svg.encode(), "csv": _csv(picture.data)}
            for ending, content in files.items():
                write_bytes(folder / "figures" / f"{name}.{ending}", content)
        moving = [*chain(*(section.sliders for section in self.sections))]
        for slider in moving:
            write_bytes(folder / "figures" / f"{slider.name}.csv", _csv(slider.data))
        page = environment.get_template("page.html").render(vars(self), svgs=svgs, moving=moving)
        write_bytes(folder / "report.html", printable(page).encode())
        return folder / "report.html"


def configuration(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Name and content of the config.yaml of each run."""
    return [(f"{run.path}/config.yaml", yaml_bytes(run.config).decode()) for run in runs]


def _csv(data: pd.DataFrame) -> bytes:
    return csv_bytes([list(data), *data.astype(object).where(data.notna(), "").itertuples(index=False, name=None)])


def _link(data: pd.DataFrame) -> str:
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(_csv(data)).decode()


def validated(runs: Sequence[Run]) -> list[str]:
    """A line that says which of the runs have validation examples in the place of test examples; none if no run has."""
    of = [run for run in runs if run.config["data"].get("validation")]
    which = "" if len(of) == len(runs) else f" of {', '.join(str(run.path) for run in of)}"
    return [f"Wherever this page says test, read validation{which}: {NOTICE}."] if of else []


def count(number: int, noun: str) -> str:
    """A number of things in words."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
