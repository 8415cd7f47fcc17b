"""Check a COCO annotation file and its images before training; exit status 1 if there are problems.

topodet check-coco data/train.json data/images --config CONFIG.py --json findings.json

Lists all problems by entry, and what MMDetection and Detectron2 would train on, drop and leave out. With a training
config, only problems that affect it are listed, and its classes are compared with the file's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    made.add_argument("annotations", type=Path, metavar="ANN.json", help="annotation file in COCO format")
    made.add_argument("images", type=Path, metavar="IMAGES/", help="folder that the file names are relative to")
    made.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG",
        help="training config: MMDetection's .py, Detectron2's .yaml or LazyConfig .py. It is executed: do not use one "
        "from an untrusted source",
    )
    made.add_argument("--read-images", action="store_true", help="open each image's header and compare its size")
    made.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND",
        help="treat this kind of problem as a note, not an error; may be repeated. COCO train2017 needs "
        "--allow empty_boxes --allow small_boxes",
    )
    made.add_argument(
        "--json", metavar="FILE", help="write all findings to this file; - prints them instead of the table"
    )
    return made


def main(words: Sequence[str]) -> int:
    args = parser().parse_args(words)
    from topodet.datasets.coco import DEFAULTS, check_coco
    from topodet.files import atomic_json
    from topodet.frameworks import framework_of_config, import_framework

    readings = DEFAULTS
    if args.config:
        with contextlib.redirect_stdout(sys.stderr):  # frameworks print about missing packages
            framework = import_framework(framework_of_config(args.config))
            readings = [framework.reading_of_config(args.config)]
    report = check_coco(
        args.annotations, args.images, read_images=args.read_images, allow=args.allow, readings=readings
    )
    if args.json == "-":
        print(json.dumps(report.as_dict(), indent=2, allow_nan=False))
        return 0 if report.ok else 1
    if args.json:
        print(atomic_json(args.json, report.as_dict()), file=sys.stderr)
    print(report.text())
    return 0 if report.ok else 1
