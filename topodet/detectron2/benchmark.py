"""A training iteration of Detectron2's Faster R-CNN on random images and boxes, for `topodet benchmark`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..benchmark.scenes import noise_scenes
from ..benchmark.settings import Settings
from ..models.calibrate import calibrate_batchnorm
from .config import load_config

_CONFIGS = {"toponet50": "faster_rcnn_toponet50_adaptive_FPN_1x.yaml", "r50": "faster_rcnn_R_50_FPN_1x.yaml"}


def training_step(backbone: str, settings: Settings) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return the detector of a 1x config with random weights, and a function that computes its loss.

    Args:
        backbone: "toponet50" or "r50".
        settings: batch, size, device, dtype and memory format.
    """
    cfg = load_config(Path(__file__).resolve().parents[2] / "configs" / "detectron2" / _CONFIGS[backbone])
    cfg.MODEL.DEVICE = settings.device
    model = build_model(cfg)  # random weights: MODEL.WEIGHTS is only loaded by a checkpointer
    if settings.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    batch = []
    for image, boxes, labels in noise_scenes(settings):
        instances = Instances(tuple(image.shape[1:]), gt_boxes=Boxes(boxes), gt_classes=labels)
        batch.append({"image": image, "instances": instances})
    storage = EventStorage()

    def loss() -> Tensor:
        with (
            torch.autocast(torch.device(settings.device).type, settings.precision, settings.dtype != "float32"),
            storage,
        ):
            return sum(model(batch).values())

    calibrate_batchnorm(model.eval(), model.backbone, model.preprocess_image(batch).tensor)
    return model, loss
