"""The numbers that studies compare, from the records of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from ..errors import ConfigError

Record = Mapping[str, Any]


def top1(record: Record) -> float | None:
    """Top-1 in percent after the last epoch, with the averaged weights if there are any."""
    metrics = record["metrics"]
    averaged = metrics.get("ema_eval_top1")
    return metrics.get("eval_top1") if averaged is None else averaged


def average_precision(record: Record) -> float | None:
    """COCO's AP of boxes in percent after the last iteration."""
    share = record["metrics"].get("bbox_mAP", -1)
    return None if share < 0 else 100 * share


def weak_edges(record: Record) -> float | None:
    """Share of the edges in percent with a weight below a tenth of the largest one of the same target node.

    Nodes with one input count as well: their edge is never weak.
    """
    shares = [size < 0.1 for size in _relative(record)]
    return 100 * sum(shares) / len(shares) if shares else None


def free_nodes(record: Record) -> float | None:
    """Share of the inner nodes in percent whose removal costs at most half a point of top-1."""
    nodes = record.get("nodes", {"rows": []})
    inner = [row for row in nodes["rows"] if row["in_degree"] and row["out_degree"]]
    cheap = [row["top1"] >= nodes["whole"]["top1"] - 0.5 for row in inner]
    return 100 * sum(cheap) / len(cheap) if cheap else None


def without_edges(record: Record) -> float | None:
    """Top-1 in percent of the network without its edges, not retrained."""
    rows = record.get("edges", {"rows": []})["rows"]
    return rows[0]["top1"] if rows else None


MEASURES: dict[str, Callable[[Record], float | None]] = {
    "top1": top1,
    "AP": average_precision,
    "weak_edges": weak_edges,
    "free_nodes": free_nodes,
    "without_edges": without_edges,
}
UNITS = {
    "top1": "top-1, %",
    "AP": "AP, %",
    "weak_edges": "edges below a tenth of their node's largest, %",
    "free_nodes": "inner nodes that cost at most 0.5 points, %",
    "without_edges": "top-1 without retraining, %",
}


def value(record: Record, measure: str) -> float | None:
    """Return a number of a record; None if it is missing, as for an accuracy that was never reached.

    Args:
        record: record of a run.
        measure: a name in `MEASURES`, or a dotted path into the record with names and list indices.

    Raises:
        ConfigError: a path that does not exist.
    """
    try:
        found = MEASURES[measure](record) if measure in MEASURES else reduce(_step, measure.split("."), record)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"the record of {record.get('name')} has no {measure!r} ({error})") from error
    return None if found is None or not math.isfinite(found) else float(found)


def _step(place: Any, key: str) -> Any:
    return place[int(key)] if isinstance(place, Sequence) and not isinstance(place, str) else place[key]


def _relative(record: Record) -> list[float]:
    """Return |alpha| of each edge, divided by the largest one of the same target node."""
    sizes = []
    for edges in record.get("alpha", {}).values():
        largest: dict[int, float] = {}
        for _, target, alpha in edges:
            largest[target] = max(largest.get(target, 0.0), abs(alpha))
        sizes += [abs(alpha) / largest[target] if largest[target] else 0.0 for _, target, alpha in edges]
    return sizes
