"""Number a network's neurons independently of their original numbers.

Neurons are distinguished by color refinement: by the colors of their inputs and of their readers, round by round,
starting from named inputs (and outputs, if they are fixed). Neurons with the same inputs and the same readers are
twins, which need not be distinguished. If other neurons stay alike, one of them gets a new color and refinement
continues ("individualization"). A relabeled copy is refined in the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

# For the inputs and each layer of a network: a number for each neuron, uint64, equal for indistinguishable neurons.
Colors = list[np.ndarray]

# Number of dead ends after which the search for a copy gives up. Trained networks of any size have shown none; only
# regular graphs that are constructed to look alike have many.
_DEAD_ENDS = 1000


@dataclass(frozen=True)
class CanonicalLabeling:
    """A network and a canonical order of its neurons.

    Attributes:
        order: for the inputs and each layer int64 [neurons], the neurons in canonical order. Two labelings of one
            network give the same matrices in this order, if each neuron that was given a new color can be mapped to any
            other of its old color by a relabeling of the network (an automorphism). Inputs, and fixed outputs, keep
            their order.
    """

    order: tuple[np.ndarray, ...]
    _network: _Network
    _path: tuple[int, ...]  # a number for the colors of each step, the same for copies

    def copied_to(self, other: CanonicalLabeling) -> list[np.ndarray] | None:
        """Return the mapping from this network's neurons to a copy's, for the inputs and each layer int64 [neurons].

        Returns:
            None if `other` is not a copy, or if the search met 1000 dead ends.
        """
        branches = [iter([other._network.colors])]
        dead_ends = 0
        while branches and dead_ends < _DEAD_ENDS:
            colors = next(branches[-1], None)
            if colors is None:
                branches.pop()
                continue
            colors = other._network.refined(colors)
            if _summary(colors) != self._path[len(branches) - 1]:
                dead_ends += 1
            elif len(branches) == len(self._path):
                return [theirs[np.argsort(ours)] for ours, theirs in zip(self.order, _order(colors))]
            else:
                branches.append(other._network.individualized(colors))
        return None


def canonical_labeling(layers: Sequence[sparse.csr_array], fixed_outputs: bool) -> CanonicalLabeling:
    """Number a network's neurons by its connections only.

    Args:
        layers: connections of each layer as 0 and 1 [n_in, n_out]. Inputs have names.
        fixed_outputs: the outputs of the last layer have names too.
    """
    network = _Network(layers, fixed_outputs)
    colors = network.refined(network.colors)
    path = [_summary(colors)]
    while (choice := next(network.individualized(colors), None)) is not None:
        colors = network.refined(choice)
        path.append(_summary(colors))
    return CanonicalLabeling(tuple(_order(colors)), network, tuple(path))


class _Network:
    """A network whose neurons are distinguished by colors."""

    def __init__(self, layers: Sequence[sparse.csr_array], fixed_outputs: bool) -> None:
        sizes = [layers[0].shape[0], *(layer.shape[1] for layer in layers)]
        self._hidden = range(1, len(layers) if fixed_outputs else len(layers) + 1)
        self._readers = [sparse.csr_array(layer, dtype=np.uint64) for layer in layers]
        self._read = [layer.T.tocsr() for layer in self._readers]
        names = [np.arange(size, dtype=np.uint64) for size in sizes]
        self.colors: Colors = [name * (layer not in self._hidden) for layer, name in enumerate(names)]
        # For each layer, the first neuron of each group of twins, and the group of each neuron.
        keys = [self._around(names, layer) if layer in self._hidden else name for layer, name in enumerate(names)]
        self._firsts, self._twins = zip(*(np.unique(key, return_index=True, return_inverse=True)[1:] for key in keys))

    def refined(self, colors: Colors) -> Colors:
        """Distinguish neurons by the colors around them until no more differ."""
        found = 0
        while found < (now := sum(len(np.unique(colors[layer])) for layer in self._hidden)):
            found = now
            changed = {layer: _mixed(colors[layer] + self._around(colors, layer)) for layer in self._hidden}
            colors = [changed.get(layer, named) for layer, named in enumerate(colors)]
        return colors

    def individualized(self, colors: Colors) -> Iterator[Colors]:
        """Give one of several equal neurons, which are not twins, a new color; yield the colors for each choice.

        The choice is among the neurons of one color, the same for copies. Yields nothing if all are distinguished.
        """
        least, chosen = np.inf, None
        for layer, firsts in enumerate(self._firsts):
            values, counts = np.unique(colors[layer][firsts], return_counts=True)
            for value, count in zip(values[counts > 1], counts[counts > 1]):
                if count < least:
                    least, chosen = count, (layer, value)
        if chosen is None:
            return
        layer, value = chosen
        for twins in np.flatnonzero(colors[layer][self._firsts[layer]] == value):
            changed = list(colors)
            changed[layer] = np.where(self._twins[layer] == twins, ~value, colors[layer])
            yield changed

    def _around(self, colors: Colors, layer: int) -> np.ndarray:
        """Return a number for the colors of the inputs and of the readers of each neuron in a layer."""
        # Sums of mixed numbers: equal for equal multisets, and for others only with a probability of 1 in 10^19.
        around = _mixed(self._read[layer - 1] @ _mixed(colors[layer - 1]))
        if layer < len(self._readers):
            around = _mixed(around + self._readers[layer] @ _mixed(colors[layer + 1]))
        return around


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Return a well-mixed number for each, uint64 (the finalizer of SplitMix64)."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _order(colors: Colors) -> list[np.ndarray]:
    return [np.argsort(layer, kind="stable") for layer in colors]


def _summary(colors: Colors) -> tuple[int, ...]:
    """Return numbers that are equal for equal multisets of colors in each layer."""
    return tuple(int(_mixed(layer).sum()) for layer in colors)
