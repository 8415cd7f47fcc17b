#!/usr/bin/env python
"""Draw the idea in three panels: a complete graph, the graph after training, the backbone under FPN.

    python tools/idea_figure.py                                  # the weights in the package
    python tools/idea_figure.py published/NAME-1a2b3c4d.pth --stage 3 --output docs/images/idea.png

The widths of the lines of the second panel are the |alpha| of one stage of the weights file.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import topodet
from topodet import weights
from topodet.connectivity import wirings
from topodet.errors import ConfigError, exit_status
from topodet.models.wiring import Wiring
from topodet.records.pictures import save_picture
from topodet.topology import Topology
from topodet.visualization import new_figure

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = Path(topodet.__file__).parent / "models" / "pretrained"
BLUE = "#1f4e79"  # dark enough to read as black in grayscale
WIDEST = 6.0  # width of the strongest edge in points
THINNEST = 0.6  # keeps the weakest edge visible


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", type=Path, help="weights of a TopoNet (default: the file in the package)")
    parser.add_argument("--stage", type=int, default=3, help="stage to draw, from 1 (default: %(default)s)")
    parser.add_argument("--data", default="Tiny ImageNet", help="training data in the caption (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "idea.png", help="picture to write")
    return exit_status(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    path = args.weights or packaged_weights(PACKAGED)
    parts = list(wirings(weights.build(path, quiet=True)).values())
    if not 1 <= args.stage <= len(parts):
        raise ConfigError(f"--stage {args.stage}: {path} has stages 1..{len(parts)}")
    file = weights.read(path)
    figure = idea_figure(parts, args.stage - 1, caption=caption(file.card, file.checkpoint, args.data, args.stage))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    print(save_picture(figure, args.output, dpi=200))


def packaged_weights(folder: Path) -> Path:
    """Return the weights file of `toponet_nano` in the package.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(folder.glob("toponet_nano*.safetensors"))
    if not found:
        raise ConfigError(f"no toponet_nano*.safetensors in {folder}; give a weights file")
    return found[0]


def caption(card: Mapping[str, Any], checkpoint: Mapping[str, Any], data: str, stage: int) -> str:
    """Return the network, stage, data, penalty and seed, as far as they are in the file."""
    options = card.get("recipe") or checkpoint.get("args") or {}
    words = [card.get("architecture") or checkpoint.get("arch") or "TopoNet", f"stage {stage}", data]
    if options.get("sparsity"):
        words.append(f"{options['sparsity']} penalty {options.get('sparsity_weight'):g}")
    epoch = card.get("epoch", checkpoint.get("epoch"))
    if epoch is not None:
        words.append(f"{epoch + 1} epochs")
    if options.get("seed") is not None:
        words.append(f"seed {options['seed']}")
    return ", ".join(words)


def idea_figure(parts: Sequence[Wiring], stage: int, caption: str = "") -> Figure:
    """Return the three panels as a figure.

    Args:
        parts: the wirings of all stages of a TopoNet.
        stage: index of the one to draw large.
        caption: what the second panel shows.
    """
    graph = parts[stage].topology
    figure = new_figure(width=6.6, height=2.9)
    figure.set_layout_engine("none")  # three panels of one height, titles on one line
    axes = [figure.add_axes((left, 0.19, width, 0.68)) for left, width in ((0.01, 0.3), (0.33, 0.3), (0.66, 0.33))]
    complete = Topology(graph.num_nodes, [(j, i) for i in range(graph.num_nodes) for j in range(i)])
    titles = ("complete graph", "learned weights", "backbone + FPN")
    notes = (f"{complete.num_edges} edges, alpha = 1", "width: |alpha|", "one graph for each stage")
    for axis, title, note in zip(axes, titles, notes):
        axis.set_axis_off()
        middle = axis.get_position().x0 + axis.get_position().width / 2
        figure.text(middle, 0.97, title, ha="center", va="top", fontsize=13)
        figure.text(middle, 0.185, note, ha="center", va="top", fontsize=11)
    for axis in axes[:2]:
        axis.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    draw_graph(axes[0], complete, [1.0] * complete.num_edges, widest=2.0)
    draw_graph(axes[1], graph, parts[stage].alpha.detach().abs().tolist(), widest=WIDEST)
    draw_detector(axes[2], parts)
    figure.text(0.5, 0.02, caption, ha="center", va="bottom", fontsize=9, color="0.25")
    return figure


def positions(nodes: int) -> list[tuple[float, float]]:
    """Return [N] points (x, y) on a circle, from left to right, above and below by turns; no three on a line."""
    angles = [math.pi * k / (nodes - 1) for k in range(nodes)]
    return [(-math.cos(angle), math.sin(angle) * (1 if k % 2 else -1)) for k, angle in enumerate(angles)]


def draw_graph(
    axis: Any,
    graph: Topology,
    sizes: Sequence[float],
    *,
    widest: float,
    center: tuple[float, float] = (0, 0),
    radius: tuple[float, float] = (1, 1),
    marker: float = 17,
) -> None:
    """Draw nodes as numbered circles, and edges with widths and darkness in proportion to their weight.

    Args:
        sizes: |alpha| of each edge, [E].
        widest: width of an edge as strong as the strongest, in points.
        center, radius: of the circle that the nodes lie on.
        marker: diameter of a node in points; numbers are left out of small ones.
    """
    points = [(center[0] + x * radius[0], center[1] + y * radius[1]) for x, y in positions(graph.num_nodes)]
    top = max(sizes) or 1.0
    # Strong edges last, on top of the others.
    for size, (j, i) in sorted(zip(sizes, graph.edges)):
        share = size / top
        (x0, y0), (x1, y1) = points[j], points[i]
        width = max(THINNEST, widest * share) if marker > 10 else max(0.3, widest * share)
        axis.plot([x0, x1], [y0, y1], color=str(0.72 * (1 - share)), linewidth=width, zorder=1, solid_capstyle="round")
    for k, (x, y) in enumerate(points):
        axis.plot([x], [y], "o", markersize=marker, color="white", markeredgecolor=BLUE, markeredgewidth=1.4, zorder=2)
        if marker > 10:
            axis.text(x, y - 0.015, str(k), ha="center", va="center", fontsize=11, zorder=3)


def draw_detector(axis: Any, parts: Sequence[Wiring]) -> None:
    """Draw the stages, each with its graph, and beside them the levels of FPN, the largest map at the bottom."""
    axis.set(xlim=(0.0, 3.5), ylim=(-0.4, len(parts) - 0.6))
    arrow = {"arrowstyle": "-|>", "color": "0.1", "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    for k, part in enumerate(parts):
        half = 0.95 - 0.13 * k
        left, right = (1.0 - half, 1.0 + half), (3.0 - 0.45 + 0.06 * k, 3.0 + 0.45 - 0.06 * k)
        for (x0, x1), color in ((left, "0.93"), (right, BLUE)):
            axis.fill([x0, x1, x1, x0], [k - 0.3, k - 0.3, k + 0.3, k + 0.3], facecolor=color, edgecolor=BLUE, zorder=0)
        draw_graph(
            axis,
            part.topology,
            part.alpha.detach().abs().tolist(),
            widest=2.2,
            center=(1.0, k),
            radius=(0.8 * half, 0.22),
            marker=4,
        )
        axis.text(3.0, k - 0.02, f"P{k + 2}", ha="center", va="center", fontsize=11, color="white")
        axis.annotate("", (right[0], k), (left[1], k), arrowprops=arrow)
        if k:
            axis.annotate("", (1.0, k - 0.3), (1.0, k - 0.7), arrowprops=arrow)
            axis.annotate("", (3.0, k - 0.7), (3.0, k - 0.3), arrowprops=arrow)


if __name__ == "__main__":
    sys.exit(main())
