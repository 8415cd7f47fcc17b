"""Any backbone of Detectron2's registry, with learned wiring."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from ..connected_backbone import connect_backbone
from ..models.connected import Nodes, RunEdges
from .build import build_fpn

logger = logging.getLogger("detectron2.topodet")


def connect(
    model: nn.Module,
    *,
    nodes: Nodes = "auto",
    wiring: Literal["learned", "fixed"] = "learned",
    leave_out: Sequence[str] = (),
    edges: RunEdges | None = None,
    missing_ok: Sequence[str] = (),
) -> nn.Module:
    """Return a copy of a backbone with learned wiring; its output stays the same until training changes an edge weight.

    Parameters keep their names, so weights of Detectron2's zoo load as without wiring. In a LazyConfig:

        model.backbone.bottom_up = L(connect)(model=model.backbone.bottom_up, nodes="auto")

    Args:
        model: any backbone of Detectron2, with or without its FPN.
        nodes: "residuals", "blocks" or "auto", see `topodet.models.connect`.
        wiring: "learned", or "fixed" at the start.
        leave_out: names of blocks, or of modules that contain them, to leave unchanged.
        edges: remaining edges of pruned runs, e.g. {"res2.1.wiring": [[0, 1], [1, 2]]}.
        missing_ok: patterns of tensors that a checkpoint may lack besides the wiring's, e.g. "*conv2_offset*".

    Raises:
        ConfigError: nothing to connect, with the reasons.
    """
    return connect_backbone(
        model,
        nodes=nodes,
        wiring=wiring,
        leave_out=list(leave_out),
        edges=edges,
        missing_ok=list(missing_ok),
        say=logger.info,
    )


@BACKBONE_REGISTRY.register()
def build_connected_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build the backbone that `MODEL.CONNECT.BACKBONE` names and connect it, as `MODEL.CONNECT` describes.

    If the builder also makes an FPN (build_retinanet_resnet_fpn_backbone), the runs of its `bottom_up` are connected.

    Raises:
        ConfigError: nothing to connect, with the reasons.
    """
    node = cfg.MODEL.CONNECT
    return connect(
        BACKBONE_REGISTRY.get(node.BACKBONE)(cfg, input_shape),
        nodes=node.NODES,
        wiring=node.WIRING,
        leave_out=node.LEAVE_OUT,
        edges=node.EDGES,
        missing_ok=node.MISSING_OK,
    )


@BACKBONE_REGISTRY.register()
def build_connected_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a connected backbone with the FPN that `MODEL.FPN` describes: p2..p5, and p6 pooled from p5."""
    return build_fpn(cfg, build_connected_backbone(cfg, input_shape), LastLevelMaxPool())
