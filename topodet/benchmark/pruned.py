"""A topology with fewer edges, as pruning leaves it."""

from __future__ import annotations

import random

from ..errors import ConfigError
from ..topology import Topology


def keep_edges(topology: Topology, share: float, seed: int = 0) -> Topology:
    """Return the topology with `share` of its edges, drawn at random, every node still on a path to the output.

    The last edge into each node and one edge out of each node stay, the others are drawn: the time of a step depends
    on how many edges there are, hardly on which.

    Args:
        topology: the graph.
        share: share of the edges, in (0, 1]; rounded to a whole edge.
        seed: seed of the draw.

    Raises:
        ConfigError: fewer edges than connect the nodes.
    """
    count = round(share * topology.num_edges)
    needed = {(sources[-1], i) for i, sources in enumerate(topology.predecessors) if sources}
    with_output = {j for j, _ in needed}
    needed |= {(j, targets[0]) for j, targets in enumerate(topology.successors) if targets and j not in with_output}
    if count < len(needed):
        raise ConfigError(
            f"--keep {share}: {count} of {topology.num_edges} edges do not connect {topology.num_nodes} nodes; "
            f"give at least {len(needed) / topology.num_edges:.3f}"
        )
    others = [edge for edge in topology.edges if edge not in needed]
    drawn = random.Random(seed).sample(others, count - len(needed))
    return Topology(topology.num_nodes, [*needed, *drawn])
