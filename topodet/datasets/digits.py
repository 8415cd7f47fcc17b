"""Small datasets of real handwritten digits, for classification and for detection, without a download.

Both are drawn from the 1797 scans of 8x8 pixels that come with scikit-learn. `split_digits` divides the scans once; the
classification folders and the detection scenes use the same division for any seed, so a network pretrained on the
folders and tested on the val scenes has not seen any val scan.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from topodet.errors import ConfigError, DataError
from topodet.parse import read_json

if TYPE_CHECKING:
    from PIL import Image

# Increase with every change to how images are drawn, so that older folders are not reused.
_FORMAT = 1
_SETTINGS = "settings.json"
_MAX_ROTATION = 15.0  # degrees
# How much darker (in luminance, 0..255) a digit's ink is than the mean of the background under it. The clutter stays
# within about half of that, so that ink is the strongest edge of a scene. Ink is always darker than the background:
# on the default folders, toponet_nano classifies 88 % of the val digits correctly after 16 epochs; if light ink on a
# dark background is included, 81 % after 25.
_CONTRAST = (100.0, 170.0)
# Largest share of the smaller of two digits' boxes that may lie in the other. It implies IoU <= 0.15 / 1.85 < 0.1 and,
# unlike a bound on IoU, it also forbids a small digit inside the hole of a large 0.
_MAX_OVERLAP = 0.15
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the scans ([1797, 8, 8] float32, ink 0..1) and their classes ([1797] int64)."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DataError(
            f"the handwritten digits come with scikit-learn, which cannot be imported ({error}): "
            'pip install "topodet[test]"'
        ) from error
    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)


def split_digits(seed: int = 0, val_share: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Divide scikit-learn's digits, class by class, into two disjoint sets.

    Args:
        seed: seed of the shuffle; the same seed gives the same sets.
        val_share: share of each class that goes to val, between 0 and 1, rounded to whole samples.

    Returns:
        Sorted int64 indices into `load_digits()` of the train and of the val samples, together all 1797.

    Raises:
        ConfigError: `val_share` is not between 0 and 1.
        DataError: scikit-learn is not installed.
    """
    if not 0 < val_share < 1:
        raise ConfigError(f"val_share is {val_share!r}: give a share between 0 and 1, such as 0.25")
    _, classes = _digits()
    rng = np.random.default_rng(seed)
    train, val = [], []
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(classes == digit))
        num_val = round(len(members) * val_share)
        val.append(members[:num_val])
        train.append(members[num_val:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


class Digits:
    """scikit-learn's digits as tensors, divided by `split_digits`.

    Attributes:
        train, val: images, float32 [N, 8, 8] in [0, 1], and classes, int64 [N].
        description: description of the data.

    Raises:
        DataError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        import torch  # not needed for the datasets on disk

        images, classes = map(torch.from_numpy, _digits())
        parts = split_digits()
        self.train, self.val = ((images[part], classes[part]) for part in map(torch.from_numpy, parts))
        self.description = "scikit-learn's digits of 8 x 8, {:,} train and {} val images".format(*map(len, parts))


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a light, cluttered background, [height, width, 3] float32 in 0..255.

    A gradient, blobs, boxes, lines and noise. Their luminance stays near that of the gradient, so that ink can always
    be clearly darker than the clutter.
    """
    from PIL import Image, ImageDraw, ImageFilter

    level = rng.uniform(160, 230)

    def colour(spread: float) -> tuple[int, ...]:
        return tuple(np.rint(_colour(rng, float(np.clip(level + rng.uniform(-spread, spread), 0, 255)))).astype(int))

    angle = rng.uniform(0, 2 * math.pi)
    ramp = np.linspace(0, math.cos(angle), width)[None, :] + np.linspace(0, math.sin(angle), height)[:, None]
    ramp = ((ramp - ramp.min()) / (ramp.max() - ramp.min()))[..., None].astype(np.float32)
    first, last = (np.asarray(colour(25), dtype=np.float32) for _ in range(2))
    image = Image.fromarray((first + (last - first) * ramp).astype(np.uint8))

    # Everything is drawn on one layer that is blended over the gradient, with an opacity for each object.
    layer, opacity = image.copy(), Image.new("L", (width, height), 0)
    draw, draw_opacity = ImageDraw.Draw(layer), ImageDraw.Draw(opacity)
    side = min(width, height)
    for _ in range(rng.integers(4, 12)):
        fill, strength = colour(50), int(rng.integers(70, 200))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        kind = rng.integers(3)
        if kind == 2:
            # Lines are long: a short stroke would look like a one.
            turn, length = rng.uniform(0, math.pi), rng.uniform(0.6, 1.4) * side
            dx, dy = length * math.cos(turn) / 2, length * math.sin(turn) / 2
            thickness = int(rng.integers(1, max(2, side // 48) + 1))
            ends = [(x - dx, y - dy), (x + dx, y + dy)]
            draw.line(ends, fill=fill, width=thickness)
            draw_opacity.line(ends, fill=strength, width=thickness)
        else:
            half_w, half_h = rng.uniform(0.03, 0.2, size=2) * side
            corners = [x - half_w, y - half_h, x + half_w, y + half_h]
            for canvas, value in ((draw, fill), (draw_opacity, strength)):
                (canvas.ellipse if kind == 0 else canvas.rectangle)(corners, fill=value)
    opacity = opacity.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    image = np.asarray(Image.composite(layer, image, opacity), dtype=np.float32)
    noise = rng.standard_normal((height, width, 3), dtype=np.float32) * rng.uniform(2, 7)
    return np.clip(image + noise, 0, 255)


def _colour(rng: np.random.Generator, luminance: float) -> np.ndarray:
    """Return an RGB color ([3] float32, 0..255) of random hue with exactly the given luminance."""
    colour = np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.9), 1.0), dtype=np.float32) * 255
    own = float(colour @ _LUMINANCE)
    if luminance <= own:
        return colour * (luminance / own)
    return colour + (255 - colour) * ((luminance - own) / (255 - own))


def _ink(scan: np.ndarray, side: int, angle: float) -> np.ndarray:
    """Enlarge a scan ([8, 8], 0..1) to `side` pixels, rotate it and crop it to its ink.

    Returns:
        Opacity of the ink, [h, w] float32 in 0..1, with a value of at least 0.5 in each border row and column.
    """
    from PIL import Image

    # The padding gives strokes at the border of the scan a soft outer edge like all others.
    padded = Image.fromarray(np.pad(scan, 1))
    large = padded.resize((round(side * 10 / 8),) * 2, Image.Resampling.BICUBIC)
    values = np.asarray(large.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    # A steep ramp: enlarged eleven times, the scan's gray levels alone would be a blur without an edge for the box.
    opacity = np.clip((values - 0.37) / 0.24, 0, 1)
    box = _tight(opacity >= 0.5)
    return opacity[box]


def _tight(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns that the true pixels of `mask` span."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _paint(rng: np.random.Generator, canvas: np.ndarray, opacity: np.ndarray, x: int, y: int) -> None:
    """Paint ink of a random dark color onto `canvas` ([H, W, 3], changed in place) top left corner at x, y."""
    h, w = opacity.shape
    patch = canvas[y : y + h, x : x + w]
    under = float((patch @ _LUMINANCE)[opacity >= 0.5].mean())
    patch += opacity[..., None] * (_colour(rng, max(under - rng.uniform(*_CONTRAST), 0.0)) - patch)


def _to_image(canvas: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.rint(canvas).astype(np.uint8))


@contextmanager
def _written_once(root: Path, settings: dict[str, Any]) -> Iterator[Path | None]:
    """Yield a new folder beside `root`, which is renamed to `root` at the end; None if `root` already exists.

    Raises:
        DataError: `root` contains something else, or the same kind of set written with other settings.
    """
    if root.is_dir() and any(root.iterdir()):
        try:
            found = read_json(root / _SETTINGS)
        except DataError:
            raise DataError(
                f"{root} exists but contains no {_SETTINGS} of a digit set: choose another folder, or remove it"
            ) from None
        if not isinstance(found, dict):
            found = {}
        if found != settings:
            keys = sorted(k for k in settings.keys() | found.keys() if settings.get(k) != found.get(k))
            told = "; ".join(f"{k} is {found.get(k)!r}, not {settings.get(k)!r}" for k in keys)
            raise DataError(f"{root} was written with other settings ({told}): choose another folder, or remove it")
        yield None
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    partial.mkdir()
    try:
        yield partial
        (partial / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
        if root.is_dir():
            root.rmdir()  # it is empty
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_digit_folders(root: str | Path, size: int = 32, seed: int = 0, copies: int = 3) -> Path:
    """Write the digits as an ImageFolder tree, `root/{train,val}/{0..9}/*.png`, for pretraining.

    Each image is one scan, slightly rotated and shifted, on a piece of the detection scenes' backgrounds.

    Args:
        root: folder to create. If it exists with the same settings, nothing is written.
        size: width and height of the images in pixels, at least 16.
        seed: seed of the drawing. The split into train and val scans does not depend on it (see `split_digits`).
        copies: images of each train scan, each on a different background; 3 make about 4000. A val scan has one.

    Returns:
        `root`.

    Raises:
        ConfigError: `size` below 16 or `copies` below 1.
        DataError: `root` contains something else, or scikit-learn is not installed.
    """
    if size < 16 or copies < 1:
        raise ConfigError(f"size is {size} and copies is {copies}: give at least 16 pixels and 1 copy")
    root = Path(root)
    settings = {"kind": "digit folders", "format": _FORMAT, "size": size, "seed": seed, "copies": copies}
    with _written_once(root, settings) as folder:
        if folder is None:
            return root
        scans, classes = _digits()
        for split, (name, samples) in enumerate(zip(("train", "val"), split_digits())):
            rng = np.random.default_rng([seed, split])
            for digit in range(10):
                (folder / name / str(digit)).mkdir(parents=True)
            for copy in range(copies if name == "train" else 1):
                for i, sample in enumerate(
                    tqdm(samples, desc=f"{name} digits", unit="image", leave=False, disable=None)
                ):
                    if i % 16 == 0:  # one large background is used for several images
                        scene = _background(rng, 8 * size, 8 * size)
                    top, left = rng.integers(0, 7 * size, size=2)
                    canvas = scene[top : top + size, left : left + size].copy()
                    side = round(size * rng.uniform(0.55, 0.8))  # at most 0.98 of the image when rotated by 15 degrees
                    ink = _ink(scans[sample], side, rng.uniform(-_MAX_ROTATION, _MAX_ROTATION))
                    x, y = (int(rng.integers(0, size - n + 1)) for n in ink.shape[::-1])
                    _paint(rng, canvas, ink, x, y)
                    _to_image(canvas).save(folder / name / str(classes[sample]) / f"{sample:04d}_{copy}.png")
    return root


def write_digit_scenes(
    root: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    size: tuple[int, int] = (256, 256),
    digits_per_scene: tuple[int, int] = (2, 6),
    digit_px: tuple[int, int] = (24, 88),
    seed: int = 0,
) -> Path:
    """Write a detection dataset in COCO format: digits of varied size, color and rotation on cluttered backgrounds.

    `root/{train,val}.json` describe `root/{train,val}/*.jpg`. Categories 1..10 are named '0'..'9'. A box is the extent
    of a digit's ink; digits do not touch, and their boxes overlap by less than IoU 0.1. Train and val scenes show
    disjoint scans; an annotation's `sample` is the index of its scan in `load_digits()`.

    Args:
        root: folder to create. If it exists with the same settings, nothing is written.
        num_train, num_val: number of scenes.
        size: width and height of a scene in pixels.
        digits_per_scene: fewest and most digits of a scene.
        digit_px: smallest and largest side in pixels of an (upright) scan; small ones are more frequent.
        seed: seed of the drawing. The split into train and val scans does not depend on it (see `split_digits`).

    Returns:
        `root`.

    Raises:
        ConfigError: a range is empty or the digits do not fit in a scene.
        DataError: `root` contains something else, or scikit-learn is not installed.
    """
    width, height = size
    if num_train < 1 or num_val < 1:
        raise ConfigError(f"num_train is {num_train} and num_val is {num_val}: give at least one scene each")
    if not 1 <= digits_per_scene[0] <= digits_per_scene[1]:
        raise ConfigError(f"digits_per_scene is {digits_per_scene}: give (fewest, most) with 1 <= fewest <= most")
    if not 12 <= digit_px[0] <= digit_px[1] or 1.25 * digit_px[1] > min(size):
        raise ConfigError(
            f"digit_px is {digit_px} in scenes of {width}x{height}: give (smallest, largest) with 12 <= smallest <= "
            f"largest, the largest (turned) fitting in the scene: at most {int(min(size) / 1.25)}"
        )
    root = Path(root)
    settings = {
        "kind": "digit scenes",
        "format": _FORMAT,
        "num_train": num_train,
        "num_val": num_val,
        "size": list(size),
        "digits_per_scene": list(digits_per_scene),
        "digit_px": list(digit_px),
        "seed": seed,
    }
    with _written_once(root, settings) as folder:
        if folder is None:
            return root
        scans, classes = _digits()
        for split, (name, samples, number) in enumerate(zip(("train", "val"), split_digits(), (num_train, num_val))):
            (folder / name).mkdir()
            by_class = [samples[classes[samples] == digit] for digit in range(10)]
            rng = np.random.default_rng([seed, 2 + split])
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for image_id in tqdm(range(1, number + 1), desc=f"{name} scenes", unit="image", leave=False, disable=None):
                canvas = _background(rng, width, height)
                for digit, sample, box in _place_digits(rng, canvas, scans, by_class, digits_per_scene, digit_px):
                    annotations.append(_annotation(len(annotations) + 1, image_id, digit, sample, box))
                file_name = f"{image_id:06d}.jpg"
                _to_image(canvas).save(folder / name / file_name, quality=90)
                images.append({"id": image_id, "file_name": file_name, "width": width, "height": height, "license": 1})
            content = {
                "info": {
                    "description": f"Scenes of digits from UCI Optical Recognition of Handwritten Digits, {name}",
                    "version": str(_FORMAT),
                },
                "licenses": [{"id": 1, "name": "CC BY 4.0", "url": "https://creativecommons.org/licenses/by/4.0/"}],
                "images": images,
                "annotations": annotations,
                "categories": [{"id": d + 1, "name": str(d), "supercategory": "digit"} for d in range(10)],
            }
            (folder / f"{name}.json").write_text(json.dumps(content))
    return root


def _place_digits(
    rng: np.random.Generator,
    canvas: np.ndarray,
    scans: np.ndarray,
    by_class: list[np.ndarray],
    digits_per_scene: tuple[int, int],
    digit_px: tuple[int, int],
) -> list[tuple[int, int, tuple[int, int, int, int]]]:
    """Paint digits onto `canvas` ([H, W, 3], changed in place); return the digit, scan and box (x, y, w, h) of each."""
    height, width = canvas.shape[:2]
    taken = np.zeros((height, width), dtype=bool)
    placed: list[tuple[int, int, tuple[int, int, int, int]]] = []
    for _ in range(rng.integers(digits_per_scene[0], digits_per_scene[1] + 1)):
        digit = int(rng.integers(10))
        sample = int(rng.choice(by_class[digit]))
        side = math.exp(rng.uniform(math.log(digit_px[0]), math.log(digit_px[1])))
        angle = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION)
        for _ in range(200):
            ink = _ink(scans[sample], round(side), angle)
            h, w = ink.shape
            x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            free = not (taken[y : y + h, x : x + w] & (ink > 0)).any()
            if free and all(_overlap((x, y, w, h), box) <= _MAX_OVERLAP for *_, box in placed):
                _paint(rng, canvas, ink, x, y)
                taken[y : y + h, x : x + w] |= ink > 0
                placed.append((digit, sample, (x, y, w, h)))
                break
            side = max(digit_px[0], 0.97 * side)  # a smaller digit may still fit into a crowded scene
        else:
            if len(placed) < digits_per_scene[0]:
                raise ConfigError(
                    f"a scene of {width}x{height} has no room for {digits_per_scene[0]} digits of {digit_px[0]} "
                    "pixels: make size larger, or digits_per_scene or digit_px smaller"
                )
            break
    return placed


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Return the intersection of two boxes (x, y, w, h) as a share of the smaller one."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / min(a[2] * a[3], b[2] * b[3])


def _annotation(
    annotation_id: int, image_id: int, digit: int, sample: int, box: tuple[int, int, int, int]
) -> dict[str, Any]:
    x, y, w, h = box
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": digit + 1,
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        "sample": sample,
    }
