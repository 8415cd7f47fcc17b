"""The pictures of a report as SVG text. Colors are CSS classes, so the page's style controls light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from .measure import Numbers

# Name and points (x, y) of each line.
Series = list[tuple[str, list[tuple[float, float]]]]
LEVELS = 10


def largest(alphas: Iterable[Sequence[float]]) -> float:
    """Return the largest |alpha| of several wirings, never 0."""
    return max((abs(value) for alpha in alphas for value in alpha), default=0.0) or 1.0


def mean_size(alpha: Sequence[float]) -> float:
    """Return the mean |alpha|."""
    return sum(map(abs, alpha)) / len(alpha)


def cell_class(value: float, top: float) -> str:
    """Return the class of a weight: l0 to l9 by |alpha| from 0 to `top`, and n if it is negative."""
    level = min(LEVELS - 1, int(LEVELS * abs(value) / top))
    return f"l{level} n" if value < 0 else f"l{level}"


def graph(edges: Sequence[Sequence[int]], alpha: Sequence[float], nodes: int, top: float, *, label: str) -> str:
    """Draw nodes in a row and edges as arcs over them."""
    step = max(24.0, 300 / nodes)
    width, base = step * (nodes - 1) + 40, 0.23 * step * max(i - j for j, i in edges) + 16
    font = 12 * max(1.0, width / 400)
    parts = []
    # The script relies on this order: the first group has the edges, the second the nodes, by number.
    for (j, i), value in zip(edges, alpha):
        x, end, lift = 20 + step * j, 20 + step * i, 0 if i == j + 1 else 0.46 * step * (i - j)
        stroke = 0.5 + 4 * abs(value) / top
        way = f"M{x:g} {base:g}Q{(x + end) / 2:g} {base - lift:g} {end:g} {base:g}"
        parts.append(f'<path class="{cell_class(value, top)}" d="{way}" stroke-width="{stroke:.2f}"/>')
    dots = (f'<circle cx="{20 + step * node:g}" cy="{base:g}" r="7"/>' for node in range(nodes))
    every = math.ceil(2.2 * font / step)
    marks = (
        f'<text x="{20 + step * node:g}" y="{base + 10 + font:g}">{node}</text>' for node in range(0, nodes, every)
    )
    body = f'<g class="edges">{"".join(parts)}</g><g class="nodes">{"".join(dots)}</g>'
    return _svg(width, base + 16 + font, f'{body}<g class="ticks" font-size="{font:.0f}">{"".join(marks)}</g>', label)


def heat_map(
    edges: Sequence[Sequence[int]],
    alpha: Sequence[float],
    nodes: int,
    top: float,
    *,
    label: str,
    focus: bool = False,
) -> str:
    """Draw the adjacency matrix, inputs of node i in row i.

    Args:
        focus: whether it can get the keyboard focus.
    """
    cell = max(12, 230 // nodes)
    side = cell * nodes
    font = 11 * max(1.0, (side + 28) / 280)
    margin = 2 * font
    cells, marks = [], []
    for (j, i), value in zip(edges, alpha):
        x, y, kind = margin + cell * j, 2 + cell * i, cell_class(value, top)
        cells.append(f'<rect class="{kind}" x="{x + 0.5:g}" y="{y + 0.5:g}" width="{cell - 1}" height="{cell - 1}"/>')
        marks.append(f'<path class="{kind}" d="M{x + cell / 4:g} {y + cell / 2:g}h{cell / 2:g}"/>')
    every = math.ceil(1.5 * font / cell)
    ticks = [
        f'<text x="{margin + cell * (node + 0.5):g}" y="{side + 4 + font:g}">{node}</text>'
        f'<text class="row" x="{margin - 4:g}" y="{2 + cell * (node + 0.5) + font / 3:g}">{node}</text>'
        for node in range(0, nodes, every)
    ]
    body = (
        f'<rect class="field" x="{margin:g}" y="2" width="{side}" height="{side}"/>'
        f'<g class="cells">{"".join(cells)}</g><g class="minus">{"".join(marks)}</g>'
        f'<g class="ticks" font-size="{font:.0f}">{"".join(ticks)}</g>'
    )
    return _svg(side + margin + 6, side + font + 10, body, label, focus=focus)


def scale(top: float) -> str:
    """Draw the color scale of |alpha|."""
    cells = "".join(
        f'<rect class="l{level}" x="{1 + 22 * level}" y="1" width="22" height="14"/>' for level in range(LEVELS)
    )
    ends = f'<text class="first" x="1" y="28">0</text><text class="row" x="221" y="28">{top:.3g}</text>'
    body = f'<g class="cells">{cells}</g><g class="ticks" font-size="12">{ends}</g>'
    picture = _svg(222, 32, body, "Scale of |alpha|")
    return f'<figure class="whole"><figcaption>|alpha|</figcaption>{picture}</figure>'


def histograms(whole: Numbers, groups: Sequence[Numbers], *, label: str) -> str:
    """Draw the histogram of a stage and, below, those of its edges by in-degree, over one axis."""
    bounds = whole["bounds"]
    total = sum(whole["counts"])
    rows = [(whole["counts"], 60, f"{total} edges")]
    for group in groups:
        degrees = f"{group['from']}" if group["from"] == group["to"] else f"{group['from']}-{group['to']}"
        words = f"in-degree {degrees}: {group['edges']} of {total} edges, mean |alpha| {group['mean_abs']:.3g}"
        rows.append((group["counts"], 30, words))
    width, y, parts = 300, 0.0, []
    step, low, high = width / (len(bounds) - 1), bounds[0], bounds[-1]
    zero = width * -low / (high - low)
    for counts, height, words in rows:
        y += height + 16
        if low < 0 < high:
            parts.append(f'<path class="zero" d="M{zero:.1f} {y - height:g}V{y:g}"/>')
        parts.append(f'<text class="first" x="0" y="{y - height - 3:g}">{escape(words)}</text>')
        for k, count in enumerate(counts):
            if count:
                tall = height * math.log1p(count) / math.log1p(max(counts))
                title = f"{bounds[k]:.3g} to {bounds[k + 1]:.3g}: {count}"
                parts.append(
                    f'<rect class="bar" x="{k * step + 0.5:g}" y="{y - tall:.1f}" width="{step - 1:g}" '
                    f'height="{tall:.1f}"><title>{title}</title></rect>'
                )
        parts.append(f'<path class="axis" d="M0 {y:g}h{width}"/>')
    ends = f'<text class="first" x="0" y="{y + 13:g}">{low:.3g}</text>'
    ends += f'<text class="row" x="{width}" y="{y + 13:g}">{high:.3g}</text>'
    if 40 < zero < width - 40:
        ends += f'<text x="{zero:.1f}" y="{y + 13:g}">0</text>'
    return _svg(width, y + 18, f'<g class="ticks" font-size="11">{"".join(parts)}{ends}</g>', label)


def degrees(inputs: Sequence[int], outputs: Sequence[int], *, label: str) -> str:
    """Draw each node's in-degree as a bar up and its out-degree as a bar down; the script sets their heights."""
    top, unit = max(*inputs, *outputs), 52 / max(*inputs, *outputs)
    step = 300 / len(inputs)
    parts = [
        f'<rect class="bar" x="{k * step + 1:.1f}" y="{70 - unit * up:.1f}" width="{step - 2:.1f}" '
        f'height="{unit * up:.1f}"/>'
        for k, up in enumerate(inputs)
    ]
    downs = [
        f'<rect class="bar other" x="{k * step + 1:.1f}" y="71" width="{step - 2:.1f}" height="{unit * down:.1f}"/>'
        for k, down in enumerate(outputs)
    ]
    every = 1 if len(inputs) <= 10 else 5
    marks = "".join(f'<text x="{(k + 0.5) * step:.1f}" y="138">{k}</text>' for k in range(0, len(inputs), every))
    marks += f'<text class="first" x="0" y="13">in, at most {top}</text>'
    body = f'<g class="in">{"".join(parts)}</g><g class="out">{"".join(downs)}</g><path class="axis" d="M0 70.5H300"/>'
    return _svg(300, 142, f'{body}<g class="ticks" font-size="11">{marks}</g>', label, f' data-unit="{unit:.4f}"')


def series(rows: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> Series:
    """Return the lines of some columns over "epoch", without missing numbers."""
    found = [
        (
            name,
            [(row["epoch"], row[name]) for row in rows if row.get(name) is not None and row.get("epoch") is not None],
        )
        for name in names
    ]
    return [(name, points) for name, points in found if points]


def lines(found: Series, *, label: str) -> str:
    """Draw lines over the epochs, distinguished by their dashes; "" if there are none."""
    if not found or all(y == 0 for _, points in found for _, y in points):
        return ""
    xs, ys = ([point[k] for _, points in found for point in points] for k in (0, 1))
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    right, high = (right if right > left else left + 1), (high if high > low else low + 1)
    parts = []
    for k, (name, points) in enumerate(found):
        places = [(44 + 250 * (x - left) / (right - left), 104 - 96 * (y - low) / (high - low)) for x, y in points]
        y = 140 + 15 * k
        parts.append(f'<path class="line s{k % 5}" d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
        parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in places]
        parts.append(f'<path class="line s{k % 5}" d="M44 {y - 4}h34"/>')
        parts.append(f'<text class="first" x="86" y="{y}">{escape(name)}: {points[-1][1]:.4g}</text>')
    parts += [
        '<path class="axis" d="M40 4V108H298"/>',
        f'<text class="row" x="36" y="14">{high:.3g}</text><text class="row" x="36" y="108">{low:.3g}</text>',
        f'<text x="44" y="121">{left:g}</text><text class="row" x="298" y="121">epoch {right:g}</text>',
    ]
    return _svg(300, 134 + 15 * len(found), f'<g class="ticks" font-size="11">{"".join(parts)}</g>', label)


def _svg(width: float, height: float, body: str, label: str, data: str = "", *, focus: bool = False) -> str:
    reach = ' tabindex="0"' if focus else ""
    return (
        f'<svg width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" role="img"{reach}{data} '
        f'aria-label="{escape(label)}">{body}</svg>'
    )
