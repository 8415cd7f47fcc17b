"""Folders of images, DIR/CLASS/IMAGE, with a message about skipped files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key

from topodet.datasets.images import SUFFIXES, find_images, is_hidden
from topodet.errors import DataError
from topodet.pretrain.class_map import read_class_map

_logger = logging.getLogger(__name__)


class FolderReader(Reader):
    """The images of a folder for timm's `ImageDataset`.

    timm's own reader uses each innermost folder as a class, including hidden ones, and reads three suffixes. Here a
    class is a folder directly below the root, however deep its images lie; hidden files and folders are skipped.

    Args:
        root: folder with a folder for each class.
        class_map: timm's class map, which defines the indices; "" to number the folders in natural order.

    Attributes:
        samples: path and class of each image, in the order of the paths.
        class_to_idx: index by class name.

    Raises:
        DataError: there are no images in class folders.
    """

    def __init__(self, root: str | Path, class_map: str = "") -> None:
        super().__init__()
        self.root = Path(root)
        found = find_images(self.root)
        parts = {path: path.relative_to(self.root).parts for path in found.images}
        inside = {path: names[0] for path, names in parts.items() if len(names) > 1}
        known = read_class_map(class_map, str(root)) if class_map else None
        if known is None:
            known = {name: k for k, name in enumerate(sorted(set(inside.values()), key=natural_key))}
        spelled = {str(name).lower(): name for name in known}
        for name in sorted(set(inside.values()) - set(known)):
            if name.lower() in spelled:
                raise DataError(
                    f"--class-map {class_map} has {spelled[name.lower()]!r} where {root} has the folder {name!r}: use "
                    "the same capitalization in both"
                )
        self.class_to_idx: dict[str, int] = known
        chosen = sorted(
            (path for path, name in inside.items() if name in known), key=lambda path: natural_key(str(path))
        )
        self.samples = [(str(path), known[inside[path]]) for path in chosen]
        unmapped = Counter(name for name in inside.values() if name not in known)
        skipped = [
            found.skipped(),
            _count(len(parts) - len(inside), "images outside class folders"),
            _count(unmapped.total(), f"images of classes that are not in {class_map} ({_names(unmapped)})"),
        ]
        skipped = [text for text in skipped if text]
        if not self.samples:
            raise DataError(
                f"Found 0 images in class folders of {root} (suffixes: {', '.join(SUFFIXES)}); expected "
                f"{root}/CLASS/IMAGE{'; left out: ' + ', '.join(skipped) if skipped else ''}"
            )
        if skipped:
            _logger.warning("%s: left out: %s", root, ", ".join(skipped))
        empty = {path.name for path in self.root.iterdir() if path.is_dir() and not is_hidden(path.name)} - {
            *inside.values()
        }
        if empty:
            _logger.warning("%s: no images in the folders %s, which are not used as classes", root, _names(empty))
        deeper = Counter(names[0] for names in parts.values() if len(names) > 2)
        if deeper:
            text = "%s: %d images are in subfolders of their class folder (%s) and count towards that class"
            _logger.warning(text, root, deeper.total(), _names(deeper))

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, target = self.samples[index]
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would block
            raise OSError("it is not a regular file")
        return open(path, "rb"), target

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = Path(self.samples[index][0])
        return path.name if basename else str(path if absolute else path.relative_to(self.root))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number else ""


def _names(names: Counter[str] | set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
