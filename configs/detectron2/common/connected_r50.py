"""Base-RCNN-Connected-R50-FPN.yaml for LazyConfigs: Detectron2's ResNet-50, connected, under a detector's FPN."""

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from topodet.detectron2 import connect


def use_connected_r50(model: DictConfig, train: DictConfig) -> None:
    """Connect the ResNet-50 of a detector, and start from Caffe's weights, whose images are BGR."""
    model.backbone.bottom_up.freeze_at = 2
    model.backbone.in_features = list(model.backbone.bottom_up.out_features)
    model.backbone.bottom_up = L(connect)(model=model.backbone.bottom_up, nodes="auto")
    # A detector that was trained without wiring: train.init_checkpoint=PATH
    train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
