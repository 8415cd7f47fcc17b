"""Measure the accuracy of a trained network without each of its nodes and without its weak edges.

    topodet damage runs/pretrain/NAME/model_best.pth.tar --data-dir DIR --output runs/damage/NAME
    topodet damage runs/pretrain/NAME/model_best.pth.tar --data-dir DIR --keep 0.6 0.4 0.2 --per node
    topodet damage runs/pretrain/NAME/last.pth.tar --data-dir DIR --retrained runs/pretrain/NAME_keep* --record NAME \
      --data "Tiny ImageNet, 75 classes"

    topodet damage published/DETECTOR-hash.pth --annotations val.json --images val2017/ --no-nodes

For a classifier, the network and its graphs come from the checkpoint, but the images from --data-dir (and --dataset,
--val-split), so that a file cannot choose what is opened; other options of `topodet pretrain` override those of the
training. For a detector of either framework (--annotations and --images), COCO's scores are measured. The output
folder gets nodes.csv and edges.csv, written row by row, and pictures of both.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from topodet.commands import make_parser
from topodet.commands.detectors import add_config, open_detector
from topodet.errors import ConfigError
from topodet.options import add_pruning

if TYPE_CHECKING:
    from torch import nn

    from topodet.connectivity.damage import Evaluate


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__, allow_abbrev=False)
    add = made.add_argument
    add("checkpoint", help="checkpoint of a `topodet pretrain` run, e.g. model_best.pth.tar; or a detector")
    add("--output", type=Path, help="folder (default: runs/damage/ and the name of the checkpoint's folder)")
    add("--nodes", action=argparse.BooleanOptionalAction, default=True, help="remove each node in turn")
    add("--edges", action=argparse.BooleanOptionalAction, default=True, help="remove increasing numbers of edges")
    # Without --threshold and --keep, --keep is 0.9 ... 0.1.
    add_pruning(made.add_argument_group("the edges that are removed"), several=True, allow=True)
    add("--in-memory", action="store_true", help="keep the validation images in memory between measurements")
    add("--retrained", type=Path, nargs="+", default=[], metavar="RUN", help="runs that retrained the pruned network")
    add("--data", default="", help="description of the images, for the record")
    add("--record", metavar="NAME", help="write the record to records/damage/NAME.json of the working folder")
    detector = made.add_argument_group("a detector")
    detector.add_argument("--annotations", type=Path, metavar="ANN.json", help="COCO annotations to evaluate on")
    detector.add_argument("--images", type=Path, metavar="IMAGES/", help="folder of the images")
    add_config(detector)
    return made


def main(words: Sequence[str]) -> None:
    made = parser()
    args, rest = made.parse_known_args(words)
    if args.record and not args.data:
        made.error("--record needs --data, a description of the images")
    if (args.annotations is None) != (args.images is None):
        made.error("a detector needs both --annotations ANN.json and --images IMAGES/")
    from topodet import connectivity, weights
    from topodet.analysis import damage_curves
    from topodet.records import runs

    output = args.output or Path("runs/damage") / weights.fetch(args.checkpoint).absolute().parent.name
    nodes = edges = None
    with _open(args, rest) as (model, evaluate):
        if args.edges:
            edges = connectivity.remove_edges(
                model,
                evaluate,
                thresholds=args.threshold,
                keep=args.keep,
                per=args.per,
                on_disconnected=args.on_disconnected,
                random=args.random_edges,
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


@contextmanager
def _open(args: argparse.Namespace, rest: Sequence[str]) -> Iterator[tuple[nn.Module, Evaluate]]:
    """Yield the network and the function that evaluates it."""
    if args.annotations is None:
        from topodet.pretrain.checkpoint import open_checkpoint
        from topodet.pretrain.engine import accuracy

        unused = {"--config": args.config, "--classes": args.classes, "--opts": args.opts}
        given = [option for option, value in unused.items() if value]
        if given:
            raise ConfigError(
                f"{', '.join(given)} needs a detector: give --annotations ANN.json and --images IMAGES/ too"
            )
        device = ["--device", args.device] if args.device else []
        with open_checkpoint(args.checkpoint, [*rest, *device]) as (model, loader):
            yield model, accuracy(list(loader) if args.in_memory else loader)
        return
    unused = [*rest, *(["--retrained"] if args.retrained else []), *(["--in-memory"] if args.in_memory else [])]
    if unused:
        raise ConfigError(f"a detector does not support {unused[0]}; remove it")
    framework, detector = open_detector(args, args.checkpoint)
    evaluate = partial(framework.evaluate, detector, args.annotations, args.images, progress=False)
    yield getattr(detector, "model", detector), lambda model: evaluate()


def save_figure(figure, path: Path) -> None:
    from topodet.files import atomic_path

    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    print(path)
