"""Pictures and tables of a network's accuracy without some of its nodes and edges (the paper's Fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..connectivity import Damage
from ..records.markdown import replace_measured, table
from ..visualization import DARK, LIGHT, new_figure

Record = dict[str, Any]
NOT_YET = "Not yet measured."
_SERIES = ("architecture", "data")  # what records of one series share
_LABELS = {"top1": "top-1 accuracy, %", "top5": "top-5 accuracy, %"}


def node_figure(damage: Damage, score: str = "", title: str = "", top: float | None = None) -> Figure:
    """Draw the score without each node, a panel for each wiring, next to the whole network's.

    Args:
        damage: result of `connectivity.remove_nodes`.
        score: name of the score; the first one by default.
        title: title of the picture.
        top: upper end of the score axis, which starts at 0; use the same for all figures of a series.
    """
    score = score or next(iter(damage.whole))
    panels = {name: list(rows) for name, rows in groupby(damage.rows, key=lambda row: row["wiring"])}
    sizes = [len(rows) for rows in panels.values()]
    figure = new_figure(width=max(5.2, 1.2 + 0.16 * sum(sizes)), height=3.6)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=sizes)[0]
    for axis, (name, rows) in zip(axes, panels.items()):
        axis.bar([row["node"] for row in rows], [row[score] for row in rows], color=DARK, label="without the node")
        axis.axhline(damage.whole[score], color="0.3", linestyle="--", linewidth=0.8, label="whole network")
        axis.set_title(_short(name), fontsize=10)
        axis.set_xlabel("node")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(_LABELS.get(score, score))
    axes[0].set_ylim(0, top or 1.05 * max(axis.dataLim.y1 for axis in axes))
    figure.suptitle(title or f"{score} without each node", fontsize=10)
    _legend(figure, axes[0])
    return figure


def edge_figure(
    damage: Damage,
    score: str = "",
    retrained: Sequence[Mapping[str, Any]] = (),
    title: str = "",
    top: float | None = None,
) -> Figure:
    """Draw the score over the share of the edges removed, before and after retraining.

    Args:
        damage: result of `connectivity.remove_edges`.
        score: name of the score; the first one by default.
        retrained: {"removed": share, "start": "its weights" or "random weights", score: value} of networks that were
            pruned and then trained.
        title: title of the picture.
        top: upper end of the score axis, which starts at 0; use the same for all figures of a series.
    """
    score = score or next(iter(damage.whole))
    figure = new_figure(width=5.2, height=3.8)
    axis = figure.subplots()
    rows = sorted(damage.rows, key=lambda row: row["removed"])
    shares = [0.0, *(100 * row["removed"] for row in rows)]
    axis.plot(shares, [damage.whole[score], *(row[score] for row in rows)], "o-", color=DARK, label="not retrained")
    disconnected = [row for row in rows if row["disconnected"]]
    if disconnected:
        places = [100 * row["removed"] for row in disconnected]
        axis.plot(
            places, [row[score] for row in disconnected], "o", color="white", markersize=3, label="a graph fell apart"
        )
        axis.lines[-1].set_markeredgecolor(DARK)
    starts = sorted({row["start"] for row in retrained})
    for start, style in zip(starts, ("s--", "^:")):
        points = sorted((100 * row["removed"], row[score]) for row in retrained if row["start"] == start)
        axis.plot(*zip(*points), style, color=LIGHT, label=f"retrained from {start}")
    axis.axhline(damage.whole[score], color="0.3", linestyle="--", linewidth=0.8, label="whole network")
    axis.set_xlabel("edges removed, %")
    axis.set_ylabel(_LABELS.get(score, score))
    axis.set_xlim(-3, 103)
    axis.set_ylim(0, top or 1.05 * axis.dataLim.y1)  # from 0, to show differences in proportion
    axis.set_title(title or f"{score} without weak edges", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    _legend(figure, axis)
    return figure


def _legend(figure: Figure, axis: Axes) -> None:
    """Put the legend below the axes."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def tables(record: Record) -> str:
    """Return the tables of a record of `records.record_damage` as readable Markdown."""
    blocks = []
    if "nodes" in record:
        blocks.append(_node_table(record["nodes"]))
    if "edges" in record:
        blocks.append(_edge_table(record["edges"]))
    if record["retrained"]:
        blocks.append(_retrained_table(record))
    return "\n\n".join(blocks)


def figures(record: Record, series: Iterable[Record] = ()) -> dict[str, Figure]:
    """Return the pictures of a record by file name.

    Args:
        series: other records; pictures of the same architecture and data share one scale.
    """
    made = {}
    network = ", ".join(filter(None, (record.get("architecture") or record["name"], record.get("data"))))
    title = f"{network}\n{_training(record)}"
    top = _top([record, *(each for each in series if all(each.get(key) == record.get(key) for key in _SERIES))])
    if "nodes" in record:
        made[f"damage_{record['name']}_nodes.png"] = node_figure(_damage("nodes", record), title=title, top=top)
    if "edges" in record:
        damage, name = _damage("edges", record), f"damage_{record['name']}_edges.png"
        made[name] = edge_figure(damage, retrained=record["retrained"], title=title, top=top)
    return made


def _training(record: Record) -> str:
    """Return the penalty and the seed that the network was trained with, or the name of a record without them."""
    if not {"sparsity", "seed"} <= record.keys():
        return record["name"]
    penalty = "no penalty" if record["sparsity"] == "none" else f"{record['sparsity']} penalty"
    return f"{penalty}, seed {record['seed']}"


def _top(series: Sequence[Record]) -> float:
    """Return the end of an axis that shows the first score of all records."""
    score = next(iter(series[0]["edges" if "edges" in series[0] else "nodes"]["whole"]))
    scores = []
    for record in series:
        for kind in record.keys() & {"nodes", "edges"}:
            scores += [row.get(score) for row in (record[kind]["whole"], *record[kind]["rows"])]
        scores += [run.get(score) for run in record["retrained"]]
    return 1.05 * max((value for value in scores if value is not None), default=1.0)


def update_page(page: str, records: Iterable[Record]) -> str:
    """Return docs/topology_damage.md with the part between the markers regenerated from the records.

    Raises:
        DataError: the page lacks a marker.
    """
    records = list(records)
    overview = _overview([record for record in records if "edges" in record and record["retrained"]])
    blocks = [overview] if overview else []
    for record in records:
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        blocks += [f"### {record['name']}", f"{record['architecture']}, {record['data']}; {record['checkpoint']}."]
        blocks += [f"![{name}]({name})" for name in figures(record)]
        blocks += [tables(record), f"{record['machine']}; {versions}; {record['date']}:"]
        commands = [record["command"], *(run["command"] for run in record["retrained"] if run["command"])]
        blocks.append("```bash\n" + "\n".join(commands) + "\n```")
    return replace_measured(page, "\n\n".join(blocks) or NOT_YET, path="docs/topology_damage.md")


def _overview(records: Sequence[Record]) -> str:
    """Return a table with a row for each cut that was retrained from its own weights; "" without any."""
    lines = []
    for record in records:
        whole, rows = record["edges"]["whole"], record["edges"]["rows"]
        score = next(iter(whole))
        before = {row["edges"]: row[score] for row in rows}
        for run in sorted(record["retrained"], key=lambda run: run["removed"]):
            found = before.get(run["edges"]) if run["removed"] else whole[score]
            if run["start"] == "its weights" and found is not None:
                lines.append([record["name"], score, f"{run['removed']:.1%}", _digits(found), _digits(run[score])])
    return table(["network", "score", "edges removed", "not retrained", "retrained"], lines) if lines else ""


def _node_table(found: Mapping[str, Any]) -> str:
    score = next(iter(found["whole"]))
    lines = [["(whole network)", "", "", _digits(found["whole"][score]), ""]]
    for row in found["rows"]:
        lost = _digits(_minus(row[score], found["whole"][score]))
        degrees = f"{row['in_degree']} / {row['out_degree']}"
        lines.append([_short(row["wiring"]), str(row["node"]), degrees, _digits(row[score]), lost])
    return table(["wiring", "node removed", "in / out degree", score, "difference"], lines)


def _edge_table(found: Mapping[str, Any]) -> str:
    score = next(iter(found["whole"]))
    option = "keep" if "keep" in found["rows"][0] else "threshold"
    lines = [["(whole network)", "0.0 %", "", "", "", _digits(found["whole"][score])]]
    for row in found["rows"]:
        counts = [f"{row[name]}" for name in ("edges", "nodes", "disconnected")]
        lines.append([f"{row[option]:g}", f"{row['removed']:.1%}", *counts, _digits(row[score])])
    return table([option, "edges removed", "edges left", "nodes left", "graphs fallen apart", score], lines)


def _retrained_table(record: Record) -> str:
    score = next(iter(record["edges" if "edges" in record else "nodes"]["whole"]))
    lines = [
        [run["name"], run["start"], f"{run['removed']:.1%}", f"{run['edges']}", f"{run['epochs']}", _digits(run[score])]
        for run in record["retrained"]
    ]
    return table(["retrained", "started with", "edges removed", "edges left", "epochs", score], lines)


def _damage(kind: Literal["nodes", "edges"], record: Record) -> Damage:
    """Return the measurements, with NaN for missing numbers."""
    whole, rows = record[kind]["whole"], record[kind]["rows"]
    return Damage(kind, _numbers(whole), list(map(_numbers, rows)))


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in row.items()}


def _short(wiring: str) -> str:
    return wiring.removesuffix(".wiring")


def _minus(value: float | None, whole: float | None) -> float | None:
    return None if value is None or whole is None else value - whole


def _digits(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"
