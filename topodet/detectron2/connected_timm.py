"""A timm network, connected or unchanged, for Detectron2's FPN, as `bottom_up`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import timm.utils
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

from .. import weights
from ..errors import ConfigError, unknown_name
from ..models import TimmTrunk
from ..models.connected import Nodes, RunEdges
from ..models.timm_trunk import STRIDES, TimmWiring
from .base import TopodetBackbone, number_of_stages

NORMS = ("FrozenBN", "BN", "SyncBN")


class ConnectedTimm(TimmTrunk, TopodetBackbone):
    """A timm network with learned connectivity: [B, in_channels, H, W] to maps "res2" (stride 4) to "res5" (32).

    Its output equals timm's network until training changes an edge weight, so it can start from weights of the
    original: timm's, or a file of `topodet publish`. See `TimmTrunk` for supported networks.

    Args:
        name: name of the network in timm, e.g. "convnextv2_nano", with or without the tag of its weights.
        wiring: "learned", "fixed" (all weights as loaded), or "none": timm's unchanged network, for comparison.
        connect_nodes: kind of nodes, "residuals", "blocks" (for ResNets too) or "auto", see `connect`.
        rewire: apply `topodet.models.rewire` to a ResNet; only weights of a rewired network fit.
        in_channels: channels of the image.
        out_features: feature maps to return, from "res2" (stride 4) to "res5" (stride 32). Later stages are removed.
        norm: replacement of batch normalization: "FrozenBN", "BN" (unchanged) or "SyncBN". Other kinds of normalization
            are not changed.
        freeze_at: see `TopodetBackbone.freeze`; the stem is everything before stride 4.
        pretrained: True for the weights that timm publishes under the name, or the path, URL or hf-hub:USER/REPO of a
            file, of the connected network or the original, loaded strictly; its hash is checked.
        use_act_checkpoint: recompute blocks in the backward pass to save memory.
        edges: remaining edges of the network's pruned runs, see `TimmTrunk`; "pretrained" for those of the file.
        options: further arguments of `timm.create_model`, e.g. {"drop_path_rate": 0.1}.

    Raises:
        ConfigError: what `TimmTrunk` raises; an unknown norm or feature.
        WeightsError: `pretrained` is damaged, made for another network or not available.
    """

    config_node = "MODEL.CONNECTED_TIMM"

    def __init__(
        self,
        name: str,
        *,
        wiring: TimmWiring = "learned",
        connect_nodes: Nodes = "residuals",
        rewire: bool = False,
        in_channels: int = 3,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        pretrained: str | bool | None = None,
        use_act_checkpoint: bool = False,
        edges: RunEdges | Literal["pretrained"] | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        if norm not in NORMS:
            raise ConfigError(unknown_name("norm", norm, NORMS))
        super().__init__(
            name,
            wiring=wiring,
            connect_nodes=connect_nodes,
            rewire=rewire,
            in_chans=in_channels,
            num_stages=number_of_stages(out_features, len(STRIDES), self.config_node),
            edges=weights.resolve_edges(edges, pretrained),
            options=options,
        )
        # timm's own converters also handle layers that combine normalization and activation.
        if norm == "FrozenBN":
            freeze_batch_norm_2d(self.network)
        elif norm == "SyncBN":
            convert_sync_batchnorm(self.network)
        self._set_up(
            out_features=out_features,
            freeze_at=freeze_at,
            pretrained=pretrained,
            use_act_checkpoint=use_act_checkpoint,
        )

    def _freeze_norms(self, frozen_stages: int) -> None:
        names = self.frozen_names(frozen_stages)
        if names:  # timm would freeze everything for an empty list
            timm.utils.freeze(self.network, names)
