#!/usr/bin/env python
"""Turn a training checkpoint into a published file.

Of a backbone: NAME-<hash>.pth, its .safetensors twin and a .json card. Of a detector (--detector, either framework):
NAME-<hash>.pth with its config and class names, which tools/demo.py and `load_detector` take as it is.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from topodet import weights
from topodet.connectivity import Per
from topodet.errors import ConfigError, exit_status
from topodet.frameworks import import_framework


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="of tools/pretrain.py, e.g. model_best.pth.tar")
    parser.add_argument("--detector", type=Path, metavar="CHECKPOINT", help="of a detector, e.g. RUN/model_final.pth")
    parser.add_argument(
        "--config", type=Path, help="of the detector: .yaml or .py (default: that beside the checkpoint)"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of the detector by index, or its COCO annotations .json",
    )
    parser.add_argument("--output", type=Path, default=Path("published"), help="folder (default: %(default)s)")
    parser.add_argument("--name", help="stem before the hash (default: the architecture, or the detector's folder)")
    parser.add_argument("--licence", default="Apache-2.0", help="of the weights, SPDX name (default: %(default)s)")
    parser.add_argument("--notes", default="", help="one line for the card, e.g. the data")
    parser.add_argument("--prune-threshold", type=float, metavar="T", help="leave out the edges that are weaker")
    parser.add_argument(
        "--prune-keep", type=float, metavar="SHARE", help="keep the strongest edges, this share of them"
    )
    parser.add_argument("--prune-per", choices=get_args(Per), default="network", help="what an edge is measured by")
    parser.add_argument(
        "--prune-disconnected", choices=["error", "repair"], default="error", help="where a graph falls apart"
    )
    parser.add_argument("--hub", metavar="USER/REPO", help="also upload a backbone to the Hugging Face hub")
    parser.add_argument("--hub-private", action="store_true", help="make a new hub repository private")
    args = parser.parse_args(argv)
    if (args.checkpoint is None) == (args.detector is None):
        parser.error("give either the checkpoint of a backbone or --detector CHECKPOINT")
    if args.detector and (args.hub or pruning(args)):
        parser.error("--hub and --prune-... are for backbones")
    if args.checkpoint and (args.config or args.classes):
        parser.error("--config and --classes go with --detector")
    return exit_status(publish_detector if args.detector else publish_backbone, args)


def publish_backbone(args: argparse.Namespace) -> None:
    files = weights.publish(
        args.checkpoint,
        args.output,
        name=args.name,
        licence=args.licence,
        notes=args.notes,
        prune=pruning(args),
    )
    report = weights.load(weights.build(files.pth), files.safetensors, quiet=True)
    print(f"{report} verified in both files")
    for path in (files.pth, files.safetensors, files.card):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    if args.hub:
        from topodet.weights.hub import push

        print(push(files, args.hub, private=args.hub_private))


def pruning(args: argparse.Namespace) -> dict[str, Any] | None:
    chosen = {"threshold": args.prune_threshold, "keep": args.prune_keep}
    given = {name: value for name, value in chosen.items() if value is not None}
    return {**given, "per": args.prune_per, "on_disconnected": args.prune_disconnected} if given else None


def publish_detector(args: argparse.Namespace) -> None:
    config = args.config or config_beside(args.detector)
    framework = import_framework("mmdetection" if config.suffix == ".py" else "detectron2")
    path = framework.publish_detector(
        args.detector,
        config,
        args.output,
        name=args.name,
        classes=args.classes,
        licence=args.licence,
        notes=args.notes,
    )
    print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


def config_beside(checkpoint: Path) -> Path:
    """Return the config that a training left beside its checkpoint: config.yaml, or the only .py.

    Raises:
        ConfigError: there is none, or more than one.
    """
    folder = checkpoint.resolve().parent
    found = [folder / "config.yaml"] if (folder / "config.yaml").is_file() else sorted(folder.glob("*.py"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no config.yaml and no .py"
        raise ConfigError(f"{folder} has {names}: give the detector's config with --config")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
