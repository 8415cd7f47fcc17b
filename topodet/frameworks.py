"""Check that a detection framework or an optional package is installed; topodet itself needs none."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from .errors import ConfigError, unknown_name

_GUIDES = {
    "cv2": "Detectron2 draws with it: pip install opencv-python-headless",
    "detectron2": "it is not on any package index: https://detectron2.readthedocs.io/en/latest/tutorials/install.html",
    "mmdet": "pip install 'topodet[mmdet]', then topodet install-mmcv-ops for its operators",
    "sklearn": "the handwritten digits come with it: pip install scikit-learn",
}
_IMPORTS_DETECTRON2 = re.compile(r"^\s*(?:from|import) (?:topodet\.)?detectron2\b", re.MULTILINE)
_IMPORTS_BESIDE = re.compile(r"^\s*from \.", re.MULTILINE)

# Name in records and cards -> the package to import, topodet's own package.
PACKAGES = {"mmdetection": ("mmdet", "topodet.mmdet"), "detectron2": ("detectron2", "topodet.detectron2")}


def import_framework(name: str) -> ModuleType:
    """Return `topodet.mmdet` or `topodet.detectron2`, which have the same functions for detectors.

    Args:
        name: "mmdetection" or "detectron2".

    Raises:
        ConfigError: an unknown name, or the framework is not installed.
    """
    if name not in PACKAGES:
        raise ConfigError(unknown_name("framework", name, PACKAGES))
    package, own = PACKAGES[name]
    require_framework(package)
    return importlib.import_module(own)


def framework_of_config(config: str | os.PathLike) -> str:
    """Return the name of the framework of a detector's config, without running the config.

    A .yaml is Detectron2's. A .py is MMDetection's, or Detectron2's LazyConfig if it imports detectron2 or a module
    next to it.

    Raises:
        ConfigError: another suffix.
    """
    config = Path(config)
    if config.suffix in (".yaml", ".yml"):
        return "detectron2"
    if config.suffix != ".py":
        raise ConfigError(
            f"--config {config}: .yaml is for Detectron2, .py for MMDetection; {config.suffix!r} is neither"
        )
    text = config.read_text(errors="replace") if config.is_file() else ""
    # MMDetection's configs that import one another use read_base.
    lazy = _IMPORTS_DETECTRON2.search(text) or (_IMPORTS_BESIDE.search(text) and "read_base" not in text)
    return "detectron2" if lazy else "mmdetection"


def require_framework(module: str) -> None:
    """Raise an error if a framework cannot be imported.

    Args:
        module: "detectron2" or "mmdet"; "cv2", which Detectron2 uses for drawing but does not install; or "sklearn".

    Raises:
        ConfigError: it is not installed in this Python; says how to install it.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"this needs {module}, which {sys.executable} does not have. {_GUIDES[module]}")
