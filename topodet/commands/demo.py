"""Draw the detections on images, for Detectron2 and MMDetection.

    topodet demo --weights DETECTOR-hash.pth --input images/ --output drawn/
    topodet demo --weights RUN/model_final.pth --config RUN/config.yaml --classes a b c --input a.jpg ...
    topodet demo --weights RUN/epoch_12.pth --config RUN/CONFIG.py --input a.jpg ...

A published detector (`topodet publish --detector`) contains its framework; a .yaml config is Detectron2's, a .py config
MMDetection's. In addition to the pictures, predictions.json lists the boxes in COCO's result format: [x, y, width,
height] in pixels, with file and class names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from topodet.commands import make_parser
from topodet.commands.detectors import add_config, open_detector
from topodet.errors import ConfigError, DataError

if TYPE_CHECKING:
    from topodet.detections import Detections

LOWEST = 0.05


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    add = made.add_argument
    add("--weights", required=True, help="published detector, or a training checkpoint with --config")
    add_config(made)
    add("--input", type=Path, nargs="+", required=True, help="images, or folders of images")
    add("--output", type=Path, required=True, help="folder for the pictures and predictions.json")
    add("--score-threshold", type=float, default=0.5, help="lowest score to draw (default: %(default)s)")
    return made


def main(words: Sequence[str]) -> int:
    """Draw every image; return the exit status, 1 if some image could not be read."""
    args = parser().parse_args(words)
    from tqdm import tqdm

    from topodet.datasets.images import read_image, write_image
    from topodet.files import atomic_json

    if not 0 <= args.score_threshold <= 1:
        raise ConfigError(f"--score-threshold {args.score_threshold} must lie in 0..1")
    images = find_images(args.input, args.output)
    # Both frameworks drop detections below LOWEST by default.
    options = {"score_threshold": args.score_threshold} if args.score_threshold < LOWEST else {}
    framework, detector = open_detector(args, args.weights, draws=True, **options)
    classes = framework.class_names(detector)
    content = {"bbox": "x, y, width, height in pixels", "classes": classes, "images": [], "predictions": []}
    failed, highest = 0, 0.0
    for path, drawn in tqdm(images.items(), unit="image", disable=None):
        try:
            image = read_image(path)
        except DataError as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        everything = framework.predict(detector, image, score_threshold=0)
        highest = max([highest, *everything.scores.tolist()])
        found = everything.above(args.score_threshold)
        write_image(framework.draw(detector, image, found), drawn)
        number = len(content["images"])
        height, width = image.shape[:2]
        content["images"].append({"id": number, "file_name": str(path), "width": width, "height": height})
        content["predictions"] += predictions(found, number, path, classes)
    path = atomic_json(args.output / "predictions.json", content)
    print(f"{len(content['images'])} images, {len(content['predictions'])} boxes: {path}")
    if content["images"] and not content["predictions"]:
        print(f"no score reaches --score-threshold {args.score_threshold:g}; the highest is {highest:.3f}")
    if failed:
        print(f"error: {failed} of {len(images)} images could not be read; see the errors above", file=sys.stderr)
    return 1 if failed else 0


def find_images(inputs: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Return the images of files and folders (with their subfolders), and where each is drawn.

    Raises:
        DataError: a missing file or folder, a file that is not an image by its name, or two with the same output path.
    """
    from topodet.datasets import images

    places: dict[Path, Path] = {}
    for given in inputs:
        if given.is_dir():
            found = images.find_images(given)
            skipped = found.skipped()
            if skipped:
                print(f"--input {given}: skipped {skipped}", file=sys.stderr)
            if not found.images:
                raise DataError(f"--input {given}: no images in this folder (known: {', '.join(images.SUFFIXES)})")
            pairs = [(path, output / path.relative_to(given)) for path in found.images]
        elif not given.is_file():
            raise DataError(f"--input {given}: no such file or folder (working folder {Path.cwd()})")
        elif given.suffix.lower() not in images.SUFFIXES:
            known = ", ".join(images.SUFFIXES)
            raise DataError(f"--input {given}: unknown kind of image {given.suffix!r}; known: {known}")
        else:
            pairs = [(given, output / given.name)]
        for path, drawn in pairs:
            other = next((p for p, d in places.items() if d == drawn and p != path), None)
            if other:
                raise DataError(f"{other} and {path} would both be drawn to {drawn}; draw them in two runs")
            if drawn.resolve() == path.resolve():
                raise DataError(f"--output {output}: {path} would be overwritten; choose another folder")
            places[path] = drawn
    return places


def predictions(found: Detections, number: int, path: Path, classes: list[str]) -> list[dict]:
    """Return boxes in COCO's result format, with names."""
    rows = []
    for row in found.as_coco(number, range(len(classes))):
        box, score = [round(value, 2) for value in row["bbox"]], round(row["score"], 4)
        names = {"file_name": str(path), "category_name": classes[row["category_id"]]}
        rows.append({**row, "bbox": box, "score": score, **names})
    return rows
