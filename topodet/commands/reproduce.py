"""Reproduce a table or figure of the paper: run what is missing, record it, and make its page.

A study runs in a checkout of topodet's repository, whose configs it uses and whose records and docs it writes.

  topodet reproduce table4 --scale paper --dry-run       every command, for 8 GPUs
  topodet reproduce table4 --scale paper --status        what is done and running, and the hours left
  topodet reproduce table1 --scale small --seeds 3 --budget 2
  topodet reproduce table5 --framework detectron2 --python detectron2=/opt/d2/bin/python

Several processes share a study: start the command once for each GPU, with CUDA_VISIBLE_DEVICES set and --gpus 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser
from topodet.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    add = made.add_argument
    add("study", metavar="STUDY", help="name of a study in configs/studies, or path of its .yaml")
    add("--scale", choices=("small", "paper"), help="scale of the study (default: small if it has one)")
    add("--seeds", type=int, metavar="N", help="number of seeds, from 0 (default: the study's)")
    add("--framework", choices=("mmdetection", "detectron2"), help="framework of the detectors (default: both)")
    add("--gpus", type=int, metavar="N", help="GPUs per node for one run; 0 uses the CPU (default: the study's)")
    add("--nodes", type=int, default=1, metavar="N", help="nodes per run; start the command on each of them")
    add("--node-rank", type=int, default=0, metavar="K", help="rank of this node, from 0")
    add("--address", default="", metavar="HOST:PORT", help="address of node 0, for several nodes")
    add(
        "--python",
        action="append",
        default=[],
        metavar="FRAMEWORK=PATH",
        help="Python with the framework installed, if not this one; may be repeated",
    )
    add("--budget", type=float, metavar="HOURS", help="stop after this time; the same command continues later")
    shown = made.add_mutually_exclusive_group()
    shown.add_argument("--dry-run", action="store_true", help="print the missing commands; run nothing")
    shown.add_argument("--status", action="store_true", help="print what is done, running and missing; run nothing")
    shown.add_argument("--page", action="store_true", help="only update the study's page from its records")
    add("--runs", type=Path, default=Path("runs/studies"), metavar="DIR", help="folder of runs (default: %(default)s)")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="folder of datasets (default: %(default)s)")
    return made


def main(words: Sequence[str]) -> int:
    args = parser().parse_args(words)
    python = {}
    for text in args.python:
        framework, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--python {text!r} must be FRAMEWORK=PATH, as in detectron2=/opt/d2/bin/python")
        python[framework] = path
    from topodet import reproduce

    return reproduce.command(
        args.study,
        scale=args.scale,
        seeds=args.seeds,
        framework=args.framework,
        gpus=args.gpus,
        nodes=args.nodes,
        rank=args.node_rank,
        address=args.address,
        python=python,
        budget=args.budget,
        action=next((name for name in ("dry_run", "status", "page") if getattr(args, name)), "run"),
        runs=args.runs,
        data=args.data,
    )
