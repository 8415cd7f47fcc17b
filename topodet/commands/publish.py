"""Turn a training checkpoint into a published file, for a backbone or, with --detector, for a detector.

    topodet publish runs/pretrain/NAME/model_best.pth.tar --output published
    topodet publish --detector RUN/model_final.pth

For a backbone: NAME-<hash>.pth, a matching .safetensors and a .json card. For a detector (either framework):
NAME-<hash>.pth with its config and class names, which `topodet demo` and `load_detector` read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser
from topodet.commands.detectors import config_framework
from topodet.errors import ConfigError
from topodet.options import Pruning, add_pruning


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    add = made.add_argument
    add("checkpoint", nargs="?", help="checkpoint of a `topodet pretrain` run, e.g. model_best.pth.tar")
    add("--detector", metavar="CHECKPOINT", help="checkpoint of a detector, e.g. RUN/model_final.pth")
    add("--config", type=Path, help="detector config: .yaml or .py (default: the one beside the checkpoint)")
    add(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="class names in index order, or a COCO annotation .json (default: those in the checkpoint)",
    )
    add("--output", type=Path, default=Path("published"), help="output folder (default: %(default)s)")
    add("--name", help="file name before the hash (default: the architecture, or the detector's folder)")
    add("--licence", default="Apache-2.0", help="license of the weights, SPDX name (default: %(default)s)")
    add("--notes", default="", help="one line for the card, e.g. the data")
    add("--head", action="store_true", help="also publish the classifier of a backbone")
    add_pruning(made.add_argument_group("pruning of a backbone's edges"))
    add("--hub", metavar="USER/REPO", help="also upload a backbone to the Hugging Face hub")
    add("--hub-private", action="store_true", help="make a new hub repository private")
    return made


def main(words: Sequence[str]) -> None:
    made = parser()
    args = made.parse_args(words)
    prune = Pruning.from_options(args).arguments()
    if (args.checkpoint is None) == (args.detector is None):
        made.error("give either the checkpoint of a backbone or --detector CHECKPOINT")
    if args.detector and (args.hub or args.head or prune):
        made.error("--hub, --head and the pruning options are for backbones")
    if args.checkpoint and (args.config or args.classes):
        made.error("--config and --classes need --detector")
    card = {"name": args.name, "licence": args.licence, "notes": args.notes}
    if args.detector:
        publish_detector(args.detector, args.config, args.output, classes=args.classes, **card)
        return
    from topodet import weights

    files = weights.publish(args.checkpoint, args.output, prune=prune, head=args.head, **card)
    report = weights.load(weights.build(files.pth), files.safetensors, quiet=True)
    print(f"{report} verified in both files")
    for path in (files.pth, files.safetensors, files.card):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    if args.hub:
        from topodet.weights.hub import push

        print(push(files, args.hub, private=args.hub_private))


def publish_detector(
    checkpoint: str, config: Path | None, output: Path, *, classes: Sequence[str], **card: str | None
) -> None:
    config = config or config_beside(Path(checkpoint))
    framework = config_framework(config)
    path = framework.publish_detector(checkpoint, config, output, classes=classes, **card)
    print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


def config_beside(checkpoint: Path) -> Path:
    """Return the config that a training run left next to its checkpoint: config.yaml, or the only .py.

    Raises:
        ConfigError: there is none, or more than one.
    """
    folder = checkpoint.resolve().parent
    found = [folder / "config.yaml"] if (folder / "config.yaml").is_file() else sorted(folder.glob("*.py"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no config.yaml and no .py"
        raise ConfigError(f"{folder} has {names}: give the detector's config with --config")
    return found[0]
