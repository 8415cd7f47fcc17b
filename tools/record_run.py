#!/usr/bin/env python
"""Make the record of a finished run from its output, for model_zoo.md: records/runs/NAME.json."""

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
        help="folder of a `topodet pretrain` run, MMDetection's --work-dir, or Detectron2's OUTPUT_DIR",
    )
    parser.add_argument(
        "--data",
        required=True,
        help='description of the data, the same for runs to compare; "ImageNet-1k" and "COCO 2017" at its start select '
        "their tables",
    )
    parser.add_argument("--command", required=True, help="how to repeat the run")
    parser.add_argument("--commit", default="", help="commit of the code (git rev-parse --short=12 HEAD)")
    parser.add_argument("--weights", default="", help="name of the published backbone that was made or used")
    parser.add_argument("--name", default="", help="pretraining: name of the record (default: the run's)")
    parser.add_argument("--config", help="detector: its config in this repository")
    parser.add_argument(
        "--initialization", choices=["pretrained", "random"], help="detector: initialization of the backbone"
    )
    parser.add_argument("--seed", type=int, help="detector: seed of the run")
    parser.add_argument("--note", default="", help="detector: note for readers of its AP, e.g. the purpose of the run")
    parser.add_argument("--output", type=Path, default=ROOT / "records" / "runs", help="folder of the records")
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
