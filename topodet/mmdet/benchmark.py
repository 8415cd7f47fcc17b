"""A training iteration of MMDetection's Faster R-CNN on random images and boxes, for `topodet benchmark`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..benchmark.scenes import noise_scenes
from ..benchmark.settings import Settings
from ..models.calibrate import calibrate_batchnorm

_CONFIGS = {
    "toponet50": "faster-rcnn_toponet50-adaptive_fpn_1x_coco.py",
    "r50": "faster-rcnn_r50_fpn_1x_coco.py",
}


def training_step(backbone: str, settings: Settings) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return the detector of a 1x config with random weights, and a function that computes its loss.

    Args:
        backbone: "toponet50" or "r50".
        settings: batch, size, device, dtype and memory format.
    """
    path = Path(__file__).resolve().parents[2] / "configs" / "mmdet" / _CONFIGS[backbone]
    config = Config.fromfile(path, format_python_code=False)
    config.model.backbone.init_cfg = None  # it would download weights
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config.model)
    model = model.to(settings.device)
    if settings.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    data = {"inputs": [], "data_samples": []}
    for image, boxes, labels in noise_scenes(settings):
        shape = tuple(image.shape[1:])
        sample = DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels).to(settings.device)
        data["inputs"].append(image)
        data["data_samples"].append(sample)

    def prepared() -> dict:
        return model.data_preprocessor({**data}, True)

    def loss() -> Tensor:
        with torch.autocast(torch.device(settings.device).type, settings.precision, settings.dtype != "float32"):
            return model.parse_losses(model(**prepared(), mode="loss"))[0]

    calibrate_batchnorm(model.eval(), model.backbone, prepared()["inputs"])
    return model, loss
