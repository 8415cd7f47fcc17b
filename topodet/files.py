"""Writing files so that a crash, a kill or a full disk never leaves half of one.

A file is written under a temporary name in its own folder, flushed to the disk and renamed onto the final name;
readers see the old file or the new one, whole.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on failure it is removed.

    Raises:
        OSError: the file could not be written (a full disk, say). A file that stood at `path` before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; the final one gets the permissions any other new file would have.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            kept = "the file that was there is untouched" if path.exists() else "nothing was left behind"
            raise OSError(
                f"could not write {path}: {error}; {kept}. Free some space or choose another folder"
            ) from error
        raise


def atomic_write(path: str | os.PathLike, content: str | bytes) -> Path:
    """Write text (UTF-8) or bytes to `path` through `atomic_path`; return the path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def atomic_json(path: str | os.PathLike, content: Any) -> Path:
    """Write `content` as indented JSON through `atomic_path`; return the path."""
    return atomic_write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def atomic_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `rows` as CSV through `atomic_path`, a column for each key that any of them has; return the path."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return atomic_write(path, text.getvalue())


def atomic_torch_save(content: Any, path: str | os.PathLike) -> Path:
    """`torch.save(content, path)` through `atomic_path`; return the path."""
    import torch

    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            # The writer has words of its own for what the operating system calls no space left.
            raise OSError(str(error).splitlines()[0]) from error
    return Path(path)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
