import hashlib
import math
import re

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topodet.errors import TopologyError
from topodet.models import ARCHITECTURES
from topodet.related.swnet.small_world import small_world
from topodet.topology import (
    GENERATORS,
    Topology,
    complete,
    erdos_renyi,
    make_topology,
    random,
    residual,
    small_world_chain,
)

PAPER_NODES = (14, 20, 26, 14)


def test_edge_counts_of_the_papers_network():
    assert [complete(n).num_edges for n in PAPER_NODES] == [91, 190, 325, 91]
    assert [residual(n, 2).num_edges for n in PAPER_NODES] == [34, 64, 103, 34]
    assert [residual(n, 3).num_edges for n in PAPER_NODES] == [23, 40, 61, 23]
    assert [residual(n, 4).num_edges for n in PAPER_NODES] == [19, 34, 46, 19]


@given(st.integers(1, 6), st.integers(1, 8))
def test_residual_edge_formula(interval, blocks):
    n = interval * blocks + 2
    expected = (n - 2) * (interval - 1) // interval + math.comb((n - 2) // interval + 2, 2)
    assert residual(n, interval).num_edges == expected


@given(st.integers(2, 30))
def test_residual_of_interval_one_is_complete(n):
    assert residual(n, 1) == complete(n)


@given(st.integers(1, 5), st.integers(3, 20))
def test_residual_computes_what_a_residual_stage_computes(interval, n):
    """Unfold a stream s += block(s) with linear nodes and compare the two sums symbolically."""
    topology = residual(n, interval)
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 1.5, n)  # node i multiplies by scale[i]
    stream = value = scale[0]
    position = 1
    while position < n - 1:
        value = stream
        for node in range(position, min(position + interval, n - 1)):
            value = scale[node] * value
        stream = stream + value
        position += interval
    expected = scale[n - 1] * stream
    x = np.zeros(n)
    x[0] = scale[0]
    for i in range(1, n):
        x[i] = scale[i] * sum(x[j] for j in topology.predecessors[i])
    assert x[-1] == pytest.approx(expected)


RANDOM = {"random": {"p": 0.4}, "erdos_renyi": {}, "barabasi_albert": {}, "watts_strogatz": {}, "small_world_chain": {}}


@given(st.sampled_from(sorted(RANDOM)), st.integers(6, 30), st.integers(0, 10**6))
def test_random_graphs_are_seeded_and_whole(name, n, seed):
    topology = make_topology({"name": name, **RANDOM[name]}, n, seed=seed)
    assert topology == make_topology({"name": name, **RANDOM[name], "seed": seed}, n)
    graph = topology.to_networkx()
    assert nx.descendants(graph, 0) == set(range(1, n))
    assert nx.ancestors(graph, n - 1) == set(range(n - 1))


@pytest.mark.parametrize("p", [0.4, 0.6, 0.8])
def test_random_density(p):
    n = 40
    drawn = np.mean([random(n, p, seed=s).density for s in range(30)])
    # 30 draws of 780 edges: the standard error of the mean is below 0.0033.
    assert drawn == pytest.approx(p, abs=0.015)


def test_erdos_renyi_edges_survive_the_repair():
    drawn = nx.gnp_random_graph(20, 0.2, seed=3)
    assert {tuple(sorted(e)) for e in drawn.edges} <= set(erdos_renyi(20, seed=3).edges)


def test_barabasi_albert_attaches_m_edges():
    topology = make_topology("barabasi_albert", 26)
    assert all(degree >= 5 for degree in topology.in_degree[6:])


def test_watts_strogatz_has_its_ring_edges():
    topology = make_topology({"name": "watts_strogatz", "p": 0.0}, 10)
    ring = {(i, i + 1) for i in range(9)} | {(i, i + 2) for i in range(8)} | {(0, 9), (0, 8), (1, 9)}
    assert set(topology.edges) == ring


@given(st.integers(3, 30), st.integers(2, 5), st.floats(0, 1), st.integers(0, 100))
def test_small_world_chain_keeps_its_chain_and_its_number_of_edges(n, reach, p, seed):
    reach = min(reach, n - 1)
    drawn = set(small_world_chain(n, p=p, reach=reach, seed=seed).edges)
    banded = {(u, v) for v in range(n) for u in range(max(0, v - reach), v)}
    chain = {(u, u + 1) for u in range(n - 1)}
    assert chain <= drawn
    assert len(drawn) == len(banded)
    for u in range(n):  # a re-targeted edge keeps its source
        assert sum(edge[0] == u for edge in drawn) == sum(edge[0] == u for edge in banded)
    assert set(small_world_chain(n, p=0, reach=reach, seed=seed).edges) == banded


def test_small_world_chain_rewires_as_often_as_it_says():
    n, p = 60, 0.3
    kept = [sum(v - u == 2 for u, v in small_world_chain(n, p=p, seed=s).edges) / (n - 2) for s in range(50)]
    # 50 draws of 58 shortcuts; the last one has nowhere else to go: the standard error is 0.009.
    assert np.mean(kept) == pytest.approx(1 - p, abs=0.03)


def test_the_small_world_of_toponet50_is_where_small_worldness_is_largest():
    """Its p, found again: the mean over the stages and over more graphs than the networks' own."""

    def mean(name, **options):
        drawn = [make_topology({"name": name, **options}, n, seed=s) for n in PAPER_NODES for s in range(16)]
        return np.mean([small_world(topology).small_worldness for topology in drawn])

    found = {p: mean("small_world_chain", p=p) for p in (0.0, 0.05, 0.25, 0.5, 1.0)}
    assert max(found, key=found.get) == ARCHITECTURES["toponet50_smallworld"]["topology"]["p"] == 0.25
    assert found[1.0] < 1 < found[0.0] < found[0.25]
    # A ring of so few nodes has short paths from the start, and the paper's wiring of it is as good as random.
    assert mean("watts_strogatz", p=0.05) < mean("watts_strogatz", p=0.0)
    assert mean("watts_strogatz") < 1


def test_the_named_networks_keep_their_graphs():
    """Published files carry these graphs: a generator (or networkx) that draws others must be noticed."""
    digests = {}
    for name, options in RANDOM.items():
        text = "".join(make_topology({"name": name, **options}, n, seed=k).to_json() for k, n in enumerate(PAPER_NODES))
        digests[name] = hashlib.sha256(text.encode()).hexdigest()[:8]
    assert digests == DIGESTS


DIGESTS = {
    "random": "fe999d93",
    "erdos_renyi": "71d401db",
    "barabasi_albert": "c3e5bc2b",
    "watts_strogatz": "3a9469a3",
    "small_world_chain": "67cf4b33",
}


def test_specs():
    own = Topology(3, [(0, 1), (1, 2)])
    assert make_topology(own, 3) is own
    assert make_topology({"num_nodes": 3, "edges": [[0, 1], [1, 2]]}, 3) == own
    assert make_topology("complete", 5) == complete(5)
    assert make_topology({"name": "residual", "interval": 3}, 8) == residual(8, 3)
    assert set(GENERATORS) >= {"complete", "residual", *RANDOM}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("complet", "unknown topology 'complet'. Did you mean 'complete'?"),
        ({"interval": 2}, "unknown topology None"),
        ({"name": "residual", "intervall": 2}, "'intervall'. Did you mean 'interval'?"),
        ({"name": "residual", "interval": 0}, "interval must be at least 1, got 0"),
        ({"name": "random", "p": 1.2}, "must lie in [0, 1], got 1.2"),
        ({"name": "barabasi_albert", "m": 9}, "m=9 with num_nodes=8"),
        ({"name": "watts_strogatz", "k": 8}, "k=8 with num_nodes=8"),
        ({"name": "watts_strogatz", "k": 3}, "k must be even, got k=3"),
        ({"name": "small_world_chain", "reach": 1}, "needs 2 <= reach < num_nodes, got reach=1 with num_nodes=8"),
        ({"name": "small_world_chain", "p": -0.1}, "must lie in [0, 1], got -0.1"),
        ({"name": "watts_strogatz", "k": "4"}, "k of topology 'watts_strogatz' must be an integer, got '4'"),
        ({"name": "barabasi_albert", "m": 2.5}, "m of topology 'barabasi_albert' must be an integer, got 2.5"),
        ({"name": "erdos_renyi", "p": None}, "p of topology 'erdos_renyi' must be a number, got None"),
        ({"name": "random", "seed": None}, "seed of topology 'random' must be an integer, got None"),
        (None, "unknown topology None"),
        (Topology(3, [(0, 1), (1, 2)]), "the topology has 3 nodes, but the stage has 8"),
    ],
)
def test_wrong_specs_are_named(spec, message):
    with pytest.raises(TopologyError, match=re.escape(message)):
        make_topology(spec, 8)


@pytest.mark.parametrize("num_nodes", ["8", 8.0, None])
def test_a_number_of_nodes_that_is_none(num_nodes):
    with pytest.raises(TopologyError, match="num_nodes of topology 'complete' must be an integer, got"):
        make_topology("complete", num_nodes)
