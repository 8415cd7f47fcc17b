"""Count what a detector with a TopoNet costs, by layer. Neither a dataset nor weights are needed.

    topodet analyze-model --config CONFIG.yaml --tasks flop activation parameter structure
    topodet analyze-model --config CONFIG.py --tasks flop --size 800 1333 --opts model.backbone.out_channels=128

"flop" is fvcore's word for a multiply-add. Batch normalisation, activation functions and a TopoNet's weighted sums are
not in it, as in the paper's tables; the sums are told apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser
from topodet.errors import ConfigError

TASKS = ("flop", "activation", "parameter", "structure")


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    add = made.add_argument
    add("--config", required=True, help="of the detector: .yaml or LazyConfig .py")
    add("--tasks", nargs="+", choices=TASKS, required=True)
    add("-n", "--num-inputs", type=int, default=1, help="images of noise (default: %(default)s)")
    add("--size", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"), help="(default: 800 1333)")
    add("--input", nargs="+", type=Path, help="images instead, short side H, long side at most W")
    add("--depth", type=int, default=4, help="of the modules in the tables (default: %(default)s)")
    add("--opts", nargs="+", default=[], help="over the config: KEY VALUE ... or, LazyConfig, KEY=VALUE ...")
    return made


def main(words: Sequence[str]) -> None:
    args = parser().parse_args(words)
    if min(args.num_inputs, args.depth, *args.size) < 1:
        raise ConfigError("--num-inputs, --depth and --size must be positive")
    from topodet.datasets.images import read_image
    from topodet.frameworks import require_framework

    require_framework("detectron2")
    from topodet.detectron2.analyze import build_detector, count, prepare, synthetic_images
    from topodet.models.calibrate import calibrate_batchnorm

    height, width = args.size
    files = [read_image(path) for path in args.input or ()]
    model, input_format = build_detector(args.config, args.opts)
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
    import numpy as np

    total = float(np.mean(counts.flops))
    kinds = ", ".join(f"{name} {value / 1e9:.3f}" for name, value in counts.operators.items() if value)
    print(f"multiply-adds: {total / 1e9:.3f} +- {np.std(counts.flops) / 1e9:.3f} G ({kinds})")
    print(f"backbone: {counts.backbone / 1e9:.3f} G, {share(counts.backbone, total)} of them")
    if counts.weighted_sums:
        print(f"weighted sums of the backbone, not among them: {counts.weighted_sums / 1e9:.3f} G")
    missing = ", ".join(f"{name} x{times}" for name, times in sorted(counts.uncounted.items()))
    print(f"not counted, for want of a formula: {missing or 'nothing'}")


def print_parameters(model, depth: int) -> None:
    from topodet.complexity import parameters
    from topodet.detectron2.analyze import bottom_up, parameter_count_table

    print(parameter_count_table(model, max_depth=depth))
    plain, alphas = parameters(model)
    own = sum(parameters(bottom_up(model)))
    part = share(own, plain + alphas)
    print(f"parameters: {plain:,} and {alphas:,} edge weights that learn; backbone {own:,}, {part} of them")


def share(part: float, total: float) -> str:
    return f"{part / total:.1%}" if total else "-"
