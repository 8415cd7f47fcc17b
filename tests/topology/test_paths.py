import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import topologies
from topodet.topology import Topology
from topodet.topology.paths import live_edges, strongest_path, subgraph


def removed_again_and_again(topology, kept):
    """Section 4.4 as it is told: nodes without input or output go, until none is left that has to."""
    last, kept = topology.num_nodes - 1, set(kept)
    while True:
        sources, targets = {j for j, _ in kept}, {i for _, i in kept}
        stay = {(j, i) for j, i in kept if (j == 0 or j in targets) and (i == last or i in sources)}
        if stay == kept:
            return kept
        kept = stay


def paths(topology):
    """Every path from the input to the output, as edges."""
    inner = range(1, topology.num_nodes - 1)
    for count in range(topology.num_nodes - 1):
        for nodes in itertools.combinations(inner, count):
            path = tuple(itertools.pairwise((0, *nodes, topology.num_nodes - 1)))
            if set(path) <= set(topology.edges):
                yield path


@st.composite
def cuts(draw, max_nodes=9):
    topology = draw(topologies(max_nodes))
    return topology, {edge for edge in topology.edges if draw(st.booleans())}


@given(cuts())
def test_what_is_left_are_the_edges_on_paths(case):
    topology, kept = case
    found = live_edges(topology, kept)
    assert set(found) == removed_again_and_again(topology, kept)
    assert set(found) == {edge for path in paths(topology) if set(path) <= kept for edge in path}
    assert list(found) == [edge for edge in topology.edges if edge in set(found)]


@given(cuts(max_nodes=8), st.data())
def test_the_strongest_path_is_the_best_of_all(case, data):
    topology, kept = case
    scores = [data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])) for _ in topology.edges]
    score = dict(zip(topology.edges, scores))
    found = strongest_path(topology, scores, kept)

    def rank(path):
        return min(score[edge] for edge in path), -len(set(path) - kept)

    assert found in set(paths(topology))
    assert rank(found) == max(map(rank, paths(topology)))


@given(cuts())
def test_a_subgraph_is_renumbered_in_order(case):
    topology, kept = case
    edges = live_edges(topology, kept)
    if not edges:
        return
    graph, nodes = subgraph(edges)
    assert (nodes[0], nodes[-1]) == (0, topology.num_nodes - 1)
    assert [(nodes[j], nodes[i]) for j, i in graph.edges] == list(edges)


def test_by_hand():
    graph = Topology(5, [(0, 1), (1, 2), (0, 3), (2, 3), (1, 4), (3, 4)])
    assert live_edges(graph, [(0, 1), (1, 2), (0, 3), (3, 4)]) == ((0, 3), (3, 4))  # 2 leads nowhere, then 1
    assert live_edges(graph, [(0, 1), (1, 2), (2, 3)]) == ()
    assert live_edges(graph, []) == ()
    assert subgraph([(0, 3), (3, 4)]) == (Topology(3, [(0, 1), (1, 2)]), (0, 3, 4))
