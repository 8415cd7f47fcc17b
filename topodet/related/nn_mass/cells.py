"""NN-Mass: a measure of a network's skip connections, by width and depth (CVPR 2021, arXiv 1910.00780).

The paper claims that gradients propagate better at initialization the larger the mass, and that networks of equal mass
reach similar accuracy, whatever their number of parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import TopologyError


@dataclass(frozen=True)
class Cell:
    """A cell's contribution to the mass of a network.

    Args:
        channels: channels of all its layers together; width times depth if all layers have the same width.
        skips: channels read from layers before the previous one, summed over the layers.
        possible: maximum of `skips`.
        name: name of the module, for a cell of a network.
    """

    channels: int
    skips: int
    possible: int
    name: str = ""

    @property
    def density(self) -> float:
        """rho in [0, 1]: the share of the possible skip channels that exist; 0 if none is possible."""
        return self.skips / self.possible if self.possible else 0.0

    @property
    def mass(self) -> float:
        """Channels times density."""
        return self.channels * self.density


@dataclass(frozen=True)
class NNMass:
    """The cells of a network, with their densities and total mass."""

    cells: tuple[Cell, ...]

    @property
    def densities(self) -> tuple[float, ...]:
        """rho of each cell."""
        return tuple(cell.density for cell in self.cells)

    @property
    def mass(self) -> float:
        """m = sum over cells of width * depth * rho."""
        return sum(cell.mass for cell in self.cells)


def nn_mass_of_cells(cells: Iterable[Sequence[int]]) -> NNMass:
    """Return density and mass of DenseNet-type cells.

    Layer i of a cell of d layers, w wide, reads layer i - 1 and at most t channels of the layers before that one:
    `rho = sum_{i=2}^{d-1} min(w (i-1), t) / (w (d-1)(d-2) / 2)` and `m = sum over cells of w d rho`.

    Args:
        cells: (width, depth, skip_channels) = (w, d, t) of each.

    Raises:
        TopologyError: no cell, one that is not three integers, a width or depth below 1, or t below 0.

    Example:
        >>> found = nn_mass_of_cells([(32, 8, 10), (64, 8, 20), (128, 8, 40)])
        >>> found.densities[0], found.mass
        (0.08928571428571429, 160.0)
    """
    made = tuple(_cell(k, cell) for k, cell in enumerate(cells))
    if not made:
        raise TopologyError("nn_mass_of_cells needs at least one cell (width, depth, skip_channels)")
    return NNMass(made)


def possible_skips(widths: Sequence[int]) -> int:
    """Return the number of possible skip channels in a chain: for each node, those of all nodes before its predecessor.

    Args:
        widths: channels of each node but the last, which only receives.
    """
    return sum(sum(widths[:node]) for node in range(1, len(widths)))


def _cell(place: int, cell: Sequence[int]) -> Cell:
    try:
        width, depth, skip_channels = cell
    except (TypeError, ValueError):
        raise TopologyError(f"cell {place} must be (width, depth, skip_channels), got {cell!r}") from None
    for name, value, least in (("width", width, 1), ("depth", depth, 1), ("skip_channels", skip_channels, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise TopologyError(f"cell {place}: {name} must be a whole number of at least {least}, got {value!r}")
    width, depth, skip_channels = int(width), int(depth), int(skip_channels)
    return Cell(
        channels=width * depth,
        skips=sum(min(width * (layer - 1), skip_channels) for layer in range(2, depth)),
        possible=possible_skips([width] * (depth - 1)),
    )
