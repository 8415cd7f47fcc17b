"""Create a dataset for the recipes and studies from its public source.

topodet make-dataset tiny_imagenet75 --output data/tiny_imagenet75         folders of images
topodet make-dataset tiny_imagenet75_npz --output data/tiny_imagenet75_npz arrays
topodet make-dataset tiny_imagenet_npz --output data/tiny_imagenet_npz arrays of all 200 classes
topodet make-dataset cifar100 --output data/cifar100                       arrays; validation is its test set
topodet make-dataset cifar100 --size 64 --images-per-class 100 --output data/cifar100_64

Downloads are kept in --cache. For BCCD, whose boxes are Pascal VOC's XML, use topodet voc-to-coco.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser

# 75 of the 200 classes or all of them, as folders of images or as arrays.
TINY_IMAGENET = ("tiny_imagenet75", "tiny_imagenet75_npz", "tiny_imagenet", "tiny_imagenet_npz")


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    add = made.add_argument
    add("name", choices=("cifar100", *TINY_IMAGENET), help="dataset to create")
    add("--output", type=Path, required=True, metavar="DIR", help="output folder, the --data-dir of the recipes")
    add("--archive", type=Path, metavar="FILE", help="local copy of tiny-imagenet-200.zip, instead of a download")
    add("--size", type=int, metavar="N", help="cifar100: image side in pixels (default: 32)")
    add("--images-per-class", type=int, metavar="N", help="cifar100: number of training images per class")
    cache = Path("data/downloads")
    add("--cache", type=Path, default=cache, metavar="DIR", help="folder of downloads (default: %(default)s)")
    return made


def main(words: Sequence[str]) -> None:
    made = parser()
    args = made.parse_args(words)
    if args.archive and args.name == "cifar100":
        made.error("--archive is for Tiny ImageNet; for CIFAR-100 give torchvision's folder with --cache")
    chosen = {"--size": args.size, "--images-per-class": args.images_per_class}
    for option, value in chosen.items():
        if value is not None and (args.name != "cifar100" or value < 1):
            made.error(f"{option} is for cifar100 and must be at least 1, got {value} for {args.name}")
    from topodet.datasets import recipes

    if args.name == "cifar100":
        part = {"size": args.size or 32, "images_per_class": args.images_per_class}
        counts = recipes.write_cifar100(args.output, cache=args.cache, **part)
    else:
        url = recipes.TINY_IMAGENET
        archive = args.archive or recipes.download(url, args.cache / url.rpartition("/")[2])
        classes = recipes.TINY_IMAGENET75 if args.name.startswith("tiny_imagenet75") else None
        counts = recipes.write_tiny_imagenet(archive, args.output, classes=classes, arrays=args.name.endswith("_npz"))
    print(f"{args.output}: {', '.join(f'{count:,} {split} images' for split, count in counts.items())}")
