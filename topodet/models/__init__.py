"""The networks, in plain torch and timm; importing this registers them in timm."""

from .aggregation import weighted_sum
from .fuse import FusedStage, fuse_for_inference
from .stage import Node, TopoStage
from .toponet import ARCHITECTURES, TopoNet, TopoNetFeatures, architecture_arguments
from .trunk import Stem, Trunk, build_blocks, init_weights
from .wiring import Wiring

__all__ = [
    "ARCHITECTURES",
    "FusedStage",
    "Node",
    "Stem",
    "TopoNet",
    "TopoNetFeatures",
    "TopoStage",
    "Trunk",
    "Wiring",
    "architecture_arguments",
    "build_blocks",
    "fuse_for_inference",
    "init_weights",
    "weighted_sum",
]
