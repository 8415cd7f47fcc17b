"""The backbone that MMDetection's configs name `TopoNet`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .. import weights
from ..errors import ConfigError
from ..models import Trunk, build_blocks
from ..models.trunk import TopologySpec
from ..models.wiring import EdgeWeights


@MODELS.register_module()
class TopoNet(Trunk, BaseModule):
    """A TopoNet without classifier: [B, in_channels, H, W] to a tuple of feature maps at strides 4, 8, 16, 32.

    Parameters are named as in the timm network, so a published file loads as it is. Stages after the last of
    `out_indices` are not built, so that no parameter stays without gradient (DDP needs no `find_unused_parameters`).

    Args:
        arch: name of a network, see `topodet.models.ARCHITECTURES`. Its hyper-parameters are the defaults of the next
            five; "toponet50" is {14, 20, 26, 14} nodes, width 64, channels 128/256/512/1024. "pretrained" is the
            network of the weights file, graphs included, e.g. a pruned one.
        nodes, width, topology, edge_weights, seed: see `topodet.models.build_blocks`.
        in_channels: channels of the image.
        out_indices: stages whose feature maps are returned, ascending, 0 at stride 4.
        frozen_stages: -1 trains everything, 0 freezes the stem, k the stem and the first k stages, edge weights
            included; what is frozen also normalises by its stored statistics.
        norm_cfg: normalisation in MMDetection's words, e.g. dict(type="SyncBN", requires_grad=True).
        norm_eval: keep every batch normalisation at its stored statistics during training.
        pretrained: path or URL of a weights file, loaded strictly by `init_weights`.
        init_cfg: as in every MMEngine module; dict(type="Pretrained", checkpoint=...) without `prefix` is the same as
            `pretrained`, and as strict.
        with_cp: recompute the inside of each node in the backward pass to save memory.

    Attributes:
        card: of the weights file that was loaded; empty without one.

    Raises:
        ConfigError: unknown `arch`, or arguments that contradict each other.
        TopologyError: a topology that cannot be made.
        WeightsError: the file that `arch` refers to is missing, damaged or no TopoNet's.
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
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: dict[str, Any] = dict(type="BN", requires_grad=True),  # noqa: B006, C408 - as MMDetection's own
        norm_eval: bool = True,
        pretrained: str | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        with_cp: bool = False,
    ):
        if pretrained is not None and init_cfg is not None:
            raise ConfigError(
                f"backbone has both pretrained={pretrained!r} and init_cfg={init_cfg!r}; give one of them"
            )
        if (
            isinstance(init_cfg, dict)
            and init_cfg["type"] in ("Pretrained", PretrainedInit)
            and "prefix" not in init_cfg
        ):
            pretrained, init_cfg = init_cfg["checkpoint"], None
        name, arguments = weights.backbone_arguments(
            arch, pretrained, nodes=nodes, width=width, topology=topology, edge_weights=edge_weights, seed=seed
        )
        num_stages = _num_stages(out_indices, arguments.get("nodes"))
        super().__init__(
            *build_blocks(
                **arguments,
                in_chans=in_channels,
                norm_layer=lambda channels: build_norm_layer(norm_cfg, channels)[1],
                num_stages=num_stages,
            )
        )
        self.arch = name
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.pretrained = pretrained
        self.init_cfg = init_cfg
        self.card: dict[str, Any] = {}
        self.set_grad_checkpointing(with_cp)
        for module in self.frozen_modules(frozen_stages):
            module.requires_grad_(False)
        self.train()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned feature maps: what the neck's `in_channels` must be."""
        return tuple(self.stage_channels[k] for k in self.out_indices)

    def init_weights(self) -> None:
        """Load `pretrained` strictly, or initialise as `init_cfg` says; with neither keep the random weights.

        Raises:
            WeightsError: the file is damaged or made for another network.
        """
        if self.pretrained is not None and not self.is_init:
            report = weights.load(self, self.pretrained, quiet=True)
            self.card = report.card
            print_log(f"topodet: {report} loaded from {self.pretrained}", logger="current")
        super().init_weights()
        if self.pretrained is None and not self.init_cfg:
            self._warn_of_random_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of `out_indices`, [B, channels, ceil(H / stride), ceil(W / stride)] each."""
        return tuple(x for k, x in enumerate(self.stage_features(x)) if k in self.out_indices)

    def train(self, mode: bool = True) -> TopoNet:
        """Set the mode, except where `frozen_stages` and `norm_eval` ask for stored statistics."""
        super().train(mode)
        for module in self.frozen_modules(self.frozen_stages):
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _warn_of_random_weights(self) -> None:
        advice = []
        if self.frozen_stages >= 0:
            advice.append("model.backbone.frozen_stages=-1")
        if self.norm_eval and any(isinstance(module, _BatchNorm) for module in self.modules()):
            advice.append("model.backbone.norm_eval=False")
        useless = f"; frozen layers and statistics make no sense then: {' '.join(advice)}" if advice else ""
        print_log(
            f"TopoNet ({self.arch}) starts from RANDOM weights, unless load_from or resume replaces them{useless}. "
            "A published backbone is given by --cfg-options model.backbone.pretrained=PATH",
            logger="current",
            level=logging.WARNING,
        )


def _num_stages(out_indices: Sequence[int], nodes: Sequence[int] | None) -> int:
    """Return how many stages `out_indices` needs."""
    total = len(nodes) if isinstance(nodes, Sequence) else 4  # no sequence: not given, or what build_blocks refuses
    indices = list(out_indices)
    if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= total:
        raise ConfigError(
            f"out_indices={tuple(indices)} must list, in ascending order, some of the stages 0..{total - 1}"
        )
    return indices[-1] + 1
