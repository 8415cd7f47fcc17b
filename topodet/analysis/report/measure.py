"""The numbers of a report, as plain types: the content of `--json`, of the page and of the terminal output."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, get_args

import numpy as np
from torch import Tensor, nn

from ... import __version__
from ...complexity import multiply_adds_by_layer, parameters
from ...connectivity import SHARES, Per, PruningPlan, plan_pruning, removed_names, sparsity, strengths, wirings
from ...errors import ConfigError, TopologyError
from ...models import Wiring
from ...related.nn_mass.networks import nn_mass
from ...related.nnstd.distance import nnstd_of_layers
from ...related.nnstd.networks import channel_graphs, nnstd
from ...related.swnet.small_world import small_world
from ...topology import Topology
from ...topology.paths import subgraph
from .subject import Subject

FORMAT = 1
# Steps of the slider, one for every 2 % of the edges.
STEPS = 50
_BINS = 24

Numbers = dict[str, Any]


def measure(subject: Subject, *, thresholds: Sequence[float] | None = None, against: Subject | None = None) -> Numbers:
    """Return the content of a wiring report, in JSON types; missing numbers are None.

    Args:
        subject: the network.
        thresholds: pruning thresholds, each with the measures it is valid for (`connectivity.plan_pruning`); by
            default, steps of a fiftieth of the edges.
        against: another network with the same number of wirings, of the same sizes.

    Returns:
        "stages": for each wiring its graph, "alpha", degrees, histograms and small-world-ness; "cuts": for each measure
        of strength (`per`) the remaining graph at each threshold, as from `connectivity.prune(...,
        on_disconnected="repair")`, "kept" with a digit per edge: 0 removed, 1 kept, 2 kept as the only path; "network",
        "nn_mass", "evolution", "nnstd": as their functions below say.

    Raises:
        ConfigError: a threshold out of range; networks that cannot be compared.
    """
    parts = wirings(subject.model)
    return {
        "format": FORMAT,
        "topodet": __version__,
        "source": subject.source,
        "kind": subject.kind,
        "architecture": subject.architecture,
        "facts": {name: value for name, value in subject.facts.items() if value not in (None, "")},
        "notes": list(subject.notes),
        "network": _network(subject),
        "nn_mass": _nn_mass(subject),
        "stages": [_stage(name, wiring) for name, wiring in parts.items()],
        "sparsity": sparsity(subject.model),
        "cuts": {per: _cuts(subject, per, thresholds) for per in get_args(Per)},
        "evolution": _evolution(subject),
        "nnstd": None if against is None else _distances(subject, against),
    }


def _network(subject: Subject) -> Numbers | None:
    """Return parameters without edge weights, learned edge weights, multiply-adds and the size of the image."""
    if not subject.whole:
        return None
    weights, alphas = parameters(subject.model)
    counts = multiply_adds_by_layer(subject.model, subject.input_size)
    return {
        "parameters": weights,
        "edge_weights": alphas,
        "multiply_adds": counts.total(),
        "input_size": list(subject.input_size),
    }


def _nn_mass(subject: Subject) -> Numbers | None:
    """Return the mass of the network and name, channels, density and mass of its cells."""
    try:
        found = nn_mass(subject.model)
    except ConfigError:
        return None
    cells = [
        {"name": cell.name, "channels": cell.channels, "density": cell.density, "mass": cell.mass}
        for cell in found.cells
    ]
    return {"mass": found.mass, "cells": cells}


def _stage(name: str, wiring: Wiring) -> Numbers:
    graph = wiring.topology
    alpha = _alpha(wiring)
    return {
        "name": name.removesuffix(".wiring"),
        "wiring": name,
        "nodes": graph.num_nodes,
        "edges": [list(edge) for edge in graph.edges],
        "alpha": alpha.tolist(),
        "learned": wiring.learned,
        "density": graph.density,
        "in_degree": list(graph.in_degree),
        "out_degree": list(graph.out_degree),
        "mean": float(alpha.mean()),
        "mean_abs": float(np.abs(alpha).mean()),
        "max_abs": float(np.abs(alpha).max()),
        "negative": int((alpha < 0).sum()),
        "small_world": _small_world(graph),
        "histogram": _histogram(alpha),
        "histograms_by_in_degree": _by_in_degree(graph, alpha),
    }


def _alpha(wiring: Wiring) -> np.ndarray:
    return wiring.alpha.detach().double().cpu().numpy()


def _small_world(graph: Topology) -> Numbers:
    found = small_world(graph)
    return {
        "clustering": found.clustering,
        "path_length": found.path_length,
        "random_clustering": found.random_clustering,
        "random_path_length": found.random_path_length,
        "small_worldness": _finite(found.small_worldness),
    }


def _histogram(alpha: np.ndarray) -> Numbers:
    low, high = float(alpha.min()), float(alpha.max())
    if high - low < 1e-6:  # all alike, as at the start: one bar in the middle
        low, high = low - 0.5, high + 0.5
    counts, bounds = np.histogram(alpha, bins=_BINS, range=(low, high))
    return {"bounds": bounds.tolist(), "counts": counts.tolist()}


def _by_in_degree(graph: Topology, alpha: np.ndarray) -> list[Numbers]:
    """Return histograms of the edges whose targets have in-degrees 1, 2-3, 4-7, 8-15 and so on, over one range."""
    degrees = np.array([graph.in_degree[i] for _, i in graph.edges])
    bounds = np.array(_histogram(alpha)["bounds"])
    found = []
    for power in range(int(degrees.max()).bit_length()):
        low, high = 2**power, 2 ** (power + 1) - 1
        of_these = alpha[(degrees >= low) & (degrees <= high)]
        if len(of_these):
            counts, _ = np.histogram(of_these, bins=bounds)
            mean = float(np.abs(of_these).mean())
            found.append({"from": low, "to": high, "edges": len(of_these), "mean_abs": mean, "counts": counts.tolist()})
    return found


def _cuts(subject: Subject, per: Per, thresholds: Sequence[float] | None) -> list[Numbers]:
    """Return what is left at each threshold, from the lowest to the highest."""
    if thresholds is None:
        grid = _grid(subject.model, per)
    else:
        for value in thresholds:
            plan_pruning(
                subject.model, threshold=value, on_disconnected="allow"
            )  # raises for a threshold that is invalid in every measure
        grid = sorted({float(value) for value in thresholds if per == "network" or value <= 1} | {0.0})
    costs = _costs(subject)
    whole = _network(subject)
    rows = []
    for threshold in grid:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the row lists the disconnected wirings
            cuts = plan_pruning(subject.model, threshold=threshold, per=per, on_disconnected="repair")
        left = sum(len(part.edges) for part in cuts.values())
        total = sum(part.topology.num_edges for part in cuts.values())
        rows.append(
            {
                "threshold": threshold,
                "weak": sum(part.weak for part in cuts.values()),
                "edges": left,
                "removed": 1 - left / total,
                "nodes": sum(part.nodes for part in cuts.values()),
                "disconnected": [name.removesuffix(".wiring") for name, part in cuts.items() if part.disconnected],
                **_left_of_the_network(subject, whole, cuts, costs),
                "stages": [_left_of_a_stage(part) for part in cuts.values()],
            }
        )
    return rows


def _grid(model: nn.Module, per: Per) -> list[float]:
    """Return 0 and thresholds that each remove another 1/50 of the edges, as far as equal strengths allow."""
    sizes = np.sort(np.concatenate([size.numpy() for size in strengths(model, per).values()]))
    ranks = np.linspace(0, len(sizes) - 1, STEPS + 1).round().astype(int)
    return np.unique(np.concatenate([[0.0], sizes[ranks]])).tolist()


def _costs(subject: Subject) -> tuple[Counter[str], Counter[str]]:
    """Return parameters and multiply-adds of every module and tensor by name, including those of its children."""
    parameters, adds = Counter(), Counter()
    if subject.whole:
        sizes = {name: parameter.numel() for name, parameter in subject.model.named_parameters()}
        counts = multiply_adds_by_layer(subject.model, subject.input_size)
        for total, by_name in ((parameters, sizes), (adds, counts)):
            for name, count in by_name.items():
                for part in accumulate(name.split("."), lambda path, part: f"{path}.{part}"):
                    total[part] += count
    return parameters, adds


def _left_of_the_network(
    subject: Subject, whole: Numbers | None, cuts: Mapping[str, PruningPlan], costs: tuple[Counter[str], Counter[str]]
) -> Numbers:
    """Return the size of the network after `connectivity.prune`."""
    if whole is None:
        return dict.fromkeys(("parameters", "edge_weights", "multiply_adds"))
    parameters, adds = costs
    gone = removed_names(subject.model, {name: part.edges for name, part in cuts.items()})
    edges = sum(
        cuts[name].topology.num_edges - len(cuts[name].edges)
        for name, wiring in wirings(subject.model).items()
        if wiring.learned
    )
    return {
        "parameters": whole["parameters"] - sum(parameters[name] for name in gone),
        "edge_weights": whole["edge_weights"] - edges,
        "multiply_adds": whole["multiply_adds"] - sum(adds[name] for name in gone),
    }


def _left_of_a_stage(part: PruningPlan) -> Numbers:
    left, repaired = set(part.edges), set(part.repaired)
    digits = ("2" if edge in repaired else "1" if edge in left else "0" for edge in part.topology.edges)
    smaller, _ = subgraph(part.edges)
    return {
        "edges": len(part.edges),
        "nodes": part.nodes,
        "kept": "".join(digits),
        "small_worldness": _small_world(smaller)["small_worldness"],
    }


def _evolution(subject: Subject) -> Numbers | None:
    """Return the edge weights of each wiring after the epochs with checkpoints, and the rows of the summary."""
    if not subject.snapshots and not subject.history:
        return None
    return {
        "epochs": [snapshot.epoch for snapshot in subject.snapshots],
        "alpha": [[list(snapshot.alphas[name]) for name in wirings(subject.model)] for snapshot in subject.snapshots],
        "history": [dict(row) for row in subject.history],
    }


def _distances(subject: Subject, other: Subject) -> Numbers:
    """Return the distances between the wirings of two networks, and between their channels if some weights are zero.

    "wirings": for shares of the edges kept in each network (`plan_pruning(keep=..., per="node")`), NNSTD of each
    stage's graph as one layer, from source to target nodes, and the mean over stages; None if a graph fell apart.
    "channels": NNSTD of the layers' weights (`topodet.related.nnstd.nnstd(..., ties="authors")`), None if both are
    dense, so that nothing differs, or if the layers are not a chain.
    """
    ours, theirs = wirings(subject.model), wirings(other.model)
    sizes = [[wiring.topology.num_nodes for wiring in parts.values()] for parts in (ours, theirs)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"{subject.source} has wirings of {sizes[0]} nodes and {other.source} of {sizes[1]}: NNSTD compares "
            "networks of the same sizes. Give two that differ only in their edges"
        )
    rows = []
    for share in (1.0, *SHARES):
        layers = [
            _adjacencies(plan_pruning(model, keep=share, per="node", on_disconnected="allow"))
            for model in (subject.model, other.model)
        ]
        found = [
            None if not (first.any() and second.any()) else nnstd_of_layers([first], [second]).mean
            for first, second in zip(*layers)
        ]
        known = [value for value in found if value is not None]
        rows.append({"keep": share, "stages": found, "mean": sum(known) / len(known) if known else None})
    return {"against": other.source, "wirings": rows, "channels": _channels(subject, other)}


def _adjacencies(cuts: Mapping[str, PruningPlan]) -> list[np.ndarray]:
    """Return each graph's edges as bool [inputs, nodes]; all False if it fell apart."""
    return [part.topology.adjacency(part.kept().numpy()).T > 0 for part in cuts.values()]


def _channels(subject: Subject, other: Subject) -> Numbers | None:
    if not (subject.whole and other.whole):
        return None
    if all(_kernels(layer).all() for one in (subject, other) for layer in one.model.modules() if _has_kernels(layer)):
        return None
    try:
        names = list(channel_graphs(subject.model))
        found = nnstd(subject.model, other.model, "authors")  # takes seconds for whole networks
    except TopologyError:  # shortcuts, or other widths: the layers are not a chain, or differ
        return None
    return {"layers": dict(zip(names, found.layers)), "mean": found.mean}


def _has_kernels(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d | nn.Linear)


def _kernels(layer: nn.Module) -> Tensor:
    """Return which of a layer's kernels, or weights, have a value that is not 0; bool [n_out, n_in, 1]."""
    return layer.weight.detach().flatten(2).any(dim=2) if layer.weight.ndim > 2 else layer.weight.detach() != 0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
