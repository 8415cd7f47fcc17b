"""Convert Pascal VOC's XML files to train.json and val.json in COCO format, and check them.

topodet voc-to-coco Annotations/ JPEGImages/ --split 0.8 --output data/mine
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    made.add_argument("annotations", type=Path, metavar="ANNOTATIONS/", help="folder of the XML files")
    made.add_argument("images", type=Path, metavar="IMAGES/", help="folder of the images; they stay there")
    made.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for train.json and val.json")
    made.add_argument(
        "--split",
        type=float,
        default=0.8,
        metavar="SHARE",
        help="share of the images to train on (default: %(default)s)",
    )
    made.add_argument(
        "--train-list",
        type=Path,
        metavar="FILE",
        help="names to train on, one per line, as in VOC's ImageSets/Main, instead of a share; the others go to val",
    )
    made.add_argument("--seed", type=int, default=0, help="seed of the random split (default: %(default)s)")
    made.add_argument(
        "--zero-based",
        action="store_true",
        help="box corners count from 0, as some labeling tools write them, not from 1 as in VOC",
    )
    made.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND",
        help="treat this kind of problem as a note, not an error, see topodet check-coco; may be repeated",
    )
    return made


def main(words: Sequence[str]) -> int:
    args = parser().parse_args(words)
    from topodet.datasets.voc import voc_to_coco

    # In VOC's lists of a single class, a number follows each name.
    lines = args.train_list.read_text(encoding="utf-8").splitlines() if args.train_list else None
    reports = voc_to_coco(
        args.annotations,
        args.images,
        args.output,
        split=args.split,
        train_names=lines and [line.split()[0] for line in lines if line.strip()],
        seed=args.seed,
        zero_based=args.zero_based,
        allow=args.allow,
    )
    print(*(report.text() for report in reports), sep="\n")
    return 0 if all(report.ok for report in reports) else 1
