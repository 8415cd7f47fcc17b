"""Pascal VOC's XML files as annotations in COCO format."""

from __future__ import annotations

import math
import os
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from ..errors import ConfigError, DataError
from ..files import atomic_json
from .coco import CocoReport, check_coco
from .images import SUFFIXES

_SHOWN = 5


def voc_to_coco(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    output: str | os.PathLike,
    *,
    split: float = 0.8,
    train_names: Collection[str] | None = None,
    seed: int = 0,
    zero_based: bool = False,
    allow: Collection[str] = (),
) -> tuple[CocoReport, CocoReport]:
    """Write train.json and val.json in COCO format from a folder of Pascal VOC's XML files, and check them.

    An XML file belongs to the image with the same name before the suffix. Categories are in alphabetical order. An
    object marked `difficult` becomes a crowd region (`iscrowd` 1), which is neither learned nor counted as missed.
    Objects within objects (`part`) are left out.

    Args:
        annotations: folder of the XML files.
        images: folder of the images; they stay where they are.
        output: folder to write to.
        split: share of the images to train on, drawn at random, in 0..1.
        train_names: names to train on, without suffix, instead of `split`; the others are for evaluation.
        seed: seed of the random split.
        zero_based: corner coordinates start at 0, as from some labeling tools, instead of VOC's pixels, which start at
            1 and are inclusive on both sides.
        allow: kinds of problem that are not errors, see `check_coco`.

    Returns:
        the results of `check_coco` for both files.

    Raises:
        ConfigError: a share that leaves nothing to train on or to evaluate, or missing names.
        DataError: no XML files, files that cannot be read as VOC's (all of them are named), or without an image.
    """
    annotations, images, output = Path(annotations), Path(images), Path(output)
    files = sorted(annotations.glob("*.xml"))
    if not files:
        raise DataError(f"no .xml files in {annotations}; give the folder with VOC's annotations")
    found = _images(images)
    records: dict[str, dict[str, Any]] = {}
    problems = []
    for path in files:
        try:
            records[path.stem] = {"file_name": _image_of(path, found, images), **_read(path, zero_based)}
        except DataError as error:
            problems.append(f"{path.name}: {error}")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(f"{len(problems)} of {len(files)} files in {annotations}: {'; '.join(problems[:_SHOWN])}{more}")
    chosen = _chosen(sorted(records), split, train_names, seed)
    names = sorted({name for record in records.values() for name, _, _ in record["objects"]})
    reports = []
    for part, stems in (("train", chosen), ("val", [stem for stem in sorted(records) if stem not in set(chosen)])):
        path = atomic_json(output / f"{part}.json", _content([records[stem] for stem in stems], names))
        reports.append(check_coco(path, images, allow=allow))
    return reports[0], reports[1]


def _images(folder: Path) -> dict[str, str]:
    """Return the file name of each image by its stem."""
    if not folder.is_dir():
        raise DataError(f"no image folder at {folder}")
    return {path.stem: path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def _image_of(path: Path, found: dict[str, str], folder: Path) -> str:
    if path.stem not in found:
        raise DataError(f"no image {path.stem} with one of {', '.join(SUFFIXES)} in {folder}")
    return found[path.stem]


def _read(path: Path, zero_based: bool) -> dict[str, Any]:
    """Return size and objects (name, box as x, y, width, height, difficult) of an XML file.

    Raises:
        DataError: it is not VOC's.
    """
    root = _parse(path.read_bytes())
    size = [_number(root, f"size/{key}") for key in ("width", "height")]
    objects = []
    for record in root.findall("object"):
        name = (record.findtext("name") or "").strip()
        if not name:
            raise DataError("an object without a name")
        left, top, right, bottom = (_number(record, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
        box = [left, top, right - left, bottom - top] if zero_based else _from_pixels(left, top, right, bottom)
        objects.append((name, box, (record.findtext("difficult") or "").strip() == "1"))
    return {"width": round(size[0]), "height": round(size[1]), "objects": objects}


def _from_pixels(left: float, top: float, right: float, bottom: float) -> list[float]:
    """Return the box of VOC's corners, which are the first and the last pixel, counted from 1."""
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]


def _parse(content: bytes) -> ElementTree.Element:
    """Return the root of an XML file without a document type, whose entities could expand or refer to other files."""

    def refuse(*args: Any) -> None:
        raise DataError("it declares a document type, which VOC's files do not have; refused")

    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = refuse
    try:
        guard.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not XML: {error}") from error


def _number(record: ElementTree.Element, name: str) -> float:
    text = (record.findtext(name) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{name} is {text!r}, not a number")
    return int(value) if value.is_integer() else value


def _chosen(stems: Sequence[str], split: float, names: Collection[str] | None, seed: int) -> list[str]:
    """Return the names to train on, in order."""
    if names is not None:
        unknown = sorted(set(names) - set(stems))
        if unknown:
            raise ConfigError(
                f"--train-list has {len(unknown)} names without an XML file: {', '.join(unknown[:_SHOWN])}"
            )
        chosen = set(names)
    else:
        if not 0 < split < 1:
            raise ConfigError(f"--split {split} must be between 0 and 1, e.g. 0.8")
        chosen = set(random.Random(seed).sample(stems, round(split * len(stems))))
    if not 0 < len(chosen) < len(stems):
        raise ConfigError(f"{len(chosen)} of {len(stems)} images to train on leave train or val empty")
    return [stem for stem in stems if stem in chosen]


def _content(records: Iterable[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    images, annotations = [], []
    for number, record in enumerate(records, 1):
        images.append({"id": number, **{key: record[key] for key in ("file_name", "width", "height")}})
        for name, box, difficult in record["objects"]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.index(name) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(difficult),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}
