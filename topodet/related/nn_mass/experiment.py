"""Does a network's accuracy follow its mass, or its number of parameters? The question of arXiv 1910.00780, on digits.

Networks of DenseNet-type cells are made in several widths and depths, each with the skip channels for one of a few
masses, so that mass and number of parameters vary independently. Each is measured at initialization (`ldi`) and
trained, from several seeds, on scikit-learn's handwritten digits.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import pearsonr, rankdata
from torch import Tensor, nn

from ...datasets.digits import Digits
from ...errors import ConfigError, unknown_name
from .cells import nn_mass_of_cells
from .dense_cells import dense_cnn, dense_mlp
from .ldi import ldi

Cells = list[tuple[int, int, int]]
Results = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Networks that differ in width, depth and mass.

    Args:
        widths: widths of the first cell; each further cell is twice as wide.
        depths: depths of every cell.
        masses: masses of the network, as close as an integer number of skip channels allows; each further cell has
            twice as many.
        num_cells: 1 for MLPs, more for CNNs.
        fan: see `dense_mlp`.
        epochs: epochs of training.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    masses: tuple[float, ...]
    num_cells: int = 1
    fan: str = "fan_in"
    epochs: int = 20

    def configurations(self) -> Iterator[Cells]:
        """Yield the cells of each network."""
        for width, depth, mass in itertools.product(self.widths, self.depths, self.masses):
            yield cells_of_mass(width, depth, mass, num_cells=self.num_cells)


_MLP = Family(widths=(8, 12), depths=(8, 12, 16, 24, 32), masses=(5, 10, 20, 40, 60))
FAMILIES = {
    "mlp": _MLP,
    "mlp_fan_out": replace(_MLP, fan="fan_out"),
    "cnn": Family(widths=(4, 6), depths=(4, 6, 8), masses=(20, 40, 80), num_cells=3, epochs=10),
}
BATCH = 128
LR = 0.05
LDI_INPUTS = 16
# Columns of a network's row: explanatory and dependent variables.
_CAUSES = ("mass", "parameters")
_EFFECTS = ("ldi", "accuracy")


def cells_of_mass(width: int, depth: int, mass: float, *, num_cells: int = 1) -> Cells:
    """Return the cells whose mass is closest to `mass`, over all numbers of skip channels; see `Family`.

    Raises:
        ConfigError: a mass above that of cells whose layers read everything.
    """

    def cells(skip_channels: int) -> Cells:
        return [(width * 2**k, depth, skip_channels * 2**k) for k in range(num_cells)]

    every = width * depth  # more channels than any layer of the first cell can skip
    most = nn_mass_of_cells(cells(every)).mass
    if mass > most:
        raise ConfigError(f"width {width} and depth {depth} give a mass of {most:g} at most, not {mass:g}")
    return min(map(cells, range(every + 1)), key=lambda made: abs(nn_mass_of_cells(made).mass - mass))


def run(
    families: Sequence[str] = tuple(FAMILIES),
    *,
    seeds: int = 3,
    first_seed: int = 0,
    epochs: int | None = None,
    progress: Callable[[list], Any] = list,
) -> Results:
    """Measure and train every network of the families.

    Args:
        families: names in `FAMILIES`.
        seeds, first_seed: seeds of each network, for skip channels, weights and the order of the images.
        epochs: replaces the families' own number.
        progress: wraps the list of runs, for example tqdm.

    Returns:
        "data", "settings" and "families": for each "networks", one row each with mean over the seeds and the single
        values, and "correlations", see `correlations`.

    Raises:
        ConfigError: an unknown family, or no seed.
        DataError: scikit-learn is not installed.
    """
    for name in families:
        if name not in FAMILIES:
            raise ConfigError(unknown_name("family", name, FAMILIES))
    if seeds < 1:
        raise ConfigError(f"the experiment needs at least 1 seed, got {seeds}")
    chosen = {name: replace(FAMILIES[name], epochs=epochs or FAMILIES[name].epochs) for name in families}
    digits = Digits()
    rows: dict[str, list[Results]] = {name: [] for name in chosen}
    for name, cells in progress(
        [(name, cells) for name, family in chosen.items() for cells in family.configurations()]
    ):
        rows[name].append(_network(chosen[name], cells, digits, range(first_seed, first_seed + seeds)))
    return {
        "data": digits.description,
        "settings": {
            "seeds": seeds,
            "first_seed": first_seed,
            "optimizer": f"SGD, Nesterov momentum 0.9, lr {LR} with cosine, batch {BATCH}",
            "activation": "ELU (MLP), ReLU after batch normalisation (CNN)",
            "ldi_inputs": LDI_INPUTS,
            **{name: asdict(family) for name, family in chosen.items()},
        },
        "families": {name: {"correlations": correlations(found), "networks": found} for name, found in rows.items()},
    }


def correlations(networks: Sequence[Results]) -> Results:
    """Return Spearman's rank correlations over networks, each with the mean over its seeds.

    Keys are "mass_ldi", "mass_accuracy", "parameters_ldi", "parameters_accuracy" and "ldi_accuracy". The partial ones,
    "mass_accuracy_given_parameters" and so on, use the residuals of the ranks after a linear regression on the other
    variable's ranks. None if one of the two does not vary.
    """
    ranks = {key: rankdata([row[key] for row in networks]) for key in (*_CAUSES, *_EFFECTS)}
    pairs = [*itertools.product(_CAUSES, _EFFECTS), ("ldi", "accuracy"), ("mass", "parameters")]
    found = {f"{a}_{b}": _correlation(ranks[a], ranks[b]) for a, b in pairs}
    for cause, other in (_CAUSES, _CAUSES[::-1]):
        for effect in _EFFECTS:
            left = [_residual(ranks[key], ranks[other]) for key in (cause, effect)]
            found[f"{cause}_{effect}_given_{other}"] = _correlation(*left)
    return found


def table(results: Results) -> str:
    """Return the correlations as a Markdown table, one line per family, with partial ones in brackets."""
    head = ("family", "networks x seeds", "LDI: mass", "parameters", "accuracy: mass", "parameters", "LDI")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, family in results["families"].items():
        rho = family["correlations"]
        cells = [name, f"{len(family['networks'])} x {results['settings']['seeds']}"]
        for effect in _EFFECTS:
            for cause, other in (_CAUSES, _CAUSES[::-1]):
                key = f"{cause}_{effect}"
                cells.append(f"{_signed(rho[key])} ({_signed(rho[f'{key}_given_{other}'])})")
        lines.append("| " + " | ".join([*cells, _signed(rho["ldi_accuracy"])]) + " |")
    return "\n".join(lines)


def figure(results: Results) -> Figure:
    """Draw mass against LDI, mass against accuracy and parameters against accuracy, one row of panels per family."""
    families = results["families"]
    drawn = Figure(figsize=(10.0, 3.1 * len(families)), layout="constrained")
    panels = (("mass", "ldi"), ("mass", "accuracy"), ("parameters", "accuracy"))
    labels = {"mass": "NN-Mass", "parameters": "parameters", "ldi": "LDI", "accuracy": "accuracy"}
    for axes, (name, family) in zip(drawn.subplots(len(families), 3, squeeze=False), families.items()):
        networks = family["networks"]
        depths = sorted({row["cells"][0][1] for row in networks})
        widths = sorted({row["cells"][0][0] for row in networks})
        for axis, (cause, effect) in zip(axes, panels):
            for row in networks:
                width, depth, _ = row["cells"][0]
                # Markers for width and shades for depth, for grayscale.
                style = {"color": f"{0.75 - 0.75 * depths.index(depth) / max(1, len(depths) - 1)}", "linestyle": ""}
                axis.plot(row[cause], row[effect], marker="os^v"[widths.index(width) % 4], markersize=4, **style)
            axis.set_xlabel(labels[cause])
            axis.set_ylabel(labels[effect])
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axis.xaxis.set_minor_formatter(NullFormatter())
            rho = _signed(family["correlations"][f"{cause}_{effect}"])
            axis.set_title(f"rank correlation {rho}", fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(f"{name}\n{labels['ldi']}")
        for k, width in enumerate(widths):
            axes[2].plot([], [], color="0.4", linestyle="", marker="os^v"[k % 4], label=f"width {width}")
        axes[2].legend(
            frameon=False, fontsize=8, title=f"darker: deeper, {depths[0]} to {depths[-1]}", title_fontsize=8
        )
    return drawn


def _network(family: Family, cells: Cells, digits: Digits, seeds: Sequence[int]) -> Results:
    singles: dict[str, list[float]] = {"ldi": [], "ldi_spread": [], "accuracy": []}
    for seed in seeds:
        torch.manual_seed(seed)
        make, shape = _maker(family)
        model = make(cells, num_classes=10, fan=family.fan, seed=seed)
        images, classes = digits.train
        found = ldi(model, images[:LDI_INPUTS].reshape(-1, *shape))
        _train(model, images.reshape(-1, *shape), classes, family.epochs)
        images, classes = digits.val
        singles["ldi"].append(found.mean)
        singles["ldi_spread"].append(found.spread)
        singles["accuracy"].append(_accuracy(model, images.reshape(-1, *shape), classes))
    return {
        "cells": cells,
        "mass": nn_mass_of_cells(cells).mass,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{key: statistics.mean(values) for key, values in singles.items()},
        "seeds": singles,
    }


def _maker(family: Family) -> tuple[Callable[..., nn.Module], tuple[int, ...]]:
    """Return a function that creates a network, and the shape of its input for one image."""
    if family.num_cells > 1:
        return (lambda cells, **options: dense_cnn(cells, in_chans=1, **options)), (1, 8, 8)
    return (lambda cells, **options: dense_mlp(cells, in_features=64, act_layer=nn.ELU, **options)), (64,)


def _train(model: nn.Module, images: Tensor, classes: Tensor, epochs: int) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(model(images[batch]), classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    return (model.eval()(images).argmax(1) == classes).double().mean().item()


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if min(np.ptp(a), np.ptp(b)) < 1e-9:
        return None
    return float(pearsonr(a, b).statistic)  # on ranks, this is Spearman's


def _residual(ranks: np.ndarray, other: np.ndarray) -> np.ndarray:
    slope, offset = np.polyfit(other, ranks, 1)
    return ranks - slope * other - offset


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
