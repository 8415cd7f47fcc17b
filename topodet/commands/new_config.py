"""Check a COCO-format dataset of your own and write a config that trains a detector on it.

topodet new-config --framework mmdet --train train.json --val val.json --images images/ --weights NAME-1a2b3c4d.pth
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    made.add_argument("--framework", choices=["mmdet", "detectron2"], required=True, help="framework of the config")
    made.add_argument("--train", type=Path, required=True, metavar="ANN.json", help="COCO annotations to train on")
    made.add_argument("--val", type=Path, required=True, metavar="ANN.json", help="COCO annotations to evaluate on")
    made.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder that the file names are relative to"
    )
    made.add_argument("--val-images", type=Path, metavar="DIR", help="image folder of --val, if different")
    made.add_argument(
        "--backbone",
        default="",
        metavar="NAME",
        help="TopoNet (see topodet list) or network in timm (default: that of --weights, or toponet_nano)",
    )
    made.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="published backbone: path, URL or hf-hub:USER/REPO; timm: those that timm publishes; topodet: those in "
        "the package; none: random weights, with nothing frozen (default: topodet if it has weights of the backbone, "
        "else none)",
    )
    made.add_argument("--batch", type=int, default=8, metavar="N", help="images per step (default: %(default)s)")
    made.add_argument("--epochs", type=int, metavar="N", help="(default: 12, or enough for 1000 iterations)")
    made.add_argument(
        "--short-side",
        type=int,
        metavar="N",
        help="short side of the images in pixels (default: the dataset's median, at most 800)",
    )
    made.add_argument(
        "--output", type=Path, metavar="FILE", help="config to write (default: BACKBONE_FOLDER.py or .yaml)"
    )
    made.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND",
        help="treat this kind of problem as a note, not an error, see topodet check-coco; may be repeated",
    )
    return made


def start(framework: str, config: Path, args: argparse.Namespace) -> str:
    """Return the shell command that trains with a new config."""
    if framework == "mmdet":
        mmdet = importlib.util.find_spec("mmdet")
        tool = ["python", str(Path(mmdet.origin).parent / ".mim" / "tools" / "train.py")] if mmdet else ["mim", "train"]
        return shlex.join(
            [*tool, *([] if mmdet else ["onedl-mmdetection"]), str(config), "--work-dir", f"runs/{config.stem}"]
        )
    command = ["topodet", "train-net", "--config-file", str(config)]
    for part, annotation_file, images in (
        ("train", args.train, args.images),
        ("val", args.val, args.val_images or args.images),
    ):
        command += ["--dataset", f"{config.stem}_{part}", str(annotation_file), str(images)]
    import torch

    return shlex.join([*command, *([] if torch.cuda.is_available() else ["MODEL.DEVICE", "cpu"])])


def main(words: Sequence[str]) -> int:
    args = parser().parse_args(words)
    from topodet.new_config import new_config

    path, schedule = new_config(
        args.framework,
        train=args.train,
        val=args.val,
        images=args.images,
        val_images=args.val_images,
        backbone=args.backbone,
        weights_file=args.weights,
        batch=args.batch,
        epochs=args.epochs,
        short_side=args.short_side,
        output=args.output,
        allow=args.allow,
    )
    epochs = f"{schedule.epochs} epoch{'s' * (schedule.epochs > 1)}"
    print(f"wrote {path}: {epochs} of {schedule.epoch_iterations} iterations. Start it with")
    print(start(args.framework, path, args))
    return 0
