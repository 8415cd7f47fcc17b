"""Pictures made from records, written with a digest of their content to find outdated ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from ..files import atomic_path

_KEY = "Digest"


def save_picture(figure: Figure, path: str | Path, dpi: int = 130) -> Path:
    """Write a figure as PNG with its `digest` in the file; return the path."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata={_KEY: digest(figure)})
    return Path(path)


def is_current(figure: Figure, path: str | Path) -> bool:
    """Whether `save_picture` wrote the file from a figure with the same content."""
    if not Path(path).exists():
        return False
    with Image.open(path) as image:
        return image.info.get(_KEY) == digest(figure)


def digest(figure: Figure) -> str:
    """Return a hash over lines, bars, images, titles, labels and limits of a figure, to six digits.

    It covers the drawn content and not pixels, which differ between versions of matplotlib and its fonts.
    """
    parts = [figure.get_suptitle()]
    for axis in figure.axes:
        parts += [axis.get_title(), axis.get_xlabel(), axis.get_ylabel(), axis.get_xlim(), axis.get_ylim()]
        for artist in axis.get_children():
            if isinstance(artist, Line2D):
                parts += [artist.get_label(), artist.get_xydata()]
            elif isinstance(artist, Rectangle):
                parts.append(artist.get_bbox().bounds)
            elif isinstance(artist, AxesImage):
                parts.append(np.ma.filled(artist.get_array(), -1))
    text = "\n".join(part if isinstance(part, str) else _digits(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digits(values: object) -> str:
    return " ".join(f"{value:.6g}" for value in np.asarray(values, dtype=float).ravel())
