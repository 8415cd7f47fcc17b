"""The graph of a CNN's channels, and its retargeting into a small world (arXiv 1904.04862)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import ConfigError, TopologyError


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Layers of feature-map channels (nodes) joined by kernels (edges).

    Nodes are numbered layer by layer. An edge leads to a later layer; in a plain convolution, to the next one.

    Args:
        widths: channels of each layer.
        edges: the kernels, integers [E, 2] of (source, target), each pair once.

    Raises:
        TopologyError: a layer without channels, or edges that are not integers [E, 2], lead to the same or to an
            earlier layer, name a missing node, or occur twice.
    """

    widths: tuple[int, ...]
    edges: np.ndarray = field(repr=False)

    def __post_init__(self):
        edges = np.asarray(self.edges)
        if min(self.widths, default=0) < 1:
            raise TopologyError(f"every layer needs at least one channel, got widths {list(self.widths)}")
        if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
            raise TopologyError(
                f"edges must be integers of shape [E, 2], got {edges.dtype} of shape {list(edges.shape)}"
            )
        edges = edges.astype(np.int64)
        edges.setflags(write=False)
        object.__setattr__(self, "edges", edges)
        if not len(edges):
            return
        if edges.min() < 0 or edges.max() >= self.num_nodes:
            wrong = edges.min() if edges.min() < 0 else edges.max()
            raise TopologyError(f"edges name node {wrong}; nodes are 0 to {self.num_nodes - 1}")
        backward = edges[np.diff(self.layers_of(edges), axis=1)[:, 0] < 1]
        if len(backward):
            raise TopologyError(f"edge {tuple(backward[0].tolist())} does not lead to a later layer")
        keys = np.sort(edges @ [self.num_nodes, 1])
        twice = keys[1:][keys[1:] == keys[:-1]]
        if len(twice):
            raise TopologyError(f"edge {divmod(int(twice[0]), self.num_nodes)} occurs twice")

    @property
    def num_nodes(self) -> int:
        """Channels of all layers."""
        return sum(self.widths)

    @property
    def num_edges(self) -> int:
        """Kernels."""
        return len(self.edges)

    @property
    def offsets(self) -> np.ndarray:
        """The first node of each layer, and the number of nodes: int64 [layers + 1]."""
        return np.cumsum([0, *self.widths])

    def layers_of(self, nodes: np.ndarray) -> np.ndarray:
        """Return the layer of each node, in the shape of `nodes`."""
        return np.searchsorted(self.offsets, nodes, side="right") - 1

    def retargeted(self, p: float, *, seed: int = 0) -> ChannelGraph:
        """Return the graph with each edge u -> v re-targeted, with probability p, at least two layers after u.

        A new target is chosen uniformly among these channels, and never twice for one u. The number of edges stays the
        same: an edge is not moved if no channel is left, like all edges into the last layer. With the same seed, the
        edges chosen by a smaller p are among those of a larger one.

        Raises:
            ConfigError: p is not between 0 and 1.
            TopologyError: the graph is already retargeted.
        """
        if not 0 <= p <= 1:
            raise ConfigError(f"p={p} is not a probability: give a number from 0 to 1")
        spans = np.diff(self.layers_of(self.edges), axis=1)
        if (spans > 1).any():
            raise TopologyError(
                f"{(spans > 1).sum()} edges already skip layers; retarget the graph of the original network with this p"
            )
        rng = np.random.default_rng(seed)
        edges = self.edges.copy()
        chosen = np.flatnonzero(rng.random(len(edges)) < p)
        chosen = chosen[np.argsort(edges[chosen, 0], kind="stable")]
        sources, starts = np.unique(edges[chosen, 0], return_index=True)
        first = np.append(self.offsets, self.num_nodes)[self.layers_of(sources) + 2]  # first node two layers later
        for begin, own in zip(first, np.split(chosen, starts[1:])):
            room = self.num_nodes - begin
            moved = rng.permutation(own)[:room]  # if there are too few targets, a random part stays
            edges[moved, 1] = begin + rng.choice(room, size=len(moved), replace=False)
        return ChannelGraph(self.widths, edges)


def layered(widths: Sequence[int], *, groups: Sequence[int] | None = None) -> ChannelGraph:
    """Return the graph of a sequence of convolutions, each reading all channels of the previous one.

    Args:
        widths: channels of each layer.
        groups: groups of the convolution of each layer except the first; 1 by default.

    Raises:
        TopologyError: a layer without channels, or groups that do not divide the widths.
    """
    groups = [1] * (len(widths) - 1) if groups is None else groups
    edges, offset = [np.empty((0, 2), np.int64)], 0
    for width, next_width, parts in zip(widths, widths[1:], groups):
        if parts < 1 or width % parts or next_width % parts:
            raise TopologyError(f"{parts} groups do not divide {width} channels into {next_width}")
        reads = width // parts
        target, place = np.divmod(np.arange(next_width * reads), reads)
        source = target // (next_width // parts) * reads + place
        edges.append(np.stack([offset + source, offset + width + target], axis=1))
        offset += width
    return ChannelGraph(tuple(widths), np.concatenate(edges))
