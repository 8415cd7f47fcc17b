import math
import re
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import topologies
from topodet.errors import TopologyError
from topodet.related.swnet.small_world import small_world
from topodet.topology import Topology, complete


@st.composite
def graphs(draw, max_nodes=30):
    """Any undirected graph with an edge, often in pieces."""
    n = draw(st.integers(2, max_nodes))
    graph = nx.gnp_random_graph(n, draw(st.sampled_from([0.05, 0.1, 0.3, 0.7, 1.0])), seed=draw(st.integers(0, 10**6)))
    graph.add_edge(*draw(st.permutations(range(n)))[:2])
    return graph


def distances(graph):
    """All finite distances, by networkx."""
    return [d for u, row in nx.all_pairs_shortest_path_length(graph) for v, d in row.items() if u != v]


@given(graphs())
def test_equals_networkx(graph):
    found = small_world(graph, references=1)
    expected = distances(graph)
    assert found.clustering == pytest.approx(nx.average_clustering(graph), abs=1e-12)
    assert found.path_length == pytest.approx(np.mean(expected), abs=1e-12)
    assert found.reachable == pytest.approx(len(expected) / (len(graph) * (len(graph) - 1)))
    assert found.samples == len(graph)
    if nx.is_connected(graph):
        assert found.path_length == pytest.approx(nx.average_shortest_path_length(graph))


@given(graphs())
def test_bounds(graph):
    found = small_world(graph, references=2)
    assert 0 <= found.clustering <= 1
    assert 1 <= found.path_length <= len(graph) - 1
    assert 0 < found.reachable <= 1
    assert found.small_worldness >= 0
    assert (found.small_worldness == 0) == (not any(nx.triangles(graph).values()))


@given(graphs(), st.randoms(use_true_random=False))
def test_names_and_directions_of_nodes_do_not_matter(graph, rng):
    names = list(range(len(graph)))
    rng.shuffle(names)
    edges = [(names[u], names[v]) if rng.random() < 0.5 else (names[v], names[u]) for u, v in graph.edges]
    edges += [edges[0], edges[0][::-1]]
    again = small_world(np.array(edges), num_nodes=len(graph), references=3)
    found = small_world(graph, references=3)
    assert again.clustering == pytest.approx(found.clustering, abs=1e-12)
    assert again.path_length == found.path_length
    assert again.random_clustering == found.random_clustering
    assert again.small_worldness == pytest.approx(found.small_worldness, rel=1e-9)


@given(topologies())
def test_a_topology_is_measured_without_its_directions(topology):
    assert small_world(topology) == small_world(topology.to_networkx()) == small_world(topology.edges)


def test_a_layered_graph_has_no_triangle_and_is_no_small_world():
    layers = np.arange(24).reshape(4, 6)
    edges = [(u, v) for below, above in pairwise(layers) for u in below for v in above]
    found = small_world(edges)
    assert found.clustering == 0
    assert found.small_worldness == 0
    assert found.random_clustering > 0


def test_graphs_that_are_their_own_random_graph():
    """Where all graphs of so many nodes and edges are alike, S is 1: with every edge, and with all but one."""
    for edges in (complete(9).edges, complete(70).edges[1:]):
        found = small_world(edges)
        assert found.small_worldness == pytest.approx(1, abs=1e-12)
        assert found.random_path_length == pytest.approx(found.path_length)


def test_the_references_are_uniform_random_graphs():
    n, m = 40, 160
    found = small_world(nx.gnm_random_graph(n, m, seed=1), references=400)
    theirs = [nx.gnm_random_graph(n, m, seed=seed) for seed in range(400)]
    clustering = [nx.average_clustering(graph) for graph in theirs]
    lengths = [np.mean(distances(graph)) for graph in theirs]
    for ours, expected in ((found.random_clustering, clustering), (found.random_path_length, lengths)):
        # The difference of two means of 400: within four of its standard errors.
        assert ours == pytest.approx(np.mean(expected), abs=4 * np.std(expected) * math.sqrt(2 / 400))


def test_watts_and_strogatz():
    """A ring that is retargeted a little is as clustered as the ring and as short as a random graph."""
    ring, small, retargeted = (small_world(nx.watts_strogatz_graph(1000, 10, p, seed=0)) for p in (0, 0.1, 1))
    assert ring.clustering == pytest.approx(2 / 3)  # 3(k - 2) / 4(k - 1)
    assert small.clustering > 0.7 * ring.clustering
    assert small.path_length < 0.15 * ring.path_length
    assert small.small_worldness > max(ring.small_worldness, 10)
    assert retargeted.small_worldness == pytest.approx(1, abs=0.25)


def test_sampling_comes_close_and_repeats():
    graph = np.array(nx.watts_strogatz_graph(3000, 8, 0.2, seed=0).edges)
    exact = small_world(graph, samples=None, references=2)
    sampled = small_world(graph, samples=500, references=2, seed=3)
    assert (exact.samples, sampled.samples) == (3000, 500)
    # By the spread of single nodes (about 0.12 for C, 0.4 for L) the standard errors are below 0.006 and 0.02.
    assert sampled.clustering == pytest.approx(exact.clustering, abs=0.02)
    assert sampled.path_length == pytest.approx(exact.path_length, abs=0.06)
    assert sampled.clustering != exact.clustering
    assert sampled == small_world(graph, samples=500, references=2, seed=3)
    assert sampled != small_world(graph, samples=500, references=2, seed=4)


def test_a_triangle_that_no_random_graph_has():
    found = small_world([(0, 1), (1, 2), (0, 2)], num_nodes=200, references=1)
    assert found.random_clustering == 0
    assert found.small_worldness == math.inf


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        ([], {}, "the graph has no edges"),
        (nx.empty_graph(4), {}, "the graph has no edges"),
        ([(0, 1), (2, 2)], {}, "self-loop at node 2"),
        ([0, 1], {}, "edges must be integers of shape [E, 2], got int64 of shape [2]"),
        ([(0.5, 1.0)], {}, "got float64 of shape [1, 2]"),
        ([(0, -1)], {}, "edges name node -1"),
        ([(0, 5)], {"num_nodes": 5}, "num_nodes=5, but the graph has 6 nodes"),
        (Topology(2, [(0, 1)]), {"num_nodes": 3}, "num_nodes=3, but the graph has 2 nodes"),
        ([(0, 1)], {"references": 0}, "at least 1 of references, got 0"),
        ([(0, 1)], {"samples": 0}, "at least 1 of samples, got 0"),
    ],
)
def test_what_cannot_be_measured_is_named(graph, options, message):
    with pytest.raises(TopologyError, match=re.escape(message)):
        small_world(graph, **options)
