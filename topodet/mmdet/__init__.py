"""topodet in MMDetection: `custom_imports = dict(imports=["topodet.mmdet"])` registers the backbones and the hooks."""

from .backbone import TopoNet
from .check import check_detector
from .connected_timm import ConnectedTimm
from .evaluation import coco_evaluation
from .hooks import AlphaLogHook, SparsityHook, TopoNetCheckHook

__all__ = [
    "AlphaLogHook",
    "ConnectedTimm",
    "SparsityHook",
    "TopoNet",
    "TopoNetCheckHook",
    "check_detector",
    "coco_evaluation",
]
