import itertools
import os
import re
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from topodet.errors import TopologyError
from topodet.related.nnstd.distance import nnstd_of_layers

AUTHORS_FILES = "TOPODET_NNSTD_DATA"


@st.composite
def networks(draw, count=2, most=5, layers=3):
    """Networks of the same small sizes; empty and duplicate columns are frequent."""
    sizes = draw(st.lists(st.integers(1, most), min_size=2, max_size=layers + 1))
    made = []
    for _ in range(count):
        net = [draw(arrays(bool, shape)) for shape in itertools.pairwise(sizes)]
        for matrix in net:
            if not matrix.any():
                matrix[0, -1] = True
        made.append(net)
    return made


def random_network(rng, sizes, density):
    """A network whose columns are empty or copies of others in part."""
    net = []
    for n_in, n_out in itertools.pairwise(sizes):
        matrix = rng.random((n_in, n_out)) < density
        matrix[:, rng.integers(n_out, size=n_out // 5)] = False
        matrix[:, rng.integers(n_out, size=n_out // 5)] = matrix[:, rng.integers(n_out, size=n_out // 5)]
        net.append(matrix)
    return net


def relabelled(net, permutations):
    """Neuron i of each layer becomes what neuron permutation[i] was."""
    orders = [np.arange(net[0].shape[0]), *permutations]
    return [matrix[before][:, after] for matrix, before, after in zip(net, orders, orders[1:])]


def edit_distance(one, other):
    return len(one ^ other) / len(one | other) if one | other else 0.0


def inputs_of(matrix, names):
    return [{int(names[i]) for i in np.flatnonzero(column)} for column in matrix.T]


def distances_under(a, b, alignment):
    """The distance of each layer, set by set: neuron i of `a` is matched with neuron alignment[layer][i] of `b`."""
    orders = [np.arange(a[0].shape[0]), *alignment]
    found = []
    for ours, theirs, below, matched in zip(a, b, orders, orders[1:]):
        names = np.argsort(below)  # from neurons of b to neurons of a
        sets = inputs_of(ours, np.arange(len(ours))), inputs_of(theirs, names)
        found.append(np.mean([edit_distance(sets[0][i], sets[1][matched[i]]) for i in range(len(matched))]))
    return found


def authors(a, b, fixed_outputs=False):
    """The definition, by loops over sets."""
    alignment = []
    for number, (ours, theirs) in enumerate(zip(a, b)):
        names = np.argsort(alignment[-1]) if alignment else np.arange(len(ours))
        sets = inputs_of(ours, np.arange(len(ours))), inputs_of(theirs, names)
        costs = [[edit_distance(one, other) for other in sets[1]] for one in sets[0]]
        named = fixed_outputs and number == len(a) - 1
        alignment.append(np.arange(ours.shape[1]) if named else linear_sum_assignment(costs)[1])
    return distances_under(a, b, alignment)


def smallest(a, b, fixed_outputs=False):
    """The least distance over all alignments."""
    orders = [list(itertools.permutations(range(matrix.shape[1]))) for matrix in a]
    if fixed_outputs:
        orders[-1] = orders[-1][:1]
    return min(np.mean(distances_under(a, b, list(map(np.array, each)))) for each in itertools.product(*orders))


@given(networks(), st.booleans())
def test_authors_mode_is_the_definition(pair, fixed_outputs):
    a, b = pair
    assert nnstd_of_layers(a, b, "authors", fixed_outputs=fixed_outputs).layers == pytest.approx(
        authors(a, b, fixed_outputs)
    )


@pytest.mark.parametrize("seed", range(4))
def test_authors_mode_is_the_definition_on_larger_networks(seed):
    rng = np.random.default_rng(seed)
    a, b = (random_network(rng, (30, 40, 25, 35), 0.1) for _ in range(2))
    found = nnstd_of_layers(a, b, "authors")
    assert found.layers == pytest.approx(authors(a, b), abs=1e-12)
    assert found.mean == pytest.approx(np.mean(authors(a, b)), abs=1e-12)
    assert nnstd_of_layers(a, b).layers == nnstd_of_layers(b, a).layers


@given(networks(), st.booleans())
def test_canonical_mode_keeps_its_guarantees(pair, fixed_outputs):
    a, b = pair
    found = nnstd_of_layers(a, b, "canonical", fixed_outputs=fixed_outputs)
    assert found.layers == pytest.approx(distances_under(a, b, found.alignment))
    swapped = nnstd_of_layers(b, a, "canonical", fixed_outputs=fixed_outputs)
    assert swapped.layers == found.layers
    for ours, theirs, matrix in zip(found.alignment, swapped.alignment, a):
        assert np.array_equal(ours[theirs], np.arange(matrix.shape[1]))
    for bound in (authors(a, b, fixed_outputs), authors(b, a, fixed_outputs)):
        assert found.mean <= np.mean(bound) + 1e-12
    if fixed_outputs:
        assert np.array_equal(found.alignment[-1], np.arange(a[-1].shape[1]))


@given(networks(most=3), st.booleans())
def test_canonical_mode_against_all_alignments(pair, fixed_outputs):
    a, b = pair
    found, least = nnstd_of_layers(a, b, fixed_outputs=fixed_outputs).mean, smallest(a, b, fixed_outputs)
    assert found >= least - 1e-12
    assert (found == 0) == (least == 0)


@given(networks(count=1, most=7), st.data(), st.booleans())
def test_a_relabelled_copy_is_at_zero(nets, data, fixed_outputs):
    (a,) = nets
    orders = [np.array(data.draw(st.permutations(range(matrix.shape[1])))) for matrix in a]
    if fixed_outputs:
        orders[-1] = np.arange(len(orders[-1]))
    assert nnstd_of_layers(a, relabelled(a, orders), fixed_outputs=fixed_outputs).layers == (0.0,) * len(a)


@given(networks(), st.data(), st.booleans())
def test_numbers_matter_only_where_authors_is_better(pair, data, fixed_outputs):
    renumbered = []
    for net in pair:
        orders = [np.array(data.draw(st.permutations(range(matrix.shape[1])))) for matrix in net]
        renumbered.append(relabelled(net, [*orders[:-1], np.arange(len(orders[-1]))] if fixed_outputs else orders))
    found = [nnstd_of_layers(*nets, fixed_outputs=fixed_outputs) for nets in (pair, renumbered)]
    if found[0].layers != found[1].layers:
        better, nets = min(zip(found, (pair, renumbered)), key=lambda each: each[0].mean)
        bounds = (nnstd_of_layers(*order, "authors", fixed_outputs=fixed_outputs).mean for order in (nets, nets[::-1]))
        assert better.mean == pytest.approx(min(bounds), abs=1e-12)


@pytest.mark.parametrize("density", [0.1, 0.4])
def test_numbers_do_not_matter_to_larger_networks(density):
    rng = np.random.default_rng(0)
    a, b = (random_network(rng, (40, 60, 50, 60), density) for _ in range(2))
    found = nnstd_of_layers(a, b)
    assert found.mean < min(nnstd_of_layers(a, b, "authors").mean, nnstd_of_layers(b, a, "authors").mean)
    for _ in range(3):
        one, other = (relabelled(net, [rng.permutation(matrix.shape[1]) for matrix in net]) for net in (a, b))
        assert nnstd_of_layers(one, other).layers == nnstd_of_layers(other, one).layers == found.layers


def test_fixed_outputs_are_not_matched():
    a = [np.eye(3), np.eye(3)]
    b = relabelled(a, [np.arange(3), np.array([1, 2, 0])])
    assert nnstd_of_layers(a, b).layers == (0, 0)
    # A hidden neuron that swaps its number with its output loses as much in the layer below.
    assert nnstd_of_layers(a, b, fixed_outputs=True).mean == smallest(a, b, fixed_outputs=True) == 0.5


def by_edges(graph):
    """Neurons that all read the one input, and a layer that reads the two ends of each edge, with two empty neurons."""
    ends = np.zeros((graph.number_of_nodes(), graph.number_of_edges() + 2))
    for k, edge in enumerate(graph.edges()):
        ends[list(edge), k] = 1
    return [np.ones((1, len(ends))), ends]


@pytest.mark.parametrize(
    "graph",
    [nx.cycle_graph(12), nx.random_regular_graph(3, 40, seed=0), nx.petersen_graph(), nx.paley_graph(13)],
    ids=str,
)
def test_relabelled_graphs_that_refinement_alone_does_not_tell_apart(graph):
    graph = nx.Graph(graph)
    rng = np.random.default_rng(0)
    a = by_edges(graph)
    b = relabelled(a, [rng.permutation(matrix.shape[1]) for matrix in a])
    assert nnstd_of_layers(a, b, "authors").mean > 0.1
    assert nnstd_of_layers(a, b).layers == (0, 0)


def test_look_alikes_are_no_copies():
    one, other = nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))
    found = nnstd_of_layers(by_edges(one), by_edges(other))
    # Of the six pairs two must be broken, in either graph: each of those shares one end of three.
    assert found.mean == pytest.approx(np.mean([0, 2 / 8 * 2 / 3]))


def test_the_search_for_a_relabelling_ends():
    """The Shrikhande graph and the rook's graph: strongly regular with the same parameters, and not the same."""
    steps = {(0, 1), (1, 0), (1, 1), (0, 3), (3, 0), (3, 3)}
    cells = list(itertools.product(range(4), repeat=2))
    shrikhande = nx.Graph(
        (a, b) for a, b in itertools.combinations(cells, 2) if ((b[0] - a[0]) % 4, (b[1] - a[1]) % 4) in steps
    )
    rook = nx.line_graph(nx.complete_bipartite_graph(4, 4))
    nets = [by_edges(nx.convert_node_labels_to_integers(graph)) for graph in (shrikhande, rook)]
    assert 0 < nnstd_of_layers(*nets).mean <= np.mean(authors(*nets))


def test_near_copies_are_found_among_ties():
    """A tenth of the neurons is empty and the copy has lost some connections: what they feed tells which is which."""
    rng = np.random.default_rng(0)
    a = random_network(rng, (60, 80, 80, 80), 0.08)
    copy = [matrix & (rng.random(matrix.shape) > 0.03) for matrix in a]
    orders = [rng.permutation(80) for _ in a]
    planted = np.mean(distances_under(a, relabelled(copy, orders), [np.argsort(order) for order in orders]))
    assert nnstd_of_layers(a, relabelled(copy, orders)).mean <= planted + 1e-12
    assert nnstd_of_layers(a, relabelled(copy, orders), "authors").mean > 1.2 * planted


def test_any_kind_of_matrix_is_taken():
    rng = np.random.default_rng(0)
    a, b = (random_network(rng, (8, 9, 7), 0.3) for _ in range(2))
    weights = [matrix * rng.standard_normal(matrix.shape) for matrix in b]
    explicit_zero = sparse.coo_array(([1.0, 0.0], ([0, 1], [0, 1])), shape=(8, 9))
    for ties in ("authors", "canonical"):
        expected = nnstd_of_layers(a, b, ties)
        assert (
            nnstd_of_layers([sparse.csc_matrix(m) for m in a], [sparse.coo_array(m) for m in weights], ties) == expected
        )
        assert nnstd_of_layers([m.tolist() for m in a], [m.astype(np.float16) for m in b], ties) == expected
        assert nnstd_of_layers([explicit_zero], [explicit_zero.toarray()], ties).mean == 0


GOOD = [np.ones((2, 3)), np.ones((3, 2))]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (GOOD, GOOD[:1], "a has 2 layers and b has 1"),
        (GOOD, [np.ones((2, 3)), np.ones((3, 4))], "layer 1 is [3, 2] in a and [3, 4] in b (n_in x n_out)"),
        (GOOD, [np.ones((2, 3)), np.ones((2, 3))], "layer 1 of b has 2 inputs, but the layer below has 3 neurons"),
        ([], GOOD, "a has no layers"),
        ([np.ones((2, 0))], GOOD, "layer 0 of a is empty: [2, 0] with no neurons"),
        (GOOD, [np.ones((2, 3)), np.zeros((3, 2))], "layer 1 of b is empty: [3, 2] with no connection"),
        ([sparse.csr_array((2, 3))], GOOD, "layer 0 of a is empty: [2, 3] with no connection"),
        (np.ones((2, 3)), GOOD, "layer 0 of a has shape (3,); a is a list of matrices [n_in, n_out]"),
        ([np.full((2, 3), np.nan)], GOOD, "layer 0 of a has values that are not finite numbers"),
        ([np.full((2, 3), "x")], GOOD, "layer 0 of a has values that are not finite numbers"),
    ],
)
def test_bad_networks_are_named(a, b, message):
    with pytest.raises(TopologyError, match=re.escape(message)):
        nnstd_of_layers(a, b)


def test_unknown_ties_are_named():
    with pytest.raises(TopologyError, match="unknown ties 'author'. Did you mean 'authors'"):
        nnstd_of_layers(GOOD, GOOD, "author")


@pytest.mark.skipif(
    AUTHORS_FILES not in os.environ,
    reason=f"set {AUTHORS_FILES} to the folder of the authors' topologies, w{{0,1}}_epoch{{000,190}}_l{{0,1,2}}.npz",
)
@pytest.mark.parametrize(
    ("one", "other", "layers", "mean"),
    [
        ("w1_epoch000", "w0_epoch000", (0.290237, 0.244549, 0.198133), 0.244306),
        ("w1_epoch190", "w0_epoch190", (0.471445, 0.506789, 0.452657), 0.476964),
        ("w0_epoch000", "w0_epoch190", (0.540456, 0.532912, 0.545041), None),
        ("w0_epoch000", "w1_epoch190", None, None),
        ("w1_epoch000", "w0_epoch190", None, None),
        ("w1_epoch000", "w1_epoch190", None, None),
        ("w0_epoch000", "w0_epoch000", (0, 0, 0), 0),
    ],
)
def test_the_authors_own_topologies(one, other, layers, mean):
    folder = Path(os.environ[AUTHORS_FILES])
    # Their last row is the bias.
    a, b = ([sparse.load_npz(folder / f"{name}_l{k}.npz").tocsr()[:-1] for k in range(3)] for name in (one, other))
    found = nnstd_of_layers(a, b, "authors")
    assert layers is None or found.layers == pytest.approx(layers, abs=5e-7)
    assert mean is None or found.mean == pytest.approx(mean, abs=5e-7)
    canonical = nnstd_of_layers(a, b)
    assert canonical.mean <= min(found.mean, nnstd_of_layers(b, a, "authors").mean)
    rng = np.random.default_rng(0)
    first, second = (relabelled(net, [rng.permutation(784) for _ in net]) for net in (a, b))
    assert nnstd_of_layers(a, first).layers == (0, 0, 0)
    assert nnstd_of_layers(first, second).layers == nnstd_of_layers(second, first).layers == canonical.layers
