"""Hypothesis strategies that several tests share."""

from hypothesis import strategies as st

from topodet.topology import Topology


@st.composite
def topologies(draw, max_nodes=12):
    """Any valid wiring: every node gets an input and an output, every other edge is a coin."""
    n = draw(st.integers(2, max_nodes))
    edges = {(draw(st.integers(0, i - 1)), i) for i in range(1, n)}
    edges |= {(j, draw(st.integers(j + 1, n - 1))) for j in range(n - 1)}
    extra = [(j, i) for i in range(n) for j in range(i)]
    edges |= set(draw(st.lists(st.sampled_from(extra), max_size=20)))
    return Topology(n, draw(st.permutations(sorted(edges))))
