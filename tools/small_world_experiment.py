#!/usr/bin/env python
"""Does a network converge faster as a small world? CNNs and their SWNets, on digits or on arrays of images, on a CPU.

    python tools/small_world_experiment.py --record swnet_digits  # scikit-learn's digits, minutes
    python tools/small_world_experiment.py --data cifar100 --record swnet_cifar100  # cifar100/{train,validation}.npz
    python tools/small_world_experiment.py --networks plain --seeds 1 --json plain.json
    python tools/small_world_experiment.py --redraw swnet_digits  # only the picture, from the record

Writes a record with every run, and a picture of them, which docs/topology_swnet.md explains.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from topodet.errors import exit_status
from topodet.records import experiment_cli
from topodet.related.swnet import experiment
from topodet.related.swnet.sweep import MAX_S

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    return exit_status(run, parser().parse_args(words), words)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = list(experiment.NETWORKS)
    made.add_argument("--data", default="digits", help="digits, or a folder with train.npz and validation.npz")
    made.add_argument(
        "--classes", type=int, default=10, help="number of classes to use of a folder (default: %(default)s)"
    )
    made.add_argument(
        "--networks", nargs="+", default=networks, metavar="NAME", help=f"networks (default: {', '.join(networks)})"
    )
    made.add_argument(
        "--p",
        nargs="+",
        default=[MAX_S],
        metavar="P",
        help=f"probabilities of retargeting; {MAX_S} is the one with the largest S (default: {MAX_S})",
    )
    made.add_argument("--seeds", type=int, default=3, help="number of seeds per network (default: %(default)s)")
    made.add_argument("--first-seed", type=int, default=0, metavar="SEED", help="first seed (default: %(default)s)")
    made.add_argument("--iterations", type=int, help="iterations of training (default: the data's)")
    made.add_argument("--every", type=int, help="iterations between two evaluations (default: the data's)")
    made.add_argument(
        "--targets", nargs="+", type=float, metavar="ACCURACY", help="accuracies to reach (default: the data's)"
    )
    experiment_cli.add_outputs(made)
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    if args.redraw:
        experiment_cli.redraw(ROOT, args.redraw, experiment.figure)
        return
    task = experiment.digits() if args.data == "digits" else _arrays(args)
    other = {name: getattr(args, name) for name in ("iterations", "every", "targets")}
    task = replace(task, **{name: value for name, value in other.items() if value is not None})
    progress = partial(tqdm, unit="training", mininterval=1.0)
    results = experiment.run(
        task, args.networks, ps=args.p, seeds=args.seeds, first_seed=args.first_seed, progress=progress
    )
    experiment_cli.deliver(
        results,
        args,
        words,
        root=ROOT,
        tool="tools/small_world_experiment.py",
        name="swnet",
        packages=("scikit-learn", "scipy"),
        table=experiment.table,
        draw=experiment.figure,
    )


def _arrays(args: argparse.Namespace) -> experiment.Task:
    return experiment.arrays(args.data, num_classes=args.classes)


if __name__ == "__main__":
    sys.exit(main())
