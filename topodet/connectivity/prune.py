"""Networks without their weak edges: masked (weights set to 0), or pruned to a smaller network with the same output.

Section 4.4 of the paper (arXiv 2008.08261) drops the edges with |alpha| below a threshold, and with them the nodes left
with in- or out-degree 0. An edge is removed with either of its nodes, so the paths from a stage's input to its output
remain. A node that nothing reaches outputs 0, not the constant that its normalization would make of zeros, so the
masked network and the pruned one agree in evaluation and in training.
"""

from __future__ import annotations

import copy
import math
import warnings
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ConfigError, unknown_name
from ..models.connected import prune_run_, removed_from_run, runs
from ..models.reparametrized import refuse_reparametrized
from ..models.stage import TopoStage
from ..models.wiring import Wiring
from ..topology import Topology
from ..topology.graph import Edge
from ..topology.paths import live_edges, strongest_path
from .penalty import is_below, wirings

Per = Literal["network", "stage", "node"]
OnDisconnected = Literal["error", "repair", "allow"]


@dataclass(frozen=True)
class PruningPlan:
    """The remaining part of one wiring.

    Attributes:
        topology: the graph before.
        edges: the remaining edges, in their order; none if the input no longer reaches the output.
        weak: number of edges removed by the threshold or share; others are removed with the nodes that lose all inputs
            or all outputs.
        repaired: those of `edges` that were too weak but stay as the only path to the output.
    """

    topology: Topology
    edges: tuple[Edge, ...]
    weak: int
    repaired: tuple[Edge, ...] = ()

    @property
    def nodes(self) -> int:
        """Number of remaining nodes; 0 for a disconnected graph."""
        return len({node for edge in self.edges for node in edge})

    @property
    def disconnected(self) -> bool:
        """Whether the input no longer reached the output, repaired or not."""
        return not self.edges or bool(self.repaired)

    def kept(self) -> Tensor:
        """Return a mask of the remaining edges, bool [E]."""
        left = set(self.edges)
        return torch.tensor([edge in left for edge in self.topology.edges])


def plan_pruning(
    model: nn.Module,
    *,
    threshold: float | None = None,
    keep: float | None = None,
    per: Per = "network",
    on_disconnected: OnDisconnected = "error",
    random: int | None = None,
) -> dict[str, PruningPlan]:
    """Return what remains of each wiring of a model, by module name, without its weak edges. Changes nothing.

    The strength of an edge is its |alpha|, or its |alpha| divided by the largest one of its stage or of its node. Use
    the last for networks with normalized nodes: a common factor on all inputs of a node does not change its output, so
    training leaves the scale of |alpha| of each node arbitrary.

    Args:
        model: any module that contains `Wiring`s.
        threshold: edges with a strength below it are removed; in [0, 1] unless per="network".
        keep: alternatively, the share of the network's edges that remains in the end, in (0, 1]: the strongest edges
            stay, as few as needed to leave that share on paths; of equal ones the first stay.
        per: what an edge's strength is relative to: "network" (|alpha| as it is), "stage" or "node".
        on_disconnected: what to do if no path is left from a stage's input to its output: "error" raises, "repair"
            keeps the path whose weakest edge is the strongest, with a warning, "allow" leaves no edge.
        random: a seed that shuffles the strengths, so that the removed edges are random; a control for claims about
            weak edges.

    Raises:
        ConfigError: a model without wiring, both or neither of `threshold` and `keep`, one out of range, an edge weight
            that is not finite, or a disconnected graph (named, with the path that would connect it).
    """
    _check_arguments(threshold, keep, per, on_disconnected)
    parts = wirings(model)
    if not parts:
        raise ConfigError(f"{type(model).__name__} has no wiring with edges to remove; give a model that contains one")
    graphs = {name: wiring.topology for name, wiring in parts.items()}
    sizes = strengths(model, per)
    if random is not None:
        sizes = _dealt_anew(sizes, random)
    everything = torch.cat(list(sizes.values()))
    strong = ~is_below(everything, threshold) if keep is None else _strongest(graphs, everything, keep)
    asked = f"threshold={threshold:g}" if keep is None else f"keep={keep:g}"
    plans, disconnected = {}, []
    for name, kept in _chosen(graphs, strong).items():
        graph, scores = graphs[name], sizes[name].tolist()
        edges, repaired = live_edges(graph, kept), ()
        if not edges:
            path = strongest_path(graph, scores, kept)
            weakest = min(score for edge, score in zip(graph.edges, scores) if edge in path)
            disconnected.append(f"{name}: its strongest path is {_in_words(path)}, weakest edge {weakest:.3g}")
            if on_disconnected == "repair":
                edges = live_edges(graph, kept | set(path))
                repaired = tuple(edge for edge in path if edge not in kept)
        plans[name] = PruningPlan(graph, edges, graph.num_edges - len(kept), repaired)
    if disconnected and on_disconnected != "allow":
        text = (
            f"{asked} per {per}: the input no longer reaches the output in {len(disconnected)} of {len(parts)} graphs"
        )
        if on_disconnected == "error":
            raise ConfigError(
                f"{text} ({'; '.join(disconnected)}). Give a smaller threshold or a larger keep, "
                f"{'' if per == 'node' else 'per=node, '}or on_disconnected=repair to keep these paths "
                "(--per and --on-disconnected on the command line)"
            )
        warnings.warn(f"{text}; kept anyway: {'; '.join(disconnected)}", stacklevel=2)
    return plans


def strengths(model: nn.Module, per: Per = "network") -> dict[str, Tensor]:
    """Return the edge strengths that `plan_pruning` uses: for each wiring, by name, float64 [E] on the CPU.

    Raises:
        ConfigError: unknown `per`, or an edge weight that is not finite.
    """
    _check_per(per)
    return {name: _strengths(name, wiring, per) for name, wiring in wirings(model).items()}


@torch.no_grad()
def mask(model: nn.Module, plans: Mapping[str, PruningPlan]) -> None:
    """Set the weights of the edges that a plan removes to 0, in place."""
    parts = wirings(model)
    for name, part in plans.items():
        alpha = parts[name].alpha
        alpha.masked_fill_(~part.kept().to(alpha.device), 0)


@contextmanager
def masked(model: nn.Module, plans: Mapping[str, PruningPlan]) -> Iterator[None]:
    """Set the weights of the edges that a plan removes to 0 within a `with` block, and restore them exactly.

    Any model with wirings can be masked: whole detectors, and connected networks too.

    Args:
        model: changed only within the block.
        plans: result of `plan_pruning` for it.
    """
    with preserve_alphas(model):
        mask(model, plans)
        yield


@contextmanager
def preserve_alphas(model: nn.Module) -> Iterator[None]:
    """Restore a model's edge weights after the `with` block."""
    alphas = [(wiring.alpha, wiring.alpha.detach().clone()) for wiring in wirings(model).values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for alpha, before in alphas:
                alpha.copy_(before)


def prune(
    model: nn.Module,
    *,
    threshold: float | None = None,
    keep: float | None = None,
    per: Per = "network",
    on_disconnected: Literal["error", "repair"] = "error",
    random: int | None = None,
) -> nn.Module:
    """Return a smaller copy of a model, without weak edges and without nodes that are no longer used.

    The copy computes what the model does while it is `masked` by the same plan, in evaluation and in training. It is
    made of the same classes, so it trains, saves, is published and rebuilt (`topodet.weights.build`) like any other;
    the nodes of a TopoNet are renumbered. Create the optimizer afterwards: the copy has new parameters.

    In a connected network (`models.connect`, `models.rewire`), unused branches and the modules that only they used are
    removed; see `models.connected.prune_run_`.

    Args:
        model: any module that contains wirings: a TopoNet, a connected network, a `features_only` form, a detector.
        threshold, keep, per, on_disconnected, random: see `plan_pruning`.

    Raises:
        ConfigError: what `plan_pruning` raises; weights that are computed at each call, as after
            `torch.nn.utils.prune`, which cannot be copied; a block of several branches, of a user-defined class, that
            would lose some of them but does not say which modules they use (`Residual.parts`).

    Example:
        >>> model = TopoNet(nodes=(3, 3), width=4, num_classes=2)
        >>> model.stages[0].wiring.alpha.data[1:] = torch.tensor([1.0, 0.001])  # of the edges (0, 2) and (1, 2)
        >>> print(prune(model, threshold=0.01).stages[0].topology)  # node 1 no longer has an output
        Topology(2 nodes, 1 edges, density 1.000)
    """
    if on_disconnected == "allow":
        raise ConfigError("prune: a graph without edges is not a network; use on_disconnected='error' or 'repair'")
    refuse_reparametrized(model, "prune", parametrized=False)
    plans = plan_pruning(model, threshold=threshold, keep=keep, per=per, on_disconnected=on_disconnected, random=random)
    pruned = copy.deepcopy(model)
    prune_to_edges_(pruned, {name: part.edges for name, part in plans.items()})
    return pruned


def prune_to_edges_(model: nn.Module, edges: Mapping[str, Collection[Edge]]) -> None:
    """Remove all edges but these from wirings, in place, and the nodes that are on none of them.

    Args:
        model: any module that contains wirings.
        edges: the edges to keep of a wiring's topology, by its name in `wirings(model)`.

    Raises:
        TopologyError: they are not all on paths from the input to the output.
        ConfigError: see `prune`; a wiring whose owner is not known.
    """
    connected = runs(model)
    for name, kept in edges.items():
        if name in connected:
            prune_run_(connected[name], kept)
        else:
            _stage(model, name)[1].prune_to_edges_(kept)


def removed_names(model: nn.Module, edges: Mapping[str, Collection[Edge]]) -> list[str]:
    """Return the names of the modules and tensors that `prune_to_edges_` would remove, besides edges; changes nothing.

    Raises:
        TopologyError, ConfigError: what `prune_to_edges_` raises.
    """
    connected, found = runs(model), []
    for name, kept in edges.items():
        if name in connected:
            found += removed_from_run(connected[name], kept)
        else:
            prefix, stage = _stage(model, name)
            found += [f"{prefix}.{part}".removeprefix(".") for part in stage.removed_names(kept)]
    return found


def _stage(model: nn.Module, wiring: str) -> tuple[str, TopoStage]:
    """Return the stage that a wiring belongs to, and its name."""
    owner, _, _ = wiring.rpartition(".")
    stage = model.get_submodule(owner)
    if not isinstance(stage, TopoStage):
        raise ConfigError(f"{wiring} belongs to a {type(stage).__name__}, whose nodes topodet cannot remove")
    return owner, stage


def freeze(model: nn.Module) -> None:
    """Freeze the edge weights, in place; `sparsity` still counts them, `penalty` does not.

    Raises:
        ConfigError: a model without wiring.
    """
    parts = wirings(model)
    if not parts:
        raise ConfigError(f"{type(model).__name__} has no edge weights to freeze; give a model that contains a wiring")
    for wiring in parts.values():
        wiring.alpha.requires_grad_(False)


def _check_arguments(threshold: float | None, keep: float | None, per: str, on_disconnected: str) -> None:
    _check_per(per)
    if on_disconnected not in get_args(OnDisconnected):
        raise ConfigError(unknown_name("on_disconnected", on_disconnected, get_args(OnDisconnected)))
    if (threshold is None) == (keep is None):
        raise ConfigError(f"give either threshold or keep, got threshold={threshold}, keep={keep}")
    for name, value in (("threshold", threshold), ("keep", keep)):
        if isinstance(value, str | bool):
            raise ConfigError(f"{name}={value!r} is not a number")
    # Written so that NaN is out of range as well.
    if keep is not None and not 0 < keep <= 1:
        raise ConfigError(f"keep={keep} is out of range: the share of remaining edges must be in (0, 1], e.g. 0.4")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ConfigError(f"threshold={threshold} is out of range: it is compared with |alpha|, e.g. 0.01")
    if threshold is not None and per != "network" and threshold > 1:
        raise ConfigError(
            f"threshold={threshold} is out of range: per={per!r} compares it with |alpha| as a share of the largest "
            f"of its {per}, which is at most 1"
        )


def _check_per(per: str) -> None:
    if per not in get_args(Per):
        raise ConfigError(unknown_name("per", per, get_args(Per)))


def _strengths(name: str, wiring: Wiring, per: Per) -> Tensor:
    """Return the strength of each edge, float64 [E] on the CPU."""
    size = wiring.alpha.detach().abs().double().cpu()
    if not torch.isfinite(size).all():
        raise ConfigError(f"{name}.alpha has {int((~torch.isfinite(size)).sum())} value(s) that are NaN or infinite")
    if per == "network":
        return size
    groups = [slice(None)] if per == "stage" else wiring.topology.incoming[1:]
    largest = torch.empty_like(size)
    for group in groups:
        largest[group] = size[group].max()
    return torch.where(largest > 0, size / largest, 0.0)


def _dealt_anew(strengths: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return the strengths of all edges in random order, over the whole network."""
    everything = torch.cat(list(strengths.values()))
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))
    return dict(zip(strengths, everything[order].split([len(part) for part in strengths.values()])))


def _strongest(graphs: Mapping[str, Topology], strengths: Tensor, keep: float) -> Tensor:
    """Return which edges of the whole network stay so that at least the share `keep` lies on paths, bool [edges]."""
    order = strengths.argsort(descending=True, stable=True)

    def first(count: int) -> Tensor:
        return torch.zeros(len(order), dtype=torch.bool).index_fill_(0, order[:count], True)

    def left(count: int) -> float:
        live = sum(len(live_edges(graphs[name], kept)) for name, kept in _chosen(graphs, first(count)).items())
        # Compares shares, since `keep` times the number of edges may be rounded up beyond the intended number.
        return live / len(order)

    # Another edge never removes one from a path.
    return first(bisect_left(range(len(order) + 1), keep, key=left))


def _chosen(graphs: Mapping[str, Topology], stays: Tensor) -> dict[str, set[Edge]]:
    """Return the edges of each graph that stay, from a mask bool [edges] over the whole network."""
    parts = stays.split([graph.num_edges for graph in graphs.values()])
    return {name: set(compress(graph.edges, part.tolist())) for (name, graph), part in zip(graphs.items(), parts)}


def _in_words(path: tuple[Edge, ...]) -> str:
    return " -> ".join(str(node) for node in [path[0][0], *(target for _, target in path)])
