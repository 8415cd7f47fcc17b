"""Base class of topodet's backbones for MMDetection."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .. import weights
from ..errors import ConfigError, WeightsError, show, unknown_name
from .loader import refuse_strange_objects

# Key of the backbone's card in the `meta` of an MMEngine checkpoint.
CARD = "topodet_card"


class TopodetBackbone(BaseModule):
    """A trunk (`Trunk`, `TimmTrunk`) as a backbone; subclasses inherit the trunk too, and call `_set_up` at the end.

    Maps [B, in_channels, H, W] to a tuple of feature maps at strides 4, 8, 16, 32. The trunk has no stages after the
    last of `out_indices`, so every parameter has a gradient (DDP needs no `find_unused_parameters`).

    Attributes:
        card: card of the loaded weights file; empty without one.
    """

    def _set_up(
        self,
        *,
        out_indices: Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        pretrained: str | bool | None,
        prefix: str,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None,
        with_cp: bool,
    ) -> None:
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.pretrained = pretrained
        self.pretrained_prefix = prefix
        self.has_weights = False
        self.init_cfg = init_cfg
        self.card: dict[str, Any] = {}
        # MMEngine also calls init_weights of children; that of timm's ResNets would overwrite the loaded weights.
        for module in self.children():
            module.is_init = True
        self.set_grad_checkpointing(with_cp)
        for module in self.frozen_modules(frozen_stages):
            module.requires_grad_(False)
        self.train()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned feature maps, which must equal the neck's `in_channels`."""
        return tuple(self.stage_channels[k] for k in self.out_indices)

    def init_weights(self) -> None:
        """Load `pretrained` strictly, or initialize as `init_cfg` says; with neither keep the random weights.

        Raises:
            WeightsError: the file is damaged or made for another network.
        """
        first = not self.is_init
        super().init_weights()
        if self.pretrained is not None and first:
            report = weights.load(self, self._source(), quiet=True)
            self.card, self.has_weights = report.card, True
            where = f"timm's {self.card['name']}" if self.pretrained is True else self.pretrained
            print_log(f"topodet: {report} loaded from {where}", logger="current")
            if report.doubt:
                print_log(f"topodet: {where}: {report.doubt}", logger="current", level=logging.WARNING)
        if self.pretrained is None and not self.init_cfg:
            self._warn_of_random_weights()

    def _source(self) -> str | weights.WeightsFile:
        """Return the weights of `pretrained`: a file, or the tensors of a detector's checkpoint under the prefix."""
        if self.pretrained is True:
            return weights.from_timm(self.arch, **self.options)
        if not self.pretrained_prefix:
            return self.pretrained
        file = weights.read_trained(self.pretrained)
        refuse_strange_objects(file.path, file.objects)
        prefix = f"{self.pretrained_prefix.rstrip('.')}."
        part = {
            name.removeprefix(prefix).removeprefix(self.network_prefix): tensor
            for name, tensor in file.state_dict.items()
            if name.startswith(prefix)
        }
        if not part:
            raise WeightsError(f"{file.path} has no tensors under the prefix {prefix!r} that init_cfg names")
        card = weights.backbone_card(file.images_card) or card_of_run(file.checkpoint)
        return replace(file, state_dict=part, card=card)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of `out_indices`, [B, channels, ceil(H / stride), ceil(W / stride)] each."""
        return tuple(x for k, x in enumerate(self.stage_features(x)) if k in self.out_indices)

    def train(self, mode: bool = True) -> TopodetBackbone:
        """Set the mode, except where `frozen_stages` and `norm_eval` require stored statistics."""
        super().train(mode)
        for module in self.frozen_modules(self.frozen_stages):
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Called by all loaders of MMEngine (`load_from`, `resume`, any `init_cfg`), which only log missing tensors.
        filled, total = weights.check_filled(
            self,
            state_dict,
            prefix,
            remedy="`load_from`, `resume` and an `init_cfg` with a prefix need the checkpoint of a detector with this "
            "backbone; for a published backbone set model.backbone.pretrained=PATH",
        )
        self.has_weights = True
        if prefix:
            print_log(f"topodet: {filled}/{total} tensors of the backbone are in the checkpoint", logger="current")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _warn_of_random_weights(self) -> None:
        advice = []
        if self.frozen_stages >= 0:
            advice.append("model.backbone.frozen_stages=-1")
        if self.norm_eval and any(isinstance(module, _BatchNorm) for module in self.modules()):
            advice.append("model.backbone.norm_eval=False")
        useless = f"; do not freeze layers or statistics then: {' '.join(advice)}" if advice else ""
        print_log(
            f"{type(self).__name__} ({self.arch}) starts from RANDOM weights, unless load_from or resume replaces them"
            f"{useless}. For a published backbone set --cfg-options model.backbone.pretrained=PATH",
            logger="current",
            level=logging.WARNING,
        )


def resolve_init(
    pretrained: str | bool | None, init_cfg: dict[str, Any] | list[dict[str, Any]] | None
) -> tuple[str | bool | None, str, list[dict[str, Any]] | None]:
    """Return the file that fills the backbone, the prefix of its names in that file, and the rest of `init_cfg`.

    A Pretrained init, alone or in a list, is the same as `pretrained`: the file is read by topodet and not by MMEngine.

    Raises:
        ConfigError: more than one file is given, or something that is none.
    """
    if not isinstance(pretrained, str | os.PathLike | bool | None):
        raise ConfigError(f"backbone has pretrained={show(pretrained)}: give a path, a URL, hf-hub:USER/REPO or True")
    given = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg] if init_cfg else []
    for each in given:
        if not isinstance(each, Mapping) or "type" not in each:
            raise ConfigError(
                f"backbone has init_cfg={show(init_cfg)}: give a dict with a type, e.g. dict(type='Pretrained', "
                "checkpoint=PATH), or a list of such dicts"
            )
    files = [each for each in given if _is_pretrained(each["type"])]
    for each in files:
        _check_pretrained(each)
    if len(files) > 1 or (pretrained and given):
        raise ConfigError(f"backbone has both pretrained={pretrained!r} and init_cfg={init_cfg!r}; give one of them")
    rest = [each for each in given if each not in files] or None
    if files:
        return files[0]["checkpoint"], files[0].get("prefix") or "", rest
    return pretrained or None, "", rest


def _is_pretrained(kind: Any) -> bool:
    """Return whether the type of an init is MMEngine's `PretrainedInit`, as a class or by name."""
    return kind is PretrainedInit or (isinstance(kind, str) and WEIGHT_INITIALIZERS.get(kind) is PretrainedInit)


def _check_pretrained(init: Mapping[str, Any]) -> None:
    unknown = [key for key in init if key not in ("type", "checkpoint", "prefix", "map_location")]
    if unknown:
        raise ConfigError(f"init_cfg of type Pretrained: {unknown_name('key', unknown[0], ('checkpoint', 'prefix'))}")
    checkpoint, prefix = init.get("checkpoint"), init.get("prefix")
    if not checkpoint or not isinstance(checkpoint, str | os.PathLike) or not isinstance(prefix, str | None):
        raise ConfigError(
            f"init_cfg of type Pretrained has checkpoint={show(checkpoint)} and prefix={show(prefix)}: give the path "
            "or URL of a file, and the prefix as text or not at all"
        )


def card_of_run(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the backbone's card that `TopoNetCheckHook` saved in a checkpoint; empty without one."""
    meta = checkpoint.get("meta")
    card = meta.get(CARD) if isinstance(meta, Mapping) else None
    return dict(card) if isinstance(card, Mapping) else {}


def classes_of_run(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the class names of an MMDetection checkpoint; empty if it has none."""
    meta = checkpoint.get("meta")
    found = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    # MMDetection 3 writes keys in lower case, its early versions in upper case.
    data = {str(key).lower(): value for key, value in found.items()} if isinstance(found, Mapping) else {}
    names = data.get("classes")
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def number_of_stages(out_indices: Sequence[int], total: int) -> int:
    """Return how many of a network's stages `out_indices` needs.

    Raises:
        ConfigError: it is empty, not ascending, or out of range.
    """
    indices = list(out_indices)
    if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= total:
        raise ConfigError(
            f"out_indices={tuple(indices)} must list, in ascending order, some of the stages 0..{total - 1}"
        )
    return indices[-1] + 1
