"""The networks, in plain torch and timm; importing this registers them in timm."""

from . import mobilenetv2  # noqa: F401 - registers
from .connected import Residual, connect, connectable, disconnect, rewirable, rewire
from .fuse import FusedStage, fuse_for_inference
from .packaged import PACKAGED, packaged_weights
from .resnet_cifar import ResNetCifar
from .stage import Node, TopoStage
from .timm_trunk import TimmTrunk, check_timm_name, create_timm_network
from .toponet import ARCHITECTURES, TopoNet, TopoNetFeatures, architecture_arguments
from .trunk import Stem, Trunk, build_blocks, init_weights
from .wiring import Wiring

__all__ = [
    "ARCHITECTURES",
    "PACKAGED",
    "FusedStage",
    "Node",
    "ResNetCifar",
    "Residual",
    "Stem",
    "TimmTrunk",
    "TopoNet",
    "TopoNetFeatures",
    "TopoStage",
    "Trunk",
    "Wiring",
    "architecture_arguments",
    "build_blocks",
    "check_timm_name",
    "connect",
    "connectable",
    "create_timm_network",
    "disconnect",
    "fuse_for_inference",
    "init_weights",
    "packaged_weights",
    "rewirable",
    "rewire",
]
