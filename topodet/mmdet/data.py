"""Whether a run's datasets have the classes that the detector has, before its first step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.runner import BaseLoop, Runner

from ..errors import ConfigError, DataError
from .check import class_counts


def check_datasets(runner: Runner) -> None:
    """Refuse datasets that have other classes than the detector, or whose classes are not those of their file.

    MMDetection compares neither: it leaves out the boxes of a class whose name the annotations do not have, numbers the
    classes in the order of the file whatever `metainfo` says, and meets a label beyond the head as an index error.
    Read are the datasets of the loops that the run has built; those without classes of their own pass.

    Args:
        runner: with its loops, as a hook sees it before the run.

    Raises:
        ConfigError: another number of classes than a head has; a class that is no category of the annotations, or
            classes in another order than the annotations.
        DataError: the annotations have no categories.
    """
    counts = class_counts(runner.model)
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        if isinstance(loop, BaseLoop):
            for dataset in _datasets(loop.dataloader.dataset):
                _check_number(dataset, counts)
                if isinstance(dataset, CocoDataset) and hasattr(dataset, "cat_ids"):
                    _check_names(dataset)


def _datasets(dataset: Any) -> Iterator[Any]:
    """Yield the datasets within wrappers that repeat, join or mix them."""
    within = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    for part in within:
        if part is not None:
            yield from _datasets(part)
    if within == [None]:
        yield dataset


def _check_number(dataset: Any, counts: dict[str, int]) -> None:
    names = list(getattr(dataset, "metainfo", {}).get("classes") or ())
    for head, count in counts.items():
        if names and count != len(names):
            raise ConfigError(
                f"{head} has num_classes={count}, but {_place(dataset)} has {len(names)} classes ({_listed(names)}): "
                f"set the num_classes of the heads to {len(names)}, or metainfo=dict(classes=...) of the datasets to "
                f"{count} names"
            )


def _check_names(dataset: CocoDataset) -> None:
    names = list(dataset.metainfo["classes"])
    if names == list(CocoDataset.METAINFO["classes"]) and len(dataset.cat_ids) == len(names):
        return  # COCO's own, whose file takes seconds to read
    try:
        categories = [category["name"] for category in json.loads(Path(dataset.ann_file).read_text())["categories"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{_place(dataset)}: no COCO annotations with categories ({error!r})") from error
    missing = [name for name in names if name not in categories]
    if missing:
        raise ConfigError(
            f"{_place(dataset)}: the classes {_listed(missing)} are none of its categories, which are "
            f"{_listed(categories)}: name them in metainfo=dict(classes=...) of every dataset as the file does"
        )
    ordered = [name for name in categories if name in names]
    if ordered != names:
        raise ConfigError(
            f"{_place(dataset)}: metainfo has the classes {_listed(names)}, but MMDetection numbers them in the order "
            f"of the file, {_listed(ordered)}: write metainfo in that order"
        )


def _place(dataset: Any) -> str:
    return f"the {type(dataset).__name__} of {getattr(dataset, 'ann_file', '') or 'the config'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
