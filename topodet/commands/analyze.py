"""Analyze the wiring of a trained network: tables in the terminal, and a report as one HTML file.

topodet analyze runs/pretrain/NAME --html report.html
topodet analyze published/NAME-1a2b3c4d.pth --against published/OTHER-1a2b3c4d.pth --json numbers.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    made.add_argument(
        "source",
        metavar="SOURCE",
        help="checkpoint or published file (path, URL, hf-hub:USER/REPO), folder of a `topodet pretrain` run, or "
        "name of a network in timm",
    )
    made.add_argument(
        "--against", metavar="SOURCE", help="also measure NNSTD to this network with the same number of nodes"
    )
    made.add_argument(
        "--threshold",
        type=float,
        nargs="+",
        metavar="T",
        help="thresholds below which edges are removed (default: steps of 2%% of the edges)",
    )
    made.add_argument(
        "--html",
        type=Path,
        default=Path("topology_report.html"),
        metavar="FILE",
        help="report to write (default: %(default)s)",
    )
    made.add_argument(
        "--json", metavar="FILE", help="write all numbers to this file; - prints them instead of the tables"
    )
    return made


def main(words: Sequence[str]) -> None:
    args = parser().parse_args(words)
    from topodet.analysis import report
    from topodet.files import atomic_json, atomic_write

    against = args.against and report.open_subject(args.against)
    numbers = report.measure(report.open_subject(args.source), thresholds=args.threshold, against=against)
    # Files first: printing fails if the reader of the output, such as `head`, closes the pipe.
    written = [atomic_json(args.json, numbers)] if args.json and args.json != "-" else []
    written.append(atomic_write(args.html, report.page(numbers)))
    printed = args.json == "-"
    print(json.dumps(numbers, allow_nan=False) if printed else f"{report.text(numbers)}\n")
    print(*written, sep="\n", file=sys.stderr if printed else sys.stdout)
