"""Arrays of untrusted `.npz` files: nothing is unpickled, and no array is larger than its bytes."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError

# Limit of the ratio of an array's size to its compressed size, beyond the first megabyte; 10 for images of digits.
MAX_RATIO = 200


def read_npz(
    path: str | os.PathLike, required: Sequence[str], optional: Sequence[str] = (), *, expected: str = ""
) -> dict[str, np.ndarray]:
    """Return arrays of a file from `numpy.savez` or `numpy.savez_compressed`.

    Args:
        path: the file.
        required, optional: names of the arrays to read.
        expected: description of the expected content, for the error.

    Raises:
        DataError: a missing file, not an `.npz`, a missing array, or one whose stated size differs from its bytes or is
            more than `MAX_RATIO` times its compressed bytes, or with Python objects.
    """
    path = Path(path)
    remedy = f": {expected}" if expected else ""
    try:
        with open(path, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise DataError(f"{path} is a single array, not an .npz file{remedy}")
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in required if name not in entries]
            if missing:
                raise DataError(f"{path} has no {' and no '.join(missing)}, but {', '.join(entries)[:200]}{remedy}")
            found = [name for name in (*required, *optional) if name in entries]
            for name in found:
                _check_size(archive, entries[name], f"{path}: {name}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in found}
    except DataError:
        raise
    except Exception as error:  # an invalid archive can make the standard library and numpy raise anything
        raise DataError(f"cannot read {path}: {error}. It is damaged or not an .npz file{remedy}") from error


def _check_size(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: str) -> None:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise DataError(f"{place} is an array of format {version}, which is not for plain numbers")
        shape, _, dtype = readers[version](file)
        begin = file.tell()
    if dtype.hasobject:
        raise DataError(f"{place} contains Python objects, and unpickling could run code: save numbers or text")
    if dtype.itemsize < 0:  # more than 2**31 bytes a value, which numpy 1 lets through
        raise DataError(f"{place} has a dtype of {dtype.itemsize:,} bytes, which is not a valid dtype: it is damaged")
    count = math.prod(shape)
    if count < 0 or begin + count * dtype.itemsize != entry.file_size or count > entry.file_size:
        raise DataError(
            f"{place} is declared as {dtype} {list(shape)}, which is {count * dtype.itemsize:,} bytes, but has "
            f"{entry.file_size - begin:,}: it is damaged"
        )
    if entry.file_size > MAX_RATIO * max(entry.compress_size, 2**20):
        raise DataError(
            f"{place} unpacks to {entry.file_size:,} bytes from {entry.compress_size:,}, more than {MAX_RATIO} "
            "times as many: save it with numpy.savez, uncompressed"
        )
