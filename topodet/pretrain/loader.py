"""The interface of the loaders of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from topodet.pretrain.group import Group


class Loader(ABC):
    """Batches of images and classes, in an order and augmentation that depend only on the seed and the epoch.

    Attributes:
        batch_size: images per batch.
        batches: batches per epoch in this process.
        count: images of the dataset, or None if it is streamed.
    """

    batch_size: int
    batches: int
    count: int | None

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of `epoch`."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `batches` times images float32 [B, C, H, W] and classes int64 [B], or shares [B, classes]."""

    def set_mixup(self, enabled: bool) -> None:
        """Switch the loader's own mixing, if any, on or off."""
        return

    def bad_images(self, group: Group) -> int:
        """Return how many images of this epoch could not be read, over all processes."""
        return 0
