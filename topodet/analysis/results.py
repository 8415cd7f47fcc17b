"""Results of detectors: the scores that MMDetection writes, curves over training, sheets of drawn detections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from ..errors import DataError
from ..files import atomic_path


def read_scalars(work_dir: str | Path) -> list[dict[str, float]]:
    """Return the evaluations that MMDetection wrote under a work folder, in the order they were made.

    Each is the dict of one line of scores, e.g. {"coco/bbox_mAP": 0.41, ..., "step": 12}.

    Raises:
        DataError: there is none.
    """
    found = []
    # A resumed run leaves a folder for each start, named by its time.
    for path in sorted(Path(work_dir).glob("*/*.json")) + sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if "coco/bbox_mAP" in row:
                found.append(row)
    if not found:
        raise DataError(f"no evaluation (coco/bbox_mAP) found under {work_dir}; did the run finish an epoch?")
    return found


def average_precision_curves(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw AP (solid) and AP50 (dashed) over training of several runs, by what `read_scalars` returned."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for k, (name, rows) in enumerate(runs.items()):
        steps = [row.get("step", place + 1) for place, row in enumerate(rows)]
        for key, style, label in (("coco/bbox_mAP", "-", "AP"), ("coco/bbox_mAP_50", "--", "AP50")):
            axis.plot(
                steps, [row[key] for row in rows], style, color=f"C{k}", label=f"{name.replace('_', ' ')}, {label}"
            )
    axis.set_xlabel("epoch")
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def contact_sheet(images: Sequence[Path], path: str | Path, *, columns: int = 4) -> Path:
    """Paste images of one size into a sheet, row by row, and write it to `path`.

    Raises:
        DataError: no images.
    """
    if not images:
        raise DataError(f"no images for the sheet {path}")
    tiles = [Image.open(image).convert("RGB") for image in images]
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for k, tile in enumerate(tiles):
        sheet.paste(tile, (k % columns * width, k // columns * height))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="JPEG" if Path(path).suffix in (".jpg", ".jpeg") else "PNG")
    return Path(path)
