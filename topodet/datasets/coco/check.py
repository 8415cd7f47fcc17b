"""The check of an annotation file, its images, and the config that will read them."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from operator import contains, itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...errors import ConfigError, DataError, show, unknown_name
from ...parse import is_text
from ..images import header, leads_outside
from .classes import check_classes
from .reading import DEFAULTS, Columns, Reading, usage
from .report import NOTES, TITLES, CocoReport, Finding, Usage
from .segmentation import Segmentation, classify, keypoint_problems, polygon_extents, visible_keypoints

# Hand-drawn boxes and rounded conversions can exceed the border by up to a pixel.
_TOLERANCE = 1.0
# Number of headers to read before training; training itself reads all images.
_SAMPLE = 64
_LARGEST = int(np.finfo(np.float64).max)
# In these versions, `loadRes` fails without `info`.
_PYCOCOTOOLS_WITH_INFO = ("2.0.9", "2.0.10")

# Keys that pycocotools, MMDetection and Detectron2 read without a check.
_REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}
# Types of single entries; sizes and boxes are checked as columns. pycocotools stores annotation ids in numeric arrays;
# other ids may be text.
_TYPES = {
    "file_name": {str},
    "name": {str},
    "id": {int, str},
    "image_id": {int, str},
    "category_id": {int, str},
    "area": {int, float},
    "iscrowd": {int, bool, float},
}
_ID_OF_ANNOTATIONS = {int}


def check_coco(
    annotation_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    read_images: bool | int = False,
    allow: Collection[str] = (),
    readings: Sequence[Reading] = DEFAULTS,
) -> CocoReport:
    """Check a COCO annotation file and its images.

    Args:
        annotation_file: JSON with `images`, `annotations` and `categories`.
        image_root: folder that the images' `file_name` is relative to. Images outside of it are never opened.
        read_images: read each image's header (not its pixels) and compare its size; a number limits how many are read.
            EXIF orientation is applied, as MMDetection and Detectron2 do when loading.
        allow: kinds of problem that are only notes. COCO's own train2017 has two boxes of zero height, which the
            frameworks skip: `allow=("empty_boxes",)`.
        readings: how the frameworks read the dataset. The default is both frameworks, for boxes.

    Returns:
        All problems at once. Structural ones (invalid JSON, a missing list) end the check immediately.

    Raises:
        ConfigError: `allow` has an unknown kind.
    """
    for kind in allow:
        if kind not in TITLES:
            raise ConfigError(unknown_name("kind of problem", kind, TITLES))
    check = _Check(Path(annotation_file), Path(image_root), frozenset(allow), readings)
    with _without_collection():
        check.run(read_images)
    return CocoReport(
        annotation_file=check.annotation_file,
        image_root=check.image_root,
        num_images=check.count("images"),
        num_annotations=check.count("annotations"),
        num_categories=check.count("categories"),
        findings=check.findings,
        usage=check.usage,
    )


def check_before_use(
    annotation_file: str | os.PathLike,
    image_root: str | os.PathLike,
    reading: Reading,
    *,
    allow: Collection[str] = (),
    warn: Callable[[str], object],
) -> None:
    """Check a dataset before a framework reads it, with some of the images' headers.

    Args:
        annotation_file, image_root, allow: as for `check_coco`.
        reading: how the framework reads it, according to its config.
        warn: called if the framework drops or clips single boxes, at most one in a hundred of each kind.

    Raises:
        ConfigError: the config's classes differ from the file's.
        DataError: every other error that `check_coco` finds, as its table.
    """
    report = check_coco(annotation_file, image_root, read_images=_SAMPLE, allow=allow, readings=[reading])
    differing = report.findings.get("classes_differ")
    if differing is not None and differing.is_error:
        raise ConfigError(differing.details[0])
    if not report.trainable:
        report.raise_if_bad()
    if not report.ok:
        warn(report.text())


def load_annotations(annotation_file: str | os.PathLike) -> dict[str, Any]:
    """Return the content of an annotation file, any JSON object.

    Raises:
        DataError: it cannot be read, is not JSON or not an object.
    """
    try:
        with _without_collection():
            content, _ = _read_json(Path(annotation_file))
    except _UnreadableError as error:
        raise DataError(f"{annotation_file}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{annotation_file}: {_no_object(content)}")
    return content


class _UnreadableError(Exception):
    pass


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    # With millions of objects, the garbage collector is slow and finds nothing: reading COCO takes 20 s instead of 12.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _read_json(path: Path) -> tuple[Any, bool]:
    """Return the content of a file, and whether it may contain booleans, which Python treats as numbers."""
    try:
        if path.exists() and not path.is_file():
            raise _UnreadableError("it is a folder, a pipe or a device, not a file")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        return json.loads(text), "true" in text or "false" in text
    except OSError as error:
        raise _UnreadableError(str(error.strerror)) from error
    except RecursionError as error:
        raise _UnreadableError("not JSON of annotations: nested too deeply") from error
    except ValueError as error:  # not UTF-8, not JSON, or a number with too many digits for Python
        raise _UnreadableError(f"not JSON: {error}") from error


def _no_object(content: Any) -> str:
    return f"contains a {type(content).__name__}, not an object with images, annotations and categories"


class _Check:
    def __init__(self, annotation_file: Path, image_root: Path, allow: frozenset[str], readings: Sequence[Reading]):
        self.annotation_file = annotation_file
        self.image_root = image_root
        self.allow = allow
        self.readings = readings
        self.training = any(reading.training for reading in readings)
        self.content: Any = None
        self.truth_values = True  # whether the content may have booleans
        self.findings: dict[str, Finding] = {}
        self.usage: list[Usage] = []

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
            self.findings[kind] = Finding(kind, ids, texts, kind not in NOTES and kind not in self.allow)

    def run(self, read_images: bool | int) -> None:
        if not self.read_file():
            return
        self.images = self.usable("images")
        self.annotations = self.usable("annotations")
        self.categories = self.usable("categories")
        self.check_duplicates()
        self.check_categories()
        self.check_info()
        present = self.check_files()
        # Sums of huge numbers may overflow to infinity, which is outside every image too.
        with np.errstate(over="ignore", invalid="ignore"):
            self.check_annotations(self.check_sizes())
        if read_images:
            step = 1 if read_images is True else -(-len(present) // read_images) or 1
            self.check_headers(present[::step])

    def read_file(self) -> bool:
        try:
            self.content, self.truth_values = _read_json(self.annotation_file)
        except _UnreadableError as error:
            self.add("unreadable_file", [str(self.annotation_file)], [str(error)])
            return False
        if not isinstance(self.content, dict):
            self.add("invalid_entries", [str(self.annotation_file)], [_no_object(self.content)])
            return False
        if not self.training:  # test sets for an evaluation server have none
            self.content.setdefault("annotations", [])
        for name in _REQUIRED:
            if name not in self.content:
                self.add("missing_keys", [name])
            elif not isinstance(self.content[name], list):
                self.add("invalid_entries", [name], [f"{type(self.content[name]).__name__}, not a list"])
            elif not self.content[name] and (self.training or name != "annotations"):
                self.add("empty", [name])
        return "missing_keys" not in self.findings and "invalid_entries" not in self.findings

    def usable(self, name: str) -> list[dict[str, Any]]:
        """Report the records of a list that lack entries or have some of a wrong type; return the others."""
        records = self.content[name]
        bad: set[int] = set()
        if set(map(type, records)) - {dict}:
            bad = {i for i, record in enumerate(records) if not isinstance(record, dict)}
            kinds = [type(records[i]).__name__ for i in sorted(bad)]
            self.add("invalid_entries", [f"{name}[{i}]" for i in sorted(bad)], [f"{k}, not an object" for k in kinds])
        for key in _REQUIRED[name]:
            values = _values(records, key)
            allowed = _ID_OF_ANNOTATIONS if (name, key) == ("annotations", "id") else _TYPES.get(key)
            found = set(map(type, values))
            if type(None) not in found and (allowed is None or (found <= allowed and _in_range(key, values))):
                continue
            lacking = [i for i, value in enumerate(values) if value is None and i not in bad]
            wrong = [
                i
                for i, v in enumerate(values)
                if v is not None and allowed is not None and not (type(v) in allowed and _in_range(key, [v]))
            ]
            self.add("missing_keys", [_label(name, i, records[i]) for i in lacking], [f"no {key}"] * len(lacking))
            self.add(
                "invalid_entries",
                [_label(name, i, records[i]) for i in wrong],
                [f"{key} is {show(records[i][key])}" for i in wrong],
            )
            bad.update(lacking, wrong)
        return [record for i, record in enumerate(records) if i not in bad] if bad else records

    def check_duplicates(self) -> None:
        for kind, records in (
            ("duplicate_image_ids", self.images),
            ("duplicate_annotation_ids", self.annotations),
            ("duplicate_category_ids", self.categories),
        ):
            ids = _values(records, "id")
            if len(set(ids)) < len(ids):
                repeated = {i: n for i, n in Counter(ids).items() if n > 1}
                self.add(kind, repeated, [f"{n} times" for n in repeated.values()])
        for name, records in (("images", self.images), ("categories", self.categories)):
            texts = [record["id"] for record in records if type(record["id"]) is str]
            if 0 < len(texts) < len(records):
                mixed = f"{len(records) - len(texts)} numbers and {len(texts)} strings, e.g. {show(texts[0])}"
                self.add("mixed_id_types", [name], [mixed])

    def check_categories(self) -> None:
        names = [category["name"] for category in self.categories]
        repeated = {name: n for name, n in Counter(names).items() if n > 1}
        ids = [", ".join(show(c["id"]) for c in self.categories if c["name"] == name) for name in repeated]
        self.add("duplicate_category_names", ids, map(show, repeated))
        for kind, applies in (
            ("empty_category_names", lambda name: not name.strip()),
            ("padded_category_names", lambda name: name.strip() and name != name.strip()),
        ):
            bad = [category for category in self.categories if applies(category["name"])]
            self.add(kind, [c["id"] for c in bad], [show(c["name"]) for c in bad])
        if not self.categories or "mixed_id_types" in self.findings:  # cannot be sorted
            return
        for reading in self.readings:
            try:
                check_classes(self.categories, reading, str(self.annotation_file))
            except ConfigError as error:
                self.add("classes_differ", [reading.framework], [str(error)])

    def check_info(self) -> None:
        if "info" in self.content:
            return
        try:
            version = importlib.metadata.version("pycocotools")
        except importlib.metadata.PackageNotFoundError:
            return
        if version in _PYCOCOTOOLS_WITH_INFO:
            self.add(
                "missing_info", [f"pycocotools {version}"], ['add "info": {} to the file, or install another version']
            )

    def check_files(self) -> list[dict[str, Any]]:
        """Report images that are missing on disk; return the others."""
        outside = [image for image in self.images if leads_outside(image["file_name"])]
        self.add("file_names_outside", [i["id"] for i in outside], [i["file_name"] for i in outside])
        images = self.images
        if outside:
            images = [image for image in images if not leads_outside(image["file_name"])]
        if not self.image_root.is_dir():
            self.add("image_root_missing", [str(self.image_root)])
            return []
        # Listing each folder once is much faster on network file systems than looking up each image.
        listed: dict[str, set[str]] = {}
        present, missing = [], []
        for image in images:
            folder, name = os.path.split(image["file_name"])
            if folder not in listed:
                listed[folder] = _files_of(self.image_root / folder)
            # The look-up is for case-insensitive file systems.
            found = name in listed[folder] or _is_file(os.path.join(self.image_root, image["file_name"]))
            (present if found else missing).append(image)
        self.add("missing_images", [i["id"] for i in missing], [i["file_name"] for i in missing])
        return present

    def check_sizes(self) -> np.ndarray:
        """Report images without a size in the file; return (w, h) of all, [num_images, 2], NaN if missing."""
        sizes, valid = _numbers([[image["width"], image["height"]] for image in self.images], 2)
        valid &= np.isfinite(sizes).all(axis=1) & (sizes > 0).all(axis=1)
        bad = [self.images[i] for i in np.flatnonzero(~valid)]
        self.add(
            "invalid_image_sizes", [i["id"] for i in bad], [f"{show(i['width'])} x {show(i['height'])}" for i in bad]
        )
        sizes[~valid] = np.nan
        return sizes

    def check_annotations(self, sizes: np.ndarray) -> None:
        annotations = self.annotations
        index = {image["id"]: i for i, image in enumerate(self.images)}
        image_ids_of, categories_of = _values(annotations, "image_id"), _values(annotations, "category_id")
        image_of = np.array([index.get(i, -1) for i in image_ids_of], dtype=np.int64)

        # Ids of records that are invalid for another reason still count as known.
        image_ids = _ids(self.content["images"])
        unknown = [i for i in np.flatnonzero(image_of < 0) if annotations[i]["image_id"] not in image_ids]
        self.report("unknown_images", unknown, lambda a: f"image_id {show(a['image_id'])}")
        category_ids = _ids(self.content["categories"])
        unknown = [i for i, c in enumerate(categories_of) if c not in category_ids]
        self.report("unknown_categories", unknown, lambda a: f"category_id {show(a['category_id'])}")

        # Comparisons with NaN are false, so a box of an unknown image, or of one without a size, is not reported again.
        limits = np.full((len(annotations), 2), np.nan)
        limits[image_of >= 0] = sizes[image_of[image_of >= 0]]
        boxes, areas = self.check_boxes(limits)
        crowd = np.array(_values(annotations, "iscrowd"), dtype=bool)
        kinds = self.check_segmentations(limits, crowd, boxes)
        visible = self.check_keypoints(crowd)
        columns = Columns(
            boxes=boxes,
            areas=areas,
            crowd=crowd,
            ignored=self.check_ignored(),
            image=image_of,
            category=categories_of,
            segmentation=kinds,
            visible=visible,
            sizes=sizes,
        )
        self.check_usage(columns)

        self.add("annotation_id_zero", [0] if 0 in _values(annotations, "id") else [])
        used_images = set(image_ids_of)
        idle = [image for image in self.images if image["id"] not in used_images]
        self.add("images_without_annotations", [i["id"] for i in idle], [i["file_name"] for i in idle])
        used = set(categories_of)
        idle = [category for category in self.categories if category["id"] not in used]
        self.add("categories_without_annotations", [c["id"] for c in idle], [c["name"] for c in idle])

    def report(self, kind: str, bad: Iterable[int], describe: Callable[[dict[str, Any]], str]) -> None:
        """Report annotations by their index in the list."""
        bad = list(bad)
        self.add(kind, [self.annotations[i]["id"] for i in bad], [describe(self.annotations[i]) for i in bad])

    def check_boxes(self, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Report what is wrong with boxes, each under one kind, and areas; return [N, 4] and [N]."""
        boxes, valid = _numbers(_values(self.annotations, "bbox"), 4)

        images = {image["id"]: image for image in self.images}

        def with_image(annotation: dict[str, Any]) -> str:
            i = images[annotation["image_id"]]
            return f"bbox {show(annotation['bbox'])} in {show(i['width'])}x{show(i['height'])} of image {i['id']}"

        def bbox(annotation: dict[str, Any]) -> str:
            return f"bbox {show(annotation['bbox'])}"

        self.report("invalid_boxes", np.flatnonzero(~valid), bbox)
        # `not >` instead of `<=`: NaN fails every comparison.
        empty = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1))
        self.report("empty_boxes", np.flatnonzero(valid & empty), bbox)
        sound = valid & ~empty
        ends = boxes[:, :2] + boxes[:, 2:]
        small = sound & (boxes[:, 2:] < 1).any(axis=1)
        in_unit = sound & (boxes >= 0).all(axis=1) & (ends <= 1).all(axis=1) & ~(limits <= 2).all(axis=1)
        # A single such box may be correct; if they are at least half, a conversion to pixels was forgotten.
        if not (small & in_unit).any() or 2 * in_unit.sum() < sound.sum():
            in_unit[:] = False
        self.report("normalized_boxes", np.flatnonzero(in_unit), bbox)
        self.report("small_boxes", np.flatnonzero(small & ~in_unit), bbox)
        outside = (boxes[:, :2] < -_TOLERANCE) | (ends > limits + _TOLERANCE)
        outside = np.flatnonzero(outside.any(axis=1) & sound & ~np.isnan(limits).any(axis=1))
        self.report("boxes_outside", outside, with_image)

        areas = _column(_values(self.annotations, "area"))
        usable = (areas > 0) & (areas < _LARGEST)
        self.report("invalid_areas", np.flatnonzero(~usable & sound), lambda a: f"area {show(a['area'])}")
        return boxes, areas

    def check_ignored(self) -> np.ndarray:
        if not any(map(contains, self.annotations, repeat("ignore"))):
            return np.zeros(len(self.annotations), dtype=bool)
        values = [a.get("ignore", 0) for a in self.annotations]
        bad = [i for i, value in enumerate(values) if value != 0]
        self.report("ignored_annotations", bad, lambda a: f'"ignore": {show(a["ignore"])}')
        return np.array([bool(value) for value in values], dtype=bool)

    def check_segmentations(self, limits: np.ndarray, crowd: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        values = _values(self.annotations, "segmentation")
        kinds, problems = classify(values, limits, truth_values=self.truth_values)

        def report(kind: str, applies: np.ndarray) -> None:
            rows = np.flatnonzero(applies).tolist()
            self.add(kind, [self.annotations[i]["id"] for i in rows], [problems.get(i, "") for i in rows])

        report("invalid_segmentations", kinds == Segmentation.MALFORMED)
        if any(reading.framework == "Detectron2" or reading.masks for reading in self.readings):
            report("invalid_polygons", kinds == Segmentation.NO_POLYGON)
        for reading in self.readings:
            if reading.masks and reading.training:
                # MMDetection also needs the masks of crowds.
                read = np.ones_like(crowd) if reading.framework == "MMDetection" else ~crowd
                report("missing_segmentations", read & (kinds == Segmentation.NONE))
            if reading.masks == "polygon" and reading.training:
                report("rle_segmentations", ~crowd & (kinds == Segmentation.RLE))
        if any(reading.masks for reading in self.readings):
            self.check_extents(polygon_extents(values, kinds), limits, boxes)
        return kinds

    def check_extents(self, extents: np.ndarray, limits: np.ndarray, boxes: np.ndarray) -> None:
        """Report polygons, [N, 4] by their corners, that do not overlap their box or are far outside their image."""
        low, high = extents[:, :2], extents[:, 2:]
        apart = (low > boxes[:, :2] + boxes[:, 2:] + _TOLERANCE) | (high < boxes[:, :2] - _TOLERANCE)
        # Tiny polygons may be coordinates in 0..1. Drawing polygons far outside needs a lot of memory, or crashes.
        tiny = (high - low < 1).all(axis=1) & (boxes[:, 2:] >= 2).all(axis=1)
        far = (low < -limits) | (high > 2 * limits)
        bad = np.flatnonzero(apart.any(axis=1) | tiny | far.any(axis=1))
        corners = [f"from {show(extents[i, :2].tolist())} to {show(extents[i, 2:].tolist())}" for i in bad]
        details = [f"{where}, bbox {show(self.annotations[i]['bbox'])}" for i, where in zip(bad, corners)]
        self.add("misplaced_polygons", [self.annotations[i]["id"] for i in bad], details)

    def check_keypoints(self, crowd: np.ndarray) -> np.ndarray:
        values = _values(self.annotations, "keypoints")
        numbers = [r.num_keypoints for r in self.readings if r.num_keypoints]
        none = np.zeros(len(values), dtype=np.int64)
        if not numbers and values.count(None) == len(values):
            return none
        points = {c["id"]: len(c["keypoints"]) for c in self.categories if type(c.get("keypoints")) is list}
        expected = [numbers[0] if numbers else points.get(a["category_id"]) for a in self.annotations]
        problems = keypoint_problems(values, expected)
        self.add("invalid_keypoints", [self.annotations[i]["id"] for i in problems], problems.values())
        if numbers and self.training:
            lacking = [i for i, value in enumerate(values) if not value and not crowd[i]]
            self.add("missing_keypoints", [self.annotations[i]["id"] for i in lacking])
        if numbers:  # pycocotools reads it from each annotation in evaluation
            counted = _values(self.annotations, "num_keypoints")
            self.report("missing_keys", [i for i, n in enumerate(counted) if n is None], lambda a: "no num_keypoints")
        return none if problems else visible_keypoints(values)

    def check_usage(self, columns: Columns) -> None:
        categories = {category["id"]: category["name"] for category in self.categories}
        for reading in self.readings:
            if reading.training:
                found = usage(columns, reading, categories)
                self.usage.append(found)
                if not found.boxes and len(self.annotations):
                    self.add("nothing_left", [reading.framework], [found.text()])

    def check_headers(self, present: list[dict[str, Any]]) -> None:
        paths = [self.image_root / image["file_name"] for image in present]
        with ThreadPoolExecutor() as pool:
            results = list(
                tqdm(
                    pool.map(_header, paths),
                    total=len(paths),
                    desc="image headers",
                    unit="image",
                    leave=False,
                    disable=None,
                )
            )
        read = [(image, result) for image, result in zip(present, results) if not isinstance(result, str)]
        unreadable = {i["id"]: f"{i['file_name']}: {r}" for i, r in zip(present, results) if isinstance(r, str)}
        self.add("unreadable_images", unreadable, unreadable.values())
        differs = {
            i["id"]: f"{i['file_name']}: {w}x{h}, file says {show(i['width'])}x{show(i['height'])}"
            for i, (w, h, _) in read
            if (w, h) != (i["width"], i["height"])
        }
        self.add("image_size_differs", differs, differs.values())
        if any(reading.framework == "Detectron2" for reading in self.readings):
            deep = {i["id"]: f"{i['file_name']}: Pillow's mode {mode}" for i, (*_, mode) in read if mode[0] in "IF"}
            self.add("deep_images", deep, deep.values())


def _values(records: list[Any], key: str) -> list[Any]:
    """Return an entry of each record, None if missing."""
    try:
        return list(map(itemgetter(key), records))  # three times as fast
    except (KeyError, TypeError):
        return [record.get(key) if type(record) is dict else None for record in records]


def _label(name: str, position: int, record: dict[str, Any]) -> Hashable:
    """Return the record's id, or its position if the id is invalid."""
    record_id = record.get("id")
    return record_id if type(record_id) in (int, str) else f"{name}[{position}]"


def _ids(records: list[Any]) -> set[int | str]:
    return {r["id"] for r in records if type(r) is dict and type(r.get("id")) in (int, str)}


def _in_range(key: str, values: list[Any]) -> bool:
    """Return whether entries of the right types have valid values."""
    if key == "iscrowd":
        return set(values) <= {0, 1}
    if key == "name":  # it is written to logs and files
        return all(map(is_text, values))
    if key.endswith("id"):
        numbers = [value for value in values if type(value) is int]
        return min(numbers, default=0) >= -(2**63) and max(numbers, default=0) < 2**63
    return True


def _files_of(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # missing, or an invalid file name
        return set()


def _is_file(path: str) -> bool:
    """Return whether frameworks can open a path exactly as written: `Path` would drop the slash of "1.jpg/"."""
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):  # an invalid file name: too long, or with a NUL
        return False


def _numbers(rows: list[Any], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Convert rows of numbers from JSON.

    Returns:
        Float64 [len(rows), length] with NaN in rows that are not `length` numbers, and bool [len(rows)], True where
        they are. NaN and infinities, which Python reads in JSON, are numbers.
    """
    alike = set(map(type, rows)) <= {list} and set(map(len, rows)) <= {length}
    if alike and set(map(type, chain.from_iterable(rows))) <= {int, float}:
        try:
            table = np.fromiter(chain.from_iterable(rows), dtype=np.float64, count=length * len(rows))
            return table.reshape(-1, length), np.ones(len(rows), dtype=bool)
        except OverflowError:  # an integer beyond the range of floats
            pass
    # Some row is invalid: convert row by row.
    table = np.full((len(rows), length), np.nan)
    valid = np.zeros(len(rows), dtype=bool)
    for i, row in enumerate(rows):
        if isinstance(row, list) and len(row) == length and all(type(v) in (int, float) for v in row):
            try:
                table[i] = row
            except OverflowError:
                continue
            valid[i] = True
    return table, valid


def _column(values: list[float]) -> np.ndarray:
    """Return numbers as float64 [N], clipped to its range."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([max(min(v, _LARGEST), -_LARGEST) if type(v) is int else v for v in values], dtype=np.float64)


def _header(path: Path) -> tuple[int, int, str] | str:
    """Return width and height after EXIF orientation and Pillow's mode of an image, or why it cannot be opened."""
    try:
        return header(path)
    except DataError as error:
        return str(error)
