"""Count the cost of a detector with a TopoNet by layer, in either framework. No dataset or weights are needed.

    topodet analyze-model --config CONFIG.yaml --tasks flop activation parameter structure
    topodet analyze-model --config CONFIG.py --tasks flop --size 800 1333 --opts model.backbone.out_channels=128
    topodet analyze-model --weights DETECTOR-hash.pth --tasks flop --input image.jpg

"flop" is the frameworks' word for a multiply-add. Batch normalization, activation functions and a TopoNet's weighted
sums are not included, as in the paper's tables; the sums are listed separately.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser
from topodet.commands.detectors import config_framework

TASKS = ("flop", "activation", "parameter", "structure")


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    add = made.add_argument
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="detector config: .yaml or .py (MMDetection's, or a LazyConfig)")
    source.add_argument("--weights", help="published detector")
    add("--tasks", nargs="+", choices=TASKS, required=True, help="what to print")
    add("-n", "--num-inputs", type=int, default=1, help="number of noise images (default: %(default)s)")
    add("--size", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"), help="image size (default: 800 1333)")
    add(
        "--input",
        nargs="+",
        type=Path,
        default=[],
        help="images to use instead of noise, resized to short side H and long side at most W",
    )
    add("--depth", type=int, default=4, help="depth of the modules in the tables (default: %(default)s)")
    add("--opts", nargs="+", default=[], help="config overrides: KEY VALUE ... or, with a .py, KEY=VALUE ...")
    return made


def main(words: Sequence[str]) -> None:
    args = parser().parse_args(words)
    from topodet import weights
    from topodet.frameworks import import_framework

    if args.config:
        framework = config_framework(args.config, lazy=True)
    else:
        framework = import_framework(weights.read_detector(args.weights).card["framework"])
    result = framework.analyze(
        args.config or args.weights,
        args.opts,
        tasks=args.tasks,
        size=args.size,
        inputs=args.input,
        num_inputs=args.num_inputs,
        depth=args.depth,
    )
    print(result.text())
