import hashlib
import math
import re

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topodet.errors import TopologyError
from topodet.topology import GENERATORS, Topology, complete, erdos_renyi, make_topology, random, residual

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


RANDOM = {"random": {"p": 0.4}, "erdos_renyi": {}, "barabasi_albert": {}, "watts_strogatz": {}}


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
        (Topology(3, [(0, 1), (1, 2)]), "the topology has 3 nodes, but the stage has 8"),
    ],
)
def test_wrong_specs_are_named(spec, message):
    with pytest.raises(TopologyError, match=re.escape(message)):
        make_topology(spec, 8)
