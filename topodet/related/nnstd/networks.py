"""NNSTD between trained networks: whole models, state dicts, checkpoints or masks, and many of them at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import sparse
from torch import Tensor, nn
from tqdm import tqdm

from ... import weights
from ...errors import ConfigError, TopologyError, WeightsError, unknown_name
from .distance import NNSTD, Ties, nnstd_of_layers

# A model; its state dict or masks, by the names of the weights; or a file in any form of `topodet.weights.fetch`.
Source = nn.Module | Mapping[str, Tensor] | str | os.PathLike
# torch.nn.utils.prune keeps a mask beside each pruned weight.
_WEIGHT = re.compile(r"(?:(.+)\.)?weight(?:_mask)?")


@dataclass(frozen=True)
class Distances:
    """The distances among several networks.

    Attributes:
        labels: names of the N networks.
        layers: float64 [N, N, L], the distances of their layers; row: first network, column: second.
        names: of the L layers, in the first network.
    """

    labels: tuple[str, ...]
    layers: np.ndarray = field(repr=False)
    names: tuple[str, ...]

    @property
    def mean(self) -> np.ndarray:
        """The distances of the networks, float64 [N, N]."""
        return self.layers.mean(axis=2)


def channel_graphs(
    source: Source, *, threshold: float = 0.0, layers: Sequence[str] | None = None
) -> dict[str, sparse.csr_array]:
    """Return the connections of a network's layers, in order, by layer name: bool [n_in, n_out].

    Nodes are neurons or channels. A linear layer has an edge for each weight, a convolution for each kernel, if any
    |weight| in it is above `threshold`. A convolution that is flattened into a linear layer is followed channel by
    channel (flattened from [C, H, W]). Groups are known if a model is given, otherwise only depthwise ones.

    The layers are read as a chain, as NNSTD is defined; shortcuts are ignored. If a network has other layers, name
    those of a chain in `layers`.

    Args:
        source: see `Source`; masks are treated like weights.
        threshold: not negative.
        layers: names of the layers to use, without ".weight"; all linear and convolutional ones by default.

    Raises:
        ConfigError: a negative threshold, an unknown layer, no layer at all.
        TopologyError: layers that do not chain.
        WeightsError: a value is not finite, or as `topodet.weights.read`.
    """
    if not threshold >= 0:
        raise ConfigError(f"threshold is {threshold}: edges are weights with |weight| above it; give 0 or more")
    found = _weights(source)
    if layers is not None:
        for name in layers:
            if name not in found:
                raise ConfigError(unknown_name("layer", name, found))
        found = {name: found[name] for name in layers}
    if not found:
        raise ConfigError(f"{_described(source)} has no linear or convolutional weights (names ending in 'weight')")
    modules = dict(source.named_modules()) if isinstance(source, nn.Module) else {}
    graphs: dict[str, sparse.csr_array] = {}
    below = ""
    for name, weight in found.items():
        if not torch.isfinite(weight).all():
            raise WeightsError(f"{name} has values that are NaN or infinite; the training diverged")
        edges = weight if weight.dtype == torch.bool else weight.abs() > threshold
        if weight.ndim > 2:
            edges = edges.flatten(2).any(dim=2)
        width = graphs[below].shape[1] if graphs else None
        if width and weight.ndim == 2 and found[below].ndim > 2 and edges.shape[1] % width == 0:
            edges = edges.unflatten(1, (width, -1)).any(dim=2)
        elif weight.ndim > 2:
            depthwise = width if width and edges.shape[1] == 1 else 1
            edges = _ungrouped(edges, getattr(modules.get(name), "groups", depthwise))
        if width and edges.shape[1] != width:
            raise TopologyError(
                f"{name} reads {edges.shape[1]} channels, but {below} before it has {width}: NNSTD compares chains of "
                "layers; name those of a chain in `layers`, or give the model itself if the layer has groups"
            )
        graphs[name] = sparse.csr_array(edges.T.cpu().numpy())
        below = name
    return graphs


def nnstd(
    a: Source,
    b: Source,
    ties: Ties = "canonical",
    *,
    threshold: float = 0.0,
    layers: Sequence[str] | None = None,
    fixed_outputs: bool = True,
) -> NNSTD:
    """Return the distance between the wirings of two trained networks, see `topodet.related.nnstd.nnstd_of_layers`.

    Args:
        a, b: see `Source`.
        ties: how neurons with equal inputs are matched.
        threshold, layers: see `channel_graphs`.
        fixed_outputs: the last layer is the classifier, whose outputs are the same in both networks; set it to False
            for networks without one.

    Raises:
        TopologyError: networks of different depth or sizes, a layer without connections.
        ConfigError, WeightsError: as `channel_graphs`.
    """
    graphs = [list(channel_graphs(source, threshold=threshold, layers=layers).values()) for source in (a, b)]
    return nnstd_of_layers(*graphs, ties, fixed_outputs=fixed_outputs)


def distances(
    sources: Mapping[str, Source],
    ties: Ties = "canonical",
    *,
    threshold: float = 0.0,
    layers: Sequence[str] | None = None,
    fixed_outputs: bool = True,
) -> Distances:
    """Return the distance of every pair of networks, with a progress bar.

    Args:
        sources: at least two networks, by label; each is read once.
        ties, threshold, layers, fixed_outputs: see `nnstd`. "authors" is computed in both orders, which give different
            results.

    Raises:
        ConfigError: fewer than two networks, or as `channel_graphs`.
        TopologyError, WeightsError: as `nnstd`, with the labels.
    """
    if len(sources) < 2:
        raise ConfigError(f"a distance is between two networks, got {len(sources)}")
    graphs = {label: channel_graphs(source, threshold=threshold, layers=layers) for label, source in sources.items()}
    names = tuple(next(iter(graphs.values())))
    labels = tuple(graphs)
    found = np.zeros((len(labels), len(labels), len(names)))
    pairs = [(i, j) for i, j in permutations(range(len(labels)), 2) if i < j or ties == "authors"]
    for i, j in tqdm(pairs, desc="distances", unit="pair", leave=False, disable=None):
        one, other = (list(graphs[labels[k]].values()) for k in (i, j))
        try:
            found[i, j] = nnstd_of_layers(one, other, ties, fixed_outputs=fixed_outputs).layers
        except TopologyError as error:
            raise TopologyError(f"a = {labels[i]}, b = {labels[j]}: {error}") from error
        if ties == "canonical":
            found[j, i] = found[i, j]
    return Distances(labels, found, names)


def distance_figure(matrix: Distances, title: str = "", block: int = 0) -> Figure:
    """Draw the distances of the networks as a heat map from 0 to 1, with their values if there is space.

    Args:
        matrix: distances of N networks.
        title: title of the picture.
        block: number of networks between lines, e.g. the checkpoints of one training run.
    """
    count = len(matrix.labels)
    side = max(3.2, 0.24 * count + 1.2)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(matrix.mean, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks(range(count), matrix.labels, rotation=90, fontsize=7)
    axis.set_yticks(range(count), matrix.labels, fontsize=7)
    for edge in range(block, count, block) if block else ():
        axis.axhline(edge - 0.5, color="white", linewidth=1)
        axis.axvline(edge - 0.5, color="white", linewidth=1)
    if count <= 30:
        size = 7 if count <= 10 else 4
        for (i, j), value in np.ndenumerate(matrix.mean):
            text = f"{value:.2f}".removeprefix("0") if size == 4 else f"{value:.2f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=size, color="white" if value < 0.6 else "black")
    figure.colorbar(image, ax=axis, shrink=0.75, pad=0.01).set_label("NNSTD", fontsize=8)
    if title:
        axis.set_title(title, fontsize=10)
    return figure


def _weights(source: Source) -> dict[str, Tensor]:
    """Return the weights of linear and convolutional layers by the layers' names."""
    if isinstance(source, nn.Module):
        tensors = source.state_dict()
    elif isinstance(source, Mapping):
        tensors = source
    else:
        tensors = weights.read(source).state_dict
    matches = {name: _WEIGHT.fullmatch(name) for name, tensor in tensors.items() if tensor.ndim >= 2}
    return {match[1] or "weight": tensors[name].detach() for name, match in matches.items() if match}


def _described(source: Source) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"a {type(source).__name__}"


def _ungrouped(edges: Tensor, groups: int) -> Tensor:
    """Return the edges [n_out, n_in] of a convolution with groups."""
    if groups == 1:
        return edges
    return torch.block_diag(*edges.chunk(groups)).bool()
