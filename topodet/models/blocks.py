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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .scratch import borrow

# For each node the nodes that it reads, or that read it, ascending.
Neighbours = tuple[tuple[int, ...], ...]

# Nodes of a block, at most: larger ones leave more edges within, smaller ones read features more often.
SIZE = 5

# Columns of a piece of two matrices whose rows are multiplied with each other.
_PIECE = 1024


@dataclass(frozen=True, eq=False)
class Blocks:
    """The nodes of a graph in blocks.

    Attributes:
        of: for each node its block.
        places: int64 [E], where the weight of each edge stands in the flattened adjacency matrix [N, N].
    """

    of: tuple[range, ...]
    places: Tensor


def pays(predecessors: Neighbours) -> bool:
    """Tell whether a graph is better read in blocks than edge by edge: with a third of the edges that it can have.

    A product passes over all features, whatever their edges, and they are copied for it first; an edge that is read
    alone passes over three features.
    """
    nodes = len(predecessors)
    return nodes >= 8 and 6 * sum(map(len, predecessors)) >= nodes * (nodes - 1)


def divide(predecessors: Neighbours, size: int = SIZE) -> Blocks:
    """Divide the nodes of a graph into blocks.

    Args:
        predecessors: for each node, in topological order, what it reads; edges are in this order everywhere.
        size: of the largest block.
    """
    nodes = len(predecessors)
    count = -(-nodes // size)
    bounds = [k * nodes // count for k in range(count + 1)]
    blocks = map(range, bounds[:-1], bounds[1:])
    return Blocks(
        of=tuple(block for block in blocks for _ in block),
        places=torch.tensor([i * nodes + j for i, row in enumerate(predecessors) for j in row], dtype=torch.int64),
    )


class BlockSums:
    """The weighted sums of one pass through a stage on a CPU, in float32 or float64, by products of blocks.

    Args:
        blocks: of the stage's graph.
        readers: for each node what reads it.
        alpha: [E], the weights of its edges.
        like: a feature; all have its dtype.
    """

    def __init__(self, blocks: Blocks, readers: Neighbours, alpha: Tensor, like: Tensor):
        self.blocks, self.readers = blocks.of, readers
        self.backward = torch.is_grad_enabled()
        nodes = len(self.blocks)
        matrix = alpha.new_zeros(nodes * nodes).index_put((blocks.places,), alpha)
        self.weights = matrix.view(nodes, nodes).to(like.dtype)
        self.fixed = self.weights.detach()
        self.layout: _Layout | None = None
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
            self.layout = _Layout(feature)
            self.features = borrow((len(self.blocks) - 1, feature.numel()), feature.dtype)
            self.token = feature.new_zeros(()).expand(len(self.blocks), feature.numel())
        if self.backward:
            self.token, _ = _Put.apply(self, j, self.readers[j][:start], self.weights, self.token, feature)
        else:
            self.write(j, feature)

    def read(self, i: int) -> Tensor:
        """Return the sum that node i reads, in a tensor of its own; nothing else refers to it."""
        if i in self.apart:
            return self.apart.pop(i)
        if not self.backward:
            return self.sum(i)
        total, self.token = _Read.apply(self, i, self.token)
        return total

    def write(self, j: int, feature: Tensor) -> Tensor:
        """Copy the feature of node j into its row; return it there, as a tensor that knows nothing of other rows."""
        return self.layout.tensor(self.features[j]).copy_(feature).data

    def sum(self, i: int) -> Tensor:
        """Compute the sum that node i reads."""
        start, stop = self.blocks[i].start, self.blocks[i].stop
        if i == start and i > self.last:
            # The whole block at once. A node that comes again, to be recomputed, is alone.
            product = torch.mm(self.fixed[start:stop, :start], self.features[:start])
            self.begun = dict(zip(self.blocks[i], product.split(1)))
        self.last = max(i, self.last)
        total = self.begun.pop(i, None)
        if total is None:
            total = torch.mm(self.fixed[i : i + 1, :i], self.features[:i])
        elif i > start:
            total.addmm_(self.fixed[i : i + 1, start:i], self.features[start:i])
        return self.layout.tensor(total).data  # for autograd no view


class _Layout:
    """How a feature lies in its row: dimensions in the order of memory, so that no memory format needs a copy."""

    def __init__(self, like: Tensor):
        self.order = sorted(range(like.ndim), key=like.stride, reverse=True)
        self.shape = [like.shape[dim] for dim in self.order]
        self.back = [self.order.index(dim) for dim in range(like.ndim)]

    def tensor(self, row: Tensor) -> Tensor:
        return row.view(self.shape).permute(self.back)

    def row(self, tensor: Tensor) -> Tensor:
        return tensor.permute(self.order).reshape(-1)


class _Put(torch.autograd.Function):
    """Write the feature of a node into its row: the token, and the feature as it is there."""

    @staticmethod
    def forward(ctx, sums: BlockSums, j: int, apart: Sequence[int], weights: Tensor, token: Tensor, feature: Tensor):
        written = sums.write(j, feature)
        ctx.j, ctx.block, ctx.apart, ctx.layout = j, sums.blocks[j], apart, sums.layout
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
    """The sum that a node reads, and the token."""

    @staticmethod
    def forward(ctx, sums: BlockSums, i: int, token: Tensor):
        ctx.i, ctx.block, ctx.layout = i, sums.blocks[i], sums.layout
        ctx.shape, ctx.dtype = token.shape, token.dtype
        ctx.set_materialize_grads(False)
        return sums.sum(i), token.view_as(token)

    @staticmethod
    def backward(ctx, gradient: Tensor | None, gradients: Tensor | None):
        row = None if gradient is None else ctx.layout.row(gradient)
        if torch.is_grad_enabled():  # to be differentiated itself
            gradients = torch.zeros(ctx.shape, dtype=ctx.dtype) if gradients is None else gradients
            if row is not None:
                gradients = gradients.index_copy(0, torch.tensor([ctx.i]), row[None])
            return None, None, gradients
        if gradients is None:
            # The last sum of this pass: nothing comes from the nodes after it. Other rows are written before they are
            # read, but who looks for NaN would look there too.
            gradients = borrow(ctx.shape, ctx.dtype)
            gradients[0 if torch.is_anomaly_enabled() else ctx.block.start :].zero_()
        if row is None:
            gradients[ctx.i].zero_()
        else:
            gradients[ctx.i].copy_(row)
        return None, None, gradients


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
        torch.mm(weights[stop:, start:stop].t(), gradients[stop:], out=gradients[start:stop])
    total = products = None
    if ctx.needs_input_grad[5]:
        row = torch.addmm(gradients[j : j + 1], weights[j + 1 : stop, j][None], gradients[j + 1 : stop])
        total = ctx.layout.tensor(row)
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
