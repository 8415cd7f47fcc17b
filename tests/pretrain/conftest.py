from __future__ import annotations

from pathlib import Path

import pytest

from .helpers import write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """39 training and 21 validation images of three classes: 4 updates of 8, and 7 images that fill no update."""
    return write_images(tmp_path_factory.mktemp("images"), {"train": 13, "validation": 7})
