"""Atomic file writes: a crash, a kill or a full disk never leaves a partial file.

A file is written under a temporary name in its own folder, flushed to the disk and renamed onto the final name; readers
see either the old file or the complete new one.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, *, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on failure it is removed.

    Args:
        path: path of the file; its folder is created.
        size: expected size in bytes, if known, for the error.

    Raises:
        OSError: the file could not be written: the disk is full, the folder is read-only. It names the file, the folder
            and what to do. An existing file at `path` is unchanged.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; the final one gets the permissions any other new file would have.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _named(error, path, size) from error
        raise


def _named(error: OSError, path: Path, size: int | None) -> OSError:
    """Return an error with the same errno whose message names the file, its folder and the remedy."""
    kept = "the existing file is unchanged" if path.is_file() else "nothing was left behind"
    folder = path.parent.resolve()
    if error.errno in _NO_SPACE:
        needs = "" if size is None else f" (needs {size:,} bytes)"
        text = f"no space left for {path}{needs}: {error.strerror}; {kept}. Free some space in {folder}, or choose"
    elif error.errno in _NOT_ALLOWED:
        text = f"could not write {path}: {error.strerror}; {kept}. Make {folder} writable, or choose"
    else:
        text = f"could not write {path}: {error.strerror or error}; {kept}. Free some space, or choose"
    named = OSError(f"{text} another folder")
    named.errno = error.errno
    return named


def atomic_write(path: str | os.PathLike, content: str | bytes) -> Path:
    """Write text (UTF-8) or bytes to `path` through `atomic_path`; return the path."""
    content = content.encode() if isinstance(content, str) else content
    with atomic_path(path, size=len(content)) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def atomic_json(path: str | os.PathLike, content: Any) -> Path:
    """Write `content` as indented JSON through `atomic_path`; return the path."""
    return atomic_write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def atomic_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `rows` as CSV through `atomic_path`, with a column for each key of any row; return the path."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return atomic_write(path, text.getvalue())


def atomic_torch_save(content: Any, path: str | os.PathLike) -> Path:
    """`torch.save(content, path)` through `atomic_path`; return the path."""
    import torch

    with atomic_path(path, size=sum(_storages(content).values())) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch.save replaces the operating system's error by its own; raise the original.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise OSError(str(error).splitlines()[0]) from error
    return Path(path)


def _storages(content: Any) -> dict[int, int]:
    """Return the bytes of every storage of the tensors in nested dicts and lists."""
    import torch

    if isinstance(content, torch.Tensor):
        storage = content.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list | tuple) else ()
    return {key: size for part in parts for key, size in _storages(part).items()}


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
