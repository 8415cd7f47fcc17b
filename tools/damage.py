#!/usr/bin/env python
"""Measure what a trained classifier is worth without each of its nodes and without its weak edges.

    python tools/damage.py runs/pretrain/NAME/model_best.pth.tar --output runs/damage/NAME
    python tools/damage.py runs/pretrain/NAME/model_best.pth.tar --data-dir DIR --keep 0.6 0.4 0.2 --per node
    python tools/damage.py runs/pretrain/NAME/last.pth.tar --retrained runs/pretrain/NAME_keep* --record NAME \
      --data "Tiny ImageNet, 75 classes"

The network, its graphs and its validation images are those of the checkpoint; other options, after it, are those of
tools/pretrain.py and replace what it was trained with (--data-dir, --dataset, --val-split, --device, ...). The folder
gets nodes.csv and edges.csv, row by row as they are measured, and pictures of both.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import get_args

from topodet import connectivity
from topodet.connectivity import OnDisconnected, Per
from topodet.errors import exit_status
from topodet.files import atomic_path, atomic_write

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if "--update-docs" in words:
        return exit_status(update_docs)
    args, rest = parser().parse_known_args(words)
    if args.record and not args.data:
        parser().error("--record needs --data: which images, in words")
    return exit_status(measure, args, rest, f"python tools/damage.py {shlex.join(words)}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = made.add_argument
    add("checkpoint", type=Path, help="of tools/pretrain.py, e.g. model_best.pth.tar")
    add("--output", type=Path, help="folder (default: runs/damage/ and the name of the checkpoint's folder)")
    add("--nodes", action=argparse.BooleanOptionalAction, default=True, help="remove each node in turn")
    add("--edges", action=argparse.BooleanOptionalAction, default=True, help="remove more and more edges")
    add("--thresholds", type=float, nargs="+", metavar="T", help="below which edges are weak")
    add(
        "--keep",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="instead, shares of the edges that are left (default: 0.9 ... 0.1)",
    )
    add("--per", choices=get_args(Per), default="network", help="what an edge is measured by")
    add("--on-disconnected", choices=get_args(OnDisconnected), default="allow", help="for a graph that falls apart")
    add("--in-memory", action="store_true", help="read the validation images once, not for each measurement")
    add("--retrained", type=Path, nargs="+", default=[], metavar="RUN", help="runs that retrained it, pruned")
    add("--data", default="", help="which images, in words, for the record")
    add("--record", metavar="NAME", help="write the record to records/damage/NAME.json")
    add("--update-docs", action="store_true", help="only make the tables of docs/topology_damage.md anew")
    return made


def measure(args: argparse.Namespace, rest: list[str], command: str) -> None:
    from topodet.analysis import damage_curves
    from topodet.pretrain.checkpoint import open_checkpoint
    from topodet.pretrain.engine import accuracy
    from topodet.records import runs

    output = args.output or Path("runs/damage") / args.checkpoint.resolve().parent.name
    nodes = edges = None
    with open_checkpoint(args.checkpoint, rest) as (model, loader):
        evaluate = accuracy(list(loader) if args.in_memory else loader)
        if args.edges:
            edges = connectivity.remove_edges(
                model,
                evaluate,
                thresholds=args.thresholds,
                keep=args.keep,
                per=args.per,
                on_disconnected=args.on_disconnected,
                csv=output / "edges.csv",
            )
        if args.nodes:
            nodes = connectivity.remove_nodes(model, evaluate, csv=output / "nodes.csv")
    record = runs.record_damage(
        nodes=nodes,
        edges=edges,
        checkpoint=args.checkpoint,
        data=args.data,
        name=args.record or output.name,
        command=command,
        retrained=args.retrained,
    )
    print(damage_curves.tables(record))
    for name, figure in damage_curves.figures(record).items():
        save_figure(figure, output / name)
    if args.record:
        print(runs.save_as(record, ROOT / "records" / "damage"))


def update_docs(root: Path = ROOT) -> None:
    from topodet.analysis import damage_curves
    from topodet.records import runs

    found = runs.load_all(root / "records" / "damage")
    page = root / "docs" / "topology_damage.md"
    for record in found:
        for name, figure in damage_curves.figures(record).items():
            save_figure(figure, page.parent / name)
    print(atomic_write(page, damage_curves.update_page(page.read_text(), found)))


def save_figure(figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
