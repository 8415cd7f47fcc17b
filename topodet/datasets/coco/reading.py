"""How MMDetection and Detectron2 read a COCO dataset: which boxes and images they train on, and which they drop."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .segmentation import Segmentation

# Detectron2 drops boxes that are smaller after its transforms.
_SMALLEST = 1e-5


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a framework reads a dataset, according to its config; the defaults are the frameworks' own for boxes.

    Attributes:
        framework: name of the framework.
        training: whether the dataset is for training; in evaluation, nothing is dropped.
        num_classes: number of classes of the detector's heads, by config key; empty if unknown.
        classes: names in the config, by index; None if it has none.
        masks: format of masks for a mask head, "" without one. MMDetection's `poly2mask` is "bitmask".
        num_keypoints: number of keypoints of a keypoint head; 0 without one.
        min_keypoints: images with fewer labeled points are left out.
        drops_empty: whether images without annotations are left out (`filter_empty_gt`, FILTER_EMPTY_ANNOTATIONS).
        min_size: images with a shorter side are left out, in pixels.
    """

    framework: Literal["MMDetection", "Detectron2"]
    training: bool = True
    num_classes: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    masks: Literal["", "polygon", "bitmask"] = ""
    num_keypoints: int = 0
    min_keypoints: int = 0
    drops_empty: bool = True
    min_size: float = 0


# The frameworks' defaults, if there is no config.
DEFAULTS = (Reading(framework="MMDetection"), Reading(framework="Detectron2"))


@dataclass(frozen=True)
class Usage:
    """The number of boxes and images that a framework uses and drops.

    Attributes:
        boxes: number of boxes trained on.
        crowds: number of crowd boxes: regions without loss in MMDetection, dropped in Detectron2.
        dropped: number of boxes by reason, each box under the first that applies; boxes of images left out do not
            count.
        images: number of images trained on, including those without boxes.
        images_without_boxes: number of these without a box to train on.
        images_left_out: number of images by reason.
    """

    framework: str
    boxes: int
    crowds: int
    dropped: dict[str, int]
    images: int
    images_without_boxes: int
    images_left_out: dict[str, int]

    def text(self) -> str:
        """Return it as one line."""
        parts = [f"{self.framework} trains on {self.boxes} boxes"]
        parts += [f"drops {count} ({reason})" for reason, count in self.dropped.items()]
        if self.crowds:
            parts.append(f"{self.crowds} crowd boxes {_CROWDS[self.framework]}")
        parts.append(f"reads {self.images} images, {self.images_without_boxes} of them without a box")
        parts += [f"leaves {count} images out ({reason})" for reason, count in self.images_left_out.items()]
        return "; ".join(parts)


_CROWDS = {"MMDetection": "are regions without loss", "Detectron2": "are dropped"}


@dataclass(frozen=True, eq=False)
class Columns:
    """The N annotations of a dataset as arrays, and its M images.

    Attributes:
        boxes: float64 [N, 4], x, y, width and height in pixels; NaN in rows that are not four numbers.
        areas: float64 [N].
        crowd: bool [N].
        ignored: bool [N], those with "ignore".
        image: int64 [N], index of each annotation's image; -1 for an unknown one.
        category: list of N category ids.
        segmentation: int8 [N], values of `Segmentation`.
        visible: int64 [N], labeled keypoints.
        sizes: float64 [M, 2], width and height; NaN if unknown.
    """

    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    image: np.ndarray
    category: list[int | str]
    segmentation: np.ndarray
    visible: np.ndarray
    sizes: np.ndarray


def usage(columns: Columns, reading: Reading, categories: Mapping[int | str, str]) -> Usage:
    """Return how a framework uses a dataset.

    Args:
        columns: annotations of the dataset.
        reading: how the framework reads it.
        categories: the file's, name by id.
    """
    known = columns.image >= 0
    names = categories.keys() if reading.classes is None else _ids_of(categories, reading.classes)
    in_classes = np.fromiter(map(names.__contains__, columns.category), dtype=bool, count=len(columns.category))
    if reading.framework == "MMDetection":
        reasons = _mmdetection(columns, reading, in_classes)
        # Images are selected before boxes: an image whose boxes are all dropped is kept.
        chosen = known & in_classes
    else:
        reasons = _detectron2(columns, reading, in_classes)
        chosen = known & ~columns.crowd & (columns.segmentation != Segmentation.NO_POLYGON)
    kept, left_out = _images(columns, reading, chosen)
    left = known.copy()
    left[known] = kept[columns.image[known]]
    dropped = {}
    for reason, applies in reasons.items():
        if (left & applies).any():
            dropped[reason] = int((left & applies).sum())
        left &= ~applies
    crowds = int((left & columns.crowd).sum())
    left &= ~columns.crowd
    with_boxes = np.zeros(len(columns.sizes), dtype=bool)
    with_boxes[columns.image[left]] = True
    return Usage(
        framework=reading.framework,
        boxes=int(left.sum()),
        crowds=crowds,
        dropped=dropped,
        images=int(kept.sum()),
        images_without_boxes=int((kept & ~with_boxes).sum()),
        images_left_out=left_out,
    )


def _ids_of(categories: Mapping[int | str, str], names: Collection[str]) -> set[int | str]:
    return {i for i, name in categories.items() if name in names}


def _mmdetection(columns: Columns, reading: Reading, in_classes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the reasons in the order of `CocoDataset.parse_data_info`, then of `LoadAnnotations`."""
    x, y, w, h = columns.boxes.T
    width, height = _image_sizes(columns).T
    with np.errstate(invalid="ignore"):
        # fmax and fmin ignore NaN, as Python's max(0, NaN) does.
        inside_w = np.fmax(0, np.minimum(x + w, width) - np.fmax(x, 0))
        inside_h = np.fmax(0, np.minimum(y + h, height) - np.fmax(y, 0))
        reasons = {
            '"ignore"': columns.ignored,
            "no part in the image": ~(inside_w * inside_h > 0),
            "area of zero or less": columns.areas <= 0,
            "less than a pixel": (w < 1) | (h < 1),
            "of none of the classes": ~in_classes,
        }
    if reading.masks:
        reasons["no polygon of three points"] = ~columns.crowd & (columns.segmentation == Segmentation.NO_POLYGON)
    if reading.masks == "polygon":
        runs = ~columns.crowd & (columns.segmentation == Segmentation.RLE)
        reasons["run lengths where polygons are read"] = runs
    return reasons


def _detectron2(columns: Columns, reading: Reading, in_classes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the reasons in the order of `load_coco_json`, then of `DatasetMapper`."""
    limits = _image_sizes(columns)
    with np.errstate(invalid="ignore"):
        ends = np.stack([columns.boxes[:, :2], columns.boxes[:, :2] + columns.boxes[:, 2:]])
        # Its transforms swap corners that are in the wrong order.
        corners = np.minimum(np.maximum(np.sort(ends, axis=0), 0), limits)
        lasting = (corners[1] - corners[0] > _SMALLEST).all(axis=1)
    return {
        "no polygon of three points": columns.segmentation == Segmentation.NO_POLYGON,
        "of an unknown category": ~in_classes,
        "no part in the image": ~lasting & ~columns.crowd,
    }


def _image_sizes(columns: Columns) -> np.ndarray:
    if not len(columns.sizes):
        return np.full((len(columns.image), 2), np.nan)
    return np.where((columns.image >= 0)[:, None], columns.sizes[columns.image], np.nan)


def _images(columns: Columns, reading: Reading, chosen: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Return which images are read, bool [M], and how many are not, by reason."""
    kept = np.ones(len(columns.sizes), dtype=bool)
    reasons = {}
    if reading.drops_empty:
        filled = np.zeros(len(columns.sizes), dtype=bool)
        filled[columns.image[chosen]] = True
        reasons["no annotation to train on"] = ~filled
    if reading.min_size:
        reasons[f"less than {reading.min_size:g} pixels wide or high"] = columns.sizes.min(axis=1) < reading.min_size
    if reading.min_keypoints:
        known = columns.image >= 0
        points = np.bincount(columns.image[known], columns.visible[known], minlength=len(kept))
        reasons[f"fewer than {reading.min_keypoints} labeled keypoints"] = points < reading.min_keypoints
    left_out = {}
    for reason, applies in reasons.items():
        if (kept & applies).any():
            left_out[reason] = int((kept & applies).sum())
        kept &= ~applies
    return kept, left_out
