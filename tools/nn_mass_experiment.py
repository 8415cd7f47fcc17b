#!/usr/bin/env python
"""Does accuracy follow NN-Mass or the number of parameters? MLPs and CNNs on scikit-learn's digits, on a CPU.

    python tools/nn_mass_experiment.py --record nn_mass_digits      # all families, minutes
    python tools/nn_mass_experiment.py --families mlp --seeds 1 --json mlp.json
    python tools/nn_mass_experiment.py --redraw nn_mass_digits      # the picture alone, from the record

Writes a record with every network, and a picture of them; docs/topology.md says what is to be seen there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from topodet import records
from topodet.analysis import mass_experiment
from topodet.errors import exit_status
from topodet.files import atomic_json, atomic_path

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    return exit_status(run, parser().parse_args(words), words)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = list(mass_experiment.FAMILIES)
    made.add_argument(
        "--families", nargs="+", default=families, metavar="NAME", help=f"(default: {', '.join(families)})"
    )
    made.add_argument("--seeds", type=int, default=3, help="of each network (default: %(default)s)")
    made.add_argument("--epochs", type=int, help="of training, other than the families' own")
    made.add_argument(
        "--json", type=Path, metavar="FILE", help="write the record there, and a picture beside it (.png)"
    )
    made.add_argument("--record", metavar="NAME", help="write records/experiments/NAME.json and docs/NAME.png")
    made.add_argument("--redraw", metavar="NAME", help="train nothing; make docs/NAME.png from its record")
    return made


def run(args: argparse.Namespace, words: list[str]) -> int:
    if args.redraw:
        record, picture = _places(args.redraw)
        _draw(json.loads(record.read_text()), picture)
        return 0
    progress = partial(tqdm, unit="network", mininterval=1.0)
    results = mass_experiment.run(args.families, seeds=args.seeds, epochs=args.epochs, progress=progress)
    name = args.record or (args.json.stem if args.json else "nn_mass")
    command = f"python tools/nn_mass_experiment.py {shlex.join(words)}".strip()
    record = records.record_experiment(results, name=name, command=command, packages=("scikit-learn", "scipy"))
    print(mass_experiment.table(record))
    places = [(args.json, args.json.with_suffix(".png"))] if args.json else []
    places += [_places(name)] if args.record else []
    for path, picture in places:
        print(atomic_json(path, record))
        _draw(record, picture)
    return 0


def _places(name: str) -> tuple[Path, Path]:
    return ROOT / "records" / "experiments" / f"{name}.json", ROOT / "docs" / f"{name}.png"


def _draw(record: dict, picture: Path) -> None:
    with atomic_path(picture) as temporary:
        mass_experiment.figure(record).savefig(temporary, format="png", dpi=110)
    print(picture)


if __name__ == "__main__":
    sys.exit(main())
