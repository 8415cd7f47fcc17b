"""Pictures and tables of what a network is worth without some of its nodes and edges (the paper's Fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..connectivity import Damage
from ..records.markdown import replace_measured, table

Record = dict[str, Any]
NOT_YET = "Not yet measured."


def node_figure(damage: Damage, score: str = "", title: str = "") -> Figure:
    """Draw the score without each node, a panel for each wiring, beside the whole network's.

    Args:
        damage: what `connectivity.remove_nodes` returned.
        score: its name; the first one when omitted.
        title: of the picture.
    """
    score = score or next(iter(damage.whole))
    panels = {name: list(rows) for name, rows in groupby(damage.rows, key=lambda row: row["wiring"])}
    sizes = [len(rows) for rows in panels.values()]
    figure = Figure(figsize=(max(5.2, 1.2 + 0.16 * sum(sizes)), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=sizes)[0]
    for axis, (name, rows) in zip(axes, panels.items()):
        axis.bar([row["node"] for row in rows], [row[score] for row in rows], color="#3b6ea5")
        axis.axhline(damage.whole[score], color="0.3", linestyle="--", linewidth=0.8)
        axis.set_title(_short(name), fontsize=9)
        axis.set_xlabel("node removed", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(score, fontsize=8)
    figure.suptitle(title or f"{score} without each node; dashed: the whole network", fontsize=9)
    return figure


def edge_figure(
    damage: Damage, score: str = "", retrained: Sequence[Mapping[str, Any]] = (), title: str = ""
) -> Figure:
    """Draw the score over the share of the edges removed, before and after retraining.

    Args:
        damage: what `connectivity.remove_edges` returned.
        score: its name; the first one when omitted.
        retrained: {"removed": share, "start": "its weights" or "random weights", score: value} of networks that were
            pruned and then trained.
        title: of the picture.
    """
    score = score or next(iter(damage.whole))
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    rows = sorted(damage.rows, key=lambda row: row["removed"])
    shares = [0.0, *(100 * row["removed"] for row in rows)]
    axis.plot(
        shares, [damage.whole[score], *(row[score] for row in rows)], "o-", color="#3b6ea5", label="not retrained"
    )
    disconnected = [row for row in rows if row["disconnected"]]
    if disconnected:
        places = [100 * row["removed"] for row in disconnected]
        axis.plot(
            places, [row[score] for row in disconnected], "o", color="white", markersize=3, label="a graph fell apart"
        )
        axis.lines[-1].set_markeredgecolor("#3b6ea5")
    starts = sorted({row["start"] for row in retrained})
    for start, style in zip(starts, ("s--", "^:")):
        points = sorted((100 * row["removed"], row[score]) for row in retrained if row["start"] == start)
        axis.plot(*zip(*points), style, color="#c0392b", label=f"retrained from {start}")
    axis.axhline(damage.whole[score], color="0.3", linestyle="--", linewidth=0.8)
    axis.set_xlabel("edges removed, %")
    axis.set_ylabel(score)
    axis.set_ylim(0, 1.05 * axis.dataLim.y1)  # a difference looks as large as it is
    axis.set_title(title or f"{score} without weak edges; dashed: the whole network", fontsize=9)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def tables(record: Record) -> str:
    """Return the tables of a record of `records.record_damage` as Markdown that can be read as it is."""
    blocks = []
    if "nodes" in record:
        blocks.append(_node_table(record["nodes"]))
    if "edges" in record:
        blocks.append(_edge_table(record["edges"]))
    if record["retrained"]:
        blocks.append(_retrained_table(record))
    return "\n\n".join(blocks)


def figures(record: Record) -> dict[str, Figure]:
    """Return the pictures of a record by file name."""
    made = {}
    network = ", ".join(filter(None, (record["name"], record.get("data"))))
    if "nodes" in record:
        title = f"{network}\nwithout each node; dashed: the whole network"
        made[f"damage_{record['name']}_nodes.png"] = node_figure(_damage("nodes", record), title=title)
    if "edges" in record:
        damage = _damage("edges", record)
        title = f"{network}\nwithout weak edges; dashed: the whole network"
        made[f"damage_{record['name']}_edges.png"] = edge_figure(damage, retrained=record["retrained"], title=title)
    return made


def update_page(page: str, records: Iterable[Record]) -> str:
    """Return docs/topology_damage.md with what stands between the markers made again from the records.

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
    """Return what was measured, with NaN where the record has no number."""
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
