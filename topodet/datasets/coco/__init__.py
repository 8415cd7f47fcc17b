"""A check of detection sets in COCO format, to be run before hours of training and not to be met in the middle of them.

Frameworks differ in what they do with a bad annotation (skip it, crash on the batch that holds it, train on it); here
everything is counted and named at once. `report` is what a check finds, `check` finds it, `reading` knows what each
framework does with a set, `classes` compares the classes, `segmentation` looks at masks and keypoints.
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
