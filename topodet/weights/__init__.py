"""Weights: read, verify, load, rebuild and publish them. One format, described in `topodet.weights.file`."""

from .card import backbone_card, preprocessing_problems
from .file import WeightsFile, fetch, read, read_checkpoint, read_detector, read_trained
from .load import LoadReport, check_filled, is_update_counter, load, missing_wiring_keys, other_network
from .publish import FORMAT, PublishedFiles, publish, publish_detector
from .rebuild import (
    PRETRAINED,
    backbone_arguments,
    build,
    extract_backbone,
    from_timm,
    infer_architecture,
    refuse_other_files,
    resolve_edges,
    run_edges,
)

__all__ = [
    "FORMAT",
    "PRETRAINED",
    "LoadReport",
    "PublishedFiles",
    "WeightsFile",
    "backbone_arguments",
    "backbone_card",
    "build",
    "check_filled",
    "extract_backbone",
    "fetch",
    "from_timm",
    "infer_architecture",
    "is_update_counter",
    "load",
    "missing_wiring_keys",
    "other_network",
    "preprocessing_problems",
    "publish",
    "publish_detector",
    "read",
    "read_checkpoint",
    "read_detector",
    "read_trained",
    "refuse_other_files",
    "resolve_edges",
    "run_edges",
]
