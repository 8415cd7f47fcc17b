"""A check of detection data in COCO format, before training.

Frameworks handle bad annotations differently (skip them, crash on their batch, train on them); here all of them are
counted and reported at once. `check` runs the check, `report` holds its findings, `reading` describes how each
framework reads a dataset, `classes` compares the classes, `segmentation` checks masks and keypoints.
"""

from .check import check_before_use, check_coco, load_annotations
from .classes import check_checkpoint_classes, check_classes, class_names
from .reading import DEFAULTS, Reading, Usage
from .report import CocoReport, Finding

__all__ = [
    "DEFAULTS",
    "CocoReport",
    "Finding",
    "Reading",
    "Usage",
    "check_before_use",
    "check_checkpoint_classes",
    "check_classes",
    "check_coco",
    "class_names",
    "load_annotations",
]
