"""Check a COCO annotation file and its images before training; exit status 1 if there are problems."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    made.add_argument("annotations", type=Path, metavar="ANN.json", help="annotation file in COCO format")
    made.add_argument("images", type=Path, metavar="IMAGES/", help="folder that the file names are relative to")
    made.add_argument("--read-images", action="store_true", help="open each image's header and compare its size")
    made.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND",
        help="note this kind of problem without failing; may be repeated. COCO train2017 needs --allow empty_boxes",
    )
    return made


def main(words: Sequence[str]) -> int:
    from topodet.datasets.coco import check_coco

    args = parser().parse_args(words)
    report = check_coco(args.annotations, args.images, read_images=args.read_images, allow=args.allow)
    print(report.text())
    return 0 if report.ok else 1
