import re
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topodet.errors import ConfigError, TopologyError
from topodet.related.swnet.channels import ChannelGraph, layered
from topodet.related.swnet.small_world import small_world

WIDTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def layer_of(graph, node):
    """Counted up, one layer after the other."""
    for layer, width in enumerate(graph.widths):
        if node < width:
            return layer
        node -= width
    raise AssertionError(node)


@given(WIDTHS)
def test_a_layered_graph_has_no_triangle(widths):
    graph = layered(widths)
    nodes = [(layer, channel) for layer, width in enumerate(widths) for channel in range(width)]
    expected = [(u, v) for u, (i, _) in enumerate(nodes) for v, (j, _) in enumerate(nodes) if j == i + 1]
    assert sorted(map(tuple, graph.edges.tolist())) == expected
    assert graph.num_nodes == len(nodes)
    assert graph.layers_of(np.arange(len(nodes))).tolist() == [layer for layer, _ in nodes]
    if expected:
        found = small_world(graph.edges, num_nodes=graph.num_nodes, references=1)
        assert (found.clustering, found.small_worldness) == (0, 0)


@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), st.data())
def test_groups_join_channels_of_one_group(parts, data):
    groups = [data.draw(st.integers(1, 3)) for _ in parts[1:]]
    widths = [part * 6 for part in parts]
    graph = layered(widths, groups=groups)
    expected, offset = [], 0
    for before, after, count in zip(widths, widths[1:], groups):
        for u in range(before):
            for v in range(after):
                if u // (before // count) == v // (after // count):
                    expected.append((offset + u, offset + before + v))
        offset += before
    assert sorted(map(tuple, graph.edges.tolist())) == expected


@given(WIDTHS, st.floats(0, 1), st.integers(0, 1000))
def test_rewiring(widths, p, seed):
    graph = layered(widths)
    retargeted = graph.retargeted(p, seed=seed)
    before, after = (list(map(tuple, edges.tolist())) for edges in (graph.edges, retargeted.edges))
    assert len(set(after)) == len(after) == len(before)
    for (u, v), (source, target) in zip(before, after):
        assert source == u
        assert target == v or layer_of(graph, target) >= layer_of(graph, u) + 2
    into_last = [edge for edge in before if layer_of(graph, edge[1]) == len(widths) - 1]
    assert set(into_last) <= set(after)
    assert np.array_equal(graph.retargeted(p, seed=seed).edges, retargeted.edges)
    if p == 0:
        assert before == after


@given(WIDTHS, st.integers(0, 1000))
def test_with_p_1_every_edge_goes_that_has_room(widths, seed):
    graph = layered(widths)
    retargeted = graph.retargeted(1, seed=seed)
    for u in range(graph.num_nodes):
        layer = layer_of(graph, u)
        room = sum(widths[layer + 2 :])
        given = sum(graph.edges[:, 0] == u)
        moved = sum(layer_of(graph, target) > layer + 1 for source, target in retargeted.edges.tolist() if source == u)
        assert moved == min(room, given)


def test_a_greater_p_moves_what_a_smaller_one_does():
    graph = layered([5, 6, 7, 8, 9])
    moved = [set(np.flatnonzero((graph.retargeted(p, seed=3).edges != graph.edges).any(1))) for p in (0.1, 0.3, 0.6, 1)]
    assert all(a < b for a, b in pairwise(moved))


def test_targets_are_uniform():
    """Over many seeds the edges of one channel fall on each later channel alike."""
    graph = layered([1, 4, 5, 5])
    counts = np.zeros(10)
    for seed in range(400):
        targets = graph.retargeted(1, seed=seed).edges[:4, 1]
        assert len(set(targets)) == 4
        counts += np.bincount(targets - 5, minlength=10)
    # Each channel is among the 4 of 10: 160 of 400, standard deviation 9.8.
    assert abs(counts - 160).max() < 4 * 9.8


def test_how_many_move():
    graph = layered([40, 50, 60])
    moved = (graph.retargeted(0.3, seed=1).edges != graph.edges).any(1)
    assert moved[:2000].mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 2000))
    assert not moved[2000:].any()


def test_rewiring_makes_triangles():
    graph = layered([6, 6, 6, 6]).retargeted(0.4, seed=0)
    found = small_world(graph.edges, num_nodes=graph.num_nodes)
    theirs = nx.Graph(graph.edges.tolist())
    assert found.clustering == pytest.approx(nx.average_clustering(theirs))
    assert found.small_worldness > 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: layered([3, 0, 2]), TopologyError, "every layer needs at least one channel, got widths [3, 0, 2]"),
        (lambda: layered([4, 6], groups=[3]), TopologyError, "3 groups do not divide 4 channels into 6"),
        (lambda: ChannelGraph((2, 2), [0, 1]), TopologyError, "edges must be integers of shape [E, 2], got int64"),
        (lambda: ChannelGraph((2, 2), [(0, 1)]), TopologyError, "edge (0, 1) does not lead to a later layer"),
        (lambda: ChannelGraph((2, 2), [(2, 1)]), TopologyError, "edge (2, 1) does not lead to a later layer"),
        (lambda: ChannelGraph((2, 2), [(0, 4)]), TopologyError, "edges name node 4; nodes are 0 to 3"),
        (lambda: ChannelGraph((2, 2), [(0, 2), (0, 2)]), TopologyError, "edge (0, 2) occurs twice"),
        (lambda: layered([2, 2, 2]).retargeted(1.5), ConfigError, "p=1.5 is not a probability"),
        (lambda: layered([2, 2, 2]).retargeted(1).retargeted(0.5), TopologyError, "edges already skip layers"),
    ],
)
def test_what_is_no_graph_is_named(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
