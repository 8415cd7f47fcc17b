"""Reading and writing images, and finding them in folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps

from ..errors import ConfigError, DataError, show
from ..files import atomic_path

# Folders that macOS (in archives) and network storage create.
_BESIDE = ("__MACOSX", "@eaDir")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Pillow's errors for files that are missing, truncated, not images, or suspiciously large.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_ORIENTATION = 274
_QUARTER_TURNS = (5, 6, 7, 8)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Return an image as RGB [H, W, 3] uint8, with EXIF orientation applied; of 16 bits, the upper 8.

    Raises:
        DataError: it cannot be read, or has pixels of 32 bits.
    """
    try:
        with Image.open(path) as image:
            return np.array(in_8_bits(ImageOps.exif_transpose(image)).convert("RGB"))
    except _UNREADABLE as error:
        raise DataError(f"cannot read the image {path}: {error}") from error


def load_rgb(path: str | os.PathLike) -> Image.Image:
    """Return an image as Pillow's RGB, for torchvision's folders, whose own loader makes 16-bit images white."""
    with Image.open(path) as image:
        return in_8_bits(image).convert("RGB")


def in_8_bits(image: Image.Image) -> Image.Image:
    """Return the upper 8 bits of a 16-bit image, as in OpenCV; an 8-bit image is returned unchanged.

    Pillow's own `convert` clips at 255, which makes them white.

    Raises:
        DataError: 32 bits or floats, whose range is unknown.
    """
    # Older versions of Pillow read a 16-bit PNG as 32 bits, which PNG does not support.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floats"
        raise DataError(f"its pixels are 32-bit {kind} of unknown range: save it with 8 or 16 bits per channel")
    return image


def header(path: str | os.PathLike) -> tuple[int, int, str]:
    """Return width and height of an image after EXIF orientation, and Pillow's mode, without reading its pixels.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
            return (height, width, image.mode) if turned else (width, height, image.mode)
    except _UNREADABLE as error:
        raise DataError(f"{type(error).__name__}: {error}") from error


def check_image(image: object) -> None:
    """Check that an image is an RGB array [H, W, 3] uint8 with at least one pixel.

    Raises:
        ConfigError: says what it is instead.
    """
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return
        found = f"a {image.dtype} array {list(image.shape)}"
    else:
        found = repr(image)[:200] if isinstance(image, str | os.PathLike) else f"a {type(image).__name__}"
    raise ConfigError(
        f"the image is {found}; expected RGB [H, W, 3] uint8, e.g. by topodet.datasets.images.read_image(PATH)"
    )


def to_grey(image: np.ndarray) -> np.ndarray:
    """Return an RGB image [H, W, 3] uint8 as its brightness [H, W] uint8, by the weights of ITU-R 601."""
    return np.array(Image.fromarray(image).convert("L"))


def write_image(picture: np.ndarray, path: str | os.PathLike) -> None:
    """Write an RGB image [H, W, 3] uint8 atomically, in the format of the name's suffix."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format=Image.registered_extensions()[Path(path).suffix.lower()])


def leads_outside(file_name: str) -> bool:
    """Return whether a name from an untrusted file leads out of the folder that it is relative to."""
    if ".." not in file_name and not file_name.startswith(("/", "\\")) and ":" not in file_name:
        return False
    path = PurePath(file_name)
    return bool(path.anchor) or ".." in path.parts


def image_path(root: str | os.PathLike, file_name: str) -> Path:
    """Return the path of an image that an annotation file names.

    Raises:
        DataError: it is not the name of a file within `root`.
    """
    if not isinstance(file_name, str) or leads_outside(file_name):
        raise DataError(f"file_name {show(file_name)} is outside the image folder {root}; only files in it are opened")
    return Path(root) / file_name


@dataclass
class ImageFolder:
    """The images of a folder and its subfolders.

    Attributes:
        images: paths, sorted by name.
        other_files: number of files with other suffixes, by suffix.
        hidden: names of hidden files and folders, see `is_hidden`.
    """

    images: list[Path] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)

    def skipped(self) -> str:
        """Describe the skipped files; "" for none."""
        parts = []
        if self.other_files:
            kinds = ", ".join(f"{suffix or 'no suffix'}: {count}" for suffix, count in self.other_files.most_common(5))
            parts.append(f"{self.other_files.total()} files that are not {', '.join(SUFFIXES)} ({kinds})")
        if self.hidden:
            names = ", ".join(sorted(set(self.hidden))[:5])
            parts.append(f"{len(self.hidden)} hidden files or folders ({names})")
        return " and ".join(parts)


def find_images(folder: str | os.PathLike) -> ImageFolder:
    """Find the images in a folder and its subfolders by their suffixes; hidden files and folders are skipped."""
    found = ImageFolder()
    for place, files in _walk(Path(folder), found.hidden):
        for name in files:
            suffix = PurePath(name).suffix.lower()
            if suffix in SUFFIXES:
                found.images.append(place / name)
            else:
                found.other_files[suffix] += 1
    found.images.sort()
    return found


def _walk(folder: Path, hidden: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders, also through links, with the names of their files; add hidden ones to `hidden`."""
    # The real paths of each folder and its parents.
    above: dict[str, set[str]] = {os.path.dirname(folder): set()}
    for place, folders, files in os.walk(folder, followlinks=True):
        outer, real = above[os.path.dirname(place)], os.path.realpath(place)
        if real in outer:  # a link to one of its parents would never end
            folders.clear()
            continue
        above[place] = {*outer, real}
        hidden += [name for name in (*folders, *files) if is_hidden(name)]
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield Path(place), [name for name in files if not is_hidden(name)]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden: its name starts with a dot, or a system created it."""
    return name.startswith(".") or name in _BESIDE
