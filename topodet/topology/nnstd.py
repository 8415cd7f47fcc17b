"""NNSTD, the distance between the wirings of two sparse networks.

"Topological Insights into Sparse Neural Networks" (ECML-PKDD 2020, arXiv 2006.14085). A neuron is the set of the
neurons it reads. Two neurons differ by the normalised edit distance of their sets, |S xor T| / |S or T| (both empty:
0), two layers by the mean over their neurons under the best one-to-one matching, two networks by the mean over their
layers, where the sets of each layer are compared under the matching of the layer below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from ..errors import TopologyError, unknown_name

Ties = Literal["authors", "canonical"]
TIES: tuple[Ties, ...] = ("authors", "canonical")

Layers = list[sparse.csr_array]
# For the inputs and each layer: which neuron of the second network each neuron of the first is matched with.
Alignment = list[np.ndarray]
# For the inputs and each layer of two networks side by side: a number for each neuron, alike where nothing tells them
# apart; the first network's neurons, then the second's.
Colours = list[np.ndarray]

# Dead ends after which the search for a relabelling gives up. Networks of any size that anyone trained have shown none;
# what makes many is regular graphs built to look alike.
_DEAD_ENDS = 1000


@dataclass(frozen=True)
class NNSTD:
    """How far two wirings are apart.

    Attributes:
        layers: distance of each pair of layers, in [0, 1].
        alignment: for each layer int64 [n_out]: neuron i of the first network was matched with neuron
            `alignment[layer][i]` of the second.
    """

    layers: tuple[float, ...]
    alignment: tuple[np.ndarray, ...] = field(repr=False, compare=False)

    @property
    def mean(self) -> float:
        """The distance of the networks: the mean over their layers."""
        return float(np.mean(self.layers))


def nnstd(
    a: Sequence[np.ndarray | sparse.sparray | sparse.spmatrix],
    b: Sequence[np.ndarray | sparse.sparray | sparse.spmatrix],
    ties: Ties = "canonical",
    *,
    fixed_outputs: bool = False,
) -> NNSTD:
    """Return the distance between two sparse networks of the same layer sizes.

    "authors" matches layer after layer from the inputs up, as the authors' code does, each time the best matching of
    that layer alone. Neurons with equal sets (empty ones, duplicates) are then matched as the solver happens to, which
    the layers above pay for: the distance depends on the order of the arguments, and a relabelled copy is not at 0.

    "canonical" looks for the alignment of the whole networks with the smallest distance, so that what a neuron does
    further up decides between equal ones. The smallest distance is symmetric, 0 for relabelled copies and nothing else,
    and obeys the triangle inequality; finding it contains graph isomorphism and is hard in general. Guaranteed of what
    is returned:

    - it is the distance under `alignment`, so never below the smallest;
    - swapping the arguments gives the same distances exactly, and the inverse alignment;
    - the mean is at most that of "authors" in either order of the arguments, and that of the neurons as they are
      numbered;
    - it is 0 for a copy with its hidden neurons in any other order, unless the search for that order meets 1000 dead
      ends, which takes graphs built for it.

    That it is the smallest is not guaranteed: alignments from these starts, and from one that breaks ties by colour
    refinement, are improved layer by layer until no layer can be matched better alone, and the best one is taken. So
    networks that are not copies may have a slightly other distance under another numbering.

    Args:
        a, b: of each layer its connections [n_in, n_out], numpy or scipy.sparse; non-zero is a connection. Without
            biases. The inputs of the first layer are the same for both networks.
        ties: how equal neurons are matched.
        fixed_outputs: the outputs of the last layer are the same for both networks too (classes), and are not matched.

    Raises:
        TopologyError: networks of different depth or sizes, layers that do not chain, a layer without neurons or
            connections, values that are not finite, unknown `ties`.
    """
    if ties not in TIES:
        raise TopologyError(unknown_name("ties", ties, TIES))
    first, second = _read("a", a), _read("b", b)
    if len(first) != len(second):
        raise TopologyError(f"a has {len(first)} layers and b has {len(second)}; NNSTD compares layer by layer")
    for number, (ours, theirs) in enumerate(zip(first, second)):
        if ours.shape != theirs.shape:
            raise TopologyError(
                f"layer {number} is {list(ours.shape)} in a and {list(theirs.shape)} in b (n_in x n_out); networks of "
                "different sizes have no one-to-one matching"
            )
    align = _by_layers if ties == "authors" else _as_a_whole
    alignment = align(first, second, fixed_outputs)
    return NNSTD(tuple(_distances(first, second, alignment)), tuple(alignment[1:]))


def _read(name: str, matrices: Sequence[np.ndarray | sparse.sparray | sparse.spmatrix]) -> Layers:
    """Return a network's connections as 0/1 matrices, int32 [n_in, n_out]."""
    layers: Layers = []
    for number, matrix in enumerate(matrices):
        where = f"layer {number} of {name}"
        matrix = matrix.tocsr() if sparse.issparse(matrix) else np.asarray(matrix)
        values = matrix.data if sparse.issparse(matrix) else matrix
        if matrix.ndim != 2:
            raise TopologyError(f"{where} has shape {matrix.shape}; {name} is a list of matrices [n_in, n_out]")
        if values.dtype.kind not in "biufc" or not np.isfinite(values).all():
            raise TopologyError(f"{where} holds values that are no finite numbers; 0 is no connection, all else is one")
        layer = sparse.csr_array(matrix != 0, dtype=np.int32)
        layer.sort_indices()
        if not layer.nnz:
            what = "no neurons" if 0 in layer.shape else "no connection"
            remedy = "leave it out, or lower the threshold that emptied it"
            raise TopologyError(f"{where} is empty: {list(layer.shape)} with {what}; {remedy}")
        if layers and layers[-1].shape[1] != layer.shape[0]:
            raise TopologyError(
                f"{where} has {layer.shape[0]} inputs, but the layer below has {layers[-1].shape[1]} neurons; matrices "
                "are n_in x n_out (torch's weights are the transpose), without a row for the bias"
            )
        layers.append(layer)
    if not layers:
        raise TopologyError(f"{name} has no layers; give a list of matrices [n_in, n_out]")
    return layers


def _as_a_whole(a: Layers, b: Layers, fixed_outputs: bool) -> Alignment:
    """Return the best alignment found for the networks as wholes."""
    # One order of the networks, whichever way they were given, makes the result symmetric to the last bit.
    first, second = sorted((a, b), key=lambda net: [part.tobytes() for m in net for part in (m.indptr, m.indices)])
    best, least = [], np.inf
    for start in _starts(first, second, fixed_outputs):
        alignment, total = _improve(first, second, start, fixed_outputs)
        if total < least:
            best, least = alignment, total
        if not least:
            break
    return best if first is a else _inverse(best)


def _starts(a: Layers, b: Layers, fixed_outputs: bool) -> Iterator[Alignment]:
    yield [np.arange(size) for size in _sizes(a)]
    union = [sparse.csr_array(sparse.block_diag((x, y)), dtype=np.uint64) for x, y in zip(a, b)]
    rounds = _refine(union, _uncoloured(a, fixed_outputs), fixed_outputs)
    if _balanced(rounds[-1]):
        relabelling = _relabelling(union, rounds[-1], fixed_outputs)
        if relabelling:
            yield relabelling
    yield _by_layers(a, b, fixed_outputs)
    yield _inverse(_by_layers(b, a, fixed_outputs))
    # Of equal neurons those belong together whose surroundings are alike farthest out.
    unlike = [sum(_unlike(colours[layer]) for colours in rounds) for layer in range(1, len(a) + 1)]
    yield _by_layers(a, b, fixed_outputs, second_costs=unlike)


def _sizes(layers: Layers) -> list[int]:
    """Return the numbers of neurons, the inputs first."""
    return [layers[0].shape[0], *(layer.shape[1] for layer in layers)]


def _inverse(alignment: Alignment) -> Alignment:
    return [np.argsort(matched) for matched in alignment]


# The distance and its assignments


def _edit_distances(shared: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return |S xor T| / |S or T| where the sets share so many elements and have so many together, counted twice."""
    return (sizes - 2 * shared) / np.maximum(sizes - shared, 1)  # two empty sets: 0 / 1


def _costs(a: sparse.csr_array, b: sparse.csr_array, matched_inputs: np.ndarray) -> np.ndarray:
    """Return the distance of each neuron of a layer of `a` to each of `b`, float64 [n_out, n_out]."""
    sizes = a.sum(axis=0)[:, None] + b.sum(axis=0)[None, :]
    return _edit_distances((a.T @ b[matched_inputs]).toarray(), sizes)


def _shared(a: Layers, b: Layers, alignment: Alignment, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each neuron of layer `layer` + 1 what it shares with its match, and the sizes of both sets added."""
    theirs = b[layer][alignment[layer]][:, alignment[layer + 1]]
    return a[layer].multiply(theirs).sum(axis=0), a[layer].sum(axis=0) + theirs.sum(axis=0)


def _distances(a: Layers, b: Layers, alignment: Alignment) -> list[float]:
    """Return the distance of each pair of layers under an alignment."""
    # Sorted, so that the sum does not depend on which network numbers the pairs.
    return [float(np.sort(_edit_distances(*_shared(a, b, alignment, layer))).mean()) for layer in range(len(a))]


def _by_layers(
    a: Layers, b: Layers, fixed_outputs: bool, second_costs: Sequence[np.ndarray] | None = None
) -> Alignment:
    """Match layer after layer, each at the least cost of its own; `second_costs` decide between equal ones."""
    alignment = [np.arange(a[0].shape[0])]
    for number, (ours, theirs) in enumerate(zip(a, b)):
        if fixed_outputs and number == len(a) - 1:
            alignment.append(np.arange(ours.shape[1]))
            break
        costs = _costs(ours, theirs, alignment[-1])
        if second_costs is not None:
            costs += 1e-6 * second_costs[number]
        alignment.append(linear_sum_assignment(costs)[1])
    return alignment


def _improve(a: Layers, b: Layers, alignment: Alignment, fixed_outputs: bool) -> tuple[Alignment, float]:
    """Match single layers again, up and down the network, while the sum of the distances falls."""
    least = sum(_distances(a, b, alignment))
    last = len(a) - 1 if fixed_outputs else len(a)
    going = True
    while going and least:
        going = False
        for layer in (*range(1, last + 1), *range(last - 1, 0, -1)):
            changed = [*alignment[:layer], _rematched(a, b, alignment, layer), *alignment[layer + 1 :]]
            total = sum(_distances(a, b, changed))
            if total < least - 1e-12:
                alignment, least, going = changed, total, True
    return alignment, least


def _rematched(a: Layers, b: Layers, alignment: Alignment, layer: int) -> np.ndarray:
    """Return a matching of one layer for which its own distance and the next layer's add up to no more than before.

    What the next layer's neurons share is linear in the matching of this one, and their distance is a concave function
    of it. Its tangent lies above it, so that an assignment that lowers the tangents lowers the distance.
    """
    costs = _costs(a[layer - 1], b[layer - 1], alignment[layer - 1]) / a[layer - 1].shape[1]
    if layer < len(a):
        shared, sizes = _shared(a, b, alignment, layer)
        union = np.maximum(sizes - shared, 1)
        slopes = sizes / union**2 / len(union)  # of distance = (sizes - 2 shared) / (sizes - shared), turned round
        theirs = b[layer][:, alignment[layer + 1]]
        costs -= (a[layer].multiply(slopes).tocsr() @ theirs.T).toarray()
    return linear_sum_assignment(costs)[1]


# Colour refinement and the search for a relabelling


def _uncoloured(a: Layers, fixed_outputs: bool) -> Colours:
    """Return colours that tell named neurons (inputs, fixed outputs) by their names, and hidden ones not at all."""
    sizes = _sizes(a)
    named = {0, len(a)} if fixed_outputs else {0}
    return [np.tile(np.arange(size) * (layer in named), 2) for layer, size in enumerate(sizes)]


def _refine(union: Layers, colours: Colours, fixed_outputs: bool) -> list[Colours]:
    """Tell neurons apart by the colours of what they read and of what reads them, round by round until nothing new.

    Returns:
        the colours of each round, those given first.
    """
    rounds = [colours]
    hidden = range(1, len(union) if fixed_outputs else len(union) + 1)
    while True:
        colours = list(rounds[-1])
        for layer in hidden:
            around = [rounds[-1][layer], _gather(union[layer - 1].T, rounds[-1][layer - 1])]
            if layer < len(union):
                around.append(_gather(union[layer], rounds[-1][layer + 1]))
            colours[layer] = _classes(around)
        if all(colours[layer].max() == rounds[-1][layer].max() for layer in hidden):  # classes only ever split
            return rounds
        rounds.append(colours)


def _gather(matrix: sparse.csr_array, colours: np.ndarray) -> np.ndarray:
    """Return for each row a number that depends on which colours its entries have, and how many of each, uint64."""
    # Sums of well-mixed 64-bit numbers (the finaliser of SplitMix64): equal for equal multisets, and for others only
    # by an accident of 1 in 10^19, which the final alignment's distance would show.
    mixed = (colours.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return matrix @ (mixed ^ (mixed >> np.uint64(31)))


def _classes(properties: Sequence[np.ndarray]) -> np.ndarray:
    """Number the distinct combinations of properties; return each element's number."""
    table = np.stack([values.astype(np.uint64) for values in properties])
    order = np.lexsort(table)
    changes = (np.diff(table[:, order], axis=1) != 0).any(axis=0)
    classes = np.empty(len(order), dtype=np.int64)
    classes[order] = np.concatenate([[0], np.cumsum(changes)])
    return classes


def _halves(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle = len(colours) // 2
    return colours[:middle], colours[middle:]


def _balanced(colours: Colours) -> bool:
    """Whether both networks have as many neurons of each colour."""
    return all(np.array_equal(*map(np.sort, _halves(layer))) for layer in colours)


def _unlike(colours: np.ndarray) -> np.ndarray:
    """Return whether neurons of the first and of the second network have different colours, bool [n, n]."""
    ours, theirs = _halves(colours)
    return ours[:, None] != theirs[None, :]


def _relabelling(union: Layers, colours: Colours, fixed_outputs: bool) -> Alignment | None:
    """Return the alignment that makes the networks equal, None if there is none (or the search is given up).

    Individualisation and refinement: two neurons of one colour, one of each network, get a colour of their own, which
    refinement carries on; where the networks then differ, the next pair is tried.
    """
    waiting = [partial(list, colours)]
    dead_ends = 0
    while waiting and dead_ends < _DEAD_ENDS:
        colours = _refine(union, waiting.pop()(), fixed_outputs)[-1]
        if not _balanced(colours):
            dead_ends += 1
            continue
        choice = _smallest_class(colours)
        if choice is None:
            return [np.argsort(theirs)[np.argsort(np.argsort(ours))] for ours, theirs in map(_halves, colours)]
        layer, ours, theirs = choice
        waiting += [partial(_individualised, colours, layer, ours[0], other) for other in theirs[::-1]]
    return None


def _smallest_class(colours: Colours) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Return layer and neurons, of the first network and of the second, of the smallest colour that is not unique."""
    found = None
    least = np.inf
    for layer, both in enumerate(colours):
        sizes = np.bincount(both) // 2
        shared = np.flatnonzero(sizes > 1)
        if len(shared) and sizes[shared].min() < least:
            colour = shared[np.argmin(sizes[shared])]
            least = sizes[colour]
            found = (layer, *(np.flatnonzero(half == colour) for half in _halves(both)))
    return found


def _individualised(colours: Colours, layer: int, ours: int, theirs: int) -> Colours:
    """Give one neuron of the first network and one of the second a colour that no other has."""
    changed = list(colours)
    changed[layer] = colours[layer].copy()
    for half, neuron in zip(_halves(changed[layer]), (ours, theirs)):
        half[neuron] = colours[layer].max() + 1
    return changed
