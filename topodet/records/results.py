"""Results of detectors: the scores that MMDetection and Detectron2 write, curves, sheets of detections."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..errors import DataError
from ..files import atomic_path
from ..parse import parse_json
from ..visualization import new_figure, series_style

# Keys in a line of a log: its step, and the numbers to read (by the start of the key).
_STEPS = ("step", "iteration")
_NUMBERS = ("coco/", "bbox/", "segm/", "time", "memory", "total_loss")
# COCO's six averages, from Detectron2's names to MMDetection's.
_AVERAGES = {"AP": "mAP", "AP50": "mAP_50", "AP75": "mAP_75", "APs": "mAP_s", "APm": "mAP_m", "APl": "mAP_l"}


def framework_of(folder: str | Path) -> str:
    """Return "detectron2" or "mmdetection", whichever trained into `folder`.

    Raises:
        DataError: neither did.
    """
    return "detectron2" if logs_of(folder)[0].name == "metrics.json" else "mmdetection"


def logs_of(folder: str | Path) -> list[Path]:
    """Return the files of losses and scores in a training's folder, oldest first; Detectron2 has one.

    Raises:
        DataError: there is none.
    """
    folder = Path(folder)
    if (folder / "metrics.json").is_file():
        return [folder / "metrics.json"]
    # MMEngine creates a folder at each start of a run, named by its time.
    if logs := sorted(folder.glob("*/vis_data/scalars.json")):
        return logs
    raise DataError(
        f"{folder} contains neither metrics.json (Detectron2's OUTPUT_DIR, a LazyConfig's train.output_dir) nor "
        "*/vis_data/scalars.json (MMDetection's --work-dir); give the folder that a training wrote into"
    )


def read_evaluations(folder: str | Path) -> list[dict[str, float]]:
    """Return the evaluations of a training, in order, under the same keys for both frameworks.

    The keys are MMDetection's, e.g. {"coco/bbox_mAP": 0.41, ..., "step": 12}: shares of 1, -1 where there is nothing to
    average. A step is the framework's unit, epochs in MMDetection's epoch-based configs, iterations in Detectron2.
    Evaluations that a resumed run repeated are listed once. Evaluations outside of training (--eval-only,
    tools/test.py) are not included.

    Raises:
        DataError: nothing was evaluated, or several datasets were, or a log is damaged.
    """
    if framework_of(folder) == "mmdetection":
        return _of_mmdetection(Path(folder))
    (path,) = logs_of(folder)
    found: list[dict[str, float]] = []
    for line in _json_lines(path):
        step = line.get("iteration", 0)
        # The file is only appended to: a run resumed from an earlier iteration repeats the iterations after it.
        if "total_loss" in line:
            found = [row for row in found if row["step"] < step]
        sets = [key for key in line if key.endswith("/bbox/AP")]
        if sets:
            names = ", ".join(key.removesuffix("/bbox/AP") for key in sets)
            raise DataError(
                f"{path} has scores of several datasets ({names}); record a run with one dataset in DATASETS.TEST"
            )
        if "bbox/AP" in line:
            found.append({**_averages(line), "step": step})
    if not found:
        raise DataError(
            f"no evaluation (bbox/AP) found in {path}; let the run finish with TEST.EVAL_PERIOD set or a dataset in "
            "DATASETS.TEST (--eval-only writes no scores there)"
        )
    return found


def read_speed(folder: str | Path) -> dict[str, float]:
    """Return the speed in the log of a training run, for both frameworks.

    "iterations_per_second" is the median over the log, including data loading; "images_per_second" is present if the
    folder has the batch size over all GPUs (Detectron2's config.yaml), "peak_memory_mb" if a GPU was used.
    """
    folder = Path(folder)
    detectron2 = framework_of(folder) == "detectron2"
    lines = [line for path in logs_of(folder) for line in _json_lines(path)]
    times = [line["time"] for line in lines if line.get("time") and not any(key.startswith("coco/") for key in line)]
    speed = {"iterations_per_second": 1 / median(times)} if times else {}
    memory = [line["memory"] for line in lines if "memory" in line]
    if detectron2:
        batch = _batch_size(folder / "config.yaml")
        if times and batch:
            speed["images_per_second"] = batch / median(times)
        log = folder / "log.txt"
        text = _text(log) if log.is_file() else ""
        memory = [int(megabytes) for megabytes in re.findall(r"max_mem: (\d{1,9})M", text)]
    if memory:
        speed["peak_memory_mb"] = max(memory)
    return {key: round(value, 3) for key, value in speed.items()}


def average_precision_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]], *, step: str = "epoch", title: str = ""
) -> Figure:
    """Draw AP (solid) and AP50 (dashed) over training of several runs, from results of `read_evaluations`.

    Args:
        runs: evaluations of each run, by name.
        step: unit of the runs' steps.
        title: above the picture, e.g. network, data and seed.
    """
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for k, (name, rows) in enumerate(runs.items()):
        steps = [row.get("step", place + 1) for place, row in enumerate(rows)]
        marker = "os^Dv"[k % 5]  # for grayscale
        for key, style, label in (("coco/bbox_mAP", "-", "AP"), ("coco/bbox_mAP_50", "--", "AP50")):
            look = {"color": f"C{k}", "marker": marker, "markersize": 4, "label": f"{name.replace('_', ' ')}, {label}"}
            axis.plot(steps, [row[key] for row in rows], style, **look)
    axis.set(xlabel=step, ylabel="AP", xlim=(0, None), ylim=(0, 1))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def seed_curves(runs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], title: str = "") -> Figure:
    """Draw AP over training of several seeds: a thin line for each and a thick one for their mean.

    Steps are shares of each run's last one, so runs counted in epochs and in iterations share one axis.

    Args:
        runs: for each label the runs, each a result of `read_evaluations`.
        title: title of the picture.
    """
    figure = new_figure(width=5.2, height=3.8)
    axis = figure.subplots()
    for k, (label, group) in enumerate(runs.items()):
        style = {**series_style(k), "marker": ""}
        curves = [_curve(rows) for rows in group]
        for shares, scores in curves:
            axis.plot(shares, scores, **style, linewidth=0.7, alpha=0.6)
        grid = np.unique(np.concatenate([shares for shares, _ in curves]))
        # The mean starts where every seed has been evaluated.
        grid = grid[grid >= max(shares[0] for shares, _ in curves)]
        mean = np.mean([np.interp(grid, shares, scores) for shares, scores in curves], axis=0)
        axis.plot(grid, mean, **style, linewidth=2, label=f"{label}, mean of {len(group)} seeds")
    axis.set_xlabel("share of the training, %")
    axis.set_ylabel("AP, %")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    axis.set_title(title, fontsize=10)
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


def _of_mmdetection(folder: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    for path in logs_of(folder):
        for line in _json_lines(path):
            if "loss" in line:
                # The step of scores is an epoch or an iteration; lines of losses have an epoch in the former case.
                begun = line.get("epoch", line.get("step", 0))
                found = [row for row in found if row["step"] < begun]
            elif "coco/bbox_mAP" in line and line.get("step"):
                found.append(line)
    if not found:
        raise DataError(f"no evaluation (coco/bbox_mAP) found under {folder}; did the run finish an epoch?")
    return found


def _curve(rows: Sequence[Mapping[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array([row["step"] for row in rows], dtype=float)
    return 100 * steps / steps[-1], 100 * np.array([row["coco/bbox_mAP"] for row in rows])


def _averages(line: Mapping[str, float]) -> dict[str, float]:
    """Return Detectron2's scores of boxes, and of masks if there are any, in MMDetection's format."""
    averages = {}
    for task in ("bbox", "segm"):
        for theirs, ours in _AVERAGES.items():
            value = line.get(f"{task}/{theirs}")
            if value is not None:
                averages[f"coco/{task}_{ours}"] = -1.0 if math.isnan(value) else round(value / 100, 5)
    return averages


def _batch_size(config: Path) -> int | None:
    """Return the images per iteration from the config that Detectron2 saved with its run, YAML or lazy."""
    # Not parsed, because a lazy config names Python objects to create.
    found = re.search(r"\b(?:IMS_PER_BATCH|total_batch_size): (\d+)\n", _text(config) if config.is_file() else "")
    return int(found[1]) if found and len(found[1]) < 10 else None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, after checking that steps and scores are numbers.

    Raises:
        DataError: names the line that is not a JSON object, or has an entry of the wrong type.
    """
    lines = []
    for number, text in enumerate(_text(path).splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            line = parse_json(text, where)
        except DataError as error:
            raise DataError(f"{error}; a log has one JSON object per line; remove what a killed run left") from error
        if not isinstance(line, dict):
            raise DataError(f"{where} is a {type(line).__name__}; a log has one JSON object per line")
        if not any(key in line for key in _STEPS):
            raise DataError(f"{where} has neither {' nor '.join(_STEPS)}: it is not from a log of either framework")
        for key, value in line.items():
            whole = key in (*_STEPS, "epoch")
            kind = int if whole else int | float
            if (whole or key.startswith(_NUMBERS)) and (not isinstance(value, kind) or isinstance(value, bool)):
                raise DataError(f"{where}: {key} is {str(value)[:40]!r}, not a {'whole ' if whole else ''}number")
        lines.append(line)
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text ({error.reason} at byte {error.start}): it is damaged") from error
