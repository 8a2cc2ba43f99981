"""Download a data set, or say in one line which files go where."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.torchvision_ops import declare_missing_operators


def fetch(name: str, data_dir: Path, wanted: Sequence[Path], note: str = "") -> None:
    """Let torchvision's class `name` download its data set; a UserError lists the files `wanted`, with a `note`."""
    declare_missing_operators()
    from torchvision import datasets

    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            kind = getattr(datasets, name)
            loader = kind.__new__(kind)  # its constructor would unpickle what it has downloaded
            loader.root = str(data_dir)
            loader.download()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        put = f"put {', '.join(path.name for path in wanted)} into {wanted[0].parent}" + (f" ({note})" if note else "")
        raise UserError(f"{name} is not in {data_dir} and cannot be downloaded ({reason}); {put}") from None
