"""Measure what a trained classifier is worth without each of its nodes and without its weak edges.

    topodet damage runs/pretrain/NAME/model_best.pth.tar --output runs/damage/NAME
    topodet damage runs/pretrain/NAME/model_best.pth.tar --data-dir DIR --keep 0.6 0.4 0.2 --per node
    topodet damage runs/pretrain/NAME/last.pth.tar --retrained runs/pretrain/NAME_keep* --record NAME \
      --data "Tiny ImageNet, 75 classes"

The network, its graphs and its validation images are those of the checkpoint; other options, after it, are those of
`topodet pretrain` and replace what it was trained with (--data-dir, --dataset, --val-split, --device, ...). The folder
gets nodes.csv and edges.csv, row by row as they are measured, and pictures of both.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser
from topodet.options import add_pruning


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__, allow_abbrev=False)
    add = made.add_argument
    add("checkpoint", type=Path, help="of `topodet pretrain`, e.g. model_best.pth.tar")
    add("--output", type=Path, help="folder (default: runs/damage/ and the name of the checkpoint's folder)")
    add("--nodes", action=argparse.BooleanOptionalAction, default=True, help="remove each node in turn")
    add("--edges", action=argparse.BooleanOptionalAction, default=True, help="remove more and more edges")
    # Without either, --keep is 0.9 ... 0.1.
    add_pruning(made.add_argument_group("the edges that are removed"), several=True, allow=True)
    add("--in-memory", action="store_true", help="read the validation images once, not for each measurement")
    add("--retrained", type=Path, nargs="+", default=[], metavar="RUN", help="runs that retrained it, pruned")
    add("--data", default="", help="which images, in words, for the record")
    add("--record", metavar="NAME", help="write the record to records/damage/NAME.json of the working folder")
    return made


def main(words: Sequence[str]) -> None:
    args, rest = parser().parse_known_args(words)
    if args.record and not args.data:
        parser().error("--record needs --data: which images, in words")
    from topodet import connectivity
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
                thresholds=args.threshold,
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
        command=f"topodet damage {shlex.join(words)}",
        retrained=args.retrained,
    )
    print(damage_curves.tables(record))
    for name, figure in damage_curves.figures(record).items():
        save_figure(figure, output / name)
    if args.record:
        print(runs.save_as(record, Path("records", "damage")))


def save_figure(figure, path: Path) -> None:
    from topodet.files import atomic_path

    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    print(path)
