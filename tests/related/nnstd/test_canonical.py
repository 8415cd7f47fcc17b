import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from topodet.related.nnstd.canonical import canonical_labeling


@st.composite
def networks(draw, most):
    sizes = draw(st.lists(st.integers(1, most), min_size=2, max_size=4))
    return [draw(arrays(bool, shape)) for shape in itertools.pairwise(sizes)]


def renumbered(net, orders):
    return [matrix[before][:, after] for matrix, before, after in zip(net, orders, orders[1:])]


def numbered(net, fixed_outputs=False):
    return canonical_labeling([sparse.csr_array(matrix) for matrix in net], fixed_outputs)


def equal(one, other):
    return all(map(np.array_equal, one, other))


def shuffled(draw, net, fixed_outputs):
    sizes = [net[0].shape[0], *(matrix.shape[1] for matrix in net)]
    named = {0, len(net)} if fixed_outputs else {0}
    return [
        np.arange(size) if layer in named else np.array(draw(st.permutations(range(size))))
        for layer, size in enumerate(sizes)
    ]


@given(networks(most=6), st.data(), st.booleans())
def test_copies_get_the_same_matrices(net, data, fixed_outputs):
    orders = shuffled(data.draw, net, fixed_outputs)
    copy = renumbered(net, orders)
    ours, theirs = numbered(net, fixed_outputs), numbered(copy, fixed_outputs)
    assert equal(renumbered(net, ours.order), renumbered(copy, theirs.order))
    assert equal(renumbered(copy, ours.copied_to(theirs)), net)
    for layer in (0, -1) if fixed_outputs else (0,):
        assert np.array_equal(ours.order[layer], np.arange(len(ours.order[layer])))


@given(networks(most=3), st.data())
def test_a_copy_is_what_some_order_makes_equal(net, data):
    other = [data.draw(arrays(bool, matrix.shape)) for matrix in net]
    every = [[np.arange(len(net[0]))]] + [list(map(np.array, itertools.permutations(range(m.shape[1])))) for m in net]
    is_copy = any(equal(renumbered(other, orders), net) for orders in itertools.product(*every))
    assert (numbered(net).copied_to(numbered(other)) is not None) == is_copy


def by_edges(graph):
    """One input, a layer of nodes that all read it, and a layer that reads the two ends of each edge."""
    ends = np.zeros((graph.number_of_nodes(), graph.number_of_edges()), dtype=bool)
    for k, edge in enumerate(graph.edges()):
        ends[list(edge), k] = True
    return [np.ones((1, len(ends)), dtype=bool), ends]


@pytest.mark.parametrize("seed", range(6))
def test_the_search_turns_back_where_a_choice_was_wrong(seed):
    """A cycle of six and two of three: all nodes are of one colour, and to give the first one its own is to choose."""
    graph = nx.disjoint_union(nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3)))
    net = by_edges(graph)
    rng = np.random.default_rng(seed)
    copy = renumbered(net, [np.arange(1), rng.permutation(12), rng.permutation(12)])
    assert equal(renumbered(copy, numbered(net).copied_to(numbered(copy))), net)
    assert numbered(net).copied_to(numbered(by_edges(nx.cycle_graph(12)))) is None


def test_neurons_that_read_one_each_of_many_alike_are_numbered_one_by_one():
    net = [np.ones((2, 30), dtype=bool), np.eye(30, dtype=bool), np.ones((30, 4), dtype=bool)]
    rng = np.random.default_rng(0)
    copy = renumbered(net, [np.arange(2), *(rng.permutation(size) for size in (30, 30, 4))])
    assert equal(renumbered(copy, numbered(net).copied_to(numbered(copy))), net)
