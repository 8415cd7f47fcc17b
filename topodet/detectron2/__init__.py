"""TopoNet in Detectron2: importing this registers the builders that `MODEL.BACKBONE.NAME` names."""

from .backbone import TopoNet
from .build import build_retinanet_toponet_fpn_backbone, build_toponet_backbone, build_toponet_fpn_backbone
from .check import check_detector
from .checkpoint import TopoNetCheckpointer
from .config import add_topodet_config, load_config
from .lazy import common_config
from .optim import build_optimizer

__all__ = [
    "TopoNet",
    "TopoNetCheckpointer",
    "add_topodet_config",
    "build_optimizer",
    "build_retinanet_toponet_fpn_backbone",
    "build_toponet_backbone",
    "build_toponet_fpn_backbone",
    "check_detector",
    "common_config",
    "load_config",
]
