"""Training on small images in device memory: whole batches are cropped, mirrored and cut out at once.

Loader processes cannot keep up with a network for 32x32 images. Here a batch is one gather from a uint8 tensor with the
whole dataset, on a GPU or a CPU, without host synchronization.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topodet.pretrain.group import Group
from topodet.pretrain.loader import Loader


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of small images: a random crop of the padded image, mirroring, and cutout.

    Attributes:
        crop_padding: black pixels added on each side before a crop of the original size.
        hflip, vflip: probability of mirroring left and right, top and bottom.
        cutout: side of the square that is set to the mean color, around a pixel drawn from the whole image, so part of
            it may be outside (DeVries and Taylor, arXiv 1708.04552); 0 for none.
    """

    crop_padding: int = 0
    hflip: float = 0.0
    vflip: float = 0.0
    cutout: int = 0

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw the augmentation of `count` images of height x width.

        Returns:
            int64 [count, 6]: row and column of the crop in the padded image, whether to mirror left and right, top and
            bottom, row and column of the cutout's center.
        """
        chances = torch.tensor([self.hflip, self.vflip])
        return torch.cat(
            [
                torch.randint(2 * self.crop_padding + 1, (count, 2), generator=generator),
                (torch.rand(count, 2, generator=generator) < chances).long(),
                torch.randint(height, (count, 1), generator=generator),
                torch.randint(width, (count, 1), generator=generator),
            ],
            dim=1,
        )

    def __call__(self, images: Tensor, chosen: Tensor, draws: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return some of the images, augmented and normalized.

        Args:
            images: uint8 [N, H, W, C], contiguous.
            chosen: int64 [B], which of them.
            draws: int64 [B, 6], from `draw`.
            mean, std: [C], of values in 0..255.

        Returns:
            float32 [B, C, H, W].
        """
        _, height, width, channels = images.shape
        top, left, mirrored, flipped, row, column = draws.unbind(1)
        rows = _places(height, flipped, top - self.crop_padding)
        columns = _places(width, mirrored, left - self.crop_padding)
        inside = _both(_within(rows, 0, height), _within(columns, 0, width))
        nearest = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
        pixels = images.view(-1, channels)[chosen[:, None, None] * (height * width) + nearest]
        pixels = pixels.masked_fill_(~inside[..., None], 0)
        batch = _normalised(pixels, mean, std)
        if self.cutout:
            hole = _both(_around(row, self.cutout, height), _around(column, self.cutout, width))
            batch.masked_fill_(hole[:, None], 0.0)
        return batch


def _places(size: int, mirrored: Tensor, start: Tensor) -> Tensor:
    """Return the source position of each output pixel along one side, which may be outside the image: [B, size]."""
    places = torch.arange(size, device=start.device).expand(len(start), size)
    return torch.where(mirrored[:, None].bool(), size - 1 - places, places) + start[:, None]


def _around(centre: Tensor, length: int, size: int) -> Tensor:
    """Return which positions of a side are within the interval of `length` around each center: bool [B, size]."""
    first = centre[:, None] - length // 2
    return _within(torch.arange(size, device=centre.device), first, first + length)


def _within(places: Tensor, first: Tensor | int, end: Tensor | int) -> Tensor:
    return (places >= first) & (places < end)


def _both(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the logical and, [B, H, W], of a mask of rows [B, H] and one of columns [B, W]."""
    return rows[:, :, None] & columns[:, None, :]


def _normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return float32 [B, C, H, W] of uint8 [B, H, W, C]."""
    batch = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return batch.sub_(mean[:, None, None]).div_(std[:, None, None])


class DeviceLoader(Loader):
    """Batches of a dataset in device memory, as one uint8 tensor.

    In each update, any number of processes uses the same images with the same augmentation as one process with the
    total batch size. Validation, without `augmentation`, is in the dataset's order; process r of n reads images r, r +
    n, ...

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        batch_size: batch size of this process.
        mean, std: values for each channel, for pixels in 0..1.
        augmentation: augmentation of training images, in random order and full batches; None to validate on every
            image.
        seed: seed of order and augmentation.
        group: determines this process's share of the images and its device.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None,
        seed: int,
        group: Group,
    ) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(images)).to(group.device)
        self.labels = torch.from_numpy(labels).to(group.device)
        self.batch_size = batch_size
        self.count = len(labels)
        self.augmentation = augmentation
        self.seed = seed
        self.group = group
        self.mean, self.std = (255 * torch.tensor(values, device=group.device) for values in (mean, std))
        self.set_epoch(0)
        self.batches = self.count // (batch_size * group.world_size)
        if augmentation is None:
            self.batches = math.ceil(len(self._order) / batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order and the augmentation of `epoch`."""
        share = slice(self.group.rank, None, self.group.world_size)
        if self.augmentation is None:
            self._order = torch.arange(self.count)[share].to(self.group.device)
            return
        # Drawn on the CPU and for all processes, so that they depend on neither the device nor the number of processes.
        words = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        order = torch.randperm(self.count, generator=generator)
        draws = self.augmentation.draw(self.count, *self.images.shape[1:3], generator)
        self._order = order[share].to(self.group.device)
        self._draws = draws[share].to(self.group.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(self.batches):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            chosen = self._order[part]
            if self.augmentation is None:
                images = _normalised(self.images[chosen], self.mean, self.std)
            else:
                images = self.augmentation(self.images, chosen, self._draws[part], self.mean, self.std)
            yield images, self.labels[chosen]
