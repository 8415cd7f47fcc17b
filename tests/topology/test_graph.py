import dataclasses
import json
import re
import subprocess
import sys

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import topologies
from topodet.errors import TopologyError
from topodet.topology import Topology, graph


@given(topologies())
def test_views_agree_with_a_plain_reading_of_the_edges(topology):
    n = topology.num_nodes
    matrix = np.zeros((n, n))
    for j, i in topology.edges:
        matrix[i, j] = 1
    assert np.array_equal(topology.adjacency(), matrix)
    assert topology.in_degree == tuple(int(row.sum()) for row in matrix)
    assert topology.out_degree == tuple(int(column.sum()) for column in matrix.T)
    assert topology.density == len(topology.edges) / (n * (n - 1) / 2)
    for i in range(n):
        assert topology.predecessors[i] == tuple(np.flatnonzero(matrix[i]))
        assert topology.successors[i] == tuple(np.flatnonzero(matrix[:, i]))
        assert topology.edges[topology.incoming[i]] == tuple((j, i) for j in topology.predecessors[i])
    weights = np.arange(1.0, topology.num_edges + 1)
    weighted = topology.adjacency(weights)
    assert [weighted[i, j] for j, i in topology.edges] == weights.tolist()


@given(topologies())
def test_json_and_networkx_both_ways(topology):
    assert Topology.from_json(topology.to_json()) == topology
    graph = topology.to_networkx()
    assert nx.is_directed_acyclic_graph(graph)
    assert Topology.from_networkx(graph) == topology
    assert hash(Topology.from_networkx(graph)) == hash(topology)
    # Every node lies on a path from input to output, by networkx's own reckoning.
    assert nx.descendants(graph, 0) == set(range(1, topology.num_nodes))
    assert nx.ancestors(graph, topology.num_nodes - 1) == set(range(topology.num_nodes - 1))


@given(topologies(), st.randoms(use_true_random=False))
def test_a_renamed_graph_keeps_its_shape(topology, rng):
    names = [f"n{k}" for k in range(topology.num_nodes)]
    rng.shuffle(names)
    graph = nx.relabel_nodes(topology.to_networkx(), dict(enumerate(names)))
    again = Topology.from_networkx(graph)
    assert nx.is_isomorphic(again.to_networkx(), topology.to_networkx())


def test_undirected_graphs_run_along_their_node_order():
    graph = nx.Graph()
    graph.add_nodes_from("cab")
    graph.add_edges_from([("b", "c"), ("b", "a"), ("a", "c")])
    assert Topology.from_networkx(graph).edges == ((0, 1), (0, 2), (1, 2))


def test_it_cannot_be_changed():
    topology = Topology(2, [(0, 1)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        topology.num_nodes = 3
    assert isinstance(topology.edges, tuple)


@pytest.mark.parametrize(
    ("nodes", "edges", "message"),
    [
        (1, [], "at least 2 nodes (input and output), got num_nodes=1"),
        (2.0, [(0, 1)], "num_nodes must be an integer, got 2.0"),
        (3, [(0, 1), (1, 1), (1, 2)], "self-loop (1, 1)"),
        (3, [(0, 1), (1, 2), (0, 1)], "duplicate edge (0, 1)"),
        (3, [(0, 1), (1, 2), (2, 1)], "edge (2, 1) points backwards; with the edge (1, 2) it closes a cycle"),
        (3, [(0, 2), (2, 1)], "edge (2, 1) points backwards: nodes are numbered"),
        (3, [(0, 1), (1, 3)], "edge (1, 3) names node 3, but the nodes are 0..2"),
        (3, [(0, 1), (0, -1)], "edge (0, -1) names node -1"),
        (4, [(0, 1), (1, 3), (2, 3)], "node 2 has no incoming edge"),
        (4, [(0, 1), (0, 2), (1, 3)], "node 2 has no outgoing edge"),
        (3, [(0, 1), 7], "an edge must be a pair (source, target), got 7"),
        (3, [(0, 1), (1, "2")], "target of edge (1, '2') must be an integer"),
        (2, [(0, True)], "must be an integer, got True"),
    ],
)
def test_broken_graphs_are_named(nodes, edges, message):
    with pytest.raises(TopologyError, match=re.escape(message)):
        Topology(nodes, edges)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nx.DiGraph([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]), "the graph has a cycle: 'b' -> 'c' -> 'b'"),
        (nx.DiGraph([(0, 1), (1, 1)]), "self-loop at node 1"),
        (nx.MultiDiGraph([(0, 1), (0, 1)]), "duplicate edge (0, 1)"),
        (nx.DiGraph([(0, 2), (1, 2)]), "has no incoming edge"),
    ],
)
def test_broken_networkx_graphs_are_named(graph, message):
    with pytest.raises(TopologyError, match=re.escape(message)):
        Topology.from_networkx(graph)


@pytest.mark.parametrize("text", ["", "[]", '{"num_nodes": 3}', '{"num_nodes": 2, "edges": 5}'])
def test_broken_json_is_named(text):
    with pytest.raises(TopologyError, match=r"JSON|must be a list"):
        Topology.from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"num_nodes": 30000000, "edges": [[0, 1]]}', "at most 10,000 nodes"),
        ('{"num_nodes": 3, "edges": [[0, 1], [1, 100000000]]}', "names node 100000000"),
        ('{"num_nodes": 99, "edges": ' + str([[0, k] for k in range(1, 22)]) + "}", "at most 20 edges"),
        ('{"num_nodes": ' + "9" * 5000 + ', "edges": []}', "cannot be read as JSON"),
        ('{"num_nodes": 1e400, "edges": [[0, 1]]}', "must be an integer"),
        ('{"num_nodes": NaN, "edges": [[0, 1]]}', "must be an integer"),
        ('{"num_nodes": true, "edges": [[0, 1]]}', "must be an integer"),
        ('{"num_nodes": "3", "edges": [[0, 1]]}', "must be an integer"),
        ('{"num_nodes": 2, "edges": [[0, 1, 2]]}', "an edge must be a pair"),
        ('{"num_nodes": 2, "edges": ["01"]}', "an edge must be a pair|must be an integer"),
        ('{"num_nodes": 2, "edges": [{"0": 1, "1": 0}]}', "an edge must be a pair|must be an integer"),
        ('{"num_nodes": 2, "edges": ' + "[" * 100_000, "cannot be read as JSON: it is nested too deeply"),
        ('\ufeff{"num_nodes": 2, "edges": [[0, 1]]}', "cannot be read as JSON"),
    ],
)
def test_json_that_asks_for_too_much_is_named(text, message, monkeypatch):
    monkeypatch.setattr(graph, "MAX_EDGES", 20)
    with pytest.raises(TopologyError, match=message):
        Topology.from_json(text)


def test_json_is_plain():
    assert json.loads(Topology(2, [(0, 1)]).to_json()) == {"num_nodes": 2, "edges": [[0, 1]]}


def test_wrong_number_of_weights_is_named():
    with pytest.raises(TopologyError, match=r"weights has shape \(2,\), expected \(1,\)"):
        Topology(2, [(0, 1)]).adjacency([1.0, 2.0])


def test_graphs_need_no_torch():
    code = "import sys, topodet.topology; assert not {'torch', 'timm'} & set(sys.modules), 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
