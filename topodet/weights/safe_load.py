"""A reader of torch files that runs no code: files with anything but tensors and plain types are refused.

`torch.load(weights_only=True)` runs no code, but trusts sizes: an expanded tensor can request any amount of memory, and
a storage that claims more than its bytes is read beyond its end. Here each size is compared with the actual bytes, and
each entry of a zip archive with its checksum.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import WeightsError
from .plain_pickle import MAX_PICKLE, PlainUnpickler, Storage, pickled_objects, storage_of, width

# Far above what any checkpoint has, and traversed in less than a second.
MAX_OBJECTS = 500_000  # values; a shared one counts each time
MAX_DEPTH = 50
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of torch before 1.6


@dataclass(frozen=True)
class TorchFile:
    """The content of a torch file, and the names of the types that were skipped."""

    content: Any
    skipped: frozenset[str]


def load_torch(path: str | os.PathLike, *, skip_objects: bool = False) -> TorchFile:
    """Read a torch file without running code from it. Tensors are on the CPU and share memory as when saved.

    Args:
        path: a file of `torch.save`, of any version except torch 0.1.
        skip_objects: replace objects other than tensors and plain types by `Skipped`; otherwise they are refused.

    Raises:
        WeightsError: not a torch file, a damaged one, one with objects, or one that claims more than its bytes.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            refuse_other_kinds(path, file.read(256))
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            file.seek(0)
            found = read(file, path.stat().st_size, skip_objects)
            check_extent(found.content)
            return found
    except WeightsError as error:
        raise WeightsError(f"{path} is refused: {error}") from error
    except MemoryError as error:
        raise WeightsError(f"{path} needs more memory than there is") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the standard library can raise anything for a file that is not torch's
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) cannot be read: it is truncated, damaged or not a torch file "
            f"({reason[:200]}); fetch or save it again"
        ) from error


def check_extent(content: Any) -> None:
    """Refuse content that is too large or too deep, or cannot be printed; a shared part is counted each time.

    Raises:
        WeightsError: names the limit, or the text.
    """
    count, todo = 0, [(content, 0)]
    while todo:
        value, depth = todo.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise WeightsError(f"its content is nested deeper than {MAX_DEPTH} levels; no checkpoint is")
        if count > MAX_OBJECTS:
            raise WeightsError(f"its content expands to more than {MAX_OBJECTS:,} values; no checkpoint does")
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, Mapping):
            todo += ((part, depth + 1) for part in value)
            todo += ((part, depth + 1) for part in value.values())
        elif isinstance(value, list | tuple | set):
            todo += ((part, depth + 1) for part in value)


def refuse_other_kinds(path: Path, head: bytes) -> None:
    """Refuse a file that is certainly not a weights file, or not of the type that its suffix says.

    Args:
        path: path of the file, whose suffix tells a .safetensors file from one of torch.
        head: its first 256 bytes.

    Raises:
        WeightsError: names the actual type.
    """
    tensors = path.suffix.lower() == ".safetensors"
    if tensors and head[8:9] == b"{":  # after the length of the header, which is JSON
        return
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise WeightsError("it is empty (0 bytes): a download or copy that failed; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError("it is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise WeightsError(
            "it is a web page (HTML), not a weights file: the address leads to a page, or to a login or an error; "
            "fetch it from the address of the file itself"
        )
    for magic, kind in (
        (b"\x1f\x8b", "a gzip archive: unpack it"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a numpy array"),
        (b"\x89PNG", "a PNG image"),
        (b"\xff\xd8\xff", "a JPEG image"),
        (b"%PDF", "a PDF"),
    ):
        if head.startswith(magic):
            raise WeightsError(f"it is not a weights file, but {kind}")
    if tensors and head.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise WeightsError("it is a torch file with another suffix: rename it to .pth")
    if head[8:10] == b'{"':
        raise WeightsError("it is a .safetensors file with another suffix: rename it")
    if text.startswith((b"{", b"[")):
        raise WeightsError(f"it is text (JSON?), not a weights file; {path.suffix} files contain tensors")


def _read_zip(file: IO[bytes], size: int, skip_objects: bool) -> TorchFile:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise WeightsError(f"it is a zip archive without torch's data.pkl ({', '.join(list(entries)[:3])})")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in entries:
            raise WeightsError("it is a TorchScript program, not weights: save its state_dict() instead")
        if any(i.compress_type != zipfile.ZIP_STORED or i.compress_size != i.file_size for i in entries.values()):
            raise WeightsError("its archive is compressed, which torch.save never does")
        if sum(info.file_size for info in entries.values()) > size:
            raise WeightsError("the entries of its archive are larger than the file")
        order = f"{folder}byteorder"
        if order in entries and archive.read(order) != b"little":
            raise WeightsError("it was written on a big-endian machine: load and save it there as .safetensors")

        storages: dict[str, Storage] = {}

        def storage(kind: str, key: str, numel: int) -> Storage:
            if key not in storages:
                entry = entries.get(f"{folder}data/{key}")
                if entry is None:
                    raise WeightsError(f"the bytes of tensor data {key!r} are missing: it is damaged, fetch it again")
                storages[key] = storage_of(kind, bytearray(archive.read(entry)), numel)
            return storages[key]

        if entries[pickles[0]].file_size > MAX_PICKLE:
            raise WeightsError(f"its pickle has more than {MAX_PICKLE >> 20} MB besides the tensors")
        interpreter = PlainUnpickler(storage, skip_objects, size)
        content = interpreter.run(io.BytesIO(archive.read(pickles[0])))
        return TorchFile(content, frozenset(interpreter.skipped))


class _Bounded:
    """A file whose `read` requests at most the remaining bytes: Python would allocate whatever a pickle claims."""

    def __init__(self, file: IO[bytes], size: int):
        self.size = size
        self._read, self.readline, self.tell, self.seek = file.read, file.readline, file.tell, file.seek

    def read(self, count: int) -> bytes:
        return self._read(max(0, min(count, self.size - self.tell())))


def _read_legacy(file: IO[bytes], size: int, skip_objects: bool) -> TorchFile:
    """Read the format before torch 1.6: five pickles, then the bytes of each storage."""
    file = _Bounded(file, size)
    if file.read(1) != b"\x80":
        raise ValueError("neither a zip archive nor a pickle")
    file.seek(0)

    def plain(kind: str, key: str, numel: int) -> Storage:
        raise WeightsError("tensors in the header of the file")

    # A first pass without bytes: the types and offsets of the storages are known only after the pickles.
    kinds: dict[str, str] = {}

    def note(kind: str, key: str, numel: int) -> Storage:
        kinds[key] = kind
        return Storage(torch.empty(0, dtype=torch.uint8), None)

    # Without the magic number it is a pickle that torch did not write.
    first = PlainUnpickler(plain, skip_objects, size)
    magic = first.run(file)
    if magic != _LEGACY_MAGIC:
        if first.skipped:
            raise WeightsError(pickled_objects(sorted(first.skipped)[0]))
        raise WeightsError("it is a pickle that torch did not write: save it with torch.save")
    for _ in range(2):  # version of the protocol, sizes of C's types
        PlainUnpickler(plain, False, size).run(file)
    begin = file.tell()
    PlainUnpickler(note, skip_objects, size, check_sizes=False).run(file)
    keys = PlainUnpickler(plain, False, size).run(file)
    if not isinstance(keys, list) or set(keys) != set(kinds):
        raise ValueError("the list of storages does not match the tensors")
    places = {}
    for key in keys:
        numel = int.from_bytes(file.read(8), "little", signed=True)
        bytes_ = numel * width(kinds[key])
        if not 0 <= bytes_ <= size - file.tell():
            raise ValueError("a storage extends beyond the end of the file")
        places[key] = (file.tell(), bytes_)
        file.seek(bytes_, os.SEEK_CUR)

    storages: dict[str, Storage] = {}

    def storage(kind: str, key: str, numel: int) -> Storage:
        if key not in storages:
            here = file.tell()
            file.seek(places[key][0])
            storages[key] = storage_of(kind, bytearray(file.read(places[key][1])), numel)
            file.seek(here)
        return storages[key]

    file.seek(begin)
    interpreter = PlainUnpickler(storage, skip_objects, size)
    return TorchFile(interpreter.run(file), frozenset(interpreter.skipped))


def _check_text(value: str) -> None:
    # The operating system cuts a name at a NUL, and an unpaired surrogate cannot be encoded.
    if "\0" in value:
        raise WeightsError(f"it contains text with a NUL character ({value[:40]!r})")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise WeightsError(f"it contains text that is not valid Unicode ({value[:40]!r})")
