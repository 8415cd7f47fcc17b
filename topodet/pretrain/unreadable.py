"""A dataset that reports and counts unreadable images, and replaces or refuses them."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable

import torch
from PIL import Image
from timm.data import ImageDataset
from torch import Tensor
from torch.utils.data import Dataset

from topodet.datasets.images import in_8_bits
from topodet.errors import DataError

_logger = logging.getLogger(__name__)

# Raised by Pillow for files that are missing, truncated, not images, or suspiciously large.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

NO_TARGET = -1


class SkipUnreadable(Dataset):
    """The images of a map-style dataset, with a rule for unreadable ones.

    Loader processes share their counts: `bad_images()` covers the current epoch in all of them.

    Args:
        dataset: returns (PIL image, class); its own transform is not used.
        on_bad_image: "skip" uses the next readable image instead and warns once per file; "stop" raises.
        count_substitutes: False gives substitute images the class -1, so that an evaluation can exclude them.
    """

    def __init__(self, dataset: Dataset, on_bad_image: str, count_substitutes: bool) -> None:
        self.dataset = dataset
        self.on_bad_image = on_bad_image
        self.count_substitutes = count_substitutes
        self.transform: Callable | None = None
        # Per image the last epoch (from 1) in which it could not be read; each entry has one writer at a time.
        self._bad_in_epoch = torch.zeros(len(dataset), dtype=torch.int32).share_memory_()
        self._epoch = 1

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Start counting for `epoch` (from 0)."""
        self._epoch = epoch + 1

    def bad_images(self) -> Tensor:
        """Return which files could not be read in this epoch, bool [images]."""
        return self._bad_in_epoch == self._epoch

    def __getitem__(self, index: int) -> tuple[object, int]:
        for offset in range(len(self)):
            place = (index + offset) % len(self)
            try:
                image, target = self._read(place)
            except _UNREADABLE as error:
                # Count only the requested image; an unreadable neighbor is counted when it is requested itself.
                if offset == 0:
                    self._report(index, error)
                continue
            if offset and not self.count_substitutes:
                target = NO_TARGET
            return (image if self.transform is None else self.transform(image)), target
        raise DataError(f"none of the {len(self)} images can be read; the last one is {self._name(index)}")

    def _read(self, index: int) -> tuple[Image.Image, int]:
        if not isinstance(self.dataset, ImageDataset):
            return self.dataset[index]
        # timm's ImageDataset silently replaces a file it cannot open, so its reader is called directly.
        stream, target = self.dataset.reader[index]
        with stream:
            return in_8_bits(Image.open(stream)).convert(self.dataset.input_img_mode), target

    def _report(self, index: int, error: Exception) -> None:
        known = bool(self._bad_in_epoch[index])
        self._bad_in_epoch[index] = self._epoch
        message = f"cannot read the image {self._name(index)}: {error}"
        if self.on_bad_image == "stop":
            raise DataError(f"{message}. Repair or remove it, or continue without it: --on-bad-image skip")
        if not known:
            _logger.warning("%s; using another one instead", message)

    def _name(self, index: int) -> str:
        if isinstance(self.dataset, ImageDataset):
            return str(self.dataset.filename(index, absolute=True))
        samples = getattr(self.dataset, "samples", None)
        return str(samples[index][0]) if samples else f"number {index}"
