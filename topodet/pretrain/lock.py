"""One run per folder: the process that writes into it locks it, and a second one gets an error that names the first."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TextIO

from topodet.errors import ConfigError
from topodet.parse import parse_json

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None

LOCK = ".lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock a folder for this process until the block or the process ends; create the folder if it is missing.

    This is a POSIX record lock on FOLDER/.lock. It is released when its process ends, even if killed, and is not
    inherited by loader processes that outlive the run. The file names the process that holds the lock, or held it
    last. A folder without other files is removed at the end.

    Raises:
        ConfigError: another process holds the lock; names it.
        OSError: the folder cannot be written to.
    """
    with _open(folder) as file:
        if fcntl is not None and not _take(file):
            raise ConfigError(
                f"{folder} is in use by {_holder(file)}. Wait until it ends or stop it, or give this run another "
                "--experiment"
            )
        file.seek(0)
        file.truncate()
        started = datetime.now().isoformat(sep=" ", timespec="seconds")
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "started": started, "argv": sys.argv}, file)
        file.flush()
        try:
            yield
        finally:
            if os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()


def _open(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / LOCK, "a+")
    except OSError as error:
        raise OSError(
            f"cannot write to {folder}: {error.strerror}. Make it writable, or give another --output"
        ) from error


def _take(file: TextIO) -> bool:
    """Lock a file; return False if another process has locked it or has just removed it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return os.path.exists(file.name) and os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))


def _holder(file: TextIO) -> str:
    """Describe the process that wrote the lock file."""
    file.seek(0)
    try:
        known = parse_json(file.read(1 << 16), file.name)
        return f"process {int(known['pid'])} on {known['host']!s:.80}, started {known['started']!s:.30}"
    except (ValueError, KeyError, TypeError):
        return "another process"
