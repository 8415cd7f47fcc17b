"""A report as one HTML file, without network access or libraries: SVG pictures, and a small script to show parts.

Everything from a file is plain text in this page: it is escaped, and the page's policy allows no other script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from . import charts
from .measure import Numbers
from .text import digits, size, span


def page(numbers: Numbers) -> str:
    """Return the result of `measure` as an HTML document.

    `#per=node&threshold=0.3` at the end of its address opens it at that cut.
    """
    style, script = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    name = numbers["source"]
    sections = [
        _about(numbers),
        _controls(numbers),
        _graphs(numbers),
        _adjacency(numbers),
        _histograms(numbers),
        _degrees(numbers),
        _measures(numbers),
        _evolution(numbers),
        _distances(numbers),
        _edges(numbers),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(name)}: wiring</title>
<style>{style}</style>
</head>
<body>
<main>
{"".join(sections)}
</main>
<script type="application/json" id="data">{_embedded(_for_the_script(numbers))}</script>
<script>{script}</script>
</body>
</html>
"""


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _embedded(content: Any) -> str:
    """Return JSON that cannot end the script element that contains it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _for_the_script(numbers: Numbers) -> Numbers:
    evolution = numbers["evolution"] or {"epochs": [], "alpha": []}
    top = charts.largest(alpha for epoch in evolution["alpha"] for alpha in epoch)
    return {
        "cuts": numbers["cuts"],
        "stages": [
            {"edges": stage["edges"], "alpha": [float(f"{value:.6g}") for value in stage["alpha"]]}
            for stage in numbers["stages"]
        ],
        "epochs": evolution["epochs"],
        "levels": [[[charts.cell_class(value, top) for value in alpha] for alpha in e] for e in evolution["alpha"]],
    }


def _about(numbers: Numbers) -> str:
    facts = {
        "what": numbers["kind"],
        "network": numbers["architecture"],
        **numbers["facts"],
        "size": size(numbers),
        "topodet": numbers["topodet"],
    }
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items() if value != "")
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in numbers["notes"])
    return f"""<header>
<h1>Wiring of {_text(numbers["source"])}</h1>
<dl>{rows}</dl>
{notes}<noscript><p class="note">Without scripts this page shows the whole network only.</p></noscript>
<p class="note" id="failure" role="alert" hidden></p>
</header>
"""


def _controls(numbers: Numbers) -> str:
    words = {
        "network": "|alpha|",
        "stage": "|alpha| / largest of its stage",
        "node": "|alpha| / largest of its target node",
    }
    options = "".join(f'<option value="{per}">{words[per]}</option>' for per in numbers["cuts"])
    return f"""<section class="controls" aria-label="Threshold">
<div><label for="per">An edge is as strong as its</label> <select id="per">{options}</select></div>
<div class="slide"><label for="threshold">Cut below</label>
<input type="range" id="threshold" min="0" max="0" value="0" step="1">
<output id="value" for="threshold"></output></div>
<p id="left" role="status" aria-live="polite"></p>
<p id="disconnected" role="status" aria-live="polite"></p>
</section>
"""


def _graphs(numbers: Numbers) -> str:
    top = charts.largest(stage["alpha"] for stage in numbers["stages"])
    figures = (
        _figure(
            stage["name"],
            charts.graph(stage["edges"], stage["alpha"], stage["nodes"], top, label=_label("Graph", stage)),
            '<span class="left"></span>',
            "graph",
        )
        for stage in numbers["stages"]
    )
    return _section(
        "Graph",
        "Nodes in their order, edges as wide as |alpha|. Dashed: negative weight. Dotted: too weak, but kept because "
        "otherwise the input would not reach the output. Hollow: removed node.",
        figures,
        "wide",
    )


def _adjacency(numbers: Numbers) -> str:
    top = charts.largest(stage["alpha"] for stage in numbers["stages"])
    figures = (
        _figure(
            stage["name"],
            charts.heat_map(
                stage["edges"], stage["alpha"], stage["nodes"], top, label=_label("Adjacency", stage), focus=True
            ),
            '<output class="value" aria-live="polite">point at a cell, or use the arrow keys</output>',
            "heat",
        )
        for stage in numbers["stages"]
    )
    return _section(
        "Adjacency",
        "Row: target node, column: source node. Bar in a cell: negative weight. Only a frame: removed edge. No cell: "
        "no edge.",
        [charts.scale(top), *figures],
    )


def _histograms(numbers: Numbers) -> str:
    figures = (
        _figure(
            stage["name"],
            charts.histograms(
                stage["histogram"], stage["histograms_by_in_degree"], label=_label("Histogram of alpha", stage)
            ),
        )
        for stage in numbers["stages"]
    )
    return _section(
        "Edge weights",
        "Edges by alpha, for the whole stage (top) and by the in-degree of their target nodes (below); heights are "
        "logarithmic. The adaptive penalty is stronger for larger in-degrees.",
        figures,
    )


def _degrees(numbers: Numbers) -> str:
    figures = (
        _figure(
            stage["name"],
            charts.degrees(stage["in_degree"], stage["out_degree"], label=_label("Degrees", stage)),
            extra="degrees",
        )
        for stage in numbers["stages"]
    )
    return _section("Degrees", "In-degree (up) and out-degree (down) of each node, after the cut.", figures)


def _measures(numbers: Numbers) -> str:
    head = ["stage", "nodes", "edges", "density", "in-degree", "out-degree", "mean |alpha|", "largest", "negative"]
    head += ["clustering", "path length", "small-world-ness"]
    rows = []
    for stage in numbers["stages"]:
        world = stage["small_world"]
        rows.append(
            [
                stage["name"],
                stage["nodes"],
                len(stage["edges"]),
                digits(stage["density"]),
                span(stage["in_degree"][1:]),
                span(stage["out_degree"][:-1]),
                digits(stage["mean_abs"]),
                digits(stage["max_abs"]),
                stage["negative"],
                f"{digits(world['clustering'])} (random {digits(world['random_clustering'])})",
                f"{digits(world['path_length'])} (random {digits(world['random_path_length'])})",
                digits(world["small_worldness"]),
            ]
        )
    tables = [_table(head, rows)]
    if numbers["nn_mass"]:
        mass = numbers["nn_mass"]
        cells = [[c["name"], c["channels"], digits(c["density"]), f"{c['mass']:,.1f}"] for c in mass["cells"]]
        cells.append(["all", "", "", f"{mass['mass']:,.1f}"])
        tables.append(_table(["cell", "channels", "density", "NN-Mass"], cells))
    return _section("Measures", "Of the whole wiring, without a cut.", tables, "tables")


def _evolution(numbers: Numbers) -> str:
    found = numbers["evolution"]
    if not found:
        return ""
    blocks = [_figure(title, charts.lines(series, label=title)) for title, series in _curves(numbers)]
    epochs = found["epochs"]
    if len(epochs) > 1:
        top = charts.largest(alpha for epoch in found["alpha"] for alpha in epoch)
        blocks.append(
            f"""<div class="slide whole"><label for="epoch">After epoch</label>
<input type="range" id="epoch" min="0" max="{len(epochs) - 1}" value="{len(epochs) - 1}" step="1">
<output id="epoch-value" for="epoch">{epochs[-1]}</output></div>"""
        )
        blocks += [
            _figure(
                stage["name"],
                charts.heat_map(
                    stage["edges"], alpha, stage["nodes"], top, label=_label("Adjacency over epochs", stage)
                ),
                extra="epochs",
            )
            for stage, alpha in zip(numbers["stages"], found["alpha"][-1])
        ]
    kept = f"Checkpoints of the epochs {', '.join(map(str, epochs))} were kept." if epochs else ""
    return _section("Over the epochs", kept, blocks)


def _curves(numbers: Numbers) -> Iterable[tuple[str, charts.Series]]:
    """Yield title and lines of the numbers that the run recorded after each epoch."""
    found = numbers["evolution"]
    history, names = found["history"], dict.fromkeys(name for row in found["history"] for name in row)
    for title, ends in (("Top-1, %", "top1"), ("Loss", "loss"), ("Penalty", "penalty")):
        yield title, charts.series(history, [name for name in names if name.endswith(ends)])
    yield (
        "Share of the edges with |alpha| below a threshold",
        charts.series(history, [name for name in names if name.startswith("edges_below_")]),
    )
    means = [
        {"epoch": epoch} | {s["name"]: charts.mean_size(a) for s, a in zip(numbers["stages"], alpha)}
        for epoch, alpha in zip(found["epochs"], found["alpha"])
    ]
    yield "Mean |alpha|", charts.series(means, [stage["name"] for stage in numbers["stages"]])


def _distances(numbers: Numbers) -> str:
    found = numbers["nnstd"]
    if not found:
        return ""
    names = [stage["name"] for stage in numbers["stages"]]
    rows = [[f"{r['keep']:.0%}", *map(digits, r["stages"]), digits(r["mean"])] for r in found["wirings"]]
    tables = [_table(["edges left", *names, "mean"], rows)]
    channels = found["channels"]
    if channels:
        layers = [[name, digits(value)] for name, value in channels["layers"].items()]
        tables.append(_table(["layer", 'NNSTD, ties="authors"'], [*layers, ["mean", digits(channels["mean"])]]))
    return _section(
        f"NNSTD against {found['against']}",
        "From 0 (the same wiring) to 1 (no common edge), with only the strongest edges of each node; a dash if a graph "
        "fell apart.",
        tables,
        "tables",
    )


def _edges(numbers: Numbers) -> str:
    blocks = []
    for stage in numbers["stages"]:
        rows = [[f"{j} → {i}", f"{value:.4g}"] for (j, i), value in zip(stage["edges"], stage["alpha"])]
        name = _text(stage["name"])
        blocks.append(f"<details><summary>{name}</summary>{_table(['edge', 'alpha'], rows)}</details>")
    return _section("All edges", "", blocks, "tables")


def _section(title: str, hint: str, blocks: Iterable[str], kind: str = "") -> str:
    said = f'<p class="hint">{_text(hint)}</p>' if hint else ""
    body = "".join(blocks)
    return f'<section><h2>{_text(title)}</h2>{said}<div class="blocks {kind}">{body}</div></section>\n' if body else ""


def _figure(title: str, picture: str, caption: str = "", extra: str = "") -> str:
    if not picture:
        return ""
    return f'<figure class="{extra}"><figcaption><b>{_text(title)}</b> {caption}</figcaption>{picture}</figure>'


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    names = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    lines = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _label(what: str, stage: Numbers) -> str:
    return f"{what} of {stage['name']}: {stage['nodes']} nodes, {len(stage['edges'])} edges"


def _text(value: object) -> str:
    return escape(str(value))
