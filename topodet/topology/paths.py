"""Remaining paths of a graph without some edges (section 4.4), and a repair if none remains."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import networkx as nx

from ..errors import TopologyError
from .graph import Edge, Topology


def live_edges(topology: Topology, kept: Collection[Edge]) -> tuple[Edge, ...]:
    """Return those of the kept edges that lie on a path of kept edges from the input node to the output node.

    This is the same as repeatedly removing the nodes between them that are left without input or without output. Empty
    if the input no longer reaches the output.
    """
    last = topology.num_nodes - 1
    kept = set(kept)
    graph = topology.to_networkx().edge_subgraph(kept)
    if 0 not in graph or last not in graph:
        return ()
    alive = ({0} | nx.descendants(graph, 0)) & ({last} | nx.ancestors(graph, last))
    return tuple(edge for edge in topology.edges if edge in kept and alive.issuperset(edge))


def check_paths(topology: Topology, edges: Collection[Edge]) -> None:
    """Refuse edges that cannot be the remaining edges of a graph.

    Raises:
        TopologyError: none, or one that is not in the graph or on no path of these edges from the input node to the
            output node.
    """
    live = set(live_edges(topology, edges))
    lost = sorted(set(edges) - live)
    if lost or not live:
        which = f"edge {lost[0]} is not" if lost else "there are no edges"
        raise TopologyError(
            f"{which} on a path of the given edges from the input (node 0) to the output "
            f"(node {topology.num_nodes - 1}) of {topology}"
        )


def strongest_path(topology: Topology, scores: Sequence[float], kept: Collection[Edge]) -> tuple[Edge, ...]:
    """Return a path from the input node to the output node whose weakest edge is the strongest that a path can have.

    Of several, one with the fewest edges that are not already kept.

    Args:
        topology: the graph.
        scores: the strength of each edge, in the order of `edges`.
        kept: edges of the graph.
    """
    # The weakest edge on the best path to each node; nodes are in topological order.
    best = [float("inf")] + [-float("inf")] * (topology.num_nodes - 1)
    for (j, i), score in zip(topology.edges, scores):
        best[i] = max(best[i], min(best[j], score))
    graph = nx.DiGraph()
    for edge, score in zip(topology.edges, scores):
        if score >= best[-1]:
            graph.add_edge(*edge, added=int(edge not in kept))
    return tuple(nx.utils.pairwise(nx.shortest_path(graph, 0, topology.num_nodes - 1, weight="added")))


def subgraph(edges: Collection[Edge]) -> tuple[Topology, tuple[int, ...]]:
    """Return the topology of some edges, with its nodes renumbered in order, and their original numbers.

    Raises:
        TopologyError: one of their nodes is not on a path from the first to the last.
    """
    nodes = tuple(sorted({node for edge in edges for node in edge}))
    number = {node: k for k, node in enumerate(nodes)}
    return Topology(len(nodes), [(number[j], number[i]) for j, i in edges]), nodes
