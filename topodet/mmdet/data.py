"""COCO datasets in MMDetection: how a config reads them, and the check of `topodet check-coco` before that."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner

from ..datasets.coco import Reading, check_before_use, check_classes
from ..errors import ConfigError, TopodetError
from .check import HEAD, class_counts


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """MMDetection's `CocoDataset`, whose annotation file is checked before it is read.

    `TopoNetCheckHook` checks every dataset in COCO format, but only after MMDetection has read it. A file that breaks
    MMDetection's reader (for example, text instead of a number) ends there in a traceback, but here in the table of
    `topodet check-coco`.

    Args:
        allow: kinds of problem that are not errors, see `check_coco`.
        args, kwargs: arguments of `CocoDataset`.

    Raises:
        ConfigError: `metainfo` names other classes than the file.
        DataError: problems found by `check_coco`.
    """

    def __init__(self, *args: Any, allow: Collection[str] = (), **kwargs: Any):
        self.allow = allow
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Check the annotation file, then load it."""
        check_dataset(self, allow=self.allow)
        return super().load_data_list()


def check_datasets(runner: Runner, *, allow: Collection[str] = ()) -> None:
    """Refuse datasets that have other classes than the detector or their file, or that cannot be trained on.

    This covers the datasets of the loops that the run has built. Those in COCO format are checked as by `topodet
    check-coco`, in one process; every process raises the errors. For others, only the number of classes is compared.

    Args:
        runner: runner with its loops, as in a hook before the run.
        allow: kinds of problem that are not errors, see `check_coco`.

    Raises:
        ConfigError: the classes of the config, the heads and the file differ in number, name or order.
        DataError: problems found by `check_coco`.
    """
    num_classes = class_counts(runner.model)
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        if isinstance(loop, BaseLoop):
            for dataset in parts_of(loop.dataloader.dataset):
                check_dataset(dataset, num_classes=num_classes, allow=allow)


def check_dataset(dataset: Any, *, num_classes: Mapping[str, int] | None = None, allow: Collection[str] = ()) -> None:
    """Check one dataset, not a wrapper of others; see `check_datasets`.

    Args:
        dataset: an MMDetection dataset.
        num_classes: number of classes of the detector's heads, by config key.
        allow: kinds of problem that are not errors, see `check_coco`.

    Raises:
        ConfigError, DataError: as `check_datasets`.
    """
    if not is_coco(dataset):
        names = list(getattr(dataset, "metainfo", {}).get("classes") or ())
        reading = Reading(framework="MMDetection", num_classes=num_classes or {}, classes=tuple(names))
        if names:
            categories = [{"id": k, "name": name} for k, name in enumerate(names)]
            check_classes(categories, reading, f"the {type(dataset).__name__}")
    elif dataset.backend_args is None and "://" not in dataset.ann_file:  # a local file
        reading = reading_of(dataset, num_classes=num_classes)
        _in_main_process(lambda: _check(dataset, reading, allow))


def reading_of(dataset: CocoDataset, *, num_classes: Mapping[str, int] | None = None) -> Reading:
    """Return how a dataset reads its file; the file need not be loaded yet.

    Raises:
        ConfigError: its classes are a string, not a list of strings.
    """
    classes = dataset.metainfo["classes"]
    if isinstance(classes, str):
        raise ConfigError(f"metainfo.classes is the string {classes!r}: write classes=({classes!r},), with a comma")
    masks = ""
    for step in dataset.pipeline.transforms:
        if isinstance(step, LoadAnnotations) and step.with_mask:
            masks = "bitmask" if step.poly2mask else "polygon"
    chosen = dataset.filter_cfg or {}
    return Reading(
        framework="MMDetection",
        training=not dataset.test_mode,
        num_classes=num_classes or {},
        classes=tuple(classes),
        masks=masks,
        drops_empty=chosen.get("filter_empty_gt", False),
        min_size=chosen.get("min_size", 0),
    )


def reading_of_config(path: str | os.PathLike) -> Reading:
    """Return how the training set of an MMDetection config is read.

    Raises:
        ConfigError: the config cannot be read, or has no training set in COCO format.
    """
    try:
        config = Config.fromfile(path, format_python_code=False)
    except Exception as error:  # a config is Python code and can raise anything
        raise ConfigError(
            f"{path} cannot be read as a config of MMDetection: {type(error).__name__}: {error}"
        ) from error
    register_all_modules()
    described = config.get("train_dataloader", {}).get("dataset")
    while described and "dataset" in described:
        described = described["dataset"]
    if not described:
        raise ConfigError(f"{path} has no train_dataloader with a dataset; give a training config")
    dataset = DATASETS.build({**described, "lazy_init": True})
    if not is_coco(dataset):
        raise ConfigError(f"{path} trains on a {described['type']}, which is not a dataset in COCO format")
    heads = {f"model.{key}.num_classes": n for key, n in _described_heads(config.get("model", {}))}
    return reading_of(dataset, num_classes=heads)


def parts_of(dataset: Any) -> Iterator[Any]:
    """Yield the datasets within wrappers that repeat, join or mix them."""
    within = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    for part in within:
        if part is not None:
            yield from parts_of(part)
    if within == [None]:
        yield dataset


def is_coco(dataset: Any) -> bool:
    """Return whether a dataset reads COCO's format; LVIS and panoptic sets have other formats."""
    return isinstance(dataset, CocoDataset) and dataset.COCOAPI is CocoDataset.COCOAPI


def _described_heads(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        if HEAD.search(key) and isinstance(value.get("num_classes"), int):
            yield key, value["num_classes"]
        for name, part in value.items():
            yield from _described_heads(part, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for k, part in enumerate(value):
            yield from _described_heads(part, f"{key}.{k}")


def _check(dataset: CocoDataset, reading: Reading, allow: Collection[str]) -> None:
    def warn(text: str) -> None:
        print_log(f"boxes that are dropped or clipped: {text}", logger="current", level=logging.WARNING)

    check_before_use(dataset.ann_file, dataset.data_prefix["img"], reading, allow=allow, warn=warn)


def _in_main_process(check: Callable[[], None]) -> None:
    outcome: list[TopodetError | None] = [None]
    if is_main_process():
        try:
            check()
        except TopodetError as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise outcome[0]
