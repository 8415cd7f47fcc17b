"""Base class of topodet's backbones for Detectron2."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from detectron2.modeling import Backbone
from torch import Tensor

from .. import weights
from ..errors import ConfigError, unknown_name

# Under Detectron2's own logger, so that its console and log.txt show it.
logger = logging.getLogger("detectron2.topodet")


class TopodetBackbone(Backbone):
    """A trunk (`Trunk`, `TimmTrunk`) as a backbone; subclasses inherit the trunk too, and call `_set_up` at the end.

    Maps [B, in_channels, H, W] to {"res2": [B, C, ceil(H / 4), ceil(W / 4)], ..., "res5": ...}. The trunk has no stages
    after the last of `out_features`, so every parameter has a gradient (DDP needs no `find_unused_parameters`). A state
    dict fills the backbone completely or not at all, even with `strict=False`: Detectron2's own checkpointer only logs
    mismatches, and continues training.

    Any image size works (`size_divisibility` is 0, as in ResNet); an FPN around it requires multiples of its stride.

    Attributes:
        card: card of the loaded weights file; empty without one.
        config_node: the config node with the arguments.
    """

    config_node: str

    def _set_up(
        self,
        *,
        out_features: Sequence[str],
        freeze_at: int,
        pretrained: str | bool | None,
        use_act_checkpoint: bool,
    ) -> None:
        self.stage_names = tuple(f"res{k + 2}" for k in range(len(self.stage_channels)))
        # `Backbone.output_shape` uses these.
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(self.stage_names, self.stage_channels))
        self._out_feature_strides = dict(zip(self.stage_names, self.stage_strides))
        self.card: dict[str, Any] = {}
        self.has_weights = False
        self.set_grad_checkpointing(use_act_checkpoint)
        if pretrained:
            source = weights.from_timm(self.arch, **self.options) if pretrained is True else pretrained
            report = weights.load(self, source, quiet=True)
            self.card, self.has_weights = report.card, True
            where = f"timm's {self.card['name']}" if pretrained is True else pretrained
            logger.info(f"topodet: {report} loaded from {where}")
            if report.doubt:
                logger.warning(f"topodet: {where}: {report.doubt}")
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature maps of `out_features`, [B, channels, ceil(H / stride), ceil(W / stride)] each."""
        if self.training and not self.has_weights:
            self.has_weights = True  # warn only once
            self._warn_of_random_weights()
        stages = zip(self.stage_names, self.stage_features(x))
        return {name: x for name, x in stages if name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> TopodetBackbone:
        """Freeze the first parts as in Detectron2's ResNet: no gradients, and frozen batch normalization.

        Args:
            freeze_at: 0 nothing, 1 the stem, 2 the stem and res2, and so on, including edge weights.

        Returns:
            this network.

        Raises:
            ConfigError: larger than the number of stages.
        """
        count = len(self.stage_names)
        if not 0 <= freeze_at <= count + 1:
            raise ConfigError(
                f"freeze_at={freeze_at} (MODEL.BACKBONE.FREEZE_AT), but {self.arch} was built with {count} "
                f"stages: use 0 (nothing), 1 (stem) or 2..{count + 1} (stem and stages up to res2.."
                f"{self.stage_names[-1]})"
            )
        for module in self.frozen_modules(freeze_at - 1):
            module.requires_grad_(False)
        self._freeze_norms(freeze_at - 1)
        return self

    @abstractmethod
    def _freeze_norms(self, frozen_stages: int) -> None:
        """Replace the batch normalizations in `frozen_modules(frozen_stages)` by frozen ones."""

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        filled, total = weights.check_filled(
            self,
            state_dict,
            prefix,
            # For tensors of another shape, the checkpointer keeps the names without the prefix.
            also=[self.network_prefix + name for name in unexpected_keys],
            remedy=f"It comes from a different backbone: choose the network it was trained with ({self.config_node}, "
            "model.backbone.bottom_up), or another file",
        )
        # A published file contains counters that frozen normalization lacks, and tensors that are not used here.
        unexpected_keys[:] = [name for name in unexpected_keys if not self._is_unread(name)]
        self.has_weights = True
        if prefix:
            logger.info(f"topodet: {filled}/{total} tensors of the backbone are in the checkpoint")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _is_unread(self, name: str) -> bool:
        """Whether this backbone ignores an unexpected key of a checkpoint on purpose."""
        norm = self.network_prefix + name.rpartition(".")[0]
        return self.ignores(name) or (
            weights.is_update_counter(name) and f"{norm}.running_mean" in dict(self.named_buffers())
        )

    def _warn_of_random_weights(self) -> None:
        advice = []
        if any(not p.requires_grad for module in self.frozen_modules(0) for p in module.parameters()):
            advice.append("MODEL.BACKBONE.FREEZE_AT 0")
        if any(type(module).__name__.startswith("FrozenBatchNorm") for module in self.modules()):
            advice.append(f"{self.config_node}.NORM BN")
        useless = f"; do not freeze layers or statistics then: {' '.join(advice)}" if advice else ""
        logger.warning(
            f"{type(self).__name__} ({self.arch}) starts from RANDOM weights{useless}. For a published "
            f"backbone set {self.config_node}.PRETRAINED PATH or MODEL.WEIGHTS PATH "
            "(model.backbone.bottom_up.pretrained=PATH)"
        )


def number_of_stages(out_features: Sequence[str], total: int, config_node: str) -> int:
    """Return how many of a network's stages `out_features` needs.

    Raises:
        ConfigError: it is empty, has duplicates or unknown names.
    """
    known = [f"res{k + 2}" for k in range(total)]
    for name in out_features:
        if name not in known:
            raise ConfigError(unknown_name(f"feature in out_features ({config_node}.OUT_FEATURES)", name, known))
    if not out_features or len(set(out_features)) != len(out_features):
        raise ConfigError(
            f"out_features={list(out_features)} ({config_node}.OUT_FEATURES) must list some of {known}, each once"
        )
    return 1 + max(known.index(name) for name in out_features)
