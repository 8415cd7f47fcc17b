"""Common options of the command lines of experiments, for their record and their picture."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..files import atomic_json, atomic_path
from ..parse import read_json
from . import runs

Draw = Callable[[dict[str, Any]], Figure]


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add --json, --record and --redraw."""
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write the record to this file, and a picture beside it (.png)")
    add("--record", metavar="NAME", help="write records/experiments/NAME.json and docs/NAME.png")
    add("--redraw", metavar="NAME", help="only draw docs/NAME.png from its record, without training")


def redraw(root: Path, name: str, draw: Draw) -> None:
    """Redraw the picture of a record in the repository `root`."""
    record, picture = _places(root, name)
    _save(draw(read_json(record)), picture)


def deliver(
    results: dict[str, Any],
    args: argparse.Namespace,
    words: Sequence[str],
    *,
    root: Path,
    tool: str,
    name: str,
    packages: tuple[str, ...],
    table: Callable[[dict[str, Any]], str],
    draw: Draw,
) -> None:
    """Print the results of an experiment, and write its record and picture to the paths in the options.

    Args:
        results: results as plain types.
        args: arguments with the options of `add_outputs`.
        words: the command line, for the record.
        root: the repository.
        tool: path of the tool in it.
        name: name of the record if no option gives one.
        packages: see `runs.record_experiment`.
        table, draw: functions from the record to a text and a picture.
    """
    name = args.record or (args.json.stem if args.json else name)
    command = f"python {tool} {shlex.join(words)}".strip()
    record = runs.record_experiment(results, name=name, command=command, packages=packages)
    print(table(record))
    places = [(args.json, args.json.with_suffix(".png"))] if args.json else []
    places += [_places(root, name)] if args.record else []
    for path, picture in places:
        print(atomic_json(path, record))
        _save(draw(record), picture)


def _places(root: Path, name: str) -> tuple[Path, Path]:
    return root / "records" / "experiments" / f"{name}.json", root / "docs" / f"{name}.png"


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    print(path)
