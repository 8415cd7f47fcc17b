"""The backbone `ConnectedTimm` of MMDetection configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmdet.registry import MODELS

from .. import weights
from ..models import TimmTrunk
from ..models.connected import Nodes, RunEdges
from ..models.timm_trunk import STRIDES, TimmWiring
from .base import TopodetBackbone, number_of_stages, resolve_init


@MODELS.register_module()
class ConnectedTimm(TimmTrunk, TopodetBackbone):
    """A timm network with learned connectivity: [B, in_channels, H, W] to a tuple of maps at strides 4, 8, 16, 32.

    Its output equals timm's network until training changes an edge weight, so it can start from weights of the
    original: timm's, or a file of `topodet publish`. See `TimmTrunk` for supported networks.

    Args:
        name: name of the network in timm, e.g. "convnextv2_nano", with or without the tag of its weights.
        wiring: "learned", "fixed" (all weights as loaded), or "none": timm's unchanged network, for comparison.
        connect_nodes: kind of nodes, "residuals", "blocks" (for ResNets too) or "auto", see `connect`.
        rewire: apply `topodet.models.rewire` to a ResNet; only weights of a rewired network fit.
        in_channels: channels of the image.
        out_indices: stages whose feature maps are returned, ascending, 0 at stride 4. Later stages are removed.
        frozen_stages: -1 trains everything, 0 freezes all before stride 4, k also the first k stages, including edge
            weights; frozen parts also normalize by their stored statistics and have no drop path.
        norm_eval: keep every batch normalization at its stored statistics during training.
        pretrained: True for the weights that timm publishes under the name, or the path, URL or hf-hub:USER/REPO of a
            file, of the connected network or the original, loaded strictly by `init_weights`.
        init_cfg: as in every MMEngine module; dict(type="Pretrained", checkpoint=...), alone or in a list, is the same
            as `pretrained`, and as strict; with `prefix="backbone."` of a detector's checkpoint.
        with_cp: recompute blocks in the backward pass to save memory.
        edges: remaining edges of the network's pruned runs, see `TimmTrunk`; "pretrained" for those of the file.
        options: further arguments of `timm.create_model`, e.g. dict(drop_path_rate=0.1).

    Attributes:
        card: card of the loaded weights; empty without them.

    Raises:
        ConfigError: what `TimmTrunk` raises, or arguments that contradict each other.
    """

    def __init__(
        self,
        name: str,
        *,
        wiring: TimmWiring = "learned",
        connect_nodes: Nodes = "residuals",
        rewire: bool = False,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = True,
        pretrained: str | bool | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        with_cp: bool = False,
        edges: RunEdges | Literal["pretrained"] | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        pretrained, prefix, init_cfg = resolve_init(pretrained, init_cfg)
        super().__init__(
            name,
            wiring=wiring,
            connect_nodes=connect_nodes,
            rewire=rewire,
            in_chans=in_channels,
            num_stages=number_of_stages(out_indices, len(STRIDES)),
            edges=weights.resolve_edges(edges, pretrained),
            options=options,
        )
        self._set_up(
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            pretrained=pretrained,
            prefix=prefix,
            init_cfg=init_cfg,
            with_cp=with_cp,
        )
