"""NNSTD, the distance between the wirings of two sparse networks.

"Topological Insights into Sparse Neural Networks" (ECML-PKDD 2020, arXiv 2006.14085). Each neuron is represented by the
set of neurons it reads. Two neurons differ by the normalized edit distance of their sets, |S xor T| / |S or T| (both
empty: 0), two layers by the mean over their neurons under the best one-to-one matching, two networks by the mean over
their layers, where the sets of each layer are compared under the matching of the layer below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from ...errors import TopologyError, unknown_name
from .canonical import CanonicalLabeling, canonical_labeling

Ties = Literal["authors", "canonical"]
TIES: tuple[Ties, ...] = ("authors", "canonical")

Layers = list[sparse.csr_array]
# For each neuron of a layer and its match: the number of shared inputs, and the sum of their numbers of inputs.
Overlap = tuple[np.ndarray, np.ndarray]
# For the inputs and each layer: which neuron of the second network each neuron of the first is matched with.
Alignment = list[np.ndarray]

# Small networks are also matched from random starts: this is fast, and a single start is often bad for them.
_RANDOM_STARTS = 8
_ROUNDING = 1e-12  # sums of distances that differ by less are considered equal


@dataclass(frozen=True)
class NNSTD:
    """The distance between two wirings.

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


def nnstd_of_layers(
    a: Sequence[np.ndarray | sparse.sparray | sparse.spmatrix],
    b: Sequence[np.ndarray | sparse.sparray | sparse.spmatrix],
    ties: Ties = "canonical",
    *,
    fixed_outputs: bool = False,
) -> NNSTD:
    """Return the distance between two sparse networks of the same layer sizes.

    "authors" matches layer after layer from the inputs up, as the authors' code does, each time the best matching of
    that layer alone. Neurons with equal sets (empty ones, duplicates) are then matched arbitrarily by the solver, which
    affects the layers above: the distance depends on the order of the arguments, and a relabeled copy does not have
    distance 0.

    "canonical" searches for the alignment of the whole networks with the smallest distance, so equal neurons are
    distinguished by the layers above. The smallest distance is symmetric, 0 exactly for relabeled copies, and obeys the
    triangle inequality; finding it includes graph isomorphism and is hard in general. Guarantees for the result:

    - it is the distance under `alignment`, so never below the smallest;
    - swapping the arguments gives the same distances exactly, and the inverse alignment;
    - the mean is at most that of "authors" in either order of the arguments (except for rounding, 1e-12);
    - it is 0 for a copy with its hidden neurons in any other order, unless the search for that order meets 1000 dead
      ends, which happens only for adversarial graphs.

    It is not guaranteed to be the smallest: one alignment (several for networks of few neurons) is improved layer by
    layer until no layer can be matched better. All of this uses labels determined by the networks' connections
    (`canonical_labeling`), so the result does not depend on the original numbers. There are two exceptions: the
    networks of the last point above, and cases where "authors" is better; then its matching is returned, which does
    depend on the numbers. The latter happens for networks of few neurons, and no fast method avoids it: if all neurons
    of a layer are equal, "authors" finds the smallest distance under some labeling, and would have to be matched under
    all.

    Args:
        a, b: connections of each layer [n_in, n_out], numpy or scipy.sparse; non-zero is a connection. Without biases.
            The inputs of the first layer are the same for both networks.
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
    return NNSTD(tuple(_distances(_overlaps(first, second, alignment))), tuple(alignment[1:]))


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
            raise TopologyError(f"{where} has values that are not finite numbers; 0 is no connection, all else is one")
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
    labelings = [canonical_labeling(net, fixed_outputs) for net in (a, b)]
    nets = [_ordered(net, found.order) for net, found in zip((a, b), labelings)]
    # Both networks in canonical labeling, and in an order that does not depend on that of the arguments. What is
    # computed from them alone is bitwise the same for any labeling and either order of the arguments.
    turned = _bytes(nets[0]) > _bytes(nets[1])
    if turned:
        (a, b), labelings, nets = (b, a), labelings[::-1], nets[::-1]
    best = _copied(a, b, *labelings)
    if best is None:
        improved = (_improved(*nets, start, fixed_outputs) for start in _starts(*nets, fixed_outputs))
        alignment, least = min(improved, key=itemgetter(1))
        best = _in_given_numbers(alignment, *labelings)
        for candidate in (_by_layers(a, b, fixed_outputs, least), _inverse(_by_layers(b, a, fixed_outputs, least))):
            if candidate and (total := sum(_distances(_overlaps(a, b, candidate)))) < least - _ROUNDING:
                best, least = candidate, total
    return _inverse(best) if turned else best


def _copied(a: Layers, b: Layers, ours: CanonicalLabeling, theirs: CanonicalLabeling) -> Alignment | None:
    """Return the alignment of copies, None for other networks."""
    in_order = _in_given_numbers([np.arange(len(order)) for order in ours.order], ours, theirs)
    if not any(_distances(_overlaps(a, b, in_order))):
        return in_order
    found = ours.copied_to(theirs)
    return found if found and not any(_distances(_overlaps(a, b, found))) else None


def _in_given_numbers(alignment: Alignment, ours: CanonicalLabeling, theirs: CanonicalLabeling) -> Alignment:
    """Convert an alignment of networks in canonical labeling to their original labeling."""
    return [there[matched[np.argsort(here)]] for here, matched, there in zip(ours.order, alignment, theirs.order)]


def _ordered(layers: Layers, order: Sequence[np.ndarray]) -> Layers:
    ordered = [layer[below][:, here] for layer, below, here in zip(layers, order, order[1:])]
    for layer in ordered:
        layer.sort_indices()
    return ordered


def _bytes(layers: Layers) -> list[bytes]:
    return [part.tobytes() for layer in layers for part in (layer.indptr, layer.indices)]


def _inverse(alignment: Alignment | None) -> Alignment | None:
    return alignment and [np.argsort(matched) for matched in alignment]


# The distance


def _counts(layer: sparse.csr_array) -> np.ndarray:
    """Return how many neurons each neuron reads, int64 [n_out]."""
    return np.bincount(layer.indices, minlength=layer.shape[1])


def _edit_distances(shared: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return |S xor T| / |S or T| from the number of shared elements and the sum of the sizes of both sets."""
    return (sizes - 2 * shared) / np.maximum(sizes - shared, 1)  # two empty sets: 0 / 1


def _near(a: sparse.csr_array, b: sparse.csr_array, matched_inputs: np.ndarray) -> sparse.csr_array:
    """Return the distances below 1 between the neurons of a layer of `a` and of `b`, sparse float64 [n_out, n_out].

    All of them are stored, including zeros.
    """
    ours, theirs = _counts(a), _counts(b)
    near = a.T.tocsr() @ b[matched_inputs]
    if not (ours.all() or theirs.all()):  # empty sets are equal
        near += sparse.csr_array(ours[:, None] == 0, dtype=near.dtype) @ sparse.csr_array(theirs[None, :] == 0)
    sizes = np.repeat(ours, np.diff(near.indptr)) + theirs[near.indices]
    return _like(near, np.where(sizes > 0, _edit_distances(near.data, sizes), 0.0))


def _like(matrix: sparse.csr_array, data: np.ndarray) -> sparse.csr_array:
    """Return a matrix with the same sparsity pattern and other values."""
    return sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _overlap(a: Layers, b: Layers, alignment: Alignment, layer: int) -> Overlap:
    """Return the number of inputs that each neuron of a layer shares with its match, and the sum of their sizes."""
    theirs = b[layer][alignment[layer]][:, alignment[layer + 1]]
    return _counts(a[layer].multiply(theirs).tocsr()), _counts(a[layer]) + _counts(theirs)


def _distances(overlaps: Sequence[Overlap]) -> list[float]:
    """Return the distance of each pair of layers."""
    # Sorted, so that the sum does not depend on which network numbers the pairs.
    return [float(np.sort(_edit_distances(*overlap)).mean()) for overlap in overlaps]


def _overlaps(a: Layers, b: Layers, alignment: Alignment) -> list[Overlap]:
    return [_overlap(a, b, alignment, layer) for layer in range(len(a))]


# The authors' matching


def _by_layers(a: Layers, b: Layers, fixed_outputs: bool, most: float = np.inf) -> Alignment | None:
    """Match layer after layer, each at the least cost of its own.

    Returns:
        None as soon as the sum of the distances must reach `most`: even with the nearest neuron for each neuron of the
        next layer, and distance 0 for all layers after it.
    """
    alignment = [np.arange(a[0].shape[0])]
    total = 0.0
    for number, (ours, theirs) in enumerate(zip(a, b)):
        size = ours.shape[1]
        if fixed_outputs and number == len(a) - 1:
            alignment.append(np.arange(size))
            break
        near = _near(ours, theirs, alignment[-1]).tocoo()
        costs = np.ones((size, size))
        costs[near.row, near.col] = near.data
        if total + costs.min(axis=1).mean() >= most:
            return None
        rows, columns = linear_sum_assignment(costs)
        total += costs[rows, columns].mean()
        alignment.append(columns)
    return alignment


# The matching of the networks as wholes


def _from_inputs_up(a: Layers, b: Layers, fixed_outputs: bool) -> Alignment:
    alignment = [np.arange(a[0].shape[0])]
    for layer in range(1, len(a) + 1):
        fixed = fixed_outputs and layer == len(a)
        alignment.append(np.arange(a[-1].shape[1]) if fixed else _matched(a, b, alignment, layer))
    return alignment


def _starts(a: Layers, b: Layers, fixed_outputs: bool) -> Iterator[Alignment]:
    yield _from_inputs_up(a, b, fixed_outputs)
    sizes = [layer.shape[1] for layer in a]
    random = np.random.default_rng(0)
    for _ in range(min(_RANDOM_STARTS, 400 // sum(sizes)) if len(a) > 1 else 0):
        alignment = [np.arange(a[0].shape[0]), *map(random.permutation, sizes)]
        yield [*alignment[:-1], np.arange(sizes[-1])] if fixed_outputs else alignment


def _improved(a: Layers, b: Layers, alignment: Alignment, fixed_outputs: bool) -> tuple[Alignment, float]:
    """Match single layers again, up and down the network, until the sum of the distances no longer decreases."""
    overlaps = _overlaps(a, b, alignment)
    hidden = range(1, len(a) if fixed_outputs else len(a) + 1)
    waiting = set(hidden)  # layers whose neighbors have changed since they were matched
    while waiting:
        for layer in (*hidden, *hidden[-2::-1]):
            if layer not in waiting:
                continue
            waiting.remove(layer)
            changed = [*alignment[:layer], _matched(a, b, alignment, layer, overlaps), *alignment[layer + 1 :]]
            around = range(layer - 1, min(layer + 1, len(a)))
            found = [_overlap(a, b, changed, k) if k in around else same for k, same in enumerate(overlaps)]
            if sum(_distances(found)) < sum(_distances(overlaps)) - _ROUNDING:
                alignment, overlaps = changed, found
                waiting |= {layer - 1, layer, layer + 1}.intersection(hidden)
    return alignment, sum(_distances(overlaps))


def _matched(a: Layers, b: Layers, alignment: Alignment, layer: int, overlaps: Sequence[Overlap] = ()) -> np.ndarray:
    """Return the best matching of one layer, by its own distance or (given all overlaps) also by the next layer's.

    The sum of both distances does not increase. What the next layer's neurons share is linear in the matching of this
    layer, and their distance is a concave function of it. The tangent of a concave function lies above it, so an
    assignment that lowers the tangents lowers the distance.
    """
    near = _near(a[layer - 1], b[layer - 1], alignment[layer - 1])
    gains = _like(near, (1 - near.data) / near.shape[1])
    if layer < len(overlaps):
        shared, sizes = overlaps[layer]
        union = np.maximum(sizes - shared, 1)
        slopes = sizes / union**2 / len(union)  # negative derivative of (sizes - 2 shared) / (sizes - shared)
        ours, theirs = a[layer], b[layer][:, alignment[layer + 1]]
        gains += _like(ours, slopes[ours.indices]) @ theirs.T.tocsr()
    return _assigned(gains)


def _assigned(gains: sparse.csr_array) -> np.ndarray:
    """Return the one-to-one matching with the largest sum of gains, none of them negative.

    Rows that gain nothing are matched with the columns left over, both in their order.
    """
    size = gains.shape[0]
    # Each column also has an extra row, for columns left over. The solver treats 0 as no entry, so 1 is added to all.
    weights = sparse.vstack([gains, sparse.eye_array(size, format="csr")], format="csr")
    weights.data[: gains.nnz] += 1
    rows, columns = min_weight_full_bipartite_matching(weights, maximize=True)
    taken = rows < size
    matched = np.full(size, -1)
    matched[rows[taken]] = columns[taken]
    matched[matched < 0] = np.sort(columns[~taken])
    return matched
