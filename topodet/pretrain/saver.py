"""Checkpoints of a run: timm's files and rules, written so that a kill or a full disk never damages an existing one."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from timm.utils import CheckpointSaver

from topodet import weights
from topodet.errors import WeightsError
from topodet.files import atomic_torch_save
from topodet.pretrain.engine import Training

_logger = logging.getLogger(__name__)

LAST = "last.pth.tar"
BEST = "model_best.pth.tar"
_NUMBERED = re.compile(r"checkpoint-(\d{1,9})\.pth\.tar")

_REQUIRED = {
    "arch": str,
    **dict.fromkeys(("state_dict", "optimizer", "args", "data"), Mapping),
    "epoch": int,
    "history": list,
}


class Saver(CheckpointSaver):
    """timm's saver (last, best, and the best few by epoch) for files of tensors and plain types only.

    Args:
        folder: folder for the files.
        training: the training state to save.
        facts: other content of every checkpoint: arch, args, data_config and so on.
        history: the rows of all finished epochs; the caller appends to this list.
        decreasing: a lower metric is better.
        max_history: number of best checkpoints to keep.
    """

    def __init__(
        self,
        folder: Path,
        training: Training,
        *,
        facts: Mapping,
        history: list[dict],
        decreasing: bool,
        max_history: int,
    ) -> None:
        super().__init__(
            training.model,
            training.optimizer,
            model_ema=training.model_ema,
            amp_scaler=training.scaler,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
            decreasing=decreasing,
            max_history=max_history,
        )
        self.training = training
        self.facts = dict(facts)
        self.history = history

    def save_epoch(self, epoch: int, metric: float | None) -> None:
        """Save the state after `epoch` as the last one and, by its metric, possibly as one of the best.

        Raises:
            OSError: for example, the disk is full; existing checkpoints stay intact.
        """
        if metric is None:
            self._save(str(self.last), epoch)
        else:
            self.save_checkpoint(epoch, metric)

    def load_state(self, metrics: Iterable[tuple[int, float]]) -> None:
        """Restore the best checkpoints of earlier epochs from (epoch, metric) and the existing files."""
        for epoch, metric in metrics:
            if self.best_metric is None or self.cmp(metric, self.best_metric):
                self.best_metric, self.best_epoch = metric, epoch
            path = Path(self.checkpoint_dir) / f"{self.save_prefix}-{epoch}{self.extension}"
            if path.exists():
                self.checkpoint_files.append((str(path), metric))
        self.checkpoint_files.sort(key=lambda file: file[1], reverse=not self.decreasing)

    @property
    def last(self) -> Path:
        """The file of the last epoch."""
        return Path(self.checkpoint_dir) / LAST

    @property
    def best(self) -> Path:
        """The file of the best epoch."""
        return Path(self.checkpoint_dir) / BEST

    def _state(self, epoch: int, metric: float | None) -> dict:
        state = {
            **self.facts,
            "epoch": epoch,
            "version": 2,
            **self.training.state_dict(),
            "history": self.history,
        }
        if metric is not None:
            state["metric"] = metric
        return state

    def _save(self, save_path: str, epoch: int, metric: float | None = None) -> None:
        atomic_torch_save(weights.with_digests(self._state(epoch, metric)), save_path)

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)

    def _duplicate(self, src: str, dst: str) -> None:
        # timm removes the old file first; a kill between the two steps would leave none.
        temporary = f"{dst}.tmp"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if self.can_hardlink:
            try:
                os.link(src, temporary)
                os.replace(temporary, dst)
                return
            except OSError:
                self.can_hardlink = False
        super()._duplicate(src, temporary)
        os.replace(temporary, dst)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of the run in a folder: the last one, those with an epoch in their names, the best one."""
    numbered = {int(match[1]): path for path in folder.glob("*") if (match := _NUMBERED.fullmatch(path.name))}
    named = [folder / LAST, *(numbered[epoch] for epoch in sorted(numbered, reverse=True)), folder / BEST]
    return [path for path in named if path.is_file()]


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict | None]:
    """Return the newest readable checkpoint of a folder, and its content; (None, None) if there is none.

    Unreadable files are named in a warning.

    Raises:
        WeightsError: there are checkpoints, and none of them can be read.
    """
    found = checkpoints(folder)
    first: WeightsError | None = None
    for path in found:
        try:
            state = read_checkpoint(path)
        except WeightsError as error:
            first = first or error
            _logger.warning("%s", error)
            continue
        return path, state
    if first is not None:
        names = ", ".join(path.name for path in found[1:])
        raise WeightsError(f"{first}; the others cannot be read either ({names})" if names else str(first)) from first
    return None, None


def read_checkpoint(path: Path) -> dict:
    """Read a checkpoint of `Saver`.

    Raises:
        WeightsError: the file is missing, damaged (by its checksums and digests), contains more than tensors and
            plain types, or is not a checkpoint of `Saver`.
    """
    if not path.is_file():
        raise WeightsError(f"the checkpoint to resume from, {str(path)!r}, does not exist")
    state = weights.read_checkpoint(path)
    missing = [key for key, kind in _REQUIRED.items() if not isinstance(state.get(key), kind)]
    if missing:
        raise WeightsError(
            f"{str(path)!r} is not a checkpoint of a pretraining run (no {', '.join(missing)}); "
            "to start a new run with its weights, give --initial-checkpoint"
        )
    return state
