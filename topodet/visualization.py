"""Pictures of a wiring: adjacency heat maps, the histogram of the edge weights (the paper's Figs. 2, 3, 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from .connectivity import all_alphas, wirings
from .errors import ConfigError
from .files import atomic_path

# Line colors of all pictures, distinct in grayscale too.
DARK, LIGHT = "#1f4e79", "#e08a3c"


def series_style(k: int) -> dict[str, str]:
    """Return color, marker and dashes of line `k` of a picture, which are distinct in grayscale too."""
    styles = ((DARK, "o", "-"), (LIGHT, "s", "--"), ("0.2", "^", "-."), ("0.55", "D", ":"))
    return dict(zip(("color", "marker", "linestyle"), styles[k % len(styles)]))


def adjacency_figure(model: nn.Module, title: str = "") -> Figure:
    """Draw each stage's adjacency matrix of |alpha| as a heat map, inputs of node i in row i, absent edges in gray.

    The scale ends at 1, 2 or 5 times a power of ten, so most pictures of a training run have the same scale.

    Raises:
        ConfigError: the model has no wiring.
    """
    parts = _wirings(model)
    top = _scale_end(float(all_alphas(parts.values()).abs().max()))
    figure = new_figure(width=3.2 * len(parts) + 0.8, height=3.7)
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, name, wiring in zip(axes, _short(parts), parts.values()):
        # NaN is not drawn: a missing edge shows the gray background, unlike one of weight 0.
        axis.set_facecolor("0.92")
        edges = np.where(wiring.topology.adjacency() > 0, 0.0, np.nan)
        matrix = edges + wiring.topology.adjacency(wiring.alpha.detach().float().abs().cpu().numpy())
        image = axis.imshow(matrix, cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
        axis.set_title(f"{name}: {wiring.topology.num_edges} edges", fontsize=9)
        axis.set_xlabel("from node", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("to node", fontsize=8)
    figure.colorbar(image, ax=list(axes), shrink=0.75, pad=0.01).set_label("|alpha|", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def alpha_histogram(model: nn.Module, title: str = "", bins: int = 50) -> Figure:
    """Draw a histogram of the edge weights of all stages; large counts have a logarithmic axis.

    Raises:
        ConfigError: the model has no wiring.
    """
    # In float64: the differences between nearly equal edges can be too small for bins in float32.
    alpha = all_alphas(_wirings(model).values()).double().numpy()
    figure = new_figure(width=5.2, height=3.4)
    axis = figure.subplots()
    low, high = float(alpha.min()), float(alpha.max())
    if high - low < 1e-6:  # all edges alike, as at the start: one visible bar instead of an empty range
        low, high = low - 0.5, high + 0.5
    counts, *_ = axis.hist(alpha, bins=bins, range=(low, high), color=DARK)
    if counts.max() > 50:
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.5)  # a single edge is a visible bar
    else:
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.set_xlabel("alpha")
    axis.set_ylabel("edges")
    near = (np.abs(alpha) < 1e-2).mean()
    axis.set_title(title or f"{alpha.size} edges, {near:.1%} with |alpha| < 0.01", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def save_figures(model: nn.Module, folder: str | Path, tag: str) -> list[Path]:
    """Write `adjacency_<tag>.png` and `alpha_<tag>.png` into `folder`; return their paths."""
    written = []
    for name, figure in (("adjacency", adjacency_figure(model, title=tag)), ("alpha", alpha_histogram(model))):
        path = Path(folder) / f"{name}_{tag}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)
        written.append(path)
    return written


def _scale_end(largest: float) -> float:
    """Return the smallest of ..., 0.2, 0.5, 1, 2, 5, 10, 20, ... that is at least `largest`."""
    power = 10.0 ** math.floor(math.log10(max(largest, 1e-12)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= largest * (1 - 1e-6))


def _wirings(model: nn.Module) -> dict:
    parts = wirings(model)
    if not parts:
        raise ConfigError(
            f"{type(model).__name__} has no wiring to draw; give a TopoNet or a network that contains one"
        )
    return parts


def _short(names: Iterable[str]) -> list[str]:
    """Return the names of wirings without most of their common prefix: "stages.0" for "backbone.stages.0.wiring"."""
    words = [name.removesuffix(".wiring").split(".") for name in names]
    differ = next((k for k, column in enumerate(zip(*words)) if len(set(column)) > 1), 0)
    return [".".join(name[max(0, differ - 1) :]) for name in words]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, without pyplot: no global state, no display, no effect on a user's own figures.

    Args:
        width, height: in inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
