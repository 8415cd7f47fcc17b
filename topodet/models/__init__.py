"""The networks, in plain torch and timm; importing this registers them in timm."""

from .aggregation import weighted_sum
from .connect import connect, connectable, disconnect
from .dense_cells import DenseCell, DenseCells, dense_cnn, dense_mlp
from .fuse import FusedStage, fuse_for_inference
from .residual import Residual
from .stage import Node, TopoStage
from .swnet import RewiredConv2d, channel_graph, rebuild_swnet, swnet
from .toponet import ARCHITECTURES, TopoNet, TopoNetFeatures, architecture_arguments
from .trunk import Stem, Trunk, build_blocks, init_weights
from .wiring import Wiring

__all__ = [
    "ARCHITECTURES",
    "DenseCell",
    "DenseCells",
    "FusedStage",
    "Node",
    "Residual",
    "RewiredConv2d",
    "Stem",
    "TopoNet",
    "TopoNetFeatures",
    "TopoStage",
    "Trunk",
    "Wiring",
    "architecture_arguments",
    "build_blocks",
    "channel_graph",
    "connect",
    "connectable",
    "dense_cnn",
    "dense_mlp",
    "disconnect",
    "fuse_for_inference",
    "init_weights",
    "rebuild_swnet",
    "swnet",
    "weighted_sum",
]
