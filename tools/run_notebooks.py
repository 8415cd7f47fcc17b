#!/usr/bin/env python
"""Run the tutorials' notebooks from top to bottom without Jupyter, and store what their cells print and show.

    python tools/run_notebooks.py docs/tutorials/*.ipynb
    python tools/run_notebooks.py docs/tutorials/01_graph_to_detector.ipynb --set EPOCHS=1 --dry-run

A cell's outputs are what it prints and the value of its last line: text, or a small PNG if the value is a picture.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from topodet.errors import ConfigError, exit_status
from topodet.files import atomic_write
from topodet.parse import parse_yaml

COLORS = 256  # of a stored picture


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="overrides of the parameter cell")
    parser.add_argument("--dry-run", action="store_true", help="run the notebooks without changing the files")
    return exit_status(run_all, parser.parse_args(argv))


def run_all(args: argparse.Namespace) -> None:
    changes = {}
    for word in args.set:
        name, _, value = word.partition("=")
        changes[name] = parse_yaml(value, f"--set {name}", ConfigError)
    for path in args.notebooks:
        content = json.loads(path.read_text(encoding="utf-8"))
        started = time.monotonic()
        run(content, changes)
        if not args.dry_run:
            atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        print(f"{path}: {time.monotonic() - started:.0f} s, {path.stat().st_size / 1e3:.0f} kB")


def run(content: dict[str, Any], changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run the code cells of a notebook in one namespace, put their outputs into it, and return the namespace.

    Args:
        content: content of the .ipynb file; changed in place.
        changes: values by name, set after the cell with the tag "parameters".

    Raises:
        ConfigError: a change to a name that the parameter cell does not set.
    """
    changes = dict(changes or {})
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        cell["execution_count"] = number
        cell["outputs"] = _outputs("".join(cell["source"]), namespace, number)
        if "parameters" in cell["metadata"].get("tags", ()):
            unknown = changes.keys() - namespace.keys()
            if unknown:
                raise ConfigError(f"the notebook has no parameter {', '.join(sorted(unknown))}")
            namespace.update(changes)
    return namespace


def _outputs(source: str, namespace: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Run a cell and return its outputs in Jupyter's format."""
    tree = ast.parse(source, f"cell {number}")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    outputs = []
    if text := printed.getvalue().replace(f"{Path.cwd()}/", ""):  # no paths of this machine
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        shown = {"text/plain": [_without_address(value)]}
        if isinstance(value, Image.Image):
            shown = {"image/png": _png(value), **shown}
        outputs.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": shown})
    return outputs


def _without_address(value: object) -> str:
    """Return the repr of a value; for a picture without its address, which differs between runs."""
    return f"<picture of {value.width} x {value.height}>" if isinstance(value, Image.Image) else repr(value)


def _png(image: Image.Image) -> str:
    """Return a picture of few colors as PNG in base64."""
    buffer = io.BytesIO()
    image.convert("RGB").quantize(COLORS).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode() + "\n"


if __name__ == "__main__":
    sys.exit(main())
