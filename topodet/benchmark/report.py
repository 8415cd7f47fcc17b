"""Tables and pictures of benchmark records, and the blocks of docs/performance.md that show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from ..records.benchmarks import circumstances, subject
from ..records.markdown import replace_measured, table
from ..visualization import new_figure, series_style
from .contestants import CHAINS
from .run import floor

NOT_YET = "Not yet measured."

_PANELS = (
    ("train_us_per_edge", "training, us per edge"),
    ("eval_us_per_edge", "inference, us per edge"),
    ("train_peak_mb", "peak memory, training, MB"),
)

Record = dict[str, Any]


def tables(record: Record) -> str:
    """Return all tables of a record as readable Markdown."""
    blocks = [contestants_table(record)]
    if "keep" in record:
        blocks.append(keep_table(record))
    if "bandwidth" in record:
        blocks.append(bandwidth_table(record))
    if "growth" in record:
        blocks.append(growth_table(record))
    return "\n\n".join(blocks)


def contestants_table(record: Record) -> str:
    """Return one line for each contestant: medians [quartiles] in ms, peaks in MB, over the better chain (or R50)."""
    rows = record["contestants"]
    floors = {name: _floor(name, rows) for name in rows}
    below = "chain" if floor(rows) else "r50"
    head = ["contestant", "parameters", "edges", "training step, ms", "inference, ms"]
    head += ["peak memory, training, MB", "inference, MB"]
    head += [f"training / {below}", f"inference / {below}", f"memory / {below}"] if any(floors.values()) else []
    lines = []
    for name, row in rows.items():
        memory = row.get("memory", {})
        cells = [name, f"{row['parameters']:,}", _number(row["edges"], "{:,}"), _time(row, "train"), _time(row, "eval")]
        cells += [_number(memory.get(f"{mode}_peak_mb"), "{:,.0f}") for mode in ("train", "eval")]
        if any(floors.values()):
            base = floors[name]
            cells += [_over(_median(row, mode), _median(base, mode)) for mode in ("train", "eval")]
            cells.append(_over(memory.get("train_peak_mb"), base.get("memory", {}).get("train_peak_mb")))
        lines.append(cells)
    return table(head, lines)


def keep_table(record: Record) -> str:
    """Return the pruned model's share of the full one's time, and the expected share."""
    keep = record["keep"]
    kept = f"{keep['edges']} of {keep['full_edges']} edges ({keep['share']:.0%})"
    names = {"train": "training step", "eval": "inference"}
    lines = [
        [kept, names[mode], f"{keep[mode]['promised_ratio']:.3f}", f"{keep[mode]['measured_ratio']:.3f}"]
        for mode in names
    ]
    return table(["pruned", "", "time / full model, promised", "measured"], lines)


def bandwidth_table(record: Record) -> str:
    """Return the share of the memory's bandwidth that aggregation reaches."""
    found = record["bandwidth"]
    names = {"train": "training step", "eval": "inference"}
    lines = [
        [
            names[mode],
            f"{found[mode]['gb_moved']:.2f}",
            _number(found[mode]["gb_per_s"], "{:,.0f}"),
            _number(found[mode]["share_of_peak"], "{:.0%}"),
        ]
        for mode in names
    ]
    peak = f"share of a copy's {found['peak_gb_per_s']:,.0f} GB/s"
    return table([f"aggregation ({found['kernel']})", "GB that must move", "GB/s", peak], lines)


def growth_table(record: Record) -> str:
    """Return time and memory by the number of nodes."""
    names = list(record["growth"][0]["contestants"])
    timed = [name for name in names if name not in CHAINS]
    head = ["nodes", "edges"]
    head += [f"{name}: us/edge training" for name in timed] + [f"{name}: us/edge inference" for name in timed]
    head += [f"{name}: MB training" for name in names]
    lines = []
    for row in record["growth"]:
        cells = [str(row["nodes"]), str(row["edges"])]
        for key, chosen in (("train_us_per_edge", timed), ("eval_us_per_edge", timed), ("train_peak_mb", names)):
            form = "{:,.0f}" if key.endswith("mb") else "{:,.1f}"
            cells += [_number(row["contestants"][name].get(key), form) for name in chosen]
        lines.append(cells)
    return table(head, lines)


def growth_figure(record: Record) -> Figure:
    """Draw the time per edge and the peak memory over the number of nodes, one line per contestant."""
    figure = new_figure(width=9.0, height=3.6)
    measured = {key for row in record["growth"] for cells in row["contestants"].values() for key in cells}
    panels = [(key, label) for key, label in _PANELS if key in measured]
    nodes = [row["nodes"] for row in record["growth"]]
    for axis, (key, label) in zip(figure.subplots(1, len(panels)), panels):
        for k, name in enumerate(record["growth"][0]["contestants"]):
            values = [row["contestants"][name].get(key) for row in record["growth"]]
            if None not in values:
                axis.plot(nodes, values, **series_style(k), label=name, markersize=4)
        axis.set_xscale("log", base=2)
        axis.set_xticks(nodes, [str(count) for count in nodes])
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axis.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axis.set_xlabel("nodes")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    # The last panel, memory, has a line for every contestant.
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    # The number of nodes is what varies.
    title = subject(record).replace(f"stage of {record['settings']['nodes']} nodes", "stages")
    figure.suptitle(f"{title}, {record['machine'].partition(' (')[0]}", fontsize=10)
    return figure


def pictures(records: Iterable[Record]) -> dict[str, Figure]:
    """Return the pictures of the records that have a growth table, by file name next to docs/performance.md."""
    return {_picture(record): growth_figure(record) for record in records if "growth" in record}


def update_page(page: str, records: Sequence[Record]) -> str:
    """Return docs/performance.md with the part between the markers regenerated from the records.

    Raises:
        DataError: the page lacks a marker.
    """
    return replace_measured(page, _measured(records), path="docs/performance.md")


def _measured(records: Sequence[Record]) -> str:
    blocks = []
    for record in records:
        blocks += [f"### {record['name']}", f"{subject(record)[:1].upper()}{subject(record)[1:]}.", tables(record)]
        if "growth" in record:
            blocks.append(f"![time of an edge and peak memory over the number of nodes]({_picture(record)})")
        blocks += [f"{circumstances(record)}:", f"```bash\n{record['command']}\n```"]
    return "\n\n".join(blocks) or NOT_YET


def _floor(name: str, rows: Record) -> Record:
    """Return what a contestant is compared with: the better chain, its framework's R50, or nothing."""
    return floor(rows).get("chain") or rows.get(f"{name.rpartition('_')[0]}_r50", {})


def _picture(record: Record) -> str:
    return f"benchmark_{record['name']}_growth.png"


def _time(row: Record, mode: str) -> str:
    if mode not in row:
        return "-"
    part = row[mode]
    return f"{_digits(part['median_ms'])} [{_digits(part['q1_ms'])}, {_digits(part['q3_ms'])}]"


def _digits(value: float) -> str:
    """Return a number with at least three digits, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _median(row: Record, mode: str) -> float | None:
    return row.get(mode, {}).get("median_ms")


def _over(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}" if ours and theirs else "-"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
