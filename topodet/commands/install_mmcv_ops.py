"""Add the operators that MMDetection needs to an mmcv without compiled ones, from torchvision; needs no compiler.

topodet install-mmcv-ops
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser
from topodet.errors import ConfigError
from topodet.files import atomic_write

# The file written into mmcv. It only imports from topodet, so it cannot become outdated.
MODULE = '''"""Written by `topodet install-mmcv-ops`: mmcv's operators from torchvision. Delete it to undo."""

import warnings

from topodet.mmcv_ops import *  # noqa: F403
from topodet.mmcv_ops import missing_operator as __getattr__  # noqa: F401, N807

warnings.warn(
    "this mmcv has no compiled operators: nms, roi_align and the focal loss are torchvision's (topodet.mmcv_ops), "
    "the other operators raise NotImplementedError",
    stacklevel=2,
)
'''
_MARK = MODULE.splitlines()[0].split(":")[0]


def parser() -> argparse.ArgumentParser:
    return make_parser(__name__, __doc__)


def main(words: Sequence[str]) -> None:
    parser().parse_args(words)
    print(install())


def install() -> str:
    """Write `_ext.py` into the mmcv of this Python, unless it has compiled operators; return what was done.

    Raises:
        ConfigError: there is no mmcv, or one without the Python part of its operators, or one with another `_ext.py`.
    """
    spec = importlib.util.find_spec("mmcv")
    if spec is None or spec.origin is None:
        raise ConfigError(f"{sys.executable} has no mmcv: pip install 'topodet[mmdet]' first")
    folder = Path(spec.origin).parent
    if not (folder / "ops").is_dir():
        raise ConfigError(f"{folder} has no folder ops, like mmcv 1 lite; pip install onedl-mmcv")
    compiled = [path.name for path in folder.glob("_ext.*") if path.suffix in (".so", ".pyd")]
    if compiled:
        return f"{folder} has compiled operators ({compiled[0]}); nothing to do"
    path = folder / "_ext.py"
    before = path.read_text() if path.is_file() else None
    if before == MODULE:
        return f"{path} already exists"
    if before is not None and not before.startswith(_MARK):
        raise ConfigError(f"{path} was not written by topodet install-mmcv-ops; remove it first")
    return (
        f"wrote {atomic_write(path, MODULE)}: nms, roi_align and the focal loss are torchvision's, without a compiler"
    )
