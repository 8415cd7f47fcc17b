"""A report in the terminal."""

from __future__ import annotations

from typing import Any

from ...records.markdown import table
from .measure import Numbers

# Shares of removed edges that have a row in the table of cuts.
_REMOVED = (0.2, 0.4, 0.6, 0.8)


def text(numbers: Numbers) -> str:
    """Return the result of `measure` as tables."""
    blocks = [f"{headline(numbers)}\n{size(numbers)}", _stages(numbers)]
    blocks += [_cuts(numbers, per) for per in ("network", "node")]
    if numbers["nnstd"]:
        blocks.append(_distances(numbers["nnstd"]))
    blocks += [f"note: {note}" for note in numbers["notes"]]
    return plain("\n\n".join(blocks))


def headline(numbers: Numbers) -> str:
    """Return the subject of the report in one line."""
    facts = numbers["facts"]
    words = [numbers["source"], numbers["kind"], numbers["architecture"]]
    words += [f"{name} {facts[name]}" for name in ("epoch", "weights", "sparsity") if name in facts]
    return " · ".join(dict.fromkeys(word for word in words if word))


def size(numbers: Numbers) -> str:
    """Return the size of the network in one line."""
    network, mass = numbers["network"], numbers["nn_mass"]
    edges = sum(len(stage["edges"]) for stage in numbers["stages"])
    words = [f"{edges:,} edges"]
    if network:
        image = "x".join(map(str, network["input_size"]))
        words.append(f"{network['parameters']:,} parameters and {network['edge_weights']:,} learned edge weights")
        words.append(f"{network['multiply_adds']:,} multiply-adds at {image}")
    if mass:
        words.append(f"NN-Mass {mass['mass']:,.1f}")
    return ", ".join(words)


def digits(value: float | None) -> str:
    """Return a number to three digits, a dash for none."""
    return "-" if value is None else f"{value:.3g}"


def plain(text: str) -> str:
    """Return text without characters that move the cursor or change the terminal: names in files are untrusted."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def span(values: list[int]) -> str:
    """Return "1-13" for degrees, "1" where all are alike."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}-{high}"


def _stages(numbers: Numbers) -> str:
    head = ["stage", "nodes", "edges", "density", "in-degree", "out-degree", "mean |alpha|", "largest", "negative"]
    rows = [
        [
            stage["name"],
            f"{stage['nodes']}",
            f"{len(stage['edges'])}",
            digits(stage["density"]),
            span(stage["in_degree"][1:]),
            span(stage["out_degree"][:-1]),
            digits(stage["mean_abs"]),
            digits(stage["max_abs"]),
            f"{stage['negative']}",
            digits(stage["small_world"]["small_worldness"]),
        ]
        for stage in numbers["stages"]
    ]
    return table([*head, "small-world-ness"], rows)


def _cuts(numbers: Numbers, per: str) -> str:
    head = [f"threshold per {per}", "edges gone", "edges", "nodes", "parameters", "multiply-adds", "falls apart"]
    cuts = numbers["cuts"][per]
    chosen: list[dict[str, Any]] = [cuts[0]]
    chosen += [min(cuts, key=lambda row: abs(row["removed"] - share)) for share in _REMOVED]
    rows = []
    for row in {row["threshold"]: row for row in chosen}.values():
        counts = ["-" if row[name] is None else f"{row[name]:,}" for name in ("parameters", "multiply_adds")]
        gone = f"{row['removed']:.1%}"
        disconnected = ", ".join(row["disconnected"]) or "no"
        rows.append([digits(row["threshold"]), gone, f"{row['edges']}", f"{row['nodes']}", *counts, disconnected])
    return table(head, rows)


def _distances(found: Numbers) -> str:
    head = [f"edges left, against {found['against']}", "NNSTD of the wirings"]
    rows = [[f"{row['keep']:.0%}", digits(row["mean"])] for row in found["wirings"]]
    channels = found["channels"]
    last = f"NNSTD of the channels {channels['mean']:.3g}" if channels else ""
    return "\n\n".join(block for block in (table(head, rows), last) if block)
