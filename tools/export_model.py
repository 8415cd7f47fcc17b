#!/usr/bin/env python
"""Write a Detectron2 detector with a TopoNet as TorchScript or ONNX, for places without Detectron2 and topodet.

    python tools/export_model.py --weights DETECTOR-hash.pth --format onnx --sample image.jpg --output exported/

The file gets its name only when it finds on the sample image, and on that image made smaller, the boxes and scores that
the original finds (to 1e-4). A .json beside it says what goes in and what comes out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from topodet.datasets.images import read_image
from topodet.errors import exit_status
from topodet.frameworks import require_framework


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="published detector, or a checkpoint with --config")
    parser.add_argument("--config", type=Path, help=".yaml of the checkpoint, e.g. RUN/config.yaml")
    parser.add_argument("--classes", nargs="+", default=[], help="with --config: names, or COCO annotations .json")
    parser.add_argument("--format", choices=("torchscript", "onnx"), default="torchscript")
    parser.add_argument("--sample", type=Path, required=True, help="image with something to detect")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--name", help="of the file (default: that of the weights)")
    parser.add_argument("--score-threshold", type=float, default=0.05, help="built in (default: %(default)s)")
    parser.add_argument("--opset", type=int, default=17, help="of ONNX (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="TorchScript stays on the one it was traced on (default: cpu)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... over the config")
    args = parser.parse_args(argv)
    return exit_status(export, args)


def export(args: argparse.Namespace) -> None:
    require_framework("detectron2")
    from topodet.detectron2 import load_detector
    from topodet.detectron2.export import SUFFIXES, export_detector

    image = read_image(args.sample)
    options = {"score_threshold": args.score_threshold, "device": args.device, "opts": args.opts}
    made = load_detector(args.weights, config=args.config, classes=args.classes, **options)
    name = args.name or Path(args.weights).stem
    path = args.output / f"{name}{SUFFIXES[args.format]}"
    content = export_detector(made, image, path, format=args.format, opset=args.opset)
    compared = content["compared"]
    print(
        f"{path}  {path.stat().st_size / 1e6:.2f} MB, {compared['boxes']} boxes as the original's: scores to "
        f"{compared['score']:.1g}, boxes to {compared['box']:.1g} of the image's side"
    )


if __name__ == "__main__":
    sys.exit(main())
