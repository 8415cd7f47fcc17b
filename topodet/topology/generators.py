"""The wirings of Table 4 of the paper (ECCV 2020, arXiv 2008.08261), by number of nodes, and a small world.

Random graphs of Table 4 are completed: a node without input reads the input node, a node without output feeds the
output node. The same seed gives the same graph. A network stores its graphs with its weights, so a trained file does
not depend on the generator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import networkx as nx
import numpy as np

from ..errors import TopologyError, show, unknown_name
from .graph import MAX_EDGES, Edge, Topology, shown


def complete(num_nodes: int) -> Topology:
    """Every node reads all earlier ones: N(N-1)/2 edges, the paper's search space."""
    return Topology(num_nodes, [(j, i) for i in range(num_nodes) for j in range(i)])


def residual(num_nodes: int, interval: int = 2) -> Topology:
    """A residual stage with a shortcut over every `interval` nodes, unfolded in the topological view (section 3.2).

    The N-2 nodes between input and output form blocks of `interval` (the last one may be shorter). The first node of a
    block reads the input node and the last node of every earlier block, the others read the one before them, and the
    output node reads the input node and the last node of every block. If `interval` l divides N-2, this is (N-2)(l-1)/l
    + C((N-2)/l + 2, 2) edges; l = 1 is the complete graph. The formula printed in the paper's Table 3, (N-2)/l +
    C((N-2)/l + 2, 2), agrees only for l = 2, and gives more edges than a complete graph has for l = 1.

    Raises:
        TopologyError: `interval` below 1.
    """
    if interval < 1:
        raise TopologyError(f"residual interval must be at least 1, got {interval}")
    edges: list[Edge] = []
    taps = [0]  # the content of the stream: the input node and the last node of each finished block
    for first in range(1, num_nodes - 1, interval):
        block = range(first, min(first + interval, num_nodes - 1))
        edges += [(tap, first) for tap in taps]
        edges += [(node - 1, node) for node in block[1:]]
        taps.append(block[-1])
    edges += [(tap, num_nodes - 1) for tap in taps]
    return Topology(num_nodes, edges)


def random(num_nodes: int, p: float, seed: int = 0) -> Topology:
    """Each of the N(N-1)/2 edges exists independently with probability `p` (the rows `random, p` of Table 4).

    Raises:
        TopologyError: `p` outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise TopologyError(f"edge probability p must lie in [0, 1], got {p}")
    return _oriented(nx.gnp_random_graph(num_nodes, p, seed=seed))


def erdos_renyi(num_nodes: int, p: float = 0.2, seed: int = 0) -> Topology:
    """The ER graph of RandWire (arXiv 1904.01569): G(N, p) with nodes in random order.

    G(N, p) does not change under renumbering, so the drawn order is already random: the same distribution as `random`,
    with RandWire's p.
    """
    return random(num_nodes, p=p, seed=seed)


def barabasi_albert(num_nodes: int, m: int = 5, seed: int = 0) -> Topology:
    """The BA graph of RandWire (arXiv 1904.01569): each new node attaches to `m` earlier ones; in insertion order.

    Raises:
        TopologyError: `m` outside [1, num_nodes).
    """
    if not 1 <= m < num_nodes:
        raise TopologyError(f"barabasi_albert needs 1 <= m < num_nodes, got m={m} with num_nodes={num_nodes}")
    return _oriented(nx.barabasi_albert_graph(num_nodes, m, seed=seed))


def watts_strogatz(num_nodes: int, k: int = 4, p: float = 0.75, seed: int = 0) -> Topology:
    """The WS graph of RandWire (arXiv 1904.01569): a ring of `k` neighbors, each edge rewired with probability `p`.

    Edges run along the ring order, from the lower to the higher index.

    Raises:
        TopologyError: `k` odd or outside [2, num_nodes), or `p` outside [0, 1].
    """
    if k % 2:
        # networkx silently uses k - 1.
        raise TopologyError(f"watts_strogatz connects k / 2 neighbors on each side: k must be even, got k={k}")
    if not 2 <= k < num_nodes:
        raise TopologyError(f"watts_strogatz needs 2 <= k < num_nodes, got k={k} with num_nodes={num_nodes}")
    if not 0 <= p <= 1:
        raise TopologyError(f"rewiring probability p must lie in [0, 1], got {p}")
    return _oriented(nx.watts_strogatz_graph(num_nodes, k, p, seed=seed))


def small_world_chain(num_nodes: int, p: float = 0.25, reach: int = 2, seed: int = 0) -> Topology:
    """A chain whose shortcuts are rewired as in SWNet (arXiv 1904.04862), at single nodes instead of channels.

    Every node reads the `reach` nodes before it. With probability `p` an edge u -> v that skips a node is re-targeted
    to a node that u does not feed yet, at least two places after u, uniformly; the edges of the chain stay. The number
    of edges does not depend on `p` or `seed` (2N - 3 where `reach` is 2), and every node lies on a path.

    This is not a Watts-Strogatz ring: a ring of a stage's few nodes already has short paths, so its small-world-ness
    only falls when it is rewired. The chain's rises, and is largest around the default `p` for the nodes of toponet50.

    Raises:
        TopologyError: `reach` outside [2, num_nodes) or `p` outside [0, 1].
    """
    if not 2 <= reach < num_nodes:
        raise TopologyError(
            f"small_world_chain needs 2 <= reach < num_nodes, got reach={reach} with num_nodes={num_nodes}"
        )
    if not 0 <= p <= 1:
        raise TopologyError(f"rewiring probability p must lie in [0, 1], got {p}")
    rng = np.random.default_rng(seed)
    targets = [set(range(u + 1, min(u + reach, num_nodes - 1) + 1)) for u in range(num_nodes)]
    for u, fed in enumerate(targets):
        for v in sorted(fed - {u + 1}):
            free = sorted(set(range(u + 2, num_nodes)) - fed)
            if rng.random() < p and free:
                fed ^= {v, int(rng.choice(free))}
    return Topology(num_nodes, [(u, v) for u, fed in enumerate(targets) for v in fed])


GENERATORS: dict[str, Callable[..., Topology]] = {
    "complete": complete,
    "residual": residual,
    "random": random,
    "erdos_renyi": erdos_renyi,
    "barabasi_albert": barabasi_albert,
    "watts_strogatz": watts_strogatz,
    "small_world_chain": small_world_chain,
}


def make_topology(spec: str | Mapping[str, Any] | Topology, num_nodes: int, seed: int = 0) -> Topology:
    """Return the topology that `spec` describes.

    Args:
        spec: a generator's name ("complete"), a mapping with its arguments
            ({"name": "residual", "interval": 3}), a mapping that lists a graph
            ({"num_nodes": 4, "edges": [[0, 1], ...]}), or a `Topology`.
        num_nodes: nodes of the stage; a listed graph must have the same number.
        seed: seed of a random generator, unless `spec` has its own.

    Raises:
        TopologyError: unknown name or argument (the closest ones are listed), a different number of nodes, or too many.
    """
    if isinstance(spec, Mapping) and "edges" in spec:
        spec = Topology(spec.get("num_nodes", num_nodes), spec["edges"])
    if isinstance(spec, Topology):
        if spec.num_nodes != num_nodes:
            raise TopologyError(f"the topology has {spec.num_nodes} nodes, but the stage has {num_nodes}")
        return spec
    options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in GENERATORS:
        raise TopologyError(unknown_name("topology", name, GENERATORS))
    generator = GENERATORS[name]
    parameters = inspect.signature(generator).parameters
    allowed = set(parameters) - {"num_nodes"}
    for option in options:
        if option not in allowed:
            raise TopologyError(unknown_name(f"argument of topology {name!r}:", option, allowed))
    if "seed" in allowed:
        options.setdefault("seed", seed)
    for option, value in {"num_nodes": num_nodes, **options}.items():
        kind, word = (Integral, "an integer") if parameters[option].annotation == "int" else (Real, "a number")
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TopologyError(f"{option} of topology {name!r} must be {word}, got {show(value)}")
    # The largest number of edges that a generator may draw, checked before it starts.
    if num_nodes * (num_nodes - 1) // 2 > MAX_EDGES:
        raise TopologyError(
            f"topology {name!r} of {shown(num_nodes)} nodes: a complete graph of that size has more than {MAX_EDGES:,} "
            "edges, which is the limit"
        )
    return generator(num_nodes, **options)


def _oriented(graph: nx.Graph) -> Topology:
    """Orient the edges from lower to higher nodes, and connect the nodes without input or output."""
    num_nodes = graph.number_of_nodes()
    return Topology(num_nodes, _connect_ends(num_nodes, {(min(edge), max(edge)) for edge in graph.edges()}))


def _connect_ends(num_nodes: int, edges: Iterable[Edge]) -> set[Edge]:
    edges = set(edges)
    targets = {i for _, i in edges}
    edges |= {(0, i) for i in range(1, num_nodes) if i not in targets}
    sources = {j for j, _ in edges}
    edges |= {(j, num_nodes - 1) for j in range(num_nodes - 1) if j not in sources}
    return edges
