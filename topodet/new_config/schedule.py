"""Training length and schedule for a dataset of a given size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError

_LEAST_ITERATIONS = 1000
_LONGEST_WARMUP = 500


@dataclass(frozen=True)
class Schedule:
    """A 1x schedule for a dataset of any size.

    Attributes:
        batch: images per step, on all devices together.
        epochs: passes over the dataset.
        epoch_iterations: steps per pass; the last one may have fewer images.
        warmup: iterations in which the learning rate rises: 500, or a fifth of the training for small datasets.
        steps: iterations after which it drops to a tenth: 2/3 and 11/12 of all.
        eval_epochs: epochs between two evaluations and checkpoints, about twelve in all.
    """

    batch: int
    epochs: int
    epoch_iterations: int
    warmup: int
    steps: tuple[int, ...]
    eval_epochs: int

    @property
    def iterations(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.epoch_iterations

    def rate(self, base: float, base_batch: int = 16) -> float:
        """Return the learning rate for this batch, in proportion to the one for `base_batch` images."""
        return float(f"{base * self.batch / base_batch:.4g}")


def make_schedule(num_images: int, *, batch: int, epochs: int | None = None) -> Schedule:
    """Return the schedule for a dataset.

    Args:
        num_images: number of training images.
        batch: images per step.
        epochs: number of epochs; by default twelve, or enough for 1000 iterations.

    Raises:
        ConfigError: a number that is not positive.
    """
    for name, value in (("images to train on", num_images), ("--batch", batch), ("--epochs", epochs)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: {value} must be at least 1")
    epoch_iterations = math.ceil(num_images / batch)
    if epochs is None:
        epochs = max(12, math.ceil(_LEAST_ITERATIONS / epoch_iterations))
    total = epochs * epoch_iterations
    steps = {round(total * share) for share in (2 / 3, 11 / 12)}
    return Schedule(
        batch=batch,
        epochs=epochs,
        epoch_iterations=epoch_iterations,
        warmup=min(
            _LONGEST_WARMUP, max(2, total // 5)
        ),  # with a warm-up of one iteration, MMEngine's learning rate never rises
        steps=tuple(sorted(step for step in steps if 0 < step < total)),
        eval_epochs=max(1, round(epochs / 12)),
    )
