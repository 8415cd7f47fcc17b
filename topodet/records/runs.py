"""Records of runs: what was measured, on which data and machine, with which command.

A record is a JSON file: under records/runs, made from the output of a run (never typed by hand), under
records/benchmarks, from `topodet.benchmark`, under records/damage, from `topodet.connectivity`, or under
records/experiments, from an experiment. `topodet.records.zoo` and the report modules make tables of them.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch

from .. import weights
from ..connectivity import Damage
from ..errors import DataError
from ..files import atomic_json, atomic_write, sha256
from ..parse import check_file_name, read_json, read_yaml
from ..pretrain.command_line import command_line
from .results import framework_of, logs_of, read_evaluations, read_speed

_ROOT = Path(__file__).resolve().parents[2]  # of the checkout, where topodet runs from one
_PACKAGES = ("topodet", "torch", "timm")
_OPTIONS = ("model", "experiment", "sparsity", "seed", "epochs")  # in args.yaml, needed for a record
_FRAMEWORKS = {
    "mmdetection": ("mmdet", "onedl-mmdetection", "mmcv", "onedl-mmcv"),
    "detectron2": ("detectron2",),
}


def record_pretraining(
    folder: str | Path, *, data: str, command: str, published: str = "", name: str = ""
) -> dict[str, Any]:
    """Make the record of a run of topodet.pretrain from its folder.

    Args:
        folder: folder with args.yaml and summary.csv.
        data: description of the images.
        command: how to repeat it.
        published: name of the backbone file made from it.
        name: name of the record; the run's own by default.

    Raises:
        DataError: the folder holds no finished epoch.
    """
    folder = Path(folder)
    args, rows = _read_run(folder)
    if not rows:
        raise DataError(f"{folder}/summary.csv has no epoch yet")
    return {
        "kind": "pretraining",
        "name": name or args["experiment"] or folder.name,
        "architecture": _architecture(args),
        "sparsity": args["sparsity"],
        "data": data,
        "command": command,
        "seed": args["seed"],
        "epochs": len(rows),
        "of_epochs": args["epochs"],
        "published": published,
        "metrics": rows[-1],
        "history": rows,
        "date": _date(folder / "summary.csv"),
        "alpha": _alpha(folder / "last.pth.tar"),
        **_environment(),
    }


def _date(path: Path) -> str:
    """Return the day on which a file was last written, in UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).date().isoformat()


def _last_checkpoint(folder: Path) -> Path:
    """Return the path of a detector's last checkpoint, by the file in which both frameworks write its name."""
    pointer = folder / "last_checkpoint"
    # MMEngine writes a path, but the folder may have moved; and no file outside it is read.
    name = Path(pointer.read_text(errors="replace").strip()).name if pointer.is_file() else ""
    return folder / name


def _alpha(checkpoint: Path) -> dict[str, list[list[float]]]:
    """Return [source, target, weight] of each edge of a checkpoint, by wiring; {} without the file."""
    if not checkpoint.is_file():
        return {}
    tensors = weights.read_trained(checkpoint).state_dict
    found = {}
    for name, edges in tensors.items():
        wiring = name.removesuffix(".edges")
        alpha = tensors.get(f"{wiring}.alpha")
        if name.endswith("wiring.edges") and alpha is not None:
            found[wiring] = [[*edge, float(f"{a:.5g}")] for edge, a in zip(edges.tolist(), alpha.tolist())]
    return found


def _architecture(args: Mapping[str, Any]) -> str:
    """Describe the network of a pretraining: its name, and whether --connect or --rewire changed it."""
    for option, made in (("connect", "connected"), ("rewire", "rewired")):
        if args.get(option):  # older runs do not have these options
            return f"{args['model']}, {made}{' with fixed weights' if args[option] == 'fixed' else ''}"
    return args["model"]


def record_detector(
    folder: str | Path,
    *,
    config: str,
    initialization: str,
    data: str,
    command: str,
    seed: int,
    weights: str = "",
    note: str = "",
) -> dict[str, Any]:
    """Make the record of a detector that MMDetection or Detectron2 trained, from the folder it wrote into.

    Both give the same keys: metrics as MMDetection names them, shares of 1 (-1 where there is nothing to average), and
    as "alpha" the edge weights of the last checkpoint, {} for a backbone without wiring, or if the file is gone.

    Args:
        folder: MMDetection's --work-dir, or Detectron2's OUTPUT_DIR (a LazyConfig's train.output_dir).
        config: path of the config in this repository.
        initialization: "pretrained" or "random".
        data: description of the images; the same text for runs that are to be compared.
        command: how to repeat it.
        seed: seed of the run.
        weights: name of the published backbone.
        note: what readers of the number must know, e.g. the purpose of the run.

    Raises:
        DataError: a folder of neither framework, or nothing was evaluated yet.
        WeightsError: the last checkpoint is damaged.
    """
    rows = read_evaluations(folder)
    framework = framework_of(folder)
    kept = ("step", "coco/bbox_mAP", "coco/bbox_mAP_50")
    return {
        "kind": "detector",
        "name": Path(config).stem,
        "framework": framework,
        "config": config,
        "initialization": initialization,
        "weights": weights,
        "data": data,
        "note": note,
        "command": command,
        "seed": seed,
        "metrics": {key.removeprefix("coco/"): value for key, value in rows[-1].items() if key.startswith("coco/")},
        "history": [{key: row[key] for key in kept if key in row} for row in rows],
        "speed": read_speed(folder),
        "date": _date(logs_of(folder)[-1]),
        "alpha": _alpha(_last_checkpoint(Path(folder))),
        **_environment(_FRAMEWORKS[framework]),
    }


def record_benchmark(results: dict[str, Any], *, name: str, command: str) -> dict[str, Any]:
    """Make the record of a result of `topodet.benchmark.benchmark`, in the process that measured it.

    Args:
        results: settings, contestants and ratios.
        name: name of the record and of its file.
        command: how to repeat it.
    """
    packages = [package for names in _FRAMEWORKS.values() for package in names]
    measured = "torchvision", *(packages if results["settings"]["what"] == "detector" else ())
    return _measurement("benchmark", results, name, command, packages=measured, device=results["settings"]["device"])


def record_experiment(
    results: dict[str, Any],
    *,
    name: str,
    command: str,
    kind: str = "experiment",
    packages: tuple[str, ...] = (),
    device: str = "cpu",
) -> dict[str, Any]:
    """Make the record of an experiment's results, in the process that ran it.

    Args:
        results: its results, as plain types.
        name: name of the record and of its file.
        command: how to repeat it.
        kind: kind of experiment, which determines the format of `results`.
        packages: packages whose versions matter besides torch, timm and topodet.
        device: device of the computation.
    """
    return _measurement(kind, results, name, command, packages=packages, device=device)


def _measurement(
    kind: str, results: dict[str, Any], name: str, command: str, *, packages: tuple[str, ...], device: str
) -> dict[str, Any]:
    machine = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.device(device).type == "cuda":
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    return {
        "kind": kind,
        "name": name,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit_of(_ROOT),
        "command": command,
        **results,
        "machine": machine,
        "versions": {**_environment(packages)["versions"], "python": platform.python_version()},
    }


def record_damage(
    *,
    nodes: Damage | None,
    edges: Damage | None,
    checkpoint: str | Path,
    data: str,
    name: str,
    command: str,
    retrained: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Make the record of results of `connectivity.remove_nodes` and `remove_edges`.

    Args:
        nodes, edges: the results; None if not measured.
        checkpoint: checkpoint of the network; the record has the file's name and the first digits of its SHA-256.
        data: description of the images.
        name: name of the record and of its file.
        command: how to repeat it.
        retrained: folders of topodet.pretrain's runs that started from the pruned network.

    Raises:
        DataError: a folder without a finished run, or one that was validated by other scores.
        WeightsError: a checkpoint that is missing or damaged.
    """
    file = weights.read_trained(checkpoint)
    trained = file.checkpoint.get("args") or {}
    scores = next(found.whole for found in (edges, nodes) if found is not None)
    record = {
        "kind": "damage",
        "name": name,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit_of(_ROOT),
        "command": command,
        "architecture": file.checkpoint.get("arch") or file.card.get("architecture"),
        "checkpoint": f"{file.path.name} ({sha256(file.path)[:8]})",
        **{key: trained[key] for key in ("sparsity", "seed") if key in trained},
        "data": data,
        "retrained": [_retrained(Path(folder), scores, _edges(file)) for folder in retrained],
        **_environment(),
    }
    for kind, found in (("nodes", nodes), ("edges", edges)):
        if found is not None:
            record[kind] = {"whole": _finite(found.whole), "rows": list(map(_finite, found.rows))}
    return record


def _retrained(folder: Path, scores: Iterable[str], before: int) -> dict[str, Any]:
    run = record_pretraining(folder, data="", command="")
    args, _ = _read_run(folder)
    edges = _edges(weights.read(folder / "last.pth.tar"))
    scores = tuple(scores)
    found = _scores_of(run["metrics"], scores)
    if None in found.values():
        raise DataError(f"{folder}/summary.csv has no {', '.join(found)} of the last epoch; validate the run")
    return {
        "name": run["name"],
        "command": f"topodet pretrain {shlex.join(command_line(args))}",
        "start": "its weights" if args["initial_checkpoint"] else "random weights",
        "frozen": args["freeze_alpha"],
        "epochs": run["epochs"],
        "history": [{"epoch": row["epoch"], **_scores_of(row, scores)} for row in run["history"]],
        "edges": edges,
        "removed": 1 - edges / before,
        **found,
    }


def _scores_of(row: Mapping[str, Any], scores: Iterable[str]) -> dict[str, Any]:
    """Return the scores of an epoch, of the averaged weights if there are any."""
    return {score: row.get(f"ema_eval_{score}", row.get(f"eval_{score}")) for score in scores}


def _edges(file: weights.WeightsFile) -> int:
    return sum(len(tensor) for name, tensor in file.state_dict.items() if name.endswith("wiring.edges"))


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with None instead of numbers that JSON lacks, such as the NaN AP of no detections."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, float | None]]]:
    """Return the options and the epochs of a run of `topodet pretrain`.

    Raises:
        DataError: the folder is not of such a run, or its content is damaged.
    """
    for name in ("args.yaml", "summary.csv"):
        if not (folder / name).is_file():
            raise DataError(f"{folder} is not the folder of a pretraining run: {folder / name} is missing")
    args = read_yaml(folder / "args.yaml")
    missing = [key for key in _OPTIONS if not isinstance(args, dict) or key not in args]
    if missing:
        raise DataError(f"{folder}/args.yaml is damaged: it has no {', '.join(missing)}")
    try:
        with open(folder / "summary.csv", newline="") as file:
            rows = [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{folder}/summary.csv is damaged: {error}") from error
    return args, rows


def save_as(record: dict[str, Any], folder: str | Path) -> Path:
    """Write a named record under its name, replacing one of the same name."""
    name = check_file_name(record["name"], "the record's name", DataError)
    return atomic_json(Path(folder) / f"{name}.json", record)


def save(record: dict[str, Any], folder: str | Path) -> Path:
    """Write a record under its name, replacing a record of the same run."""
    return atomic_write(Path(folder) / f"{full_name(record)}.json", compact_json(record))


def compact_json(record: Mapping[str, Any]) -> str:
    """Return a record as indented JSON with compact lists of numbers, and of such lists."""
    text = json.dumps(record, indent=2, allow_nan=False)
    return re.sub(r"\[[\s\d.,eE+-]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def full_name(record: dict[str, Any]) -> str:
    """Return a record's name, which distinguishes it from those with other initial weights or another seed."""
    start = record["weights"].removesuffix(".pth") if record["kind"] == "detector" else ""
    parts = [record["name"], start or record.get("initialization"), f"seed{record['seed']}"]
    return "_".join(part for part in parts if part)


def load_all(folder: str | Path) -> list[dict[str, Any]]:
    """Return every record of a folder, in the order of the file names.

    Raises:
        DataError: a file is incomplete, or contains something else.
    """
    paths = sorted(Path(folder).glob("*.json"))
    records = [read_json(path) for path in paths]
    for path, record in zip(paths, records):
        if not isinstance(record, dict):
            raise DataError(f"{path} is not a record: it contains a {type(record).__name__}")
        if record.get("kind") == "detector":
            record.setdefault("framework", "mmdetection")  # the first records had no other framework
    return records


def commit_of(repository: Path) -> str:
    """Return the commit of a checkout, with "+" if tracked files are changed; "" if the folder is not its root."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=False)
        return "" if done.returncode else done.stdout.strip()

    try:
        # An installed package may lie within the checkout of another project.
        if not (top := git("rev-parse", "--show-toplevel")) or not Path(top).samefile(repository):
            return ""
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "topodet", "configs", "tools")
    except FileNotFoundError:  # no git
        return ""
    return f"{commit}{'+' if changed else ''}" if commit else ""


def _environment(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    versions = {package: _version(package) for package in (*_PACKAGES, *packages)}
    if torch.cuda.is_available():
        machine = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        machine = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    return {"machine": machine, "versions": {package: text for package, text in versions.items() if text}}


def _processor() -> str:
    """Return the name of the CPU with its family, model and third-level cache; without /proc/cpuinfo, its kind.

    Virtual machines use one name for several generations of processors, which the numbers distinguish.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    details = [f"{name} {fields[key]}" for key, name in (("cpu family", "family"), ("model", "model")) if key in fields]
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    details += [f"L3 {cache.read_text().strip()}"] if cache.exists() else []
    return f"{fields['model name']} ({', '.join(details)})" if details else fields["model name"]


def _version(package: str) -> str | None:
    """Return a package's version, with the commit if it was installed from one: Detectron2 has been 0.6 since 2021."""
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return None
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id", "")
    return f"{found.version} ({commit[:12]})" if commit else found.version


def _number(text: str | None) -> float | None:
    return float(text) if text else None
