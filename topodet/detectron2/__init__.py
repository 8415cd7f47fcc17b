"""topodet in Detectron2: importing this registers the builders that `MODEL.BACKBONE.NAME` names."""

from .analyze import analyze
from .backbone import TopoNet
from .build import (
    build_connected_timm_backbone,
    build_connected_timm_fpn_backbone,
    build_retinanet_connected_timm_fpn_backbone,
    build_retinanet_toponet_fpn_backbone,
    build_toponet_backbone,
    build_toponet_fpn_backbone,
)
from .check import check_detector
from .checkpoint import TopoNetCheckpointer
from .config import add_topodet_config, load_config
from .connected import build_connected_backbone, build_connected_fpn_backbone, connect
from .connected_timm import ConnectedTimm
from .data import check_datasets, reading_of_config, register_dataset
from .evaluation import coco_evaluation
from .export import export_detector
from .hooks import AlphaLogHook, SparsityHook
from .inference import class_names, draw, evaluate, load_detector, predict, publish_detector
from .lazy import common_config
from .optim import build_optimizer
from .trainer import Trainer

__all__ = [
    "AlphaLogHook",
    "ConnectedTimm",
    "SparsityHook",
    "TopoNet",
    "TopoNetCheckpointer",
    "Trainer",
    "add_topodet_config",
    "analyze",
    "build_connected_backbone",
    "build_connected_fpn_backbone",
    "build_connected_timm_backbone",
    "build_connected_timm_fpn_backbone",
    "build_optimizer",
    "build_retinanet_connected_timm_fpn_backbone",
    "build_retinanet_toponet_fpn_backbone",
    "build_toponet_backbone",
    "build_toponet_fpn_backbone",
    "check_datasets",
    "check_detector",
    "class_names",
    "coco_evaluation",
    "common_config",
    "connect",
    "draw",
    "evaluate",
    "export_detector",
    "load_config",
    "load_detector",
    "predict",
    "publish_detector",
    "reading_of_config",
    "register_dataset",
]
