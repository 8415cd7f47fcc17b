"""The networks, in plain torch and timm; importing this registers them in timm."""

from . import mobilenetv2  # noqa: F401 - registers
from .connect import connect, connectable, disconnect, rewirable, rewire
from .dense_cells import DenseCell, DenseCells, dense_cnn, dense_mlp
from .fuse import FusedStage, fuse_for_inference
from .residual import Residual
from .resnet_cifar import ResNetCifar
from .stage import Node, TopoStage
from .swnet import RewiredConv2d, channel_graph, rebuild_swnet, swnet
from .timm_trunk import TimmTrunk, check_timm_name, create_timm_network
from .toponet import ARCHITECTURES, TopoNet, TopoNetFeatures, architecture_arguments
from .trunk import Stem, Trunk, build_blocks, init_weights
from .wiring import Wiring

__all__ = [
    "ARCHITECTURES",
    "DenseCell",
    "DenseCells",
    "FusedStage",
    "Node",
    "ResNetCifar",
    "Residual",
    "RewiredConv2d",
    "Stem",
    "TimmTrunk",
    "TopoNet",
    "TopoNetFeatures",
    "TopoStage",
    "Trunk",
    "Wiring",
    "architecture_arguments",
    "build_blocks",
    "channel_graph",
    "check_timm_name",
    "connect",
    "connectable",
    "create_timm_network",
    "dense_cnn",
    "dense_mlp",
    "disconnect",
    "fuse_for_inference",
    "init_weights",
    "rebuild_swnet",
    "rewirable",
    "rewire",
    "swnet",
]
