"""The builders in Detectron2's registry; only they read the config."""

from __future__ import annotations

from itertools import pairwise

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from ..errors import ConfigError
from .backbone import TopoNet
from .base import TopodetBackbone
from .check import check_preprocessing
from .connected_timm import ConnectedTimm


@BACKBONE_REGISTRY.register()
def build_toponet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TopoNet:
    """Build the TopoNet that `MODEL.TOPONET` and `MODEL.BACKBONE.FREEZE_AT` describe.

    Raises:
        ConfigError: what `TopoNet` raises; INPUT.FORMAT, MODEL.PIXEL_MEAN or PIXEL_STD contradict PRETRAINED's card.
        WeightsError: PRETRAINED is damaged or made for another network.
    """
    node = cfg.MODEL.TOPONET
    topology = {name.lower(): value for name, value in node.TOPOLOGY.items()}
    graphs = [{"edges": edges} for edges in node.EDGES]
    backbone = TopoNet(
        node.ARCH,
        nodes=list(node.NODES) or None,
        width=node.WIDTH or None,
        topology=graphs or (topology if topology["name"] else None),
        edge_weights=node.EDGE_WEIGHTS or None,
        seed=node.SEED if node.SEED >= 0 else None,
        output_stride=node.OUTPUT_STRIDE or None,
        in_channels=input_shape.channels,
        out_features=node.OUT_FEATURES,
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=True if node.PRETRAINED == "topodet" else node.PRETRAINED or None,
        use_act_checkpoint=node.USE_ACT_CHECKPOINT,
    )
    _check(backbone, cfg)
    return backbone


@BACKBONE_REGISTRY.register()
def build_toponet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a TopoNet with the FPN that `MODEL.FPN` describes: p2..p5, and p6 pooled from p5."""
    return build_fpn(cfg, build_toponet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_toponet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a TopoNet with RetinaNet's FPN: p3..p5, and p6, p7 convolved from the last feature map."""
    return _retinanet_fpn(cfg, build_toponet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_connected_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ConnectedTimm:
    """Build the timm network that `MODEL.CONNECTED_TIMM` and `MODEL.BACKBONE.FREEZE_AT` describe.

    Raises:
        ConfigError: what `ConnectedTimm` raises; INPUT.FORMAT, MODEL.PIXEL_MEAN or PIXEL_STD contradict the weights.
        WeightsError: PRETRAINED is damaged, made for another network or not available.
    """
    node = cfg.MODEL.CONNECTED_TIMM
    backbone = ConnectedTimm(
        node.NAME,
        wiring=node.WIRING,
        connect_nodes=node.CONNECT_NODES,
        rewire=node.REWIRE,
        in_channels=input_shape.channels,
        out_features=node.OUT_FEATURES,
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=True if node.PRETRAINED == "timm" else node.PRETRAINED or None,
        use_act_checkpoint=node.USE_ACT_CHECKPOINT,
        edges=node.EDGES[0] if len(node.EDGES) == 1 and isinstance(node.EDGES[0], str) else node.EDGES,
        options={name.lower(): value for name, value in node.OPTIONS.items()},
    )
    _check(backbone, cfg)
    return backbone


@BACKBONE_REGISTRY.register()
def build_connected_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a timm network with the FPN that `MODEL.FPN` describes: p2..p5, and p6 pooled from p5."""
    return build_fpn(cfg, build_connected_timm_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_connected_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a timm network with RetinaNet's FPN: p3..p5, and p6, p7 convolved from the last feature map."""
    return _retinanet_fpn(cfg, build_connected_timm_backbone(cfg, input_shape))


def _check(backbone: TopodetBackbone, cfg: CfgNode) -> None:
    check_preprocessing(
        backbone.card, mean=cfg.MODEL.PIXEL_MEAN, std=cfg.MODEL.PIXEL_STD, input_format=cfg.INPUT.FORMAT
    )


def _retinanet_fpn(cfg: CfgNode, bottom_up: TopodetBackbone) -> FPN:
    last = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = bottom_up.output_shape()[last].channels
    return build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=last))


def build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    """Return a backbone with the FPN that `MODEL.FPN` describes."""
    node = cfg.MODEL.FPN
    shapes = bottom_up.output_shape()
    strides = [shapes[name].stride for name in node.IN_FEATURES if name in shapes]
    if any(next_one != 2 * stride for stride, next_one in pairwise(strides)):
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES {list(node.IN_FEATURES)} have the strides {strides}, but Detectron2's FPN needs "
            "strides that double: leave the last feature out, set MODEL.TOPONET.OUTPUT_STRIDE 32, or choose a "
            "builder without FPN"
        )
    return FPN(
        bottom_up,
        node.IN_FEATURES,
        node.OUT_CHANNELS,
        norm=node.NORM,
        top_block=top_block,
        fuse_type=node.FUSE_TYPE,
    )
