"""List the configs that come with topodet, or print the path of one.

topodet configs
topodet train-net --config-file $(topodet configs faster_rcnn_toponet50_adaptive_FPN_1x.yaml) ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser
from topodet.errors import ConfigError, did_you_mean


def parser() -> argparse.ArgumentParser:
    made = make_parser(__name__, __doc__)
    made.add_argument("name", nargs="?", help="config as listed, or only its file name (default: list all)")
    return made


def main(words: Sequence[str]) -> None:
    args = parser().parse_args(words)
    folder = configs_folder()
    known = {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".yaml")
    }
    if args.name is None:
        print(f"in {folder}:", *(name for name in known if "_base_" not in name and "common" not in name), sep="\n")
        return
    found = [path for name, path in known.items() if args.name in (name, path.name)]
    if not found:
        names = [path.name for path in known.values()]
        raise ConfigError(f"no config {args.name!r} in {folder}.{did_you_mean(args.name, names)}")
    print(found[0])


def configs_folder() -> Path:
    """Return the folder with the configs: in the installed package, or next to it in a clone."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())
