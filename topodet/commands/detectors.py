"""The options for a detector of either framework, and loading it."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType
from typing import Any

from topodet.errors import ConfigError
from topodet.frameworks import framework_of_config, import_framework, require_framework


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config, --classes and --opts, which a training checkpoint needs but a published detector does not."""
    add = parser.add_argument
    add("--config", type=Path, help="config of a training checkpoint: .yaml (Detectron2) or .py (MMDetection)")
    known = "class names in index order, or a COCO annotation .json (default: those in the checkpoint)"
    add("--classes", nargs="+", default=[], help=known)
    add("--opts", nargs="+", default=[], help="config overrides: KEY VALUE ... or, for MMDetection, KEY=VALUE ...")
    add("--device", help="cuda or cpu (default: a GPU if available)")


def open_detector(
    args: argparse.Namespace, source: str, *, draws: bool = False, **options: Any
) -> tuple[ModuleType, Any]:
    """Load the detector that `source` and the options of `add_config` name.

    Args:
        args: with the options of `add_config`.
        source: published detector, or a checkpoint with --config.
        draws: whether pictures will be drawn, which Detectron2 needs OpenCV for.
        options: additional arguments of `load_detector`.

    Returns:
        `topodet.mmdet` or `topodet.detectron2`, and what its `load_detector` returns.

    Raises:
        ConfigError: a framework, or OpenCV, that is not installed; a config of neither framework.
        WeightsError: a file that does not fit.
    """
    from topodet import weights

    read = source if args.config else weights.read_detector(source)
    framework = config_framework(args.config) if args.config else import_framework(read.card["framework"])
    if draws and framework.__name__ == "topodet.detectron2":
        require_framework("cv2")
    given = {"config": args.config, "classes": args.classes, "device": args.device, "opts": args.opts}
    return framework, framework.load_detector(read, **given, **options)


def config_framework(config: Path, *, lazy: bool = False) -> ModuleType:
    """Return `topodet.mmdet` or `topodet.detectron2`, whichever a config is for.

    Args:
        config: .yaml or .py.
        lazy: accept a LazyConfig too. It can call any function when it is built.

    Raises:
        ConfigError: a file of another kind, a LazyConfig that is not accepted, or a framework that is not installed.
    """
    name = framework_of_config(config)
    if name == "detectron2" and config.suffix == ".py" and not lazy:
        raise ConfigError(f"{config} is a LazyConfig; use the .yaml of the same name")
    return import_framework(name)
