#!/usr/bin/env python
"""Does accuracy follow NN-Mass or the number of parameters? MLPs and CNNs on scikit-learn's digits, on a CPU.

    python tools/nn_mass_experiment.py --record nn_mass_digits      # all families, minutes
    python tools/nn_mass_experiment.py --families mlp --seeds 1 --json mlp.json
    python tools/nn_mass_experiment.py --redraw nn_mass_digits      # only the picture, from the record

Writes a record with every network, and a picture of them, which docs/topology_nn_mass.md explains.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from topodet.errors import exit_status
from topodet.records import experiment_cli
from topodet.related.nn_mass import experiment

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    return exit_status(run, parser().parse_args(words), words)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = list(experiment.FAMILIES)
    made.add_argument(
        "--families", nargs="+", default=families, metavar="NAME", help=f"families (default: {', '.join(families)})"
    )
    made.add_argument("--seeds", type=int, default=3, help="number of seeds per network (default: %(default)s)")
    made.add_argument("--first-seed", type=int, default=0, metavar="SEED", help="first seed (default: %(default)s)")
    made.add_argument("--epochs", type=int, help="epochs of training (default: the families')")
    experiment_cli.add_outputs(made)
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    if args.redraw:
        experiment_cli.redraw(ROOT, args.redraw, experiment.figure)
        return
    progress = partial(tqdm, unit="network", mininterval=1.0)
    results = experiment.run(
        args.families, seeds=args.seeds, first_seed=args.first_seed, epochs=args.epochs, progress=progress
    )
    experiment_cli.deliver(
        results,
        args,
        words,
        root=ROOT,
        tool="tools/nn_mass_experiment.py",
        name="nn_mass",
        packages=("scikit-learn", "scipy"),
        table=experiment.table,
        draw=experiment.figure,
    )


if __name__ == "__main__":
    sys.exit(main())
