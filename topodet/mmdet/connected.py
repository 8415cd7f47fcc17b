"""The backbone `Connected` of MMDetection configs: any backbone of its registry, with learned wiring."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import nn

from ..connected_backbone import connect_backbone
from ..models.connected import Nodes, RunEdges


@MODELS.register_module(name="Connected")
def build_connected_backbone(
    backbone: dict[str, Any],
    *,
    nodes: Nodes = "auto",
    wiring: Literal["learned", "fixed"] = "learned",
    leave_out: Sequence[str] = (),
    edges: RunEdges | None = None,
    missing_ok: Sequence[str] = (),
) -> nn.Module:
    """Build an MMDetection backbone and connect it; its output stays the same until training changes an edge weight.

    Parameters keep their names, so the backbone's own `init_cfg`, `frozen_stages` and `norm_eval` work, and `load_from`
    accepts a detector that was trained without wiring, MMDetection's own or yours:

        model = dict(backbone=dict(type="Connected", backbone=dict(type="ResNet", depth=50, ...), nodes="auto"))

    Args:
        backbone: config of any registered backbone, e.g. dict(type="ResNet", depth=50), also of another package's scope
            ("mmpretrain.ConvNeXt").
        nodes: "residuals", "blocks" or "auto", see `topodet.models.connect`.
        wiring: "learned", or "fixed" at the start.
        leave_out: names of blocks, or of modules that contain them, to leave unchanged.
        edges: remaining edges of pruned runs, e.g. {"layer1.0.wiring": [[0, 1], [1, 2]]}.
        missing_ok: patterns of tensors that a detector's checkpoint may lack besides the wiring's, e.g.
            "*conv_offset*".

    Raises:
        ConfigError: nothing to connect, with the reasons.
    """
    return connect_backbone(
        MODELS.build(backbone),
        nodes=nodes,
        wiring=wiring,
        leave_out=leave_out,
        edges=edges,
        missing_ok=missing_ok,
        say=_say,
    )


_say = partial(print_log, logger="current")
