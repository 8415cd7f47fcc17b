"""Random images and boxes for the detectors' training iterations."""

from __future__ import annotations

import torch
from torch import Tensor

from .settings import Settings

CLASSES = 80
BOXES = 7  # per image, about as many as in COCO


def noise_scenes(settings: Settings) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return `batch` scenes, the same ones at each call.

    Returns:
        (image, boxes, labels) each: uint8 [3, size, 4/3 size], float32 [BOXES, 4] of corners in pixels, int64 [BOXES].
    """
    generator = torch.Generator().manual_seed(settings.seed)
    height, width = settings.size, settings.size * 4 // 3
    sides = torch.tensor([width, height])
    scenes = []
    for _ in range(settings.batch):
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        # The first corner is in the first half of the image, the second at least a tenth of its size further.
        start = torch.rand(BOXES, 2, generator=generator) * 0.5
        extent = 0.1 + torch.rand(BOXES, 2, generator=generator) * 0.4
        boxes = torch.cat([start * sides, (start + extent) * sides], dim=1)
        scenes.append((image, boxes, torch.randint(0, CLASSES, (BOXES,), generator=generator)))
    return scenes
