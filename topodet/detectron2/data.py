"""COCO-format datasets for Detectron2 without writing Python, and their check before training."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.common import ToIterableDataset
from detectron2.data.datasets import register_coco_instances
from torch import nn
from torch.utils.data import Sampler

from ..datasets.coco import Reading, check_before_use, check_coco, class_names, load_annotations
from ..errors import ConfigError, DataError, did_you_mean, show
from .config import HEADS, head_name, load_config

_logger = logging.getLogger("detectron2.topodet")  # Detectron2 only shows its own loggers
# Key of a dataset's metadata for the kinds of problem that were allowed.
ALLOWED = "topodet_allow"
# Number of keypoints of COCO's persons, whose sigmas are used if the config has none.
_OF_COCO = 17


def register_dataset(
    name: str, annotation_file: str | os.PathLike, image_root: str | os.PathLike, *, allow: Collection[str] = ()
) -> None:
    """Check a dataset in COCO format and register it in Detectron2 under `name`, with the keypoints of its categories.

    Args:
        name: name in `DATASETS.TRAIN` and `DATASETS.TEST`.
        annotation_file: JSON with `images`, `annotations` and `categories`.
        image_root: folder that the images' `file_name` is relative to.
        allow: kinds of problem that are not errors, see `check_coco`.

    Raises:
        DataError: problems found by `check_coco`, with their ids; or the name belongs to another dataset.
    """
    report = check_coco(annotation_file, image_root, allow=allow, readings=[Reading(framework="Detectron2")])
    if not report.trainable:
        report.raise_if_bad()
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog.list():
        if (metadata.get("json_file"), metadata.get("image_root")) == (str(annotation_file), str(image_root)):
            return
        raise DataError(f"--dataset {name}: Detectron2 already has a dataset of this name; choose another name")
    register_coco_instances(name, {ALLOWED: tuple(allow)}, str(annotation_file), str(image_root))
    points = keypoint_names(load_annotations(annotation_file)["categories"])
    if points:
        metadata.set(keypoint_names=points, keypoint_flip_map=_mirrored(points))


def check_datasets(cfg: CfgNode, names: Sequence[str]) -> list[str]:
    """Refuse datasets that are unknown or missing, cannot be trained on, or have other classes than the model.

    Datasets that are not in COCO format are not checked. Those of `DATASETS.TRAIN` are checked for training, others for
    evaluation.

    Args:
        cfg: config of the detector.
        names: names of the datasets that the run will read.

    Returns:
        their class names, by index; [] if none of them has any.

    Raises:
        ConfigError: an unknown name, other classes than the model or the other datasets, or keypoints that the config
            does not describe.
        DataError: the annotation file or the image folder is missing, or what `check_coco` finds.
    """
    reading = reading_of(cfg)
    readings = {name: replace(reading, training=name in cfg.DATASETS.TRAIN) for name in names}
    for name in names if reading.num_keypoints else ():
        if name in DatasetCatalog.list() and MetadataCatalog.get(name).get("evaluator_type") == "coco":
            _check_keypoints(cfg, name)
    return check_sets(readings)


def check_sets(readings: Mapping[str, Reading]) -> list[str]:
    """Check registered datasets in COCO format, each as it will be read; return the same as `check_datasets`."""
    classes: dict[str, list[str]] = {}
    for name, reading in readings.items():
        if name not in DatasetCatalog.list():
            raise ConfigError(
                f"unknown dataset {name!r} in DATASETS.{did_you_mean(name, DatasetCatalog.list())} Register your own "
                f"with --dataset {name} annotations.json images/"
            )
        metadata = MetadataCatalog.get(name)
        annotation_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        if annotation_file is None or metadata.get("evaluator_type") != "coco":
            continue
        for what, path, found in (
            ("annotation file", annotation_file, Path(annotation_file).is_file()),
            ("image folder", image_root, Path(image_root).is_dir()),
        ):
            if not found:
                raise DataError(
                    f"dataset {name}: no {what} at {path}. Detectron2 looks for its own datasets under "
                    "DETECTRON2_DATASETS (default ./datasets); point that variable at the folder that contains coco/, "
                    "or register yours with --dataset NAME annotations.json images/"
                )
        # Detectron2's own COCO has class names in its metadata; other datasets must match the first one.
        known = metadata.get("thing_classes") or next(iter(classes.values()), None)
        reading = replace(reading, classes=None if known is None else tuple(known))
        allow = metadata.get(ALLOWED, ())
        check_before_use(annotation_file, image_root, reading, allow=allow, warn=partial(_warn, name))
        classes[name] = list(known or class_names(load_annotations(annotation_file)["categories"], "Detectron2"))
    return next(iter(classes.values()), [])


def allows(names: Sequence[str], kind: str) -> bool:
    """Whether a kind of problem was allowed when one of these datasets was registered."""
    return any(kind in MetadataCatalog.get(name).get(ALLOWED, ()) for name in names if name in DatasetCatalog.list())


def reading_of(cfg: CfgNode) -> Reading:
    """Return how the training set of a config is read."""
    num_classes = {}
    if cfg.MODEL.META_ARCHITECTURE in HEADS:  # others are the user's own, or have no classes
        node = head_name(cfg)
        num_classes[f"MODEL.{node}.NUM_CLASSES"] = cfg.MODEL[node].NUM_CLASSES
    keypoints = cfg.MODEL.KEYPOINT_ON
    return Reading(
        framework="Detectron2",
        num_classes=num_classes,
        masks=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else "",
        num_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if keypoints else 0,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if keypoints else 0,
        drops_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    )


def reading_of_model(model: nn.Module, *, mask_format: str = "polygon", filter_empty: bool = True) -> Reading:
    """Return how the training set of a detector without a config is read.

    Args:
        model: the detector.
        mask_format: `instance_mask_format` of the data loader's mapper.
        filter_empty: argument of `get_detection_dataset_dicts`.
    """
    heads = getattr(model, "roi_heads", None)
    key = "model.num_classes" if heads is None else "model.roi_heads.num_classes"
    number = getattr(model if heads is None else heads, "num_classes", None)
    points = getattr(getattr(heads, "keypoint_head", None), "num_keypoints", 0)
    return Reading(
        framework="Detectron2",
        num_classes={} if number is None else {key: number},
        masks=mask_format if getattr(heads, "mask_on", False) else "",
        num_keypoints=points,
        drops_empty=filter_empty,
    )


def reading_of_config(path: str | os.PathLike) -> Reading:
    """Return how the training set of a YAML config or a LazyConfig is read.

    Raises:
        ConfigError: the config cannot be read.
    """
    if Path(path).suffix != ".py":
        return reading_of(load_config(path))
    try:
        config = LazyConfig.load(str(path))
        with torch.device("meta"):  # only sizes are needed
            bottom_up = config.model.backbone.get("bottom_up", {})
            if "pretrained" in bottom_up:
                bottom_up.pretrained = None
            model = instantiate(config.model)
        loader = config.dataloader.train
    except Exception as error:  # a config is Python code and can raise anything
        raise ConfigError(f"{path} is not a LazyConfig of a detector: {type(error).__name__}: {error}") from error
    return reading_of_model(
        model,
        mask_format=loader.mapper.get("instance_mask_format", "polygon"),
        filter_empty=loader.dataset.get("filter_empty", True),
    )


def keypoint_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keypoint names of the categories in a COCO file; [] for none.

    Raises:
        DataError: two categories have different names, which a keypoint head cannot handle, or a name is not text.
    """
    lists = {category["name"]: category["keypoints"] for category in categories if category.get("keypoints")}
    for name, points in lists.items():
        if type(points) is not list or not all(type(point) is str for point in points):
            raise DataError(f"category {show(name)}: keypoints are {show(points)}, not a list of names")
        first = next(iter(lists))
        if points != lists[first]:
            raise DataError(
                f"categories {show(first)} and {show(name)} have different keypoints; a detector has one list for all"
            )
    return next(iter(lists.values()), [])


def _mirrored(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs that a horizontal flip swaps: names that differ only in left and right."""
    pairs = [(name, name.replace("left", "right")) for name in names if "left" in name]
    return [pair for pair in pairs if pair[1] in names]


def _check_keypoints(cfg: CfgNode, name: str) -> None:
    points = MetadataCatalog.get(name).get("keypoint_names")
    ours = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if not points:
        raise ConfigError(
            f"MODEL.KEYPOINT_ON is True, but no category of the dataset {name} has keypoints: add their names to one, "
            'as "keypoints": ["left_eye", ...], or set MODEL.KEYPOINT_ON False'
        )
    if len(points) != ours:
        raise ConfigError(
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {ours}, but the dataset {name} has {len(points)} keypoints "
            f"({', '.join(points[:5])}{', ...' if len(points) > 5 else ''}): add "
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {len(points)}"
        )
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    if name in cfg.DATASETS.TEST and (len(sigmas) or _OF_COCO) != len(points):
        raise ConfigError(
            f"TEST.KEYPOINT_OKS_SIGMAS must have {len(points)} values, one per keypoint of the dataset {name}, not "
            f"{len(sigmas) or f'the {_OF_COCO} of COCO'}: add TEST.KEYPOINT_OKS_SIGMAS "
            f"'[{', '.join(['0.05'] * len(points))}]', or the accuracy of each keypoint"
        )


def _warn(name: str, text: str) -> None:
    _logger.warning("dataset %s: boxes that are dropped or clipped: %s", name, text)


def skip_samples(data_loader: Any, number: int) -> None:
    """Let an unread Detectron2 data loader start `number` samples later, without reading them.

    Args:
        data_loader: result of `build_detection_train_loader` for a dataset with a sampler; others are not changed.
        number: number of samples in this process.
    """
    while data_loader is not None and not isinstance(data_loader, ToIterableDataset):
        data_loader = getattr(data_loader, "dataset", None)
    if data_loader is not None and number:
        data_loader.sampler = _Remaining(data_loader.sampler, number)


class _Remaining(Sampler[int]):
    """A sampler's indices after the first `skipped`."""

    def __init__(self, sampler: Sampler[int], skipped: int):
        self.sampler = sampler
        self.skipped = skipped

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(iter(self.sampler), self.skipped, None)
