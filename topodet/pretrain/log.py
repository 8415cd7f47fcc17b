"""The output of a run: progress, TensorBoard, summary.csv and pictures of the wiring."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from topodet import connectivity, visualization
from topodet.datasets.images import read_image
from topodet.files import atomic_csv

_logger = logging.getLogger(__name__)


class _Handler(logging.Handler):
    """Writes log lines to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def logging_to_stderr(level: int) -> Iterator[None]:
    """Show topodet's log lines from `level` on, until the end of the context."""
    logger = logging.getLogger("topodet")
    handler = _Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    # A thread that holds tqdm's lock while a loader process is forked would block that process.
    tqdm.monitor_interval = 0
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class Progress:
    """Loss, top-1, images/s, learning rate and remaining time: a bar on a terminal, otherwise one line per report.

    Args:
        epochs: epochs of the run.
        updates: updates per epoch.
        done: updates by earlier processes.
        show: False for no output.
    """

    def __init__(self, epochs: int, updates: int, done: int, show: bool) -> None:
        self.epochs = epochs
        self.updates = updates
        self.show = show
        self._done_before = done
        self._started = time.monotonic()
        self._bar: tqdm | None = None

    def start_epoch(self, epoch: int) -> None:
        """Start the bar of `epoch`, if there is a terminal."""
        self._epoch = epoch
        if self.show and sys.stderr.isatty():
            self._bar = tqdm(total=self.updates, desc=self._title(), unit="step", dynamic_ncols=True, leave=False)

    def step(self) -> None:
        """Move the bar by one update."""
        if self._bar is not None:
            self._bar.update()

    def report(self, update: int, loss: float, penalty: float, top1: float, images_per_s: float, lr: float) -> None:
        """Report the state after `update` updates of this epoch."""
        if not self.show:
            return
        text = f"loss {loss:.4f}" + (f" + penalty {penalty:.4f}" if penalty else "")
        text += f"  top-1 {top1:.2f} %  {images_per_s:.0f} images/s  eta {self._eta(update)}  lr {lr:.3g}"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            _logger.info("%s [%d/%d]  %s", self._title(), update, self.updates, text)

    def end_epoch(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _title(self) -> str:
        return f"epoch {self._epoch + 1}/{self.epochs}"

    def _eta(self, update: int) -> str:
        done = self._epoch * self.updates + update
        rate = (time.monotonic() - self._started) / (done - self._done_before)
        return tqdm.format_interval(rate * (self.epochs * self.updates - done))


class RunLogger:
    """The logs of a run: TensorBoard events, summary.csv, figures/.

    Args:
        folder: folder of the run.
        model: model whose wiring is drawn, if it has edges.
        figure_interval: epochs between two pictures; 0 for none.
        first_update: updates of earlier processes; entries that an interrupted one wrote after them are removed.
    """

    def __init__(self, folder: Path, model: torch.nn.Module, figure_interval: int, first_update: int) -> None:
        self.folder = folder
        self.model = model
        self.wirings = connectivity.wirings(model)
        self.figure_interval = figure_interval
        _wait_for_a_later_name(folder / "tensorboard")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_update + 1)

    def updates(self, first: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Log the values of consecutive updates; `first` counts from 1 over the whole run."""
        for update, row in enumerate(rows, start=first):
            for name, value in row.items():
                self.board.add_scalar(f"step/{name}", value, update)

    def epoch(self, row: Mapping[str, float | None], update: int) -> None:
        """Log the row of a finished epoch after `update` updates, the edge weights' histograms, and pictures if due."""
        for name, value in row.items():
            if value is not None and name not in ("epoch", "metric"):
                self.board.add_scalar(f"epoch/{name}", value, update)
        for name, wiring in self.wirings.items():
            self.board.add_histogram(f"alpha/{name}", wiring.alpha.detach().float().cpu(), update)
        epoch = row["epoch"]
        if self.wirings and self.figure_interval and (epoch + 1) % self.figure_interval == 0:
            adjacency, _ = visualization.save_figures(self.model, self.folder / "figures", f"epoch{epoch:03d}")
            self.board.add_image("adjacency", read_image(adjacency), update, dataformats="HWC")
        self.board.flush()

    def summary(self, history: Sequence[Mapping[str, float | None]]) -> None:
        """Rewrite summary.csv from the rows of all finished epochs."""
        atomic_csv(self.folder / "summary.csv", history)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        self.board.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until the name of a new event file comes after those in the folder.

    TensorBoard reads event files in the order of their names, which start with the creation time in seconds. If a run
    is resumed within the second of its start, its new file could be read first and be dropped as out of date.
    """
    now = int(time.time())
    if any(path.name.split(".")[3:4] == [str(now)] for path in folder.glob("events.out.tfevents.*")):
        time.sleep(max(0.0, now + 1 - time.time()))
