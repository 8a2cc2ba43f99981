"""From run directories: figures, tables, one HTML page."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError


@contextmanager
def reading(what: str, to: str | Path) -> Iterator[None]:
    """While a report is made: whatever is wrong with files whose checksums are right is told in one line.

    Args:
        what: the runs.
        to: where the report goes.

    Raises:
        UserError: a run cannot be shown, or nothing can be written.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that no figure can show
            yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f"{error.filename or to} cannot be written: {error.strerror or error}") from None
    except Exception as error:  # no run has written that
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{what}: what was saved cannot be shown ({reason})") from None
