"""Export a detector with a TopoNet as TorchScript or ONNX, for use without its framework and topodet.

    topodet export --weights DETECTOR-hash.pth --format onnx --sample image.jpg --output exported/

The file gets its final name only if its boxes and scores equal the original's (to 1e-4) on the sample image and on a
smaller copy of it. A .json file describes inputs and outputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser
from topodet.commands.detectors import add_config, open_detector


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    add = made.add_argument
    add("--weights", required=True, help="published detector, or a training checkpoint with --config")
    add_config(made)
    add("--format", choices=("torchscript", "onnx"), default="torchscript", help="(default: %(default)s)")
    add("--sample", type=Path, required=True, help="image with something to detect")
    add("--output", type=Path, required=True, help="output folder")
    add("--name", help="file name without suffix (default: that of the weights)")
    add("--score-threshold", type=float, default=0.05, help="lowest score in the output (default: %(default)s)")
    add("--opset", type=int, default=17, help="ONNX opset (default: %(default)s)")
    made.set_defaults(device="cpu")
    return made


def main(words: Sequence[str]) -> None:
    args = parser().parse_args(words)
    from topodet.datasets.images import read_image
    from topodet.exported import SUFFIXES

    image = read_image(args.sample)
    framework, detector = open_detector(args, args.weights, score_threshold=args.score_threshold)
    name = args.name or Path(args.weights).stem
    path = args.output / f"{name}{SUFFIXES[args.format]}"
    content = framework.export_detector(detector, image, path, format=args.format, opset=args.opset)
    compared = content["compared"]
    print(
        f"{path}  {path.stat().st_size / 1e6:.2f} MB, {compared['boxes']} boxes equal the original's: scores to "
        f"{compared['score']:.1g}, boxes to {compared['box']:.1g} of the image's longer side"
    )
