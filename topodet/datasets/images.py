"""Reading and writing pictures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError
from ..files import atomic_path

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Return an image as RGB [H, W, 3] uint8, upright as its camera says.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error


def write_image(picture: np.ndarray, path: str | os.PathLike) -> None:
    """Write an RGB image [H, W, 3] uint8 whole or not at all, in the format that the name's suffix says."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format=Image.registered_extensions()[Path(path).suffix.lower()])
