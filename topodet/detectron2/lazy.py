"""Detectron2's own LazyConfigs, for configs that build on them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig


def common_config(path: str) -> DictConfig:
    """Load a LazyConfig that Detectron2 ships, e.g. "common/models/mask_rcnn_fpn.py"; each call loads it again.

    The same as `detectron2.model_zoo.get_config`, which cannot be imported with setuptools 82 and later, because it
    needs `pkg_resources`.

    Raises:
        FileNotFoundError: Detectron2 has no such config.
    """
    spec = importlib.util.find_spec("detectron2.model_zoo")
    file = Path(spec.submodule_search_locations[0]) / "configs" / path
    if not file.is_file():
        raise FileNotFoundError(f"Detectron2 ships no config {path} (looked for {file})")
    return LazyConfig.load(str(file))
