#!/usr/bin/env python
"""Make the record of a finished run from what it wrote, for model_zoo.md: records/runs/NAME.json."""

import argparse
import sys
from pathlib import Path

from topodet.errors import exit_status
from topodet.records import runs

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["pretraining", "detector"])
    parser.add_argument(
        "folder",
        type=Path,
        help="of `topodet pretrain`, or the --work-dir of MMDetection's training, or the OUTPUT_DIR of Detectron2's",
    )
    parser.add_argument(
        "--data",
        required=True,
        help='in words, the same for runs to compare; "ImageNet-1k" and "COCO 2017" at its head choose their tables',
    )
    parser.add_argument("--command", required=True, help="how to repeat the run")
    parser.add_argument("--commit", default="", help="of the code that ran (git rev-parse --short=12 HEAD)")
    parser.add_argument("--weights", default="", help="name of the published backbone that was made or used")
    parser.add_argument("--name", default="", help="pretraining: of the record, if not the run's own")
    parser.add_argument("--config", help="detector: its config in this repository")
    parser.add_argument("--initialization", choices=["pretrained", "random"], help="detector: of the backbone")
    parser.add_argument("--seed", type=int, help="detector: of the run")
    parser.add_argument("--note", default="", help="detector: what a reader of its AP must know, e.g. what it was for")
    parser.add_argument("--output", type=Path, default=ROOT / "records" / "runs")
    args = parser.parse_args(argv)
    if args.kind == "detector" and None in (args.config, args.initialization, args.seed):
        parser.error("a detector's record needs --config, --initialization and --seed")
    return exit_status(make, args)


def make(args: argparse.Namespace) -> None:
    if args.kind == "pretraining":
        record = runs.record_pretraining(
            args.folder, data=args.data, command=args.command, published=args.weights, name=args.name
        )
    else:
        record = runs.record_detector(
            args.folder,
            config=args.config,
            initialization=args.initialization,
            data=args.data,
            command=args.command,
            seed=args.seed,
            weights=args.weights,
            note=args.note,
        )
    print(runs.save(record | ({"commit": args.commit} if args.commit else {}), args.output))


if __name__ == "__main__":
    sys.exit(main())
