"""TopoNet in MMDetection: `custom_imports = dict(imports=["topodet.mmdet"])` registers the backbone and the hooks."""

from .backbone import TopoNet
from .check import check_detector
from .evaluation import coco_evaluation
from .hooks import AlphaLogHook, SparsityHook, TopoNetCheckHook

__all__ = ["AlphaLogHook", "SparsityHook", "TopoNet", "TopoNetCheckHook", "check_detector", "coco_evaluation"]
