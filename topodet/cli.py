"""The `topodet` command.

A subcommand is one function: it adds its arguments to the parser it is given and returns what runs them. The first
line of its docstring is its help, `COMMANDS` gives it its name. What runs imports what it needs, so that `--help` and
wrong usage cost no import of torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from topodet.errors import exit_status

# Takes the parsed arguments, returns the exit status: 0 for success, 1 for problems found.
Run = Callable[[argparse.Namespace], int]


def check_coco(parser: argparse.ArgumentParser) -> Run:
    """Check a COCO annotation file and its images before training; exit status 1 if there are problems."""
    parser.add_argument("annotations", type=Path, metavar="ANN.json", help="annotation file in COCO format")
    parser.add_argument("images", type=Path, metavar="IMAGES/", help="folder that the file names are relative to")
    parser.add_argument("--read-images", action="store_true", help="open each image's header and compare its size")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND",
        help="note this kind of problem without failing; may be repeated. COCO train2017 needs --allow empty_boxes",
    )

    def run(args: argparse.Namespace) -> int:
        from topodet.datasets.coco import check_coco

        report = check_coco(args.annotations, args.images, read_images=args.read_images, allow=args.allow)
        print(report.text())
        return 0 if report.ok else 1

    return run


def analyze(parser: argparse.ArgumentParser) -> Run:
    """Look at the wiring of a trained network: tables here, and a report as one HTML file."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="checkpoint, published file, run of tools/pretrain.py (its folder), or name of a network in timm",
    )
    parser.add_argument("--against", metavar="SOURCE", help="measure NNSTD to this network, with nodes as many")
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        metavar="T",
        help="at which to cut the edges (default: those that take every fiftieth part of them)",
    )
    parser.add_argument(
        "--html",
        type=Path,
        default=Path("topology_report.html"),
        metavar="FILE",
        help="of the report (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers there; - prints them instead of the tables")

    def run(args: argparse.Namespace) -> int:
        from topodet.analysis import report
        from topodet.files import atomic_json, atomic_write

        against = args.against and report.open_subject(args.against)
        numbers = report.measure(report.open_subject(args.source), thresholds=args.thresholds, against=against)
        # Files first: who reads what is printed may stop reading.
        written = [atomic_json(args.json, numbers)] if args.json and args.json != "-" else []
        written.append(atomic_write(args.html, report.page(numbers)))
        printed = args.json == "-"
        print(json.dumps(numbers, allow_nan=False) if printed else f"{report.text(numbers)}\n")
        print(*written, sep="\n", file=sys.stderr if printed else sys.stdout)
        return 0

    return run


def list_models(parser: argparse.ArgumentParser) -> Run:
    """List the TopoNets that timm can create."""

    def run(args: argparse.Namespace) -> int:
        import timm
        import torch

        from topodet.models import ARCHITECTURES

        print(f"{'name':22} {'nodes':14} {'width':>5} {'edges':>6}  {'weights':8} {'parameters':>12}  topology")
        for name in timm.list_models("toponet*"):
            with torch.device("meta"):
                model = timm.create_model(name)
            nodes = ",".join(str(len(stage.nodes)) for stage in model.stages)
            edges = sum(stage.wiring.topology.num_edges for stage in model.stages)
            weights = "learned" if model.stages[0].wiring.learned else "fixed"
            parameters = sum(parameter.numel() for parameter in model.parameters())
            spec = ARCHITECTURES[name].get("topology", "complete")
            if not isinstance(spec, str):
                arguments = [f"{key}={value}" for key, value in spec.items() if key != "name"]
                spec = " ".join([spec["name"], *arguments])
            width = model.stem.conv.out_channels
            print(f"{name:22} {nodes:14} {width:5} {edges:6}  {weights:8} {parameters:12,}  {spec}")
        return 0

    return run


COMMANDS: dict[str, Callable[[argparse.ArgumentParser], Run]] = {
    "analyze": analyze,
    "check-coco": check_coco,
    "list": list_models,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `topodet` with the given arguments (default: those of the process) and return the exit status.

    Raises:
        SystemExit: with status 2 on wrong usage, with 0 after `--help`.
    """
    parser = argparse.ArgumentParser(prog="topodet", description="Tools for networks whose wiring is learned.")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        subparser.set_defaults(run=command(subparser))
    args = parser.parse_args(argv)
    return exit_status(args.run, args)


if __name__ == "__main__":
    sys.exit(main())
