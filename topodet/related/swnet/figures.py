"""Clustering, path length and small-world-ness of a sweep, drawn against p."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...visualization import new_figure
from .sweep import SmallWorldSweep


def small_world_figure(sweep: SmallWorldSweep, title: str = "") -> Figure:
    """Draw clustering, path length and S of a sweep against p; the p of largest S is marked."""
    figure = new_figure(width=5.4, height=3.6)
    worlds = [{**asdict(world), "small_worldness": world.small_worldness} for world in sweep.worlds]
    draw_small_world(figure.subplots(), sweep.ps, worlds, chosen=sweep.best)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def draw_small_world(
    axis: Axes, ps: Sequence[float], worlds: Sequence[Mapping[str, float]], *, chosen: float | None = None
) -> None:
    """Draw C, L and S against p, C and S on the left axis and L on a right one.

    Args:
        axis: axis to draw on.
        ps: probabilities of rewiring.
        worlds: for each p the content of a `SmallWorld`, with its `small_worldness`.
        chosen: the p to mark.
    """
    right = axis.twinx()
    lines = []
    for part, key, label, style in (
        (axis, "clustering", "C", "o--"),
        (axis, "small_worldness", "S", "s-"),
        (right, "path_length", "L (right)", "^:"),
    ):
        lines += part.plot(ps, [world[key] for world in worlds], style, color="0.15", markersize=4, label=label)
    if chosen is not None:
        lines.append(axis.axvline(chosen, color="0.6", linewidth=1.2, zorder=0, label=f"largest S: p = {chosen:g}"))
    for part in (axis, right):
        part.set_ylim(0, 1.35 * part.get_ylim()[1])  # room for the legend
    axis.set_xlabel("p")
    axis.set_ylabel("C, S")
    right.set_ylabel("L, kernels")
    axis.spines["top"].set_visible(False)
    right.spines["top"].set_visible(False)
    axis.legend(handles=lines, frameon=False, fontsize=8, loc="upper center", ncols=2)
