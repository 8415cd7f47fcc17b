"""Images as arrays: `.npz` files of images and classes, and torchvision datasets in memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from topodet.datasets.npz import read_npz
from topodet.errors import DataError

_FORMAT = "expected images uint8 [N, H, W, C] with C 1 or 3, labels integer [N] and, optionally, class_names text [K]"


class ArrayDataset(Dataset):
    """The images of one split, from a file of `numpy.savez` or `numpy.savez_compressed`.

    | array | |
    | --- | --- |
    | `images` | uint8 [N, H, W, C], C is 3 (RGB) or 1 (gray) |
    | `labels` | integer [N], classes from 0 |
    | `class_names` | text [K], optional: the name of each class |

    Nothing in the file is unpickled. Attributes are named as in torchvision's datasets: `data` uint8 [N, H, W, C],
    `targets` int64 [N], and `class_to_idx`, which is empty if the file has no names.

    Args:
        path: the file.
        mode: PIL mode of the images that indexing returns.

    Raises:
        DataError: a missing file, not an `.npz`, a missing array or a wrong dtype, shape, length or label.
    """

    def __init__(self, path: str | Path, mode: str = "RGB") -> None:
        self.path = Path(path)
        self.mode = mode
        arrays = read_npz(self.path, ("images", "labels"), ("class_names",), expected=_FORMAT)
        self.data, self.targets = _checked(self.path, arrays["images"], arrays["labels"])
        names = _class_names(self.path, arrays["class_names"]) if "class_names" in arrays else []
        self.class_to_idx = {name: index for index, name in enumerate(names)}
        if names:
            self.check_classes(len(names), "class_names")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = self.data[index]
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        return image.convert(self.mode), int(self.targets[index])

    def check_classes(self, num_classes: int, source: str) -> None:
        """Refuse labels beyond the number of classes in `source`.

        Raises:
            DataError: names the first of them.
        """
        beyond = np.flatnonzero(self.targets >= num_classes)
        if len(beyond):
            raise DataError(
                f"{self.path}: labels[{beyond[0]}] is {self.targets[beyond[0]]}, but {source} defines {num_classes} "
                f"classes, 0 to {num_classes - 1}; {len(beyond)} of {len(self)} labels are out of range"
            )


def in_memory(dataset: Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the images uint8 [N, H, W, C] and classes int64 [N] of an in-memory dataset, otherwise None.

    In memory are `ArrayDataset` and torchvision's CIFAR and MNIST families.
    """
    if not hasattr(dataset, "data") or not hasattr(dataset, "targets"):
        return None
    images, labels = np.asarray(dataset.data), np.asarray(dataset.targets, dtype=np.int64)
    if images.ndim == 3:
        images = images[..., None]
    return (images, labels) if images.dtype == np.uint8 and images.ndim == 4 else None


def _checked(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DataError(f"{path}: images is {images.dtype} {list(images.shape)}; {_FORMAT}")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{path}: labels is {labels.dtype} {list(labels.shape)}; {_FORMAT}")
    if len(images) != len(labels):
        raise DataError(f"{path} has {len(images)} images, but {len(labels)} labels: give one label per image")
    if len(labels) and labels.min() < 0:
        first = int(np.flatnonzero(labels < 0)[0])
        raise DataError(f"{path}: labels[{first}] is {labels[first]}; class indices start at 0")
    if len(labels) and labels.max() > np.iinfo(np.int64).max:
        first = int(labels.argmax())
        raise DataError(f"{path}: labels[{first}] is {labels[first]}, which is not a class index")
    return np.ascontiguousarray(images), labels.astype(np.int64)


def _class_names(path: Path, names: np.ndarray) -> list[str]:
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{path}: class_names is {names.dtype} {list(names.shape)}; {_FORMAT}")
    for name, count in Counter(names.tolist()).items():
        if count > 1:
            raise DataError(f"{path}: class_names contains {name!r} more than once; names must be unique")
    return names.tolist()
