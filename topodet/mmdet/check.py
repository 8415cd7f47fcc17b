"""Check that a detector fits its topodet backbone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mmdet.models import FPN
from torch import nn

from .. import weights
from ..errors import ConfigError
from .base import TopodetBackbone

# Names of modules whose num_classes is the detector's; a cascade has several per name. An RPN is excluded: it separates
# objects of any class from the background.
HEAD = re.compile(r"(?:^|\.)(?!rpn_head)\w*head(?:\.\d+)?$")


def check_detector(model: nn.Module) -> None:
    """Refuse a detector whose neck or preprocessing does not fit its topodet backbone; other backbones are accepted.

    The neck's `in_channels` must be the backbone's `out_channels`, and the anchors' strides those of its maps. If the
    backbone has its weights file's card (`pretrained`, or a checkpoint of a run with `TopoNetCheckHook`), mean, std and
    channel order of the `data_preprocessor` must be those of the card. MMDetection loads images as BGR:
    `bgr_to_rgb=True` makes them RGB. Images of one channel are loaded by `LoadImageFromFile(color_type="grayscale")`
    and have one mean and one std.

    Args:
        model: a detector, bare or within another module (a data-parallel wrapper; a teacher and its student).

    Raises:
        ConfigError: names both sides of each disagreement.
    """
    for detector in _detectors(model):
        problems = _neck_problems(detector) + _stride_problems(detector) + _preprocessing_problems(detector)
        if problems:
            raise ConfigError(f"{type(detector).__name__} does not fit its backbone: {'; '.join(problems)}")


def channel_order(preprocessor: nn.Module) -> str:
    """Return the output format of a `data_preprocessor`: "RGB", "BGR" or, if there is one mean for one channel, "L"."""
    if preprocessor._enable_normalize and preprocessor.mean.numel() == 1:
        return "L"
    return "RGB" if preprocessor._channel_conversion else "BGR"


def backbones(model: nn.Module) -> list[TopodetBackbone]:
    """Return every topodet backbone in a model."""
    return [module for module in model.modules() if isinstance(module, TopodetBackbone)]


def class_counts(model: nn.Module) -> dict[str, int]:
    """Return the `num_classes` of a detector's heads, by their keys in the config."""
    return {
        f"model.{name.removeprefix('module.')}.num_classes": part.num_classes
        for name, part in model.named_modules()
        if HEAD.search(name) and isinstance(getattr(part, "num_classes", None), int)
    }


def _detectors(model: nn.Module) -> Iterator[nn.Module]:
    return (part for part in model.modules() if isinstance(getattr(part, "backbone", None), TopodetBackbone))


def _neck_problems(detector: nn.Module) -> list[str]:
    neck = _first_neck(detector)
    channels = getattr(neck, "in_channels", None)
    if channels is None:
        return []
    theirs = [channels] if isinstance(channels, int) else list(channels)
    ours = list(detector.backbone.out_channels)
    if theirs == ours:
        return []
    return [
        f"the neck {type(neck).__name__} has in_channels={theirs}, but {detector.backbone.arch} with "
        f"out_indices={detector.backbone.out_indices} gives {ours}: set model.neck.in_channels={ours}"
    ]


def _stride_problems(detector: nn.Module) -> list[str]:
    """Compare the strides of the maps, which `output_stride` changes, with those of the anchors."""
    neck, backbone = _first_neck(detector), detector.backbone
    head = getattr(detector, "rpn_head", None) or getattr(detector, "bbox_head", None)
    laid_out = getattr(getattr(head, "prior_generator", None), "strides", None)
    if not isinstance(neck, FPN) or laid_out is None:
        return []
    ours = [backbone.stage_strides[k] for k in backbone.out_indices][neck.start_level :]
    theirs = [stride if isinstance(stride, int) else stride[0] for stride in laid_out][: len(ours)]
    if theirs == ours[: len(theirs)]:
        return []
    return [
        f"the maps of {backbone.arch} have strides {ours}, but {type(head).__name__} places its anchors with "
        f"{theirs}: set the strides of its anchor_generator, and the featmap_strides of RoI extractors, to the maps'"
    ]


def _first_neck(detector: nn.Module) -> nn.Module | None:
    neck = getattr(detector, "neck", None)
    return neck[0] if isinstance(neck, nn.Sequential) else neck  # the first one gets the backbone's maps


def _preprocessing_problems(detector: nn.Module) -> list[str]:
    card = detector.backbone.card
    preprocessor = getattr(detector, "data_preprocessor", None)
    # A student of a semi-supervised detector has no preprocessor of its own: there is nothing to compare.
    if not card or not hasattr(preprocessor, "_enable_normalize"):
        return []
    if not preprocessor._enable_normalize:
        return [f"data_preprocessor has no mean and std, but the weights were trained with {_in_words(card)}"]
    problems = weights.preprocessing_problems(
        card,
        mean=preprocessor.mean.flatten().tolist(),
        std=preprocessor.std.flatten().tolist(),
        channel_order=channel_order(preprocessor),
    )
    return [f"set model.data_preprocessor to {_in_words(card)}", *problems] if problems else []


def _in_words(card: dict) -> str:
    """Return the card's preprocessing in the words of a config."""
    parts = [f"{key}={[round(255 * v, 3) for v in card[key]]}" for key in ("mean", "std") if card.get(key)]
    order = card.get("channel_order", "RGB")
    parts.append(f"bgr_to_rgb={order == 'RGB'}")
    if order == "L":
        parts.append("and color_type='grayscale' of LoadImageFromFile in every pipeline")
    return ", ".join(parts)
