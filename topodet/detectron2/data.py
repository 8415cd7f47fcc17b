"""COCO-format datasets for Detectron2 without writing Python, and their check before training."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.common import ToIterableDataset
from detectron2.data.datasets import register_coco_instances
from torch.utils.data import Sampler

from ..datasets.coco import check_coco
from ..errors import ConfigError, DataError, did_you_mean
from .config import HEADS, head_name


def register_dataset(
    name: str, annotation_file: str | os.PathLike, image_root: str | os.PathLike, *, allow: Collection[str] = ()
) -> None:
    """Check a dataset in COCO format and register it in Detectron2 under `name`.

    Args:
        name: for `DATASETS.TRAIN` and `DATASETS.TEST`.
        annotation_file: JSON with `images`, `annotations` and `categories`.
        image_root: folder that the images' `file_name` is relative to.
        allow: kinds of problem that are no error, see `check_coco`.

    Raises:
        DataError: what `check_coco` finds, with the ids concerned; or the name belongs to another dataset.
    """
    check_coco(annotation_file, image_root, allow=allow).raise_if_bad()
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name)
        if (known.get("json_file"), known.get("image_root")) == (str(annotation_file), str(image_root)):
            return
        raise DataError(f"--dataset {name}: Detectron2 has a dataset of this name already; choose another name")
    register_coco_instances(name, {}, str(annotation_file), str(image_root))


def check_datasets(cfg: CfgNode, names: Sequence[str]) -> None:
    """Refuse datasets that are unknown, are not there, or have another number of classes than the model.

    Datasets that are not in COCO format are Detectron2's own business and pass.

    Args:
        cfg: of the detector.
        names: of the datasets that the run will read.

    Raises:
        ConfigError: an unknown name, or another number of classes.
        DataError: the annotation file or the image folder is missing.
    """
    for name in names:
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
        _check_classes(cfg, name, annotation_file)


def _check_classes(cfg: CfgNode, name: str, annotation_file: str) -> None:
    if cfg.MODEL.META_ARCHITECTURE not in HEADS:
        return  # a detector of the user's own, or one without classes
    key = f"MODEL.{head_name(cfg)}.NUM_CLASSES"
    ours = cfg.MODEL[head_name(cfg)].NUM_CLASSES
    # Detectron2's own COCO knows its classes; for others only the file tells, which is read again for training.
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is None:
        classes = [category["name"] for category in json.loads(Path(annotation_file).read_text())["categories"]]
    if ours != len(classes):
        raise ConfigError(
            f"{key} is {ours}, but the dataset {name} has {len(classes)} classes "
            f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}): add {key} {len(classes)}"
        )


def skip_samples(data_loader: Any, number: int) -> None:
    """Let a loader of Detectron2 that has not been read yet begin `number` samples later, without reading them.

    Args:
        data_loader: what `build_detection_train_loader` made of a dataset with a sampler; another is left as it is.
        number: of this process.
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
