"""Detections in an image, and COCO scores: the same in both frameworks."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .datasets.coco import load_annotations
from .datasets.images import image_path, read_image
from .errors import ConfigError, DataError
from .parse import read_json

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects in one image, N of them.

    Attributes:
        boxes: float32 [N, 4], left, top, right and bottom in pixels.
        scores: float32 [N], in 0..1.
        labels: int64 [N], class indices.
        masks: bool [N, H, W]; None for a detector without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> Detections:
        """Return the detections with a score of at least `threshold`.

        Raises:
            ConfigError: it is not in 0..1.
        """
        check_threshold(threshold)
        kept = self.scores >= threshold
        masks = None if self.masks is None else self.masks[kept]
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], masks)

    def as_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return the detections in COCO's result format, masks as run lengths: one dict per object.

        Args:
            image_id: id of the image.
            category_ids: category id by class index.
        """
        rows = [
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for (left, top, right, bottom), score, label in zip(
                self.boxes.tolist(), self.scores.tolist(), self.labels.tolist()
            )
        ]
        if self.masks is not None and rows:
            from pycocotools import mask

            encoded = mask.encode(np.asfortranarray(self.masks.transpose(1, 2, 0), dtype=np.uint8))
            for row, lengths in zip(rows, encoded):
                row["segmentation"] = {**lengths, "counts": lengths["counts"].decode()}
        return rows


def given_names(classes: Sequence[str] | str | os.PathLike, *, by_id: bool) -> list[str]:
    """Return class names given as a list, or as the path of a COCO file that contains them.

    Args:
        classes: the names in the order of their labels, or one path that ends in .json.
        by_id: labels follow the order of the categories' ids, as in Detectron2, instead of their rows, as in
            MMDetection.

    Raises:
        ConfigError: a file without categories.
    """
    if isinstance(classes, str | os.PathLike):
        classes = [os.fspath(classes)]
    if len(classes) != 1 or not str(classes[0]).endswith(".json"):
        return list(classes)
    try:
        categories = read_json(Path(classes[0]), ConfigError)["categories"]
        ordered = sorted(categories, key=lambda category: category["id"]) if by_id else categories
        return [category["name"] for category in ordered]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--classes {classes[0]}: not COCO annotations with categories ({error!r})") from error


def check_threshold(score_threshold: float) -> None:
    """Refuse an invalid score threshold.

    Raises:
        ConfigError: it is not in 0..1.
    """
    if not 0 <= score_threshold <= 1:
        raise ConfigError(f"score_threshold={score_threshold} must lie in 0..1")


def evaluate(
    predict: Callable[[np.ndarray], Detections],
    classes: Sequence[str],
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    *,
    progress: bool = True,
) -> dict[str, float]:
    """Return COCO's scores of a detector, computed by pycocotools, in percent: {"bbox/AP": 41.0, "bbox/AP50": ...}.

    Args:
        predict: takes an RGB image [H, W, 3] uint8 and returns all detections, without an additional threshold.
        classes: names by index, which must be those of the annotations' categories.
        annotations: COCO JSON of the images.
        images: folder that its file names are relative to.
        progress: show a progress bar.

    Returns:
        "bbox/AP", "AP50", "AP75", "APs", "APm", "APl"; the same with "segm/" if there are masks. NaN if no object of
        that size is annotated.

    Raises:
        DataError: the annotations or an image cannot be read.
        ConfigError: a class that is not a category.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = Path(annotations)
    content = load_annotations(path)
    try:
        ids = {category["name"]: category["id"] for category in content["categories"]}
        places = {image["id"]: image_path(images, image["file_name"]) for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not COCO annotations of images ({error!r})") from error
    unknown = [name for name in classes if name not in ids]
    if unknown:
        raise ConfigError(
            f"the detector's classes {', '.join(unknown[:5])} are not categories of {path}, which has {', '.join(ids)}"
        )
    category_ids = [ids[name] for name in classes]
    found: list[dict[str, Any]] = []
    for image_id, place in tqdm(places.items(), unit="image", disable=None if progress else True):
        found += predict(read_image(place)).as_coco(image_id, category_ids)
    kinds = ["bbox", "segm"] if found and "segmentation" in found[0] else ["bbox"]
    if not found:
        return dict.fromkeys((f"bbox/{name}" for name in METRICS), 0.0)
    scores: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its steps
        truth = COCO()
        truth.dataset = {"info": {}, **content}
        truth.createIndex()
        for kind in kinds:
            # A mask's size is its own area; pycocotools would use the box if there were one.
            left_out = {"bbox": "segmentation", "segm": "bbox"}[kind]
            results = truth.loadRes([{key: row[key] for key in row if key != left_out} for row in found])
            evaluation = COCOeval(truth, results, kind)
            evaluation.params.catIds = category_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for name, value in zip(METRICS, evaluation.stats):
                scores[f"{kind}/{name}"] = 100 * float(value) if value >= 0 else float("nan")
    return scores
