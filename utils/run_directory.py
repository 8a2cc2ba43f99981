"""The files of a run: facts, written as they happen, each whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.errors import UserError
from utils.files import CsvText, write_bytes, write_json, write_tensors, write_yaml
from utils.monitor import EpisodeFacts, Row

CONFIG = "config.yaml"


class RunDirectory:
    """config.yaml, episodes.csv, metrics.csv, summary.json, members/, predictions/."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Make the directory, in place of an old run (see check_free), and write config.yaml."""
        self.path = path
        self._rows: list[Row] = []
        self._metrics = CsvText(Row._fields)
        self._episodes = CsvText([f.name for f in fields(EpisodeFacts)])
        try:
            if path.exists():
                shutil.rmtree(path)
            (path / "members").mkdir(parents=True)
            (path / "predictions").mkdir()
            write_yaml(path / CONFIG, config)
        except OSError as error:
            raise UserError(f"--run_dir {path} cannot be written: {error.strerror or error}") from None

    def add_member(self, number: int, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Save a network: its tensors, and what they belong to."""
        write_tensors(self.path / "members" / f"member_{number:03d}.safetensors", weights)
        write_json(self.path / "members" / f"member_{number:03d}.json", facts)

    def add_predictions(self, number: int, predictions: Mapping[tuple[int, str], Tensor]) -> None:
        """Save a member's probabilities, float32 [N, C], under the names task_<id>/<split>."""
        named = {f"task_{task}/{split}": tensor.float() for (task, split), tensor in predictions.items()}
        write_tensors(self.path / "predictions" / f"member_{number:03d}.safetensors", named)

    def add_episode(self, facts: EpisodeFacts, rows: Iterable[Row]) -> None:
        """Append to episodes.csv and metrics.csv."""
        weights = " ".join(f"{task}:{weight:.6g}" for task, weight in facts.sampling_weights.items())
        values = list(astuple(facts))
        values[1:3] = [" ".join(map(str, facts.tasks)), weights]
        new = list(rows)
        self._rows += new
        write_bytes(self.path / "episodes.csv", self._episodes.add([values]))
        write_bytes(self.path / "metrics.csv", self._metrics.add(new))

    @property
    def rows(self) -> list[Row]:
        """All measurements so far."""
        return self._rows

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json: the run is complete."""
        write_json(self.path / "summary.json", summary)


def check_free(path: Path, overwrite: bool) -> None:
    """Check, before anything is loaded or written, that a run may be put at `path`.

    Raises:
        UserError: there is a run and `overwrite` is not set, or something that is not a run.
    """
    try:
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
    except OSError as error:
        raise UserError(f"--run_dir {path} cannot be used: {error.strerror}") from None
    if not path.is_dir():
        raise UserError(f"--run_dir {path} is a file; name a directory")
    if not (path / CONFIG).is_file():
        raise UserError(f"--run_dir {path} is not empty and not a run; name another directory")
    if not overwrite:
        raise UserError(f"--run_dir {path} already holds a run; name another directory, or replace it with --overwrite")
