from __future__ import annotations

from pathlib import Path

import pytest

from .helpers import write_arrays, write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """39 training and 21 validation images of three classes: 4 updates of 8, and 7 images that fill no update."""
    return write_images(tmp_path_factory.mktemp("images"), {"train": 13, "validation": 7})


@pytest.fixture(scope="session")
def arrays(tmp_path_factory) -> Path:
    """The same numbers of such images as arrays."""
    return write_arrays(tmp_path_factory.mktemp("arrays"), {"train": 13, "validation": 7})
