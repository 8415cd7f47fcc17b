#!/usr/bin/env python
"""Does a network converge faster as a small world? CNNs and their SWNets, on digits or on arrays of images, on a CPU.

    python tools/small_world_experiment.py --record swnet_digits  # scikit-learn's digits, minutes
    python tools/small_world_experiment.py --data cifar100 --record swnet_cifar100  # cifar100/{train,validation}.npz
    python tools/small_world_experiment.py --networks plain --seeds 1 --json plain.json
    python tools/small_world_experiment.py --redraw swnet_digits  # the picture alone, from the record

Writes a record with every run, and a picture of them; docs/topology_swnet.md says what is to be seen there.
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
    made.add_argument("--classes", type=int, default=10, help="of a folder, the first ones (default: %(default)s)")
    made.add_argument(
        "--networks", nargs="+", default=networks, metavar="NAME", help=f"(default: {', '.join(networks)})"
    )
    made.add_argument(
        "--p",
        nargs="+",
        default=[MAX_S],
        metavar="P",
        help=f"of retargeting: numbers, or {MAX_S} for the one of largest S (default: {MAX_S})",
    )
    made.add_argument("--seeds", type=int, default=3, help="of each network (default: %(default)s)")
    made.add_argument("--first-seed", type=int, default=0, metavar="SEED", help="(default: %(default)s)")
    for name in ("iterations", "every"):
        made.add_argument(f"--{name}", type=int, help="of training, other than the data's own")
    made.add_argument("--targets", nargs="+", type=float, metavar="ACCURACY", help="other than the data's own")
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
