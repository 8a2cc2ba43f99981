"""From run directories: figures, tables, one HTML page."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError, ending_of


@contextmanager
def one_line_errors(what: str, to: str | Path) -> Iterator[None]:
    """Turn errors while a report of the runs `what` is written to `to` into a UserError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about numbers that no figure can show
            yield
    except OSError as error:
        raise UserError(f"{error.filename or to} cannot be read or written: {error.strerror or error}") from None
    except Exception as error:  # files with the right checksums but wrong content
        if ending_of(error) is not None:
            raise
        raise UserError(f"{what}: what was saved cannot be shown ({type(error).__name__}: {error!s:.200})") from None
