import importlib.util
import logging

import pytest

from tests.detection import backbone_files, coco, dilated, grey, nano, pruned

__all__ = ["backbone_files", "coco", "dilated", "grey", "nano", "pruned"]

HAVE_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
REASON = "tests of topodet.detectron2: Detectron2 is not installed (it is on no package index; see README.md)"


class Skipped(pytest.Module):
    """A test module that is not even imported."""

    def collect(self):
        # Its tests run wherever it is installed; CI takes packages from an index alone.
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return None if HAVE_DETECTRON2 else Skipped.from_parent(parent, path=module_path)


@pytest.fixture
def log(monkeypatch, caplog):
    """Return what Detectron2's loggers say, also after a run in this process has set them up for the console."""
    for name in ("detectron2", "fvcore"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        caplog.set_level("INFO", name)
    return caplog
