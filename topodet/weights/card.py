"""The card of a published file: plain types that describe the weights and the images they expect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import WeightsError

# Entries about the backbone in a detector's card, besides its name.
OF_THE_BACKBONE = ("architecture", "output_stride", "mean", "std", "channel_order")

_TYPES = {
    **dict.fromkeys(("name", "architecture", "kind", "framework", "backbone", "channel_order", "wiring"), str),
    **dict.fromkeys(("norm_layer", "edge_weights", "connect_nodes", "weights", "interpolation"), str),
    **dict.fromkeys(("options", "metrics", "recipe", "sparsity", "pruned"), Mapping),
    **dict.fromkeys(("in_chans", "parameters", "tensors", "output_stride", "num_classes"), int),
    "rewire": bool,
    "topology": list,
}


def check_card(card: Any) -> dict[str, Any]:
    """Return a card after checking the types of its entries.

    Raises:
        WeightsError: names the entry with another type.
    """
    if not isinstance(card, Mapping) or not all(isinstance(key, str) for key in card):
        raise WeightsError(f"its card is a {type(card).__name__}, not a dict of named entries; it is damaged")
    for key, value in card.items():
        kind = _TYPES.get(key, object)
        if value is not None and not isinstance(value, kind):
            raise WeightsError(f"its card is damaged: {key} is a {type(value).__name__}, not a {kind.__name__}")
        if key in ("mean", "std") and value is not None and not _are_numbers(value):
            raise WeightsError(f"its card is damaged: {key} is {str(value)[:80]}, not one number per channel")
    return dict(card)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )


def images(data_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the images of a training's `data_config` in the format of a card.

    Images of one channel have one mean, one standard deviation and the channel order "L", Pillow's name for grayscale
    images.
    """
    size = plain(data_config.get("input_size"))
    channels = size[0] if isinstance(size, list) and size else 3
    return {
        "mean": _of_channels(plain(data_config.get("mean")), channels),
        "std": _of_channels(plain(data_config.get("std")), channels),
        "channel_order": {1: "L", 3: "RGB"}.get(channels),
        "input_size": size,
        "interpolation": data_config.get("interpolation"),
        "crop_pct": data_config.get("crop_pct"),
    }


def _of_channels(values: Any, channels: int) -> Any:
    """Return one number per channel; as in timm, their mean for each if the counts differ."""
    if not _are_numbers(values) or not values or len(values) == channels or not isinstance(channels, int):
        return values
    return [sum(values) / len(values)] * channels


def card_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card of a torch file's content: its own or, for a training checkpoint, one made from its options."""
    if checkpoint.get("card") or not isinstance(checkpoint.get("data_config"), Mapping):
        return check_card(checkpoint.get("card") or {})
    options = checkpoint.get("args")
    options = options if isinstance(options, Mapping) else {}
    card = {
        "architecture": checkpoint.get("arch"),
        "connect_nodes": options.get("connect_nodes"),
        "rewire": options.get("rewire") is not None,
        **images(checkpoint["data_config"]),
    }
    return check_card({key: value for key, value in card.items() if value is not None})


def backbone_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a file's card about the backbone: all of a backbone's card, some entries of a detector's."""
    if card.get("kind") != "detector":
        return dict(card)
    known = {key: card.get(key) for key in OF_THE_BACKBONE} | {"name": card.get("backbone")}
    return {key: value for key, value in known.items() if value is not None}


def preprocessing_problems(
    card: Mapping[str, Any], *, mean: Sequence[float], std: Sequence[float], channel_order: str
) -> list[str]:
    """Compare a detector's preprocessing with the card; return a sentence for each mismatch.

    Args:
        card: card of the published backbone or detector. None for mean, std or channel_order means unknown, and is not
            compared.
        mean, std: values of the detector, in 0..255 and in the detector's channel order.
        channel_order: "RGB", "BGR" or "L" (one channel), as the network sees the image.
    """
    problems = []
    trained_on = card.get("channel_order", "RGB")
    if trained_on is not None and channel_order != trained_on:
        problems.append(f"the detector feeds {channel_order} images, the weights were trained on {trained_on}")
        mean, std = list(mean)[::-1], list(std)[::-1]
    for what, theirs in (("mean", mean), ("std", std)):
        if card.get(what) is None:
            continue
        ours = [255 * value for value in card[what]]
        # The frameworks' configs have two or three decimals.
        if len(theirs) != len(ours) or any(not math.isclose(a, b, abs_tol=0.05) for a, b in zip(ours, theirs)):
            problems.append(
                f"the detector's {what} is {[round(float(v), 3) for v in theirs]}, "
                f"the weights were trained with {[round(v, 3) for v in ours]}"
            )
    return problems


def plain(value: Any) -> Any:
    """Return `value` as JSON types; a number that JSON cannot represent becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
