"""The datasets of the recipes and studies, made from their public sources."""

from __future__ import annotations

import hashlib
import io
import re
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from topodet.errors import DataError
from topodet.files import atomic_path, atomic_write

TINY_IMAGENET = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
# 75 of the 200 classes of Tiny ImageNet, drawn once at random.
_TINY_IMAGENET75 = (
    "n01774750 n01784675 n01910747 n01917289 n01984695 n02002724 n02056570 n02058221 n02085620 n02099601 n02113799 "
    "n02129165 n02281406 n02364673 n02415577 n02486410 n02730930 n02769748 n02795169 n02814533 n02823428 n02883205 "
    "n02909870 n02950826 n02963159 n03089624 n03126707 n03160309 n03355925 n03388043 n03400231 n03404251 n03424325 "
    "n03447447 n03544143 n03637318 n03649909 n03796401 n03854065 n03891332 n03902125 n03937543 n03980874 n03983396 "
    "n03992509 n04008634 n04074963 n04099969 n04118538 n04133789 n04149813 n04179913 n04251144 n04285008 n04328186 "
    "n04376876 n04398044 n04417672 n04501370 n04532670 n04540053 n04596742 n04597913 n06596364 n07614500 n07615774 "
    "n07711569 n07734744 n07747607 n07749582 n07871810 n07875152 n07920052 n09193705 n09246464 "
)
TINY_IMAGENET75 = _TINY_IMAGENET75.split()
_ROOT = "tiny-imagenet-200"
_NPZ = {"train": "train", "val": "validation"}  # names of the array files in the recipes
_IMAGE = re.compile(r"\w+\.JPEG")


def write_tiny_imagenet(
    archive: str | Path, folder: str | Path, *, classes: Sequence[str] | None = None, arrays: bool = False
) -> dict[str, int]:
    """Write Tiny ImageNet as `folder`/{train,val}/CLASS/*.JPEG, with the exact image files of the archive.

    Args:
        archive: tiny-imagenet-200.zip.
        folder: output folder.
        classes: WordNet ids of the classes to write. Default: all in the archive's wnids.txt, sorted.
        arrays: write train.npz and validation.npz instead, the pixels decoded.

    Returns:
        the number of images of each split.

    Raises:
        DataError: the archive is missing or damaged, or lacks a class.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            if classes is None:
                classes = sorted(file.read(f"{_ROOT}/wnids.txt").decode().split())
            splits = {split: list(_members(file, split, classes)) for split in ("train", "val")}
            for split, members in splits.items():
                missing = set(classes) - {label for label, _ in members}
                if missing:
                    raise DataError(f"{archive} has no {split} images of {', '.join(sorted(missing)[:3])}")
                if arrays:
                    images = (_pixels(file.read(member), member) for _, member in members)
                    labels = [classes.index(label) for label, _ in members]
                    _write_arrays(Path(folder) / f"{_NPZ[split]}.npz", images, labels, classes)
                else:
                    for label, member in members:
                        atomic_write(Path(folder) / split / label / Path(member).name, file.read(member))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive} cannot be read as {_ROOT}.zip: {error}") from error
    return {split: len(members) for split, members in splits.items()}


def write_cifar100(
    folder: str | Path, *, cache: str | Path, size: int = 32, images_per_class: int | None = None
) -> dict[str, int]:
    """Write CIFAR-100 as train.npz and validation.npz, its test set, through torchvision, which checks the download.

    Args:
        folder: output folder.
        cache: folder of torchvision's download.
        size, images_per_class: see `write_part`; all test images are written.

    Returns:
        the number of images of each split.

    Raises:
        DataError: it could not be downloaded, is damaged, or has fewer images of a class.
    """
    from torchvision.datasets import CIFAR100

    counts = {}
    for split in ("train", "val"):
        try:
            found = CIFAR100(cache, train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"CIFAR-100 is not in {cache} and cannot be downloaded: {error}") from error
        each = images_per_class if split == "train" else None
        path = Path(folder) / f"{_NPZ[split]}.npz"
        counts[split] = write_part(path, found.data, found.targets, found.classes, size=size, images_per_class=each)
    return counts


def write_part(
    path: Path,
    images: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    *,
    size: int,
    images_per_class: int | None = None,
) -> int:
    """Write images, resized or only a part of them, as an .npz file for `topodet pretrain`; return how many.

    Of each class, the images with the smallest SHA-256 of their pixels are used, in that order, so the choice does not
    depend on the order in the source.

    Args:
        path: output file.
        images: uint8 [N, H, W, 3].
        labels: class of each image, from 0.
        names: names of the classes.
        size: height and width to write, bicubic.
        images_per_class: number of images per class; all, in the source's order, by default.

    Raises:
        DataError: a class has fewer images.
    """
    labels = np.asarray(labels)
    if images_per_class is not None:
        digests = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images]
        chosen: list[int] = []
        for label, name in enumerate(names):
            own = sorted(np.flatnonzero(labels == label), key=lambda index: digests[index])
            if len(own) < images_per_class:
                raise DataError(
                    f"there are only {len(own)} images of {name}, fewer than images_per_class={images_per_class}"
                )
            chosen += own[:images_per_class]
        images, labels = images[chosen], labels[chosen]
    if images.shape[1:3] != (size, size):
        images = np.stack(
            [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in images]
        )
    _write_arrays(path, images, labels, names)
    return len(labels)


def download(url: str, path: Path) -> Path:
    """Download a file unless it exists; return its path.

    Raises:
        DataError: it could not be downloaded; no partial file is left.
    """
    if path.exists():
        return path
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as source,
            atomic_path(path) as temporary,
            open(temporary, "wb") as file,
        ):
            while block := source.read(1 << 20):
                file.write(block)
    except OSError as error:
        raise DataError(f"could not download {url}: {error}. Give a copy of the file with --archive") from error
    return path


def _members(file: zipfile.ZipFile, split: str, classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield class and name in the archive of each image of a split, class by class."""
    names = file.namelist()
    if split == "train":
        start = {f"{_ROOT}/train/{label}/images": label for label in classes}
        found = [(start.get(name.rpartition("/")[0]), name) for name in names]
    else:
        lines = file.read(f"{_ROOT}/val/val_annotations.txt").decode().splitlines()
        labels = dict(line.split("\t")[:2] for line in lines)
        known = set(classes)
        pairs = [(labels.get(Path(name).name), name) for name in names if name.startswith(f"{_ROOT}/val/images/")]
        found = [(label if label in known else None, name) for label, name in pairs]
    order = {label: place for place, label in enumerate(classes)}
    kept = [(label, name) for label, name in found if label and _IMAGE.fullmatch(name.rpartition("/")[2])]
    yield from sorted(kept, key=lambda pair: (order[pair[0]], pair[1]))


def _pixels(content: bytes, name: str) -> np.ndarray:
    try:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except OSError as error:
        raise DataError(f"{name} in the archive is not an image: {error}") from error


def _write_arrays(path: Path, images: Iterable[np.ndarray], labels: Sequence[int], names: Sequence[str]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, images=np.stack(list(images)), labels=np.array(labels), class_names=np.array(names))
