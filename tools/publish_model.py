#!/usr/bin/env python
"""Turn a training checkpoint into a published backbone: NAME-<hash>.pth, its .safetensors twin and a .json card."""

import argparse
import sys
from pathlib import Path

from topodet import weights
from topodet.errors import TopodetError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint of tools/pretrain.py, e.g. model_best.pth.tar")
    parser.add_argument("--output", type=Path, default=Path("published"), help="folder (default: %(default)s)")
    parser.add_argument("--name", help="stem before the hash (default: the architecture)")
    parser.add_argument("--licence", default="Apache-2.0", help="of the weights, SPDX name (default: %(default)s)")
    parser.add_argument("--notes", default="", help="one line for the card, e.g. the data")
    parser.add_argument("--hub", metavar="USER/REPO", help="also upload to the Hugging Face hub")
    parser.add_argument("--hub-private", action="store_true", help="make a new hub repository private")
    args = parser.parse_args(argv)
    try:
        files = weights.publish(args.checkpoint, args.output, name=args.name, licence=args.licence, notes=args.notes)
        report = weights.load(weights.build(files.pth), files.safetensors, quiet=True)
        print(f"{report} verified in both files")
        for path in (files.pth, files.safetensors, files.card):
            print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
        if args.hub:
            from topodet.hub import push

            print(push(files, args.hub, private=args.hub_private))
    except (TopodetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
