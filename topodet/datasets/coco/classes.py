"""Compare the classes of a detector's config with an annotation file's, in number, name and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ...errors import ConfigError, show
from .reading import Reading

_SHOWN = 20
_ORDER = {
    "MMDetection": "MMDetection numbers categories in the order of the file, whatever the order of metainfo",
    "Detectron2": "Detectron2 numbers categories by their ids",
}


def class_names(categories: Sequence[Mapping[str, Any]], framework: str) -> list[str]:
    """Return the names of a file's categories in the order in which a framework numbers them.

    MMDetection uses the file order, whatever the order of `metainfo.classes`; Detectron2 sorts them by their ids.
    """
    if framework == "Detectron2":
        categories = sorted(categories, key=lambda category: category["id"])
    return [category["name"] for category in categories]


def check_classes(categories: Sequence[Mapping[str, Any]], reading: Reading, place: str) -> None:
    """Refuse a config whose classes differ from the file's.

    Args:
        categories: the file's, with `id` and `name`.
        reading: with the config's `num_classes` and `classes`.
        place: source of the categories, for the message: the file or the dataset.

    Raises:
        ConfigError: what differs, both lists, and what to set.
    """
    found = class_names(categories, reading.framework)
    if reading.classes is None:
        _check_numbers(reading, found, f"{place} has {len(found)} classes ({_listed(found)})")
        return
    ours = list(reading.classes)
    lists = f"The config names {len(ours)} classes ({_listed(ours)}), {place} has {len(found)} ({_listed(found)})"
    unknown = [name for name in ours if name not in found]
    if unknown:
        problem = f"the config's classes {_listed(unknown)} are not categories of {place}"
        if len(ours) == 80 and reading.framework == "MMDetection":
            problem += " (MMDetection uses COCO's 80 if a dataset has no metainfo)"
        raise ConfigError(f"{problem}: {_remedy(reading, found)}. {lists}")
    # MMDetection trains only on the categories that metainfo names.
    chosen = [name for name in found if name in ours] if reading.framework == "MMDetection" else found
    if chosen != ours:
        k = next(
            (k for k, (theirs, name) in enumerate(zip(chosen, ours)) if theirs != name), min(len(chosen), len(ours))
        )
        theirs, name = (show(names[k]) if k < len(names) else "none" for names in (chosen, ours))
        problem = f"{_ORDER[reading.framework]}: class {k} is {theirs} there, but {name} in the config"
        raise ConfigError(f"{problem}: {_remedy(reading, chosen)}. {lists}")
    _check_numbers(reading, chosen, f"the config names {len(ours)} classes ({_listed(ours)}), as {place} does")


def check_checkpoint_classes(theirs: Sequence[str], ours: Sequence[str], *, whole: bool, remedy: str) -> None:
    """Refuse a detector's checkpoint whose head was trained on other classes than the dataset's.

    Args:
        theirs, ours: class names by index, of the checkpoint and of the dataset.
        whole: whether the head's weights are used unchanged, as in a test or a resumed training. Training that starts
            from a checkpoint may have another number of classes: it gets a new head.
        remedy: what to do about it, in the framework's terms.

    Raises:
        ConfigError: both lists, and the first place where they differ.
    """
    theirs, ours = list(theirs), list(ours)
    if theirs == ours or (not whole and len(theirs) != len(ours)):
        return
    pairs = zip_longest(theirs, ours)
    k, (first, second) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
    first, second = ("none" if name is None else show(name) for name in (first, second))
    raise ConfigError(
        f"the checkpoint was trained on other classes than the dataset's: class {k} is {first} in the checkpoint and "
        f"{second} in the dataset. {remedy}. The checkpoint has {len(theirs)} classes ({_listed(theirs)}), the dataset "
        f"{len(ours)} ({_listed(ours)})"
    )


def _check_numbers(reading: Reading, names: Sequence[str], place: str) -> None:
    for key, number in reading.num_classes.items():
        if number != len(names):
            raise ConfigError(f"{key} is {number}, but {place}: {_remedy(reading, names)}")


def _remedy(reading: Reading, names: Sequence[str]) -> str:
    if reading.framework == "Detectron2":
        if reading.classes is not None and list(reading.classes) != list(names):
            return "give all files the same category names, in the same order by id"
        return f"add {' '.join(f'{key} {len(names)}' for key in reading.num_classes)}"
    words = ", ".join(map(show, names[:_SHOWN])) + ("," if len(names) == 1 else "")
    settings = [f"metainfo=dict(classes=({words}{', ...' if len(names) > _SHOWN else ''})) in every dataset"]
    return f"set {', '.join([*settings, *(f'{key}={len(names)}' for key in reading.num_classes)])}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
