"""Small-world-ness of a graph: clustering and path length compared with random graphs of the same size.

"Small-World Neural Networks and Rapid Convergence" (arXiv 1904.04862) looks for the wiring that converges fastest at
the boundary of the small world: as clustered as a lattice, with paths as short as a random graph's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import networkx as nx
import numpy as np
from scipy import sparse

from ...errors import TopologyError
from ...topology.graph import Topology


@dataclass(frozen=True)
class SmallWorld:
    """The result of `small_world`.

    Args:
        clustering: C, the mean over nodes of the share of a node's pairs of neighbors that are neighbors themselves;
            0 for a node with fewer than two.
        path_length: L, the mean number of edges on a shortest path, over all pairs of nodes that have a path.
        random_clustering, random_path_length: their means over random graphs.
        reachable: share of the pairs of nodes that have a path; 1 for a connected graph.
        samples: nodes from which triangles and distances were counted; all nodes for exact numbers.
    """

    clustering: float
    path_length: float
    random_clustering: float
    random_path_length: float
    reachable: float
    samples: int

    @property
    def small_worldness(self) -> float:
        """S = (C / C_rand) / (L / L_rand).

        Exactly 0 for a graph without triangles, such as a layered one; infinite if the graph has a triangle and no
        random graph has one (few nodes, few edges: use more references).
        """
        if not self.clustering:
            return 0.0
        if not self.random_clustering:
            return math.inf
        return (self.clustering / self.random_clustering) / (self.path_length / self.random_path_length)


def small_world(
    graph: nx.Graph | Topology | Sequence[Sequence[int]] | np.ndarray,
    *,
    num_nodes: int | None = None,
    references: int = 10,
    samples: int | None = 1024,
    seed: int = 0,
) -> SmallWorld:
    """Measure the small-world-ness of a graph, without its directions: S of arXiv 1904.04862.

    The reference is the uniform random graph with the same numbers of nodes and edges. Only pairs of nodes that have a
    path count for L, both in the graph and in its references; `reachable` is their share. So L of a graph in many
    pieces is too small.

    Args:
        graph: a networkx graph, a `Topology`, or edges as integers [E, 2] over nodes 0, 1, ...; directions do not
            matter, and edges between the same two nodes count once.
        num_nodes: number of nodes for a list of edges, if the last nodes have none.
        references: number of random graphs to average over.
        samples: number of random nodes at which triangles and from which distances are counted; graphs with no more
            nodes are measured exactly, and None measures every graph exactly. Memory grows with nodes and edges.
        seed: seed of the references and of the drawn nodes.

    Raises:
        TopologyError: a graph without edges, a self-loop, a list that is not one of edges, or no reference or sample.
    """
    for name, value in (("references", references), ("samples", samples)):
        if value is not None and value < 1:
            raise TopologyError(f"small_world needs at least 1 of {name}, got {value}")
    nodes, edges = _undirected(graph, num_nodes)
    samples = nodes if samples is None else min(samples, nodes)
    clustering, path_length, reachable = _measure(nodes, edges, samples, np.random.default_rng(seed))
    return SmallWorld(
        clustering, path_length, *_random(nodes, len(edges), samples, references, seed), reachable, samples
    )


@lru_cache(maxsize=64)  # retargeting keeps the numbers of nodes and edges, so a sweep reuses them
def _random(nodes: int, edges: int, samples: int, references: int, seed: int) -> tuple[float, float]:
    """Return the mean C and L of random graphs."""
    rng = np.random.default_rng([seed, 1])  # not the one that draws the nodes of the graph
    found = [_measure(nodes, _random_edges(nodes, edges, rng), samples, rng)[:2] for _ in range(references)]
    clustering, path_length = np.mean(found, axis=0).tolist()
    return clustering, path_length


def _undirected(graph: nx.Graph | Topology | Sequence | np.ndarray, num_nodes: int | None) -> tuple[int, np.ndarray]:
    """Return the number of nodes and the distinct edges, int64 [E, 2], lower node first."""
    if isinstance(graph, Topology):
        given, named = graph.edges, graph.num_nodes
    elif isinstance(graph, nx.Graph):
        position = {node: k for k, node in enumerate(graph)}
        given, named = [(position[u], position[v]) for u, v in graph.edges()], len(position)
    else:
        given, named = graph, None
    edges = np.asarray(given)
    if not edges.size:
        raise TopologyError("the graph has no edges, so it has no path length and no clustering")
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise TopologyError(f"edges must be integers of shape [E, 2], got {edges.dtype} of shape {list(edges.shape)}")
    if edges.min() < 0:
        raise TopologyError(f"edges name node {edges.min()}; nodes are 0, 1, ...")
    named = int(edges.max()) + 1 if named is None else named
    if num_nodes is not None and num_nodes != named and (num_nodes < named or given is not graph):
        raise TopologyError(f"num_nodes={num_nodes}, but the graph has {named} nodes")
    loops = edges[edges[:, 0] == edges[:, 1]]
    if len(loops):
        raise TopologyError(f"self-loop at node {loops[0, 0]}; remove the edge")
    return num_nodes or named, np.unique(np.sort(edges.astype(np.int64), axis=1), axis=0)


def _random_edges(nodes: int, edges: int, rng: np.random.Generator) -> np.ndarray:
    """Return `edges` distinct pairs of nodes, drawn uniformly; int64 [E, 2], lower node first."""
    pairs = nodes * (nodes - 1) // 2
    # For a dense graph, the pairs without an edge are drawn: fewer collisions and less memory.
    wanted = min(edges, pairs - edges)
    drawn = np.unique(rng.integers(pairs, size=wanted))
    while len(drawn) < wanted:
        drawn = np.union1d(drawn, rng.integers(pairs, size=wanted - len(drawn)))
    if wanted < edges:
        drawn = np.setdiff1d(np.arange(pairs), drawn, assume_unique=True)
    # Pair number i(i-1)/2 + j is (j, i), j < i.
    upper = (np.sqrt(8.0 * drawn + 1) + 1).astype(np.int64) // 2
    return np.stack([drawn - upper * (upper - 1) // 2, upper], axis=1)


def _measure(nodes: int, edges: np.ndarray, samples: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return C, L and the share of pairs that have a path, from `samples` nodes without replacement."""
    ends = np.concatenate([edges, edges[:, ::-1]]).T
    adjacency = sparse.csr_array((np.ones(ends.shape[1], np.int64), tuple(ends)), shape=(nodes, nodes))
    chosen = rng.permutation(nodes)[:samples]
    distances = np.zeros(2, np.int64)  # their sum, their number
    for first in range(0, samples, 64):
        distances += _distances(adjacency, chosen[first : first + 64])
    total, count = distances.tolist()
    return _clustering(adjacency, chosen), total / count if count else math.nan, count / (samples * (nodes - 1))


def _clustering(adjacency: sparse.csr_array, chosen: np.ndarray) -> float:
    nodes = adjacency.shape[0]
    degrees = np.diff(adjacency.indptr)[chosen]
    closed = np.zeros(len(chosen), np.int64)
    step = max(1, 2**23 // nodes)  # rows of the product at a time, which may be dense
    for first in range(0, len(chosen), step):
        part = slice(first, first + step)
        rows = adjacency[chosen[part]]
        closed[part] = (rows @ adjacency).multiply(rows).sum(axis=1)
    return float((closed / np.maximum(degrees * (degrees - 1), 1)).mean())


def _distances(adjacency: sparse.csr_array, sources: np.ndarray) -> tuple[int, int]:
    """Return the sum and the number of the distances from up to 64 nodes to all that they reach.

    Breadth-first search from all of them at once, one bit per source: each level is one pass over the edges.
    """
    sources_bits = np.left_shift(np.uint64(1), np.arange(len(sources), dtype=np.uint64))
    seen = np.zeros(adjacency.shape[0], np.uint64)
    seen[sources] = sources_bits
    frontier = seen.copy()
    linked = np.flatnonzero(np.diff(adjacency.indptr))
    starts = adjacency.indptr[linked]
    total = count = level = 0
    while frontier.any():
        reached = np.zeros_like(seen)
        reached[linked] = np.bitwise_or.reduceat(frontier[adjacency.indices], starts)
        frontier = reached & ~seen
        seen |= frontier
        level += 1
        new = int(np.unpackbits(frontier.view(np.uint8)).sum(dtype=np.int64))
        total += level * new
        count += new
    return total, count
