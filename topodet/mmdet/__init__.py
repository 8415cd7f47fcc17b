"""topodet in MMDetection: `custom_imports = dict(imports=["topodet.mmdet"])` registers the backbones and the hooks."""

from .analyze import analyze
from .backbone import TopoNet
from .check import check_detector
from .connected import build_connected_backbone
from .connected_timm import ConnectedTimm
from .data import CheckedCocoDataset, check_datasets, reading_of_config
from .evaluation import coco_evaluation
from .export import export_detector
from .hooks import AlphaLogHook, SparsityHook, TopoNetCheckHook
from .inference import class_names, draw, evaluate, load_detector, predict, publish_detector

__all__ = [
    "AlphaLogHook",
    "CheckedCocoDataset",
    "ConnectedTimm",
    "SparsityHook",
    "TopoNet",
    "TopoNetCheckHook",
    "analyze",
    "build_connected_backbone",
    "check_datasets",
    "check_detector",
    "class_names",
    "coco_evaluation",
    "draw",
    "evaluate",
    "export_detector",
    "load_detector",
    "predict",
    "publish_detector",
    "reading_of_config",
]
