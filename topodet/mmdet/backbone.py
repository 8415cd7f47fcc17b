"""The backbone `TopoNet` of MMDetection configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmdet.registry import MODELS

from .. import weights
from ..models import Trunk, build_blocks, packaged_weights
from ..models.trunk import TopologySpec
from ..models.wiring import EdgeWeights
from .base import TopodetBackbone, number_of_stages, resolve_init


@MODELS.register_module()
class TopoNet(Trunk, TopodetBackbone):
    """A TopoNet without classifier: [B, in_channels, H, W] to a tuple of feature maps at strides 4, 8, 16, 32.

    Parameters are named as in the timm network, so a published file loads directly. Stages after the last of
    `out_indices` are not built, so every parameter has a gradient (DDP needs no `find_unused_parameters`).

    Args:
        arch: name of a network, see `topodet.models.ARCHITECTURES`. Its hyper-parameters are the defaults of the next
            six; "toponet50" is {14, 20, 26, 14} nodes, width 64, channels 128/256/512/1024. "pretrained" is the network
            of the weights file, including graphs and `output_stride`, e.g. a pruned one.
        nodes, width, topology, edge_weights, seed, output_stride: see `topodet.models.build_blocks`. With an
            `output_stride` of 8 or 16 the last feature maps are larger, and the detector's strides must say so.
        in_channels: channels of the image.
        out_indices: stages whose feature maps are returned, ascending, 0 at stride 4.
        frozen_stages: -1 trains everything, 0 freezes the stem, k the stem and the first k stages, including edge
            weights; frozen parts also normalize by their stored statistics.
        norm_cfg: normalization in MMDetection's format, e.g. dict(type="SyncBN", requires_grad=True).
        norm_eval: keep every batch normalization at its stored statistics during training.
        pretrained: path, URL or hf-hub:USER/REPO of a weights file, loaded strictly by `init_weights`; True for the
            package's own weights of this network.
        init_cfg: as in every MMEngine module; dict(type="Pretrained", checkpoint=...), alone or in a list, is the same
            as `pretrained`, and as strict; with `prefix="backbone."` of a detector's checkpoint.
        with_cp: recompute each node in the backward pass to save memory.

    Attributes:
        card: card of the loaded weights file; empty without one.

    Raises:
        ConfigError: unknown `arch`, or arguments that contradict each other.
        TopologyError: a topology that cannot be made.
        WeightsError: the file that `arch` refers to is missing, damaged or not a TopoNet's.
    """

    def __init__(
        self,
        arch: str = "toponet50",
        *,
        nodes: Sequence[int] | None = None,
        width: int | None = None,
        topology: TopologySpec | Sequence[TopologySpec] | None = None,
        edge_weights: EdgeWeights | None = None,
        seed: int | None = None,
        output_stride: int | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: dict[str, Any] = dict(type="BN", requires_grad=True),  # noqa: B006, C408 - as MMDetection's own
        norm_eval: bool = True,
        pretrained: str | bool | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        with_cp: bool = False,
    ):
        pretrained, prefix, init_cfg = resolve_init(pretrained, init_cfg)
        if pretrained is True:
            pretrained = str(packaged_weights(arch))
        name, arguments = weights.backbone_arguments(
            arch,
            pretrained,
            nodes=nodes,
            width=width,
            topology=topology,
            edge_weights=edge_weights,
            seed=seed,
            output_stride=output_stride,
        )
        stages = arguments.get("nodes")
        total = len(stages) if isinstance(stages, Sequence) else 4  # else not given, or invalid: build_blocks raises
        super().__init__(
            *build_blocks(
                **arguments,
                in_chans=in_channels,
                norm_layer=lambda channels: build_norm_layer(norm_cfg, channels)[1],
                num_stages=number_of_stages(out_indices, total),
            )
        )
        self.arch = name
        self._set_up(
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            pretrained=pretrained,
            prefix=prefix,
            init_cfg=init_cfg,
            with_cp=with_cp,
        )
