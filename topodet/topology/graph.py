"""`Topology`: the directed acyclic graph of one stage.

"Learning Connectivity of Neural Networks from a Topological Perspective" (ECCV 2020, arXiv 2008.08261), section 3:
node i computes `x_i = o_i(sum over edges (j, i) of alpha_ji * x_j)` (Eq. 1) over nodes in topological order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np

from ..errors import TopologyError
from ..parse import parse_json

Edge = tuple[int, int]
# Limits of one graph: ten times what a stage can be trained with, and still built in a second.
MAX_NODES = 10_000
MAX_EDGES = 1_000_000


@dataclass(frozen=True)
class Topology:
    """An immutable wiring: nodes 0..N-1 in topological order, edges (source j, target i) with j < i.

    Node 0 is the stage's input node, node N-1 its output node; every other node lies on a path between them. Edges are
    sorted by target, then source, so that the incoming edges of a node are one slice (`incoming`).

    Args:
        num_nodes: N, at least 2.
        edges: pairs (j, i).

    Raises:
        TopologyError: fewer than 2 nodes, more than `MAX_NODES` or `MAX_EDGES`, a node number out of range, a
            self-loop, an edge that points backwards, a duplicate edge, a node that nothing reaches or that leads
            nowhere.

    Example:
        >>> chain = Topology(3, [(0, 1), (1, 2)])
        >>> chain.predecessors
        ((), (0,), (1,))
    """

    num_nodes: int
    edges: tuple[Edge, ...]

    def __init__(self, num_nodes: int, edges: Iterable[Sequence[int]]):
        nodes = _integer(num_nodes, "num_nodes")
        if nodes < 2:
            raise TopologyError(
                f"a topology needs at least 2 nodes (input and output), got num_nodes={shown(num_nodes)}"
            )
        if nodes > MAX_NODES:
            raise TopologyError(f"a topology has at most {MAX_NODES:,} nodes, got num_nodes={shown(nodes)}")
        object.__setattr__(self, "num_nodes", nodes)
        object.__setattr__(self, "edges", _sorted_edges(nodes, edges))
        self._check_every_node_is_on_a_path()

    def _check_every_node_is_on_a_path(self) -> None:
        # Edges run upwards, so "has an input" for all but node 0 is the same as "can be reached from node 0".
        unreached = [i for i in range(1, self.num_nodes) if not self.in_degree[i]]
        if unreached:
            raise TopologyError(
                f"node {unreached[0]} has no incoming edge, so the input (node 0) never reaches it "
                f"(all such nodes: {shown(unreached)}); add an edge (0, {unreached[0]}) or leave the node out"
            )
        dead = [j for j in range(self.num_nodes - 1) if not self.out_degree[j]]
        if dead:
            last = self.num_nodes - 1
            raise TopologyError(
                f"node {dead[0]} has no outgoing edge, so it never reaches the output (node {last}) "
                f"(all such nodes: {shown(dead)}); add an edge ({dead[0]}, {last}) or leave the node out"
            )

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return len(self.edges)

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes it reads, ascending; the order of its slice of edge weights."""
        rows: list[list[int]] = [[] for _ in range(self.num_nodes)]
        for j, i in self.edges:
            rows[i].append(j)
        return tuple(map(tuple, rows))

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes that read it, ascending."""
        rows: list[list[int]] = [[] for _ in range(self.num_nodes)]
        for j, i in self.edges:
            rows[j].append(i)
        return tuple(map(tuple, rows))

    @cached_property
    def incoming(self) -> tuple[slice, ...]:
        """For each node the slice of `edges` (and of the edge weights) that ends in it."""
        bounds = np.cumsum([0, *self.in_degree]).tolist()
        return tuple(map(slice, bounds[:-1], bounds[1:]))

    @cached_property
    def in_degree(self) -> tuple[int, ...]:
        """Number of incoming edges of each node: delta_i of Eq. 8."""
        return tuple(map(len, self.predecessors))

    @cached_property
    def out_degree(self) -> tuple[int, ...]:
        """Number of outgoing edges of each node."""
        return tuple(map(len, self.successors))

    @property
    def density(self) -> float:
        """Edges over the N(N-1)/2 edges of the complete graph, in (0, 1]."""
        return self.num_edges / (self.num_nodes * (self.num_nodes - 1) // 2)

    def adjacency(self, weights: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
        """Return the [N, N] float64 matrix with the inputs of node i in row i and its outputs in column i.

        Args:
            weights: one value per edge, in the order of `edges`; 1 for each by default.

        Raises:
            TopologyError: the number of weights is not the number of edges.
        """
        matrix = np.zeros((self.num_nodes, self.num_nodes))
        sources, targets = np.array(self.edges).T
        if weights is None:
            matrix[targets, sources] = 1.0
            return matrix
        weights = np.asarray(weights, dtype=np.float64)
        if weights.shape != (self.num_edges,):
            raise TopologyError(f"weights has shape {weights.shape}, expected ({self.num_edges},): one value per edge")
        matrix[targets, sources] = weights
        return matrix

    def to_json(self) -> str:
        """Return `{"num_nodes": N, "edges": [[j, i], ...]}` as text; `from_json` reads it back."""
        return json.dumps({"num_nodes": self.num_nodes, "edges": self.edges})

    @classmethod
    def from_json(cls, text: str) -> Topology:
        """Read the output of `to_json`, or the same format written by hand.

        Raises:
            TopologyError: invalid JSON, or an invalid wiring.
        """
        content = parse_json(text, "topology", TopologyError)
        if not isinstance(content, dict) or not {"num_nodes", "edges"} <= content.keys():
            raise TopologyError('topology JSON must be an object {"num_nodes": N, "edges": [[j, i], ...]}')
        if not isinstance(content["edges"], list):
            raise TopologyError(f'"edges" must be a list of [source, target] pairs, got {shown(content["edges"])}')
        return cls(content["num_nodes"], content["edges"])

    def to_networkx(self) -> nx.DiGraph:
        """Return the same graph as networkx DiGraph with nodes 0..N-1."""
        graph = nx.DiGraph()
        graph.add_nodes_from(range(self.num_nodes))
        graph.add_edges_from(self.edges)
        return graph

    @classmethod
    def from_networkx(cls, graph: nx.Graph) -> Topology:
        """Take any networkx graph.

        A directed graph is put in topological order, with ties in the order of `graph.nodes`. The edges of an
        undirected one are oriented from the earlier to the later node of `graph.nodes`.

        Raises:
            TopologyError: a cycle (named), a self-loop, parallel edges, or an invalid wiring.
        """
        loops = list(nx.selfloop_edges(graph))
        if loops:
            raise TopologyError(f"self-loop at node {loops[0][0]!r}: a node cannot read itself; remove the edge")
        if graph.is_multigraph():
            seen = set()
            for edge in graph.edges():
                if edge in seen:
                    raise TopologyError(f"duplicate edge {edge!r}; a pair of nodes has at most one edge")
                seen.add(edge)
        position = {node: k for k, node in enumerate(graph.nodes)}
        if graph.is_directed():
            try:
                order = list(nx.lexicographical_topological_sort(graph, key=position.__getitem__))
            except nx.NetworkXUnfeasible:
                cycle = [edge[:2] for edge in nx.find_cycle(graph)]
                path = " -> ".join(repr(u) for u, _ in cycle) + f" -> {cycle[-1][1]!r}"
                raise TopologyError(f"the graph has a cycle: {path}; a stage must be acyclic, remove an edge") from None
            position = {node: k for k, node in enumerate(order)}
        edges = ((position[u], position[v]) for u, v in graph.edges())
        if not graph.is_directed():
            edges = (tuple(sorted(edge)) for edge in edges)
        return cls(graph.number_of_nodes(), edges)

    def __str__(self) -> str:
        return f"Topology({self.num_nodes} nodes, {self.num_edges} edges, density {self.density:.3f})"


def shown(value: object) -> str:
    """Return a value as text for an error, truncated if it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a {type(value).__name__} with a very long integer"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _integer(value: object, what: str) -> int:
    # bool is an int in Python, but a mistake in a graph.
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TopologyError(f"{what} must be an integer, got {shown(value)}")
    return int(value)


def _sorted_edges(num_nodes: int, edges: Iterable[Sequence[int]]) -> tuple[Edge, ...]:
    """Check each edge by itself and return them sorted by target, then source."""
    seen: set[Edge] = set()
    if not isinstance(edges, Iterable):
        raise TopologyError(f"edges must be an iterable of pairs (source, target), got {shown(edges)}")
    for edge in edges:
        try:
            source, target = edge
        except (TypeError, ValueError):
            raise TopologyError(f"an edge must be a pair (source, target), got {shown(edge)}") from None
        if type(source) is int and type(target) is int:
            j, i = source, target
        else:
            j = _integer(source, f"source of edge {shown(edge)}")
            i = _integer(target, f"target of edge {shown(edge)}")
        for node in (j, i):
            if not 0 <= node < num_nodes:
                raise TopologyError(
                    f"edge ({shown(j)}, {shown(i)}) names node {shown(node)}, but the nodes are 0..{num_nodes - 1}"
                )
        if j == i:
            raise TopologyError(f"self-loop ({j}, {i}): a node cannot read itself; remove the edge")
        if (j, i) in seen:
            raise TopologyError(f"duplicate edge ({j}, {i}); a pair of nodes has at most one edge")
        if j > i:
            cycle = f"; with the edge ({i}, {j}) it closes a cycle" if (i, j) in seen else ""
            raise TopologyError(
                f"edge ({j}, {i}) points backwards{cycle}: nodes are numbered in topological order, so the source "
                "must be lower than the target (Topology.from_networkx renumbers a graph for you)"
            )
        if len(seen) == MAX_EDGES:
            raise TopologyError(f"a topology has at most {MAX_EDGES:,} edges")
        seen.add((j, i))
    return tuple(sorted(seen, key=lambda edge: (edge[1], edge[0])))
