"""Torch files that hold objects beside tensors and plain types, read without making these objects."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CAN_SKIP = hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")  # torch 2.6


class _Skipped:
    """In the place of an object that a file holds beside tensors and plain types."""

    def __new__(cls, *_: Any) -> _Skipped:
        return super().__new__(cls)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


@contextmanager
def skip_unknown_globals(path: str | os.PathLike) -> Iterator[None]:
    """Within it `torch.load(path, weights_only=True)` passes over such objects instead of refusing the whole file.

    Nothing of theirs is imported or called. Before torch 2.6, which cannot tell their names, nothing changes.
    """
    if not CAN_SKIP:
        yield
        return
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, OSError, EOFError, pickle.UnpicklingError):
        objects = []  # no torch file: who reads it says so
    with torch.serialization.safe_globals([(_Skipped, name) for name in objects]):
        yield
