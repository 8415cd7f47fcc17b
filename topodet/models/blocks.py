"""The sums of a stage as matrix products, on a CPU: many edges read at a time.

Edge by edge, a feature is read once for each of its readers. Here the features of a stage are rows of one matrix
[N, M], and the nodes are cut into blocks. What a block reads of all nodes before it is one product, the weights
[block, sources] times the rows of the sources, which reads each feature once for all sums of the block; what a node
reads within its block is a product of one row.

Backward is the same from the other end. The gradients of the sums are rows of a matrix; what a block's features get
from all later nodes is one product, and so are the gradients of the weights. Each backward pass makes a matrix of its
own and hands it on as the gradient of a `token`, which goes from each sum to the next feature and from there to the
next sum. So it does not matter how many passes there are, nor where one begins or ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .scratch import Layout, borrow

threshold_backward = torch.ops.aten.threshold_backward

# For each node the nodes that it reads, or that read it, ascending.
Neighbours = tuple[tuple[int, ...], ...]

# Columns of a piece of two matrices whose rows are multiplied with each other.
_PIECE = 1024


@dataclass(frozen=True, eq=False)
class Blocks:
    """The nodes of a graph in blocks.

    Attributes:
        forward: for each node its block where sums are computed.
        backward: for each node its block where gradients of features are.
        places: int64 [E], where the weight of each edge stands in the flattened adjacency matrix [N, N].
    """

    forward: tuple[range, ...]
    backward: tuple[range, ...]
    places: Tensor


def pays(predecessors: Neighbours) -> bool:
    """Tell whether a graph is better read in blocks than edge by edge: with a third of the edges that it can have.

    A product passes over all features, whatever their edges, and they are copied for it first; an edge that is read
    alone passes over three features.
    """
    nodes = len(predecessors)
    return nodes >= 8 and 6 * sum(map(len, predecessors)) >= nodes * (nodes - 1)


def divide(predecessors: Neighbours) -> Blocks:
    """Divide the nodes of a graph into the blocks that read and write the fewest features.

    Args:
        predecessors: for each node, in topological order, what it reads; edges are in this order everywhere.
    """
    nodes = len(predecessors)

    def forward(start: int, stop: int) -> int:
        size = stop - start
        within = size * (size - 1) // 2
        if start == 0 or size == 1:  # each reads its sources and writes
            return size * (start + 1) + within
        # The product; and all but the first, whose sum that is, read and write it, with what they read of the block.
        return start + size + 2 * (size - 1) + within

    def backward(start: int, stop: int) -> int:
        size, later = stop - start, nodes - stop
        sources = size if later else size - 1  # the last node has no readers
        together = later + 2 * sources if later else 0  # written, and read with what comes from within the block
        alone = size * (size - 1) // 2 + sources
        of_weights = sources + nodes - 1 - start if sources else 0
        return together + alone + of_weights

    return Blocks(
        forward=_cheapest(nodes, forward),
        backward=_cheapest(nodes, backward),
        places=torch.tensor([i * nodes + j for i, row in enumerate(predecessors) for j in row], dtype=torch.int64),
    )


def _cheapest(nodes: int, cost: Callable[[int, int], int]) -> tuple[range, ...]:
    """Return for each node its block of the division with the least sum of `cost(start, stop)`."""
    best: list[tuple[int, tuple[range, ...]]] = [(0, ())]
    for stop in range(1, nodes + 1):
        # Of equal ones that with the smaller last block.
        least, start = min((best[start][0] + cost(start, stop), -start) for start in range(stop))
        best.append((least, best[-start][1] + (range(-start, stop),) * (stop + start)))
    return best[nodes][1]


class BlockSums:
    """The weighted sums of one pass through a stage on a CPU, in float32 or float64, by products of blocks.

    Args:
        blocks: of the stage's graph.
        readers: for each node what reads it.
        alpha: [E], the weights of its edges.
        like: a feature; all have its dtype.
    """

    def __init__(self, blocks: Blocks, readers: Neighbours, alpha: Tensor, like: Tensor):
        self.blocks, self.readers = blocks, readers
        self.backward = torch.is_grad_enabled()
        nodes = len(readers)
        matrix = alpha.new_zeros(nodes * nodes).index_put((blocks.places,), alpha)
        self.weights = matrix.view(nodes, nodes).to(like.dtype)
        self.fixed = self.weights.detach()
        # By source, for the backward pass; and what is in a row already.
        self.outgoing = self.fixed.t().contiguous().fill_diagonal_(1) if self.backward else None
        self.layout: Layout | None = None
        self.features: Tensor | None = None
        self.token: Tensor | None = None
        self.last = 0
        # What nodes read of earlier blocks, until they read the rest; and sums that are read of no row.
        self.begun: dict[int, Tensor] = {}
        self.apart: dict[int, Tensor] = {}

    def put(self, j: int, feature: Tensor, start: int = 0, stop: int | None = None) -> None:
        """Take the feature of node j for its readers `start:stop`; for all of them by default.

        Those before `start` or `stop` read nothing else; their feature may have a shape of its own.
        """
        if stop is not None:
            self.apart.update((i, feature * self.weights[i, j]) for i in self.readers[j][start:stop])
            return
        if self.features is None:
            self.layout = Layout(feature)
            self.features = borrow((len(self.readers) - 1, feature.numel()), feature.dtype)
            self.token = feature.new_zeros(()).expand(len(self.readers), feature.numel())
        if self.backward:
            self.token, _ = _Put.apply(self, j, self.readers[j][:start], self.weights, self.token, feature)
        else:
            self.write(j, feature)

    def row(self, i: int) -> Tensor | None:
        """Return where the feature of node i may be written before it is put in; the last one has no such place."""
        return self.layout.tensor(self.features[i]) if i < len(self.features) else None

    def read(self, i: int, *, relu: bool = False) -> Tensor:
        """Return the sum that node i reads, or its ReLU, in a tensor of its own; nothing else refers to it."""
        if i in self.apart:
            total = self.apart.pop(i)
            return F.relu(total, inplace=True) if relu else total
        if not self.backward:
            return self.sum(i, relu)
        total, self.token = _Read.apply(self, i, relu, self.token)
        return total

    def write(self, j: int, feature: Tensor) -> Tensor:
        """Write the feature of node j into its row; return it there, as a tensor that knows nothing of other rows."""
        row = self.layout.tensor(self.features[j])
        if row.data_ptr() != feature.data_ptr() or row.stride() != feature.stride():  # else it is there already
            row.copy_(feature)
        return row.data

    def sum(self, i: int, relu: bool) -> Tensor:
        """Compute the sum that node i reads, or its ReLU."""
        block = self.blocks.forward[i]
        start = block.start
        if i == start and i > self.last:
            # The whole block at once. A node that comes again, to be recomputed, is alone.
            self.begun = dict(zip(block, self.product(block, start).split(1)))
        self.last = max(i, self.last)
        total = self.begun.pop(i, None)
        if total is None:
            total = self.product(range(i, i + 1), i)
        elif i > start:
            total.addmm_(self.fixed[i : i + 1, start:i], self.features[start:i])
        total = total.relu_() if relu else total
        return self.layout.tensor(total).data  # for autograd no view

    def product(self, targets: range, sources: int) -> Tensor:
        """Return what consecutive nodes read of the first ones."""
        weights = self.fixed[targets.start : targets.stop, :sources]
        total = borrow((len(targets), self.features.shape[1]), self.features.dtype)
        return torch.mm(weights, self.features[:sources], out=total)


class _Put(torch.autograd.Function):
    """Write the feature of a node into its row: the token, and the feature as it is there."""

    @staticmethod
    def forward(ctx, sums: BlockSums, j: int, apart: Sequence[int], weights: Tensor, token: Tensor, feature: Tensor):
        written = sums.write(j, feature)
        ctx.j, ctx.block, ctx.apart = j, sums.blocks.backward[j], apart
        ctx.layout, ctx.outgoing = sums.layout, sums.outgoing
        ctx.set_materialize_grads(False)
        # Fixed weights have no gradient that would need the features. `data`, because rows are yet to be written.
        ctx.save_for_backward(weights, *([sums.features.data, written] if ctx.needs_input_grad[3] else []))
        return token.view_as(token), written

    @staticmethod
    def backward(ctx, gradients: Tensor | None, gradient: Tensor | None):
        total = products = None
        if gradients is not None:
            compute = _by_operators if torch.is_grad_enabled() else _in_place
            total, products = compute(ctx, gradients, *ctx.saved_tensors)
        if gradient is not None:  # of a second differentiation
            total = gradient if total is None else total + gradient
        return None, None, None, products, gradients, total


class _Read(torch.autograd.Function):
    """The sum that a node reads, or its ReLU, and the token."""

    @staticmethod
    def forward(ctx, sums: BlockSums, i: int, relu: bool, token: Tensor):
        ctx.i, ctx.block, ctx.layout = i, sums.blocks.backward[i], sums.layout
        ctx.shape, ctx.dtype = token.shape, token.dtype
        ctx.set_materialize_grads(False)
        total = sums.sum(i, relu)
        ctx.save_for_backward(*([total] if relu else []))
        return total, token.view_as(token)

    @staticmethod
    def backward(ctx, gradient: Tensor | None, gradients: Tensor | None):
        if torch.is_grad_enabled():  # to be differentiated itself
            gradients = torch.zeros(ctx.shape, dtype=ctx.dtype) if gradients is None else gradients
            if gradient is not None:
                for activated in ctx.saved_tensors:
                    gradient = threshold_backward(gradient, activated, 0)
                gradients = gradients.index_copy(0, torch.tensor([ctx.i]), ctx.layout.row(gradient)[None])
            return None, None, None, gradients
        if gradients is None:
            gradients = borrow(ctx.shape, ctx.dtype)
            # The last sum of this pass: nothing comes from the nodes after it. Other rows are written before they are
            # read, but who looks for NaN would look there too.
            unread = len(gradients) if ctx.i + 1 == len(gradients) else ctx.block.start
            gradients[0 if torch.is_anomaly_enabled() else unread :].zero_()
        row, activated = ctx.layout.tensor(gradients[ctx.i]), ctx.saved_tensors
        if gradient is None:
            row.zero_()
        elif activated:
            threshold_backward.grad_input(gradient, *activated, 0, grad_input=row)
        else:
            row.copy_(gradient)
        return None, None, None, gradients


def _by_operators(
    ctx, gradients: Tensor, weights: Tensor, features: Tensor | None = None, written: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of a feature and of the weights of the edges that leave it, by torch's operators."""
    later = slice(ctx.j + 1, len(weights))
    total = ctx.layout.tensor(weights[later, ctx.j] @ gradients[later])
    if written is None:
        return total, None
    places = torch.arange(later.start, later.stop), torch.tensor(ctx.j)
    products = gradients[later] @ ctx.layout.row(written)
    return total, torch.zeros_like(weights).index_put(places, products)


def _in_place(
    ctx, gradients: Tensor, weights: Tensor, features: Tensor | None = None, written: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradient of a feature, and with the first one of a block those of all weights of edges that leave it.

    The row of a node has what its feature gets from later blocks, until the gradient of its sum is known.
    """
    j, start, stop = ctx.j, ctx.block.start, ctx.block.stop
    for i in ctx.apart:
        gradients[i].zero_()
    if j + 1 == stop < len(weights):
        torch.mm(ctx.outgoing[start:stop, stop:], gradients[stop:], out=gradients[start:stop])
    total = products = None
    if ctx.needs_input_grad[5]:
        first = j if stop < len(weights) else j + 1  # its row has something from later blocks, if there are any
        total = ctx.layout.tensor(torch.mm(ctx.outgoing[j : j + 1, first:stop], gradients[first:stop]))
    if features is not None and j == start:
        products = torch.zeros_like(weights)
        sources = features[start:stop]
        products[j + 1 :, start : start + len(sources)] = _dots(sources, gradients[j + 1 :]).t()
    return total, products


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b.T` of matrices of few and long rows, `a` of fewer, by pieces of them: BLAS is slow at the whole."""
    length = min(_PIECE, max(1, a.shape[1]))
    whole = a.shape[1] // length * length
    a_pieces, b_pieces = (x[:, :whole].unflatten(1, (-1, length)).transpose(0, 1) for x in (a, b))
    total = torch.bmm(a_pieces, b_pieces.transpose(1, 2)).sum(0)
    return total if whole == a.shape[1] else total + a[:, whole:] @ b[:, whole:].t()
