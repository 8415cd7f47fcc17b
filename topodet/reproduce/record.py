"""The record of a finished run of a study."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import atomic_write
from ..parse import read_json
from ..records import runs
from .jobs import Job

# What a complete record has besides the measurements; the page lists records without them.
COMPLETE = {key: key for key in ("command", "commit", "date", "versions", "machine")} | {"alpha": "edge weights"}


def make_record(job: Job, sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make the record of a finished job from its output.

    Args:
        job: the job.
        sessions: sessions of the processes that worked on it, in order; see `runner.sessions`.

    Raises:
        DataError: it has not finished: an epoch or a file is missing.
    """
    command = "\n".join(sessions[-1]["lines"]) if sessions else ""
    record = _MAKE[job.arm.kind](job, command)
    commits = list(dict.fromkeys(session["commit"] for session in sessions if session.get("commit")))
    times = [session.get("seconds") for session in sessions]
    return {
        "study": job.study.name,
        "scale": job.scale.name,
        "arm": job.arm.name,
        **record,
        "name": job.arm.name,
        "seed": job.seed,
        "commit": ", ".join(commits),
        "hours": round(sum(times) / 3600, 3) if times and None not in times else None,
    }


def save_record(record: Mapping[str, Any], path: Path) -> Path:
    """Write a record, its lists of numbers on one line each; return the path."""
    return atomic_write(path, runs.compact_json(record))


def load_records(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the records of a study at a scale, by arm and seed."""
    found = [read_json(path) for path in sorted(folder.glob("*.json"))]
    return {(record["arm"], record["seed"]): record for record in found}


def _pretraining(job: Job, command: str) -> dict[str, Any]:
    record = runs.record_pretraining(job.folder, data=job.scale.data, command=command)
    if record["epochs"] < record["of_epochs"]:
        raise DataError(f"{job.folder} has {record['epochs']} of {record['of_epochs']} epochs")
    return record


def _detector(job: Job, command: str) -> dict[str, Any]:
    return runs.record_detector(
        job.folder,
        config=job.arm.source,
        initialization="pretrained" if job.arm.backbone else "as the config says",
        data=job.scale.data,
        command=command,
        seed=job.seed,
        weights=job.arm.backbone,
    )


def _damage(job: Job, command: str) -> dict[str, Any]:
    found = {}
    for kind in ("nodes", "edges"):
        path = job.folder / f"{kind}.csv"
        if path.exists():
            with open(path, newline="") as file:
                whole, *rows = ({key: _number(text) for key, text in row.items()} for row in csv.DictReader(file))
            found[kind] = {"whole": {key: value for key, value in whole.items() if value is not None}, "rows": rows}
    if not found:
        raise DataError(f"{job.folder} has neither nodes.csv nor edges.csv")
    return runs.record_experiment(
        {"data": job.scale.data, "of": job.other(job.arm.source).name, **found},
        name=job.arm.name,
        command=command,
        kind="damage",
    )


def _tool(job: Job, command: str) -> dict[str, Any]:
    path = job.folder / "result.json"
    if not path.exists():
        raise DataError(f"{path} is missing: the tool has not finished")
    return {**read_json(path), "command": command}


def _number(text: str) -> Any:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return text


_MAKE = {
    "pretrain": _pretraining,
    "mmdetection": _detector,
    "detectron2": _detector,
    "damage": _damage,
    "tool": _tool,
}
