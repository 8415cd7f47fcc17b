"""Detectron2's Mask R-CNN without masks: its LazyConfigs have no Faster R-CNN."""

from omegaconf import DictConfig

from topodet.detectron2 import common_config


def without_masks(model: DictConfig) -> DictConfig:
    """Take the mask head off a detector."""
    for name in ("mask_in_features", "mask_pooler", "mask_head"):
        model.roi_heads.pop(name)
    return model


model = without_masks(common_config("common/models/mask_rcnn_fpn.py").model)
