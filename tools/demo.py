#!/usr/bin/env python
"""Draw what a detector finds on images: Detectron2's and MMDetection's through one entry.

    python tools/demo.py --weights DETECTOR-hash.pth --input images/ --output drawn/
    python tools/demo.py --weights RUN/model_final.pth --config RUN/config.yaml --classes a b c --input a.jpg ...
    python tools/demo.py --weights RUN/epoch_12.pth --config RUN/CONFIG.py --input a.jpg ...

The framework is chosen by the file: a published detector (tools/publish_model.py --detector) or a .yaml config is
Detectron2's, a .py config MMDetection's. Beside the pictures, predictions.json lists the boxes as COCO's results do:
[x, y, width, height] in pixels, with file and class names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from topodet import weights
from topodet.datasets.images import SUFFIXES, read_image, write_image
from topodet.errors import ConfigError, DataError, exit_status
from topodet.files import atomic_json
from topodet.frameworks import require_framework


class Found(NamedTuple):
    """What a detector found: boxes [N, 4] (left, top, right, bottom), scores [N], labels [N]; and the drawn image."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    picture: np.ndarray


class Detector(NamedTuple):
    """Class names, and the function from an RGB image [H, W, 3] uint8 to what it shows."""

    classes: list[str]
    find: Callable[[np.ndarray], Found]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="published detector, or a training's checkpoint with --config")
    parser.add_argument("--config", type=Path, help="config of the checkpoint: .yaml (Detectron2), .py (MMDetection)")
    parser.add_argument("--classes", nargs="+", default=[], help="with a .yaml: names, or the COCO annotations .json")
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="images, or folders of images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures and predictions.json")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="(default: %(default)s)")
    parser.add_argument("--device", help="cuda or cpu (default: a GPU where there is one)")
    parser.add_argument(
        "--opts", nargs="+", default=[], help="over the config: KEY VALUE ... or, MMDetection, KEY=VALUE ..."
    )
    args = parser.parse_args(argv)
    return exit_status(demo, args)


def demo(args: argparse.Namespace) -> int:
    """Draw every image; return the exit status, 1 if some image could not be read."""
    if not 0 <= args.score_threshold <= 1:
        raise ConfigError(f"--score-threshold {args.score_threshold} must lie in 0..1")
    images = find_images(args.input, args.output)
    detector = load_detector(args)
    content = {"bbox": "x, y, width, height in pixels", "classes": detector.classes, "images": [], "predictions": []}
    failed = 0
    for path, drawn in tqdm(images.items(), unit="image", disable=None):
        try:
            image = read_image(path)
        except DataError as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        found = detector.find(image)
        write_image(found.picture, drawn)
        number = len(content["images"])
        height, width = image.shape[:2]
        content["images"].append({"id": number, "file_name": str(path), "width": width, "height": height})
        content["predictions"] += predictions(found, number, path, detector.classes)
    path = atomic_json(args.output / "predictions.json", content)
    print(f"{len(content['images'])} images, {len(content['predictions'])} boxes: {path}")
    if failed:
        print(f"error: {failed} of {len(images)} images could not be read; they are named above", file=sys.stderr)
    return 1 if failed else 0


def find_images(inputs: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Return the images of files and folders (with their subfolders), and where each is drawn.

    Raises:
        DataError: nothing there, a file that is no image by its name, or two that would be drawn to one place.
    """
    places: dict[Path, Path] = {}
    for given in inputs:
        if given.is_dir():
            found = [path for path in sorted(given.rglob("*")) if path.suffix.lower() in SUFFIXES]
            if not found:
                raise DataError(f"--input {given}: no images in this folder (known: {', '.join(SUFFIXES)})")
            pairs = [(path, output / path.relative_to(given)) for path in found]
        elif not given.is_file():
            raise DataError(f"--input {given}: no such file or folder (working folder {Path.cwd()})")
        elif given.suffix.lower() not in SUFFIXES:
            raise DataError(f"--input {given}: unknown kind of image {given.suffix!r}; known: {', '.join(SUFFIXES)}")
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


def load_detector(args: argparse.Namespace) -> Detector:
    """Load the detector, by the framework that its file or config is for.

    Raises:
        ConfigError: a framework that is missing, a config of another kind.
        WeightsError: what reading and loading the weights raises.
    """
    suffix = args.config.suffix if args.config else None
    if suffix == ".py":
        if args.config.is_file() and "detectron2" in args.config.read_text():
            raise ConfigError(f"{args.config} is a LazyConfig; give its twin, the .yaml of the same name")
        return mmdet_detector(args)
    if suffix not in (None, ".yaml", ".yml"):
        raise ConfigError(
            f"--config {args.config}: .yaml is for Detectron2, .py for MMDetection; {suffix!r} is neither"
        )
    return detectron2_detector(args)


def detectron2_detector(args: argparse.Namespace) -> Detector:
    require_framework("detectron2")
    require_framework("cv2")
    from topodet.detectron2 import load_config, predictor
    from topodet.detectron2.inference import build_predictor, draw

    options = {"score_threshold": args.score_threshold, "device": args.device, "opts": args.opts}
    if args.config:
        cfg = load_config(args.config)
        predict = build_predictor(cfg, weights.read(args.weights), classes=args.classes, **options)
    else:
        predict = predictor(args.weights, **options)

    def find(image: np.ndarray) -> Found:
        instances = predict(image[:, :, ::-1])["instances"].to("cpu")  # the predictor reads BGR
        boxes, labels = instances.pred_boxes.tensor.numpy(), instances.pred_classes.numpy()
        return Found(boxes, instances.scores.numpy(), labels, draw(image, instances, predict.metadata))

    return Detector(predict.metadata.thing_classes, find)


def mmdet_detector(args: argparse.Namespace) -> Detector:
    require_framework("mmdet")
    from topodet.mmdet.inference import build_detector, draw, predict

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build_detector(args.config, args.weights, device=device, opts=args.opts)

    def find(image: np.ndarray) -> Found:
        result = predict(model, image)
        picture = draw(model, image, result, args.score_threshold)
        instances = result.pred_instances
        instances = instances[instances.scores >= args.score_threshold].numpy()
        return Found(instances.bboxes, instances.scores, instances.labels, picture)

    return Detector(model.dataset_meta["classes"], find)


def predictions(found: Found, number: int, path: Path, classes: list[str]) -> list[dict]:
    """Return boxes as COCO's results have them, with names."""
    rows = []
    for (left, top, right, bottom), score, label in zip(*(a.tolist() for a in found[:3])):
        box = [round(value, 2) for value in (left, top, right - left, bottom - top)]
        names = {"file_name": str(path), "category_name": classes[label]}
        rows.append({"image_id": number, "category_id": label, "bbox": box, "score": round(score, 4), **names})
    return rows


if __name__ == "__main__":
    sys.exit(main())
