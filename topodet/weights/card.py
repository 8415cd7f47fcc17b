"""The card of a published file: plain types that say what the weights are, and what images they expect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# What a detector's card says of its backbone, besides its name.
OF_THE_BACKBONE = ("architecture", "mean", "std", "channel_order")


def backbone_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file's card says of the backbone: all of a backbone's own card, little of a detector's."""
    if card.get("kind") != "detector":
        return dict(card)
    known = {key: card.get(key) for key in OF_THE_BACKBONE} | {"name": card.get("backbone")}
    return {key: value for key, value in known.items() if value is not None}


def preprocessing_problems(
    card: Mapping[str, Any], *, mean: Sequence[float], std: Sequence[float], channel_order: str
) -> list[str]:
    """Compare a detector's preprocessing with the card; return a sentence for each disagreement.

    Args:
        card: of the published backbone or detector. None for mean, std or channel_order: not known, nothing to compare.
        mean, std: of the detector, in 0..255 and in the detector's channel order.
        channel_order: "RGB" or "BGR", as the network sees the image.
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
        # Frameworks print these with two or three decimals.
        if len(theirs) != len(ours) or any(not math.isclose(a, b, abs_tol=0.05) for a, b in zip(ours, theirs)):
            problems.append(
                f"the detector's {what} is {[round(float(v), 3) for v in theirs]}, "
                f"the weights were trained with {[round(v, 3) for v in ours]}"
            )
    return problems


def plain(value: Any) -> Any:
    """Return `value` as JSON types; a number that JSON cannot hold becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
