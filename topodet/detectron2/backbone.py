"""The TopoNet that Detectron2's FPN takes as `bottom_up`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.layers import FrozenBatchNorm2d, get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn

from .. import weights
from ..errors import ConfigError, WeightsError, unknown_name
from ..models import Trunk, build_blocks
from ..models.trunk import TopologySpec
from ..models.wiring import EdgeWeights

# Under Detectron2's own logger, so that its console and log.txt show it.
logger = logging.getLogger("detectron2.topodet")

NORMS = ("FrozenBN", "BN", "SyncBN", "GN", "naiveSyncBN", "naiveSyncBN_N", "nnSyncBN", "LN")


class TopoNet(Trunk, Backbone):
    """A TopoNet without classifier: [B, in_channels, H, W] to {"res2": [B, C, H/4, W/4], ..., "res5": ...}.

    Parameters are named as in the timm network and in MMDetection, so one published file serves all. Stages after the
    last of `out_features` are not built, so that no parameter stays without gradient (DDP needs no
    `find_unused_parameters`). A state dict fills the backbone whole or not at all, whatever `strict` says: Detectron2's
    checkpointer itself only logs what did not match, and trains on.

    Any image size works (`size_divisibility` is 0, as ResNet's); an FPN around it asks for multiples of its stride.

    Args:
        arch: name of a network, see `topodet.models.ARCHITECTURES`. Its hyper-parameters are the defaults of the next
            five; "toponet50" is {14, 20, 26, 14} nodes, width 64, channels 128/256/512/1024. "pretrained" is the
            network of the weights file, graphs included, e.g. a pruned one.
        nodes, width, topology, edge_weights, seed: see `topodet.models.build_blocks`.
        in_channels: channels of the image.
        out_features: feature maps to return, of "res2" (stride 4) to "res5" (stride 32).
        norm: what `detectron2.layers.get_norm` takes: "FrozenBN", "BN", "SyncBN", "GN", ... or a callable from channels
            to a module.
        freeze_at: see `freeze`.
        pretrained: path or URL of a weights file, loaded strictly; its hash is checked.
        use_act_checkpoint: recompute the inside of each node in the backward pass to save memory.

    Attributes:
        card: of the weights file that was loaded; empty without one.

    Raises:
        ConfigError: unknown `arch`, `norm` or feature, or arguments that contradict each other.
        TopologyError: a topology that cannot be made.
        WeightsError: `pretrained` is damaged or made for another network.
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
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str | Callable[[int], nn.Module] = "FrozenBN",
        freeze_at: int = 0,
        pretrained: str | None = None,
        use_act_checkpoint: bool = False,
    ):
        name, arguments = weights.backbone_arguments(
            arch, pretrained, nodes=nodes, width=width, topology=topology, edge_weights=edge_weights, seed=seed
        )
        if isinstance(norm, str) and norm not in NORMS:
            raise ConfigError(unknown_name("norm", norm, NORMS))
        super().__init__(
            *build_blocks(
                **arguments,
                in_chans=in_channels,
                norm_layer=lambda channels: get_norm(norm, channels),
                num_stages=_num_stages(out_features, arguments.get("nodes")),
            )
        )
        self.arch = name
        self.stage_names = tuple(f"res{k + 2}" for k in range(len(self.stages)))
        # What `Backbone.output_shape` is computed from.
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(self.stage_names, self.stage_channels))
        self._out_feature_strides = dict(zip(self.stage_names, self.stage_strides))
        self.card: dict[str, Any] = {}
        self._has_weights = False
        self.set_grad_checkpointing(use_act_checkpoint)
        if pretrained:
            report = weights.load(self, pretrained, quiet=True)
            self.card = report.card
            logger.info(f"topodet: {report} loaded from {pretrained}")
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature maps of `out_features`, [B, channels, ceil(H / stride), ceil(W / stride)] each."""
        if self.training and not self._has_weights:
            self._has_weights = True  # say it once
            self._warn_of_random_weights()
        stages = zip(self.stage_names, self.stage_features(x))
        return {name: x for name, x in stages if name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> TopoNet:
        """Freeze the first parts as Detectron2's ResNet does: no gradients, batch normalisation made FrozenBN.

        Args:
            freeze_at: 0 nothing, 1 the stem, 2 the stem and res2, and so on; edge weights included.

        Returns:
            this network.

        Raises:
            ConfigError: beyond the stages there are.
        """
        if not 0 <= freeze_at <= len(self.stages) + 1:
            raise ConfigError(
                f"freeze_at={freeze_at} (MODEL.BACKBONE.FREEZE_AT), but {self.arch} was built with {len(self.stages)} "
                f"stages: use 0 (nothing), 1 (stem) or 2..{len(self.stages) + 1} (stem and stages up to res2.."
                f"{self.stage_names[-1]})"
            )
        for module in self.frozen_modules(freeze_at - 1):
            module.requires_grad_(False)
            FrozenBatchNorm2d.convert_frozen_batchnorm(module)
        return self

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        own = {name: tensor for name, tensor in self.state_dict().items() if not weights.is_update_counter(name)}
        filled = [name for name, tensor in own.items() if _shape(state_dict.get(prefix + name)) == tensor.shape]
        graphs = [name for name in own if name.endswith("wiring.edges") and prefix + name in state_dict]
        if len(filled) < len(own) and all(name in filled for name in graphs):
            absent = [name for name in own if name not in filled]
            raise WeightsError(
                f"the checkpoint fills {len(filled)}/{len(own)} tensors of the backbone {self.arch}; missing, or of "
                f"another shape: {', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}. It is for another "
                "backbone: choose the arch it was trained with (MODEL.TOPONET.ARCH, model.backbone.bottom_up.arch), or "
                "another file"
            )
        # A published file holds counters that FrozenBN has no use for, and stages that nobody here reads.
        passed_over = [name for name in unexpected_keys if _is_unread(name, own, len(self.stages))]
        unexpected_keys[:] = [name for name in unexpected_keys if name not in passed_over]
        self._has_weights = True
        if prefix:
            logger.info(f"topodet: {len(filled)}/{len(own)} tensors of the backbone are in the checkpoint")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _warn_of_random_weights(self) -> None:
        advice = []
        if not all(parameter.requires_grad for parameter in self.stem.parameters()):
            advice.append("MODEL.BACKBONE.FREEZE_AT 0")
        if any(isinstance(module, FrozenBatchNorm2d) for module in self.modules()):
            advice.append("MODEL.TOPONET.NORM BN")
        useless = f"; frozen layers and statistics make no sense then: {' '.join(advice)}" if advice else ""
        logger.warning(
            f"TopoNet ({self.arch}) starts from RANDOM weights{useless}. A published backbone is given by "
            "MODEL.TOPONET.PRETRAINED PATH or MODEL.WEIGHTS PATH (model.backbone.bottom_up.pretrained=PATH)"
        )


def _shape(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.shape


def _is_unread(name: str, own: dict[str, Tensor], num_stages: int) -> bool:
    """Whether a key that the checkpointer found no place for is one that this backbone passes over on purpose."""
    part, _, rest = name.partition(".")
    if part == "stages" and int(rest.partition(".")[0]) >= num_stages:
        return True
    return part in ("stem", "stages") and weights.is_update_counter(name)


def _num_stages(out_features: Sequence[str], nodes: Sequence[int] | None) -> int:
    """Return how many stages `out_features` needs."""
    total = len(nodes) if isinstance(nodes, Sequence) else 4  # no sequence: not given, or what build_blocks refuses
    known = [f"res{k + 2}" for k in range(total)]
    for name in out_features:
        if name not in known:
            raise ConfigError(unknown_name("feature in out_features (MODEL.TOPONET.OUT_FEATURES)", name, known))
    if not out_features or len(set(out_features)) != len(out_features):
        raise ConfigError(
            f"out_features={list(out_features)} (MODEL.TOPONET.OUT_FEATURES) must list some of {known}, each once"
        )
    return 1 + max(known.index(name) for name in out_features)
