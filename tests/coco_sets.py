"""Small sets in COCO format with entries that frameworks drop, trip over or train on in silence."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (96, 64)  # width, height


def base_set(images: int = 3) -> dict[str, Any]:
    """Return a good set of images with two boxes each, of the categories cell and nut."""
    content: dict[str, Any] = {
        "images": [
            {"id": k, "file_name": f"{k}.jpg", "width": SIZE[0], "height": SIZE[1]} for k in range(1, images + 1)
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "nut"}],
    }
    for image in content["images"]:
        for category, (x, y, w, h) in ((1, (4, 6, 40, 48)), (2, (50, 10, 36, 36))):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    return content


def write_set(root: Path, content: dict[str, Any]) -> Path:
    """Write `all.json` and, where there are none, its `images/`; return the folder."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        path = root / "images" / image["file_name"]
        if not path.exists():
            Image.new("RGB", (image["width"], image["height"]), (90, 140, 60)).save(path)
    (root / "all.json").write_text(json.dumps(content))
    return root


def _each(**values: Any) -> Callable[[dict[str, Any]], None]:
    def spoil(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation.update(values)

    return spoil


def _normalized(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["bbox"] = [v / s for v, s in zip(annotation["bbox"], 2 * SIZE)]


# Sets that train on nothing or on something else, or end in a traceback; by name what makes one of a good set, and the
# kind of the finding.
SPOILED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "area 0": (_each(area=0), "invalid_areas"),
    "area negative": (_each(area=-4.5), "invalid_areas"),
    "area NaN": (_each(area=math.nan), "invalid_areas"),
    "area text": (_each(area="1920"), "invalid_entries"),
    "normalized": (_normalized, "normalized_boxes"),
    "under a pixel": (_each(bbox=[10, 10, 0.5, 20]), "small_boxes"),
    "empty": (_each(bbox=[10, 10, 0, 20]), "empty_boxes"),
    "outside": (_each(bbox=[200, 10, 20, 20]), "boxes_outside"),
    "crowds": (_each(iscrowd=1), "nothing_left"),
    "iscrowd text": (_each(iscrowd="no"), "invalid_entries"),
    "ignored": (_each(ignore=1), "ignored_annotations"),
    "text ids": (
        lambda content: [a.update(id=str(a["id"])) for a in content["annotations"]],
        "invalid_entries",
    ),
    "mixed ids": (
        lambda content: (content["images"][0].update(id="1"), content["annotations"][0].update(image_id="1")),
        "mixed_id_types",
    ),
    "names outside": (
        lambda content: content["images"][0].update(file_name="../images/1.jpg"),
        "file_names_outside",
    ),
    "flat segmentation": (_each(segmentation=[1, 2, 3, 4, 5, 6]), "invalid_segmentations"),
}


def spoiled_set(seed: int, *, masks: bool) -> dict[str, Any]:
    """Return a set in which some entries are such that one framework or the other drops them, and none that stops one.

    Args:
        seed: chooses them.
        masks: every annotation has a segmentation.
    """
    rng = random.Random(seed)
    content = base_set(images=12)
    boxes = [
        *([4, 6, w, 48] for w in (0, 0.5, 0.99, 1, -8)),
        *([x, 10, 20, 20] for x in (-30, -20, -19, 95, 96, 300)),
        [1e-7, 3, 1e-6, 20],
        [math.nan, 3, 20, 20],
        [3, 3, math.inf, 20],
        [0.1, 0.2, 0.3, 0.4],
    ]
    polygons = [[[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[]], [[1, 2, 3, 4], [1, 2, 30, 4, 30, 40]]]
    runs = {"size": [SIZE[1], SIZE[0]], "counts": [100, 500, SIZE[0] * SIZE[1] - 600]}
    for annotation in content["annotations"]:
        kind = rng.randrange(10)
        if kind == 0:
            annotation["bbox"] = rng.choice(boxes)
        elif kind == 1:
            annotation["area"] = rng.choice([0, -1, math.nan, 1e-9])
        elif kind == 2:
            annotation["iscrowd"] = rng.choice([1, True])
        elif kind == 3:
            annotation["segmentation"] = rng.choice([*polygons, runs] + [[], None] * (not masks))
        elif kind == 4 and not masks:
            del annotation["segmentation"]
    # Images without annotations, with crowds alone, with nothing that is left, and small ones.
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]
    for annotation in content["annotations"]:
        if annotation["image_id"] == 3:
            annotation["iscrowd"] = 1
        if annotation["image_id"] == 4:
            annotation["bbox"] = [10, 10, 0.2, 0.2]
        if annotation["image_id"] == 6 and annotation["category_id"] == 1:
            annotation["area"] = 0
    content["images"][4].update(width=31, height=31)
    for annotation in content["annotations"]:
        if annotation["image_id"] == 5 and isinstance(annotation.get("segmentation"), dict):
            annotation["segmentation"] = [[1, 2, 30, 4, 30, 20]]
    return content
