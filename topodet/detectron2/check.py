"""Check that a detector's preprocessing matches the weights of its topodet backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from .. import weights
from ..errors import ConfigError
from .base import TopodetBackbone


def check_detector(model: nn.Module, *, image_format: str | None = None) -> None:
    """Refuse a detector whose `input_format`, `pixel_mean` or `pixel_std` contradict its backbone's card.

    Args:
        model: a detector, bare or within another module.
        image_format: format of the data loader's mapper, which must be the model's `input_format`.

    Raises:
        ConfigError: names both sides of each disagreement.
    """
    for detector, backbone in _detectors(model):
        if image_format is not None and image_format != detector.input_format:
            raise ConfigError(
                f"the data loader reads {image_format} images, but the model expects {detector.input_format}: set "
                f"dataloader.train.mapper.image_format={detector.input_format} (or model.input_format) to the same"
            )
        check_preprocessing(
            backbone.card,
            mean=detector.pixel_mean.flatten().tolist(),
            std=detector.pixel_std.flatten().tolist(),
            input_format=detector.input_format,
        )


def check_preprocessing(
    card: Mapping[str, Any], *, mean: Sequence[float], std: Sequence[float], input_format: str
) -> None:
    """Refuse preprocessing that differs from the card; an empty card is accepted.

    Raises:
        ConfigError: names the keys to set and both sides of each disagreement.
    """
    if not card:
        return
    problems = weights.preprocessing_problems(card, mean=mean, std=std, channel_order=input_format)
    if problems:
        parts = [f"INPUT.FORMAT {card.get('channel_order', 'RGB') or input_format}"]
        for key, name in (("MODEL.PIXEL_MEAN", "mean"), ("MODEL.PIXEL_STD", "std")):
            if card.get(name):
                parts.append(f"{key} {[round(255 * value, 3) for value in card[name]]}")
        raise ConfigError(
            f"set {', '.join(parts)} (in a LazyConfig dataloader.train.mapper.image_format, model.input_format, "
            f"model.pixel_mean and model.pixel_std): the detector does not fit its backbone, {'; '.join(problems)}"
        )


def backbones(model: nn.Module) -> list[TopodetBackbone]:
    """Return every topodet backbone in a model."""
    return [module for module in model.modules() if isinstance(module, TopodetBackbone)]


def _detectors(model: nn.Module) -> Iterator[tuple[nn.Module, TopodetBackbone]]:
    for part in model.modules():
        if hasattr(part, "pixel_mean") and isinstance(getattr(part, "backbone", None), nn.Module):
            yield from ((part, backbone) for backbone in backbones(part.backbone))
