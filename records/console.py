"""Console: a run on the terminal."""

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from evaluation.measurements import Measurement
from records.monitor import EpisodeFacts, RunMonitor, RunStart
from utils.errors import one_line


class Console(RunMonitor):
    """Prints the header, progress, a line per episode and the final table.

    While a member trains, a terminal has a progress bar; other outputs get a line every `plain_seconds`.
    """

    def __init__(self, quiet: bool = False, plain_seconds: float = 30.0) -> None:
        self._quiet, self._plain_seconds = quiet, plain_seconds
        self._bar: tqdm[object] = tqdm(disable=True)  # it is not shown
        self._episodes, self._title = 0, ""

    def run_begins(self, run: RunStart) -> None:
        width = max(len(name) for name, _ in run.header)
        for name, value in run.header:
            self._say(f"{name:<{width}}  {one_line(value)}")
        self._say()

    def episode_begins(self, episode: int, episodes: int) -> None:
        self._title, self._episodes = f"episode {episode}/{episodes}", episodes

    def member_begins(self, epochs: int, images: int, done: int = 0) -> None:
        self._epochs, self._total, self._done = epochs, (epochs - done) * images, 0
        self._begin = self._last_line = time.perf_counter()
        hidden = self._quiet or not sys.stderr.isatty()
        self._bar.close()
        self._bar = tqdm(
            total=self._total, desc=self._title, unit=" images", unit_scale=True, leave=False, disable=hidden
        )

    def step(self, images: int) -> None:
        self._done += images
        self._bar.update(images)

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        self._bar.set_description(f"{self._title} · epoch {epoch}/{self._epochs} · loss {loss:.4f}", refresh=False)
        if epoch == self._epochs:
            self._bar.close()
            return
        now = time.perf_counter()
        if self._bar.disable and now - self._last_line >= self._plain_seconds and self._done:
            self._last_line = now
            rate = self._done / (now - self._begin)
            left = (self._total - self._done) / rate
            self._say(f"  epoch {epoch}/{self._epochs}: loss {loss:.4f}, {rate:,.0f} images/s, {left:,.0f} s left")

    def episode_ends(self, facts: EpisodeFacts, rows: Sequence[Measurement]) -> None:
        self._bar.close()
        test = [row for row in rows if row.is_test]
        mean = sum(row.main for row in test) / len(test)
        tasks = ", ".join(map(str, facts.tasks))
        counter, width = f"{facts.episode}/{self._episodes}", 2 * len(str(self._episodes)) + 1
        self._say(
            f"episode {counter:>{width}}  {test[0].metric} {mean:.4f} on tasks seen ({len(test)})"
            f"  {facts.seconds:6.1f} s  {facts.images_per_second:8,.0f} images/s  trained on {tasks}"
        )

    def run_ends(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        self._bar.close()

    def _say(self, line: str = "") -> None:
        if not self._quiet:
            print(line, flush=True)
