"""Weights: read, verify, load, rebuild and publish them. One format, described in `topodet.weights.file`."""

from .card import backbone_card, card_of, preprocessing_problems
from .digest import with_digests
from .file import (
    WeightsFile,
    read,
    read_checkpoint,
    read_checkpoint_with_objects,
    read_detector,
    read_trained,
    without_wrappers,
)
from .load import LoadReport, check_filled, has_classifier, is_update_counter, load, missing_wiring_keys, other_network
from .location import HUB, fetch, run_name
from .model_options import MAX_NUMBER, check_network, check_numbers
from .publish import FORMAT, PublishedFiles, publish, publish_detector
from .rebuild import (
    PRETRAINED,
    backbone_arguments,
    build,
    check_size,
    described_by,
    extract_backbone,
    from_timm,
    infer_architecture,
    resolve_edges,
    run_edges,
)

__all__ = [
    "FORMAT",
    "HUB",
    "MAX_NUMBER",
    "PRETRAINED",
    "LoadReport",
    "PublishedFiles",
    "WeightsFile",
    "backbone_arguments",
    "backbone_card",
    "build",
    "card_of",
    "check_filled",
    "check_network",
    "check_numbers",
    "check_size",
    "described_by",
    "extract_backbone",
    "fetch",
    "from_timm",
    "has_classifier",
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
    "read_checkpoint_with_objects",
    "read_detector",
    "read_trained",
    "resolve_edges",
    "run_edges",
    "run_name",
    "with_digests",
    "without_wrappers",
]
