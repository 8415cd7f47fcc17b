#!/usr/bin/env python
"""Count what a Detectron2 detector with a TopoNet costs, by layer. Neither a dataset nor weights are needed.

    python tools/analyze_model.py --config-file CONFIG.yaml --tasks flop activation parameter structure
    python tools/analyze_model.py --config-file CONFIG.py --tasks flop --size 800 1333 model.backbone.out_channels=128

"flop" is fvcore's word for a multiply-add. Batch normalisation, activation functions and a TopoNet's weighted sums are
not in it, as in the paper's tables; the sums are told apart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from topodet.datasets.images import read_image
from topodet.errors import ConfigError, exit_status
from topodet.frameworks import require_framework

TASKS = ("flop", "activation", "parameter", "structure")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help=".yaml or LazyConfig .py")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, required=True)
    parser.add_argument("-n", "--num-inputs", type=int, default=1, help="images of noise (default: %(default)s)")
    parser.add_argument(
        "--size", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"), help="(default: 800 1333)"
    )
    parser.add_argument("--input", nargs="+", type=Path, help="images instead, short side H, long side at most W")
    parser.add_argument("--depth", type=int, default=4, help="of the modules in the tables (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... or, LazyConfig, KEY=VALUE ...")
    args = parser.parse_args(argv)
    return exit_status(analyze, args)


def analyze(args: argparse.Namespace) -> None:
    if min(args.num_inputs, args.depth, *args.size) < 1:
        raise ConfigError("--num-inputs, --depth and --size must be positive")
    require_framework("detectron2")
    from topodet.detectron2.analyze import build_detector, count, prepare, synthetic_images
    from topodet.models.calibrate import calibrate_batchnorm

    height, width = args.size
    files = [read_image(path) for path in args.input or ()]
    model, input_format = build_detector(args.config_file, args.opts)
    if "structure" in args.tasks:
        print(model)
    if "parameter" in args.tasks:
        print_parameters(model, args.depth)
    if {"flop", "activation"} & set(args.tasks):
        images = synthetic_images(args.num_inputs, height, width)
        if files:
            images = [prepare(f, short_side=height, long_side=width, input_format=input_format) for f in files]
        calibrate_batchnorm(model, model, [{"image": images[0]}])
        counts = count(model, images, depth=args.depth)
        print(counts.table)
        print(f"images: {len(images)}, the table's {images[-1].shape[1]} x {images[-1].shape[2]}")
    if "flop" in args.tasks:
        print_flops(counts)
    if "activation" in args.tasks:
        part = share(counts.backbone_activations, counts.activations)
        print(f"activations: {counts.activations / 1e6:.2f} M; backbone {part}")


def print_flops(counts) -> None:
    total = float(np.mean(counts.flops))
    kinds = ", ".join(f"{name} {value / 1e9:.3f}" for name, value in counts.operators.items() if value)
    print(f"multiply-adds: {total / 1e9:.3f} +- {np.std(counts.flops) / 1e9:.3f} G ({kinds})")
    print(f"backbone: {counts.backbone / 1e9:.3f} G, {share(counts.backbone, total)} of them")
    if counts.weighted_sums:
        print(f"weighted sums of the backbone, not among them: {counts.weighted_sums / 1e9:.3f} G")
    missing = ", ".join(f"{name} x{times}" for name, times in sorted(counts.uncounted.items()))
    print(f"not counted, for want of a formula: {missing or 'nothing'}")


def print_parameters(model, depth: int) -> None:
    from detectron2.utils.analysis import parameter_count_table

    from topodet.complexity import parameters
    from topodet.detectron2.analyze import bottom_up

    print(parameter_count_table(model, max_depth=depth))
    plain, alphas = parameters(model)
    own = sum(parameters(bottom_up(model)))
    part = share(own, plain + alphas)
    print(f"parameters: {plain:,} and {alphas:,} edge weights that learn; backbone {own:,}, {part} of them")


def share(part: float, total: float) -> str:
    return f"{part / total:.1%}" if total else "-"


if __name__ == "__main__":
    sys.exit(main())
