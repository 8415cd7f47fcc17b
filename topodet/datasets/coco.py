"""A check of a COCO-format detection set, to be run before hours of training and not to be met in the middle of them.

Frameworks differ in what they do with a bad annotation (skip it, crash on the batch that holds it, train on it); here
everything is counted and named at once.
"""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from topodet.errors import ConfigError, DataError, unknown_name

# Coordinates of hand-drawn boxes and of rounded conversions end up to a pixel beyond the border.
_TOLERANCE = 1.0
_SHOWN = 10

_TITLES = {
    "unreadable_file": "annotation file cannot be read",
    "missing_keys": "required entries missing",
    "invalid_entries": "entries of a wrong type",
    "empty": "nothing to train on",
    "image_root_missing": "image folder missing",
    "duplicate_image_ids": "image ids used more than once",
    "duplicate_annotation_ids": "annotation ids used more than once",
    "duplicate_category_ids": "category ids used more than once",
    "invalid_image_sizes": "images of no positive size in the file",
    "missing_images": "images missing on disk",
    "unknown_images": "annotations of an unknown image id",
    "unknown_categories": "annotations of an unknown category id",
    "invalid_boxes": "boxes that are not four numbers",
    "empty_boxes": "boxes of zero, negative or NaN size",
    "boxes_outside": "boxes outside their image",
    "unreadable_images": "images that cannot be opened",
    "image_size_differs": "images of another size than the file says",
    "images_without_annotations": "images without annotations",
    "categories_without_annotations": "categories without annotations",
    "annotation_id_zero": "annotation id 0, whose match pycocotools counts as a miss",
}
_NOTES = ("images_without_annotations", "categories_without_annotations", "annotation_id_zero")

# What pycocotools, MMDetection and Detectron2 index without asking.
_REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
        kind: its name, a key of `CocoReport.findings`.
        ids: ids of everything concerned (image, annotation or category ids; `images[3]` for what has no id).
        details: what is known beyond the id, in the order of `ids`; empty strings where nothing is.
        is_error: False for a note, which does not stand in the way of training.
    """

    kind: str
    ids: list[Hashable]
    details: list[str]
    is_error: bool

    @property
    def count(self) -> int:
        """How often the problem was found."""
        return len(self.ids)

    @property
    def title(self) -> str:
        """What is wrong, in words."""
        return _TITLES[self.kind]


@dataclass(frozen=True)
class CocoReport:
    """What `check_coco` found. `findings` holds only what was found; notes are among them."""

    annotation_file: Path
    image_root: Path
    num_images: int
    num_annotations: int
    num_categories: int
    findings: dict[str, Finding] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there are no errors; notes are allowed."""
        return not any(finding.is_error for finding in self.findings.values())

    def text(self) -> str:
        """Return a table of the findings with the first ids of each."""
        lines = [
            f"{self.annotation_file}: {self.num_images} images, {self.num_annotations} annotations, "
            f"{self.num_categories} categories; images in {self.image_root}"
        ]
        width = max((len(finding.title) for finding in self.findings.values()), default=0)
        for finding in sorted(self.findings.values(), key=lambda finding: not finding.is_error):
            shown = [f"{i} ({d})" if d else str(i) for i, d in zip(finding.ids[:_SHOWN], finding.details)]
            more = f", ... {finding.count - _SHOWN} more" if finding.count > _SHOWN else ""
            level = "error" if finding.is_error else "note"
            lines.append(f"  {level:5}  {finding.title:{width}}  {finding.count:7}  {', '.join(shown)}{more}")
        errors = [finding for finding in self.findings.values() if finding.is_error]
        lines.append(f"{len(errors)} kinds of problem, {sum(e.count for e in errors)} in all" if errors else "ok")
        return "\n".join(lines)

    def raise_if_bad(self) -> None:
        """Raise DataError with the table if there are errors."""
        if not self.ok:
            raise DataError(
                f"the dataset cannot be trained on as it is; correct these entries or files:\n{self.text()}"
            )


def check_coco(
    annotation_file: str | Path,
    image_root: str | Path,
    *,
    read_images: bool = False,
    allow: Collection[str] = (),
) -> CocoReport:
    """Check a COCO annotation file and its images.

    Args:
        annotation_file: JSON with `images`, `annotations` and `categories`.
        image_root: folder that the images' `file_name` is relative to.
        read_images: open each image's header (not its pixels) and compare its size. An image that its EXIF orientation
            turns counts as it is seen, because that is how MMDetection and Detectron2 load it.
        allow: kinds of problem to be noted only. COCO's own train2017 holds two boxes of zero height, which the
            frameworks skip: `allow=("empty_boxes",)`.

    Returns:
        All problems at once. Structural ones (no JSON, a missing list) end the check where they are found.

    Raises:
        ConfigError: `allow` holds an unknown kind.
    """
    for kind in allow:
        if kind not in _TITLES:
            raise ConfigError(unknown_name("kind of problem", kind, _TITLES))
    check = _Check(Path(annotation_file), Path(image_root), frozenset(allow))
    check.run(read_images)
    return CocoReport(
        annotation_file=check.annotation_file,
        image_root=check.image_root,
        num_images=check.count("images"),
        num_annotations=check.count("annotations"),
        num_categories=check.count("categories"),
        findings=check.findings,
    )


class _Check:
    def __init__(self, annotation_file: Path, image_root: Path, allow: frozenset[str]):
        self.annotation_file = annotation_file
        self.image_root = image_root
        self.allow = allow
        self.content: Any = None
        self.findings: dict[str, Finding] = {}

    def count(self, name: str) -> int:
        records = self.content.get(name) if isinstance(self.content, dict) else None
        return len(records) if isinstance(records, list) else 0

    def add(self, kind: str, ids: Iterable[Hashable], details: Iterable[str] | None = None) -> None:
        ids = list(ids)
        if ids:
            texts = [""] * len(ids) if details is None else list(details)
            known = self.findings.get(kind)
            if known is not None:
                ids, texts = known.ids + ids, known.details + texts
            self.findings[kind] = Finding(kind, ids, texts, kind not in _NOTES and kind not in self.allow)

    def run(self, read_images: bool) -> None:
        if not self.read_file():
            return
        self.images = self.usable("images")
        self.annotations = self.usable("annotations")
        self.categories = self.usable("categories")
        self.check_duplicates()
        present = self.check_files()
        self.check_annotations(self.check_sizes())
        if read_images:
            self.check_headers(present)

    def read_file(self) -> bool:
        # Millions of new objects make the garbage collector search in vain again and again: 20 s and not 12 for COCO.
        collecting = gc.isenabled()
        gc.disable()
        try:
            with open(self.annotation_file, encoding="utf-8") as file:
                self.content = json.load(file)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
            self.add("unreadable_file", [str(self.annotation_file)], [str(reason)])
            return False
        finally:
            if collecting:
                gc.enable()
        if not isinstance(self.content, dict):
            what = f"holds a {type(self.content).__name__}, not an object with images, annotations and categories"
            self.add("invalid_entries", [str(self.annotation_file)], [what])
            return False
        for name in _REQUIRED:
            if name not in self.content:
                self.add("missing_keys", [name])
            elif not isinstance(self.content[name], list):
                self.add("invalid_entries", [name], [f"{type(self.content[name]).__name__}, not a list"])
            elif not self.content[name]:
                self.add("empty", [name])
        return "missing_keys" not in self.findings and "invalid_entries" not in self.findings

    def usable(self, name: str) -> list[dict[str, Any]]:
        """Report the records of a list that lack entries or have ids of a wrong type; return the others."""
        records = self.content[name]
        bad: set[int] = set()
        if set(map(type, records)) - {dict}:
            bad = {i for i, record in enumerate(records) if not isinstance(record, dict)}
            kinds = [type(records[i]).__name__ for i in sorted(bad)]
            self.add("invalid_entries", [f"{name}[{i}]" for i in sorted(bad)], [f"{k}, not an object" for k in kinds])
        for key in _REQUIRED[name]:
            values = [record.get(key) if type(record) is dict else None for record in records]
            allowed = {str} if key in ("file_name", "name") else {int, str} if key.endswith("id") else None
            found = set(map(type, values))
            if type(None) not in found and (allowed is None or found <= allowed):
                continue
            lacking = [i for i, value in enumerate(values) if value is None and i not in bad]
            wrong = [
                i for i, v in enumerate(values) if v is not None and allowed is not None and type(v) not in allowed
            ]
            self.add("missing_keys", [_label(name, i, records[i]) for i in lacking], [f"no {key}"] * len(lacking))
            self.add(
                "invalid_entries",
                [_label(name, i, records[i]) for i in wrong],
                [f"{key} is {records[i][key]!r}" for i in wrong],
            )
            bad.update(lacking, wrong)
        return [record for i, record in enumerate(records) if i not in bad] if bad else records

    def check_duplicates(self) -> None:
        for kind, records in (
            ("duplicate_image_ids", self.images),
            ("duplicate_annotation_ids", self.annotations),
            ("duplicate_category_ids", self.categories),
        ):
            ids = [record["id"] for record in records]
            if len(set(ids)) < len(ids):
                repeated = {i: n for i, n in Counter(ids).items() if n > 1}
                self.add(kind, repeated, [f"{n} times" for n in repeated.values()])

    def check_files(self) -> list[dict[str, Any]]:
        """Report images that are missing on disk; return the others."""
        if not self.image_root.is_dir():
            self.add("image_root_missing", [str(self.image_root)])
            return []
        # One listing a folder instead of one look-up an image: minutes become seconds on network file systems.
        listed: dict[str, set[str]] = {}
        present, missing = [], []
        for image in self.images:
            folder, name = os.path.split(image["file_name"])
            if folder not in listed:
                listed[folder] = _files_of(self.image_root / folder)
            # The look-up is for file systems that do not distinguish capitals.
            found = name in listed[folder] or (self.image_root / image["file_name"]).is_file()
            (present if found else missing).append(image)
        self.add("missing_images", [i["id"] for i in missing], [i["file_name"] for i in missing])
        return present

    def check_sizes(self) -> np.ndarray:
        """Report images without a size in the file; return (w, h) of all, [num_images, 2], NaN where there is none."""
        sizes, valid = _numbers([(image["width"], image["height"]) for image in self.images], 2)
        valid &= np.isfinite(sizes).all(axis=1) & (sizes > 0).all(axis=1)
        bad = [self.images[i] for i in np.flatnonzero(~valid)]
        self.add("invalid_image_sizes", [i["id"] for i in bad], [f"{i['width']!r} x {i['height']!r}" for i in bad])
        sizes[~valid] = np.nan
        return sizes

    def check_annotations(self, sizes: np.ndarray) -> None:
        annotations = self.annotations
        index = {image["id"]: i for i, image in enumerate(self.images)}
        image_of = np.array([index.get(a["image_id"], -1) for a in annotations], dtype=np.int64)

        def report(kind: str, bad: Sequence[int] | np.ndarray, describe: Any) -> None:
            self.add(kind, [annotations[i]["id"] for i in bad], [describe(annotations[i]) for i in bad])

        # Ids of records that are unusable for another reason are known all the same.
        image_ids = _ids(self.content["images"])
        unknown = [i for i in np.flatnonzero(image_of < 0) if annotations[i]["image_id"] not in image_ids]
        report("unknown_images", unknown, lambda a: f"image_id {a['image_id']!r}")
        category_ids = _ids(self.content["categories"])
        unknown = [i for i, a in enumerate(annotations) if a["category_id"] not in category_ids]
        report("unknown_categories", unknown, lambda a: f"category_id {a['category_id']!r}")

        boxes, valid = _numbers([a["bbox"] for a in annotations], 4)
        report("invalid_boxes", np.flatnonzero(~valid), lambda a: f"bbox {a['bbox']!r}")
        # `not >` instead of `<=`: NaN fails every comparison.
        empty = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1))
        report("empty_boxes", np.flatnonzero(valid & empty), lambda a: f"bbox {a['bbox']}")
        if len(self.images):
            # A box of an unknown image, or of one without a size, is compared with NaN and so not reported again.
            limits = np.where((image_of >= 0)[:, None], sizes[image_of], np.nan)
            outside = (boxes[:, :2] < -_TOLERANCE) | (boxes[:, :2] + boxes[:, 2:] > limits + _TOLERANCE)
            outside = outside.any(axis=1) & valid & ~empty & ~np.isnan(limits).any(axis=1)

            def describe(annotation: dict[str, Any]) -> str:
                image = self.images[index[annotation["image_id"]]]
                return f"bbox {annotation['bbox']} in {image['width']}x{image['height']} of image {image['id']}"

            report("boxes_outside", np.flatnonzero(outside), describe)

        self.add("annotation_id_zero", [a["id"] for a in annotations if a["id"] == 0][:1])
        used_images = {a["image_id"] for a in annotations}
        idle = [image for image in self.images if image["id"] not in used_images]
        self.add("images_without_annotations", [i["id"] for i in idle], [i["file_name"] for i in idle])
        used = {a["category_id"] for a in annotations}
        idle = [category for category in self.categories if category["id"] not in used]
        self.add("categories_without_annotations", [c["id"] for c in idle], [c["name"] for c in idle])

    def check_headers(self, present: list[dict[str, Any]]) -> None:
        paths = [self.image_root / image["file_name"] for image in present]
        with ThreadPoolExecutor() as pool:
            results = list(
                tqdm(
                    pool.map(_header_size, paths),
                    total=len(paths),
                    desc="image headers",
                    unit="image",
                    leave=False,
                    disable=None,
                )
            )
        unreadable = {i["id"]: f"{i['file_name']}: {r}" for i, r in zip(present, results) if isinstance(r, str)}
        self.add("unreadable_images", unreadable, unreadable.values())
        differs = {
            i["id"]: f"{i['file_name']}: {r[0]}x{r[1]}, file says {i['width']}x{i['height']}"
            for i, r in zip(present, results)
            if not isinstance(r, str) and r != (i["width"], i["height"])
        }
        self.add("image_size_differs", differs, differs.values())


def _label(name: str, position: int, record: dict[str, Any]) -> Hashable:
    """Return the record's id, or its position where the id cannot name it."""
    record_id = record.get("id")
    return record_id if type(record_id) in (int, str) else f"{name}[{position}]"


def _ids(records: list[Any]) -> set[int | str]:
    return {r["id"] for r in records if type(r) is dict and type(r.get("id")) in (int, str)}


def _files_of(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _numbers(rows: list[Any], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Convert rows of numbers from JSON.

    Returns:
        Float64 [len(rows), length] with NaN in rows that are not `length` numbers, and bool [len(rows)], True where
        they are. NaN and infinities, which Python reads in JSON, are numbers.
    """
    if not rows:
        return np.empty((0, length)), np.empty(0, dtype=bool)
    try:
        table = np.array(rows)
    except ValueError:  # rows of unequal length
        table = np.empty(0)
    if table.shape == (len(rows), length) and table.dtype.kind in "iuf":
        return table.astype(np.float64), np.ones(len(rows), dtype=bool)
    # Something is wrong somewhere, or numbers are too long for numpy's integers: row by row.
    table = np.full((len(rows), length), np.nan)
    valid = np.zeros(len(rows), dtype=bool)
    for i, row in enumerate(rows):
        if isinstance(row, list | tuple) and len(row) == length and all(type(v) in (int, float) for v in row):
            try:
                table[i] = row
            except OverflowError:  # an integer beyond the range of floats
                continue
            valid[i] = True
    return table, valid


def _header_size(path: Path) -> tuple[int, int] | str:
    """Return width and height of an image as it is seen, or why it cannot be opened."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            # Tag 274 is the orientation; 5 to 8 are turned by a quarter.
            return (height, width) if image.getexif().get(274) in (5, 6, 7, 8) else (width, height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{type(error).__name__}: {error}"
