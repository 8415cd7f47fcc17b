"""The TopoNet for Detectron2's FPN, as `bottom_up`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.layers import FrozenBatchNorm2d, get_norm
from torch import nn

from .. import weights
from ..errors import ConfigError, unknown_name
from ..models import Trunk, build_blocks, packaged_weights
from ..models.trunk import TopologySpec
from ..models.wiring import EdgeWeights
from .base import TopodetBackbone, number_of_stages

NORMS = ("FrozenBN", "BN", "SyncBN", "GN", "naiveSyncBN", "naiveSyncBN_N", "nnSyncBN", "LN")


class TopoNet(Trunk, TopodetBackbone):
    """A TopoNet without classifier: [B, in_channels, H, W] to {"res2": [B, C, H/4, W/4], ..., "res5": ...}.

    Parameters are named as in the timm network and in MMDetection, so one published file fits all. Stages after the
    last of `out_features` are not built, so every parameter has a gradient (DDP needs no `find_unused_parameters`). A
    state dict fills the backbone completely or not at all, even with `strict=False`: Detectron2's own checkpointer only
    logs mismatches, and continues training.

    Any image size works (`size_divisibility` is 0, as in ResNet); an FPN around it requires multiples of its stride.

    Args:
        arch: name of a network, see `topodet.models.ARCHITECTURES`. Its hyper-parameters are the defaults of the next
            six; "toponet50" is {14, 20, 26, 14} nodes, width 64, channels 128/256/512/1024. "pretrained" is the network
            of the weights file, including graphs and `output_stride`, e.g. a pruned one.
        nodes, width, topology, edge_weights, seed, output_stride: see `topodet.models.build_blocks`. With an
            `output_stride` of 8 or 16 the last feature maps are larger, and the detector's strides must say so.
        in_channels: channels of the image.
        out_features: feature maps to return, from "res2" (stride 4) to "res5" (stride 32).
        norm: argument of `detectron2.layers.get_norm`: "FrozenBN", "BN", "SyncBN", "GN", ... or a callable from
            channels to a module.
        freeze_at: see `TopodetBackbone.freeze`.
        pretrained: path, URL or hf-hub:USER/REPO of a weights file, loaded strictly, its hash checked; True for the
            package's own weights of this network.
        use_act_checkpoint: recompute each node in the backward pass to save memory.

    Attributes:
        card: card of the loaded weights file; empty without one.

    Raises:
        ConfigError: unknown `arch`, `norm` or feature, or arguments that contradict each other.
        TopologyError: a topology that cannot be made.
        WeightsError: `pretrained` is damaged or made for another network.
    """

    config_node = "MODEL.TOPONET"

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
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str | Callable[[int], nn.Module] = "FrozenBN",
        freeze_at: int = 0,
        pretrained: str | bool | None = None,
        use_act_checkpoint: bool = False,
    ):
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
        if isinstance(norm, str) and norm not in NORMS:
            raise ConfigError(unknown_name("norm", norm, NORMS))
        super().__init__(
            *build_blocks(
                **arguments,
                in_chans=in_channels,
                norm_layer=lambda channels: get_norm(norm, channels),
                num_stages=number_of_stages(out_features, total, self.config_node),
            )
        )
        self.arch = name
        self._set_up(
            out_features=out_features,
            freeze_at=freeze_at,
            pretrained=pretrained,
            use_act_checkpoint=use_act_checkpoint,
        )

    def _freeze_norms(self, frozen_stages: int) -> None:
        for module in self.frozen_modules(frozen_stages):
            FrozenBatchNorm2d.convert_frozen_batchnorm(module)
