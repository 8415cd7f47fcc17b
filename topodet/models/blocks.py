"""Edges read many at a time: what a block of nodes reads of an earlier block is one matrix product.

Edge by edge, a feature is read once for each of its readers. The weights [targets, sources] between two blocks of nodes
times the features [sources, M] of the earlier block read each feature once for all sums of the later one; the gradients
of both are such products too. What is left are the edges within a block, a few for each node however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# For each node the nodes that it reads, or that read it, ascending.
Neighbours = tuple[tuple[int, ...], ...]

# Nodes of a block, at most: larger ones leave more edges within, smaller ones write more sums that are not complete.
SIZE = 5

# Into how many pieces of its columns a product over them is cut.
_PIECES = 128


@dataclass(frozen=True, eq=False)
class Blocks:
    """How the edges of a graph are read: some by products of matrices between two blocks, the others one by one.

    Attributes:
        blocks: the nodes, in consecutive ranges.
        block_of: the block of each node.
        reads: for each block those that it reads by a product, ascending.
        read_by: for each block those that read it so, ascending.
        sources: for each node what it reads one by one.
        readers: for each node what reads it one by one.
        by_target, by_source: int64, the edges that are read one by one, in the order of `sources` and of `readers`, as
            indices into the edges.
        places: int64 [E], where the weight of each edge stands in the flattened adjacency matrix [N, N].
    """

    blocks: tuple[range, ...]
    block_of: tuple[int, ...]
    reads: Neighbours
    read_by: Neighbours
    sources: Neighbours
    readers: Neighbours
    by_target: Tensor
    by_source: Tensor
    places: Tensor


def divide(predecessors: Neighbours, size: int = SIZE) -> Blocks | None:
    """Divide a graph into blocks; None where no two of them have enough edges between them, or there are but two.

    A product is for blocks with half of the edges between them that there can be. It passes over the features of both
    once, whatever their edges, and putting them side by side costs as much again; an edge that is read alone passes
    over three. For a single pair of blocks nothing is left of what the product saves.

    Args:
        predecessors: for each node, in topological order, what it reads; edges are in this order everywhere.
        size: of the largest block.
    """
    nodes = len(predecessors)
    count = -(-nodes // size)
    if count < 3:
        return None
    bounds = [k * nodes // count for k in range(count + 1)]
    blocks = tuple(map(range, bounds[:-1], bounds[1:]))
    block_of = tuple(k for k, members in enumerate(blocks) for _ in members)
    edges = [(j, i) for i, row in enumerate(predecessors) for j in row]
    between: dict[tuple[int, int], int] = {}
    for j, i in edges:
        pair = block_of[j], block_of[i]
        between[pair] = between.get(pair, 0) + 1
    products = {(k, b) for (k, b), n in between.items() if k != b and 2 * n >= len(blocks[k]) * len(blocks[b])}
    if not products:
        return None
    alone = [e for e, (j, i) in enumerate(edges) if (block_of[j], block_of[i]) not in products]
    return Blocks(
        blocks=blocks,
        block_of=block_of,
        reads=tuple(tuple(k for k in range(b) if (k, b) in products) for b in range(count)),
        read_by=tuple(tuple(b for b in range(k, count) if (k, b) in products) for k in range(count)),
        sources=tuple(tuple(edges[e][0] for e in alone if edges[e][1] == i) for i in range(nodes)),
        readers=tuple(tuple(edges[e][1] for e in alone if edges[e][0] == j) for j in range(nodes)),
        by_target=torch.tensor(alone),
        by_source=torch.tensor(sorted(alone, key=edges.__getitem__)),
        places=torch.tensor([i * nodes + j for j, i in edges]),
    )


class Products:
    """The products of one pass through a stage. The features of a block are put in before a later block reads.

    Args:
        blocks: of the stage's graph.
        alpha: [E], the weights of its edges.
        backward: whether gradients will be asked for.
    """

    def __init__(self, blocks: Blocks, alpha: Tensor, backward: bool):
        self.blocks = blocks
        self.backward = backward
        nodes = len(blocks.block_of)
        self.weights = alpha.new_zeros(nodes * nodes).index_put((blocks.places,), alpha).view(nodes, nodes)
        self.order: list[int] | None = None
        self.shape: list[int] = []
        self.features: dict[int, Tensor] = {}
        # For each block what it reads, and what stands in for it where gradients are handed on.
        self.stacks: list[dict[int, Tensor]] = [{} for _ in blocks.blocks]
        self.stand_ins: list[dict[int, Tensor]] = [{} for _ in blocks.blocks]
        self.sums: dict[int, Tensor] = {}

    def take(self, j: int) -> bool:
        """Tell whether the feature of node j is read by a product."""
        return bool(self.blocks.read_by[self.blocks.block_of[j]])

    def put(self, j: int, feature: Tensor) -> None:
        """Take the feature of node j; those of a block come in their order, and have one shape."""
        k = self.blocks.block_of[j]
        members = self.blocks.blocks[k]
        self.features[j] = feature
        if j + 1 < members.stop:
            return
        if self.order is None:
            # That of memory, so that dense tensors of any memory format are flat without a copy. One for all blocks.
            self.order = sorted(range(feature.ndim), key=feature.stride, reverse=True)
            self.shape = [feature.shape[dim] for dim in self.order]
        stack = torch.stack([self.features[i].permute(self.order).reshape(-1) for i in members])
        if not torch.is_grad_enabled():
            self.features.clear()  # otherwise the last nodes of a block may come again, to be recomputed
        readers = self.blocks.read_by[k]
        for b in readers:
            self.stacks[b][k] = stack.detach()
        if self.backward:
            stand_ins = _Read.apply(stack, *(self._between(k, b) for b in readers))
            for b, stand_in in zip(readers, stand_ins):
                self.stand_ins[b][k] = stand_in

    def read(self, i: int) -> Tensor | None:
        """Return the part of node i's sum that comes by products; None where there is none."""
        b = self.blocks.block_of[i]
        if not self.blocks.reads[b]:
            return None
        if i not in self.sums:
            # The whole block at once. A node that comes again, to be recomputed, is alone.
            members = self.blocks.blocks[b]
            rows = members if i == members.start else range(i, i + 1)
            place = slice(rows.start - members.start, rows.stop - members.start)
            weights = [self._between(k, b).detach()[place] for k in self.blocks.reads[b]]
            stacks = [self.stacks[b][k] for k in self.blocks.reads[b]]
            if self.backward:
                # The whole is not sliced, because the gradient of a slice is a copy.
                whole = len(rows) == len(members)
                stand_ins = [self.stand_ins[b][k] for k in self.blocks.reads[b]]
                product = _Sum.apply(weights, stacks, *(x if whole else x[place] for x in stand_ins))
            else:
                product = _product(weights, stacks)
            if not torch.is_grad_enabled():
                self.stacks[b].clear()  # a stack goes with its last reader
            self.sums = dict(zip(rows, product.view(len(rows), *self.shape).unbind()))
        return self.sums.pop(i).permute([self.order.index(dim) for dim in range(len(self.order))])

    def _between(self, k: int, b: int) -> Tensor:
        """Return the weights of the edges from block k to block b, [targets, sources]."""
        sources, targets = self.blocks.blocks[k], self.blocks.blocks[b]
        return self.weights[targets.start : targets.stop, sources.start : sources.stop]


class _Sum(torch.autograd.Function):
    """`sum_k weights[k] @ stacks[k]`; its gradient goes as it is through the stand-ins to `_Read`, which weighs it."""

    @staticmethod
    def forward(ctx, weights: Sequence[Tensor], stacks: Sequence[Tensor], *stand_ins: Tensor) -> Tensor:
        ctx.count = len(stand_ins)
        return _product(weights, stacks)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *[gradient] * ctx.count)


class _Read(torch.autograd.Function):
    """Stand-ins for a stack [sources, M], one for each of the `weights` [targets, sources]: [targets, M], no content.

    So the gradients of all sums that read the stack arrive together, as in `aggregation._Read`.
    """

    @staticmethod
    def forward(ctx, stack: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        learned = any(ctx.needs_input_grad[1:])  # fixed weights have no gradient that would need the stack
        ctx.save_for_backward(*weights, *([stack] if learned else []))
        ctx.count = len(weights)
        return tuple(stack[:1].expand(len(weight), -1) for weight in weights)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: recomputed tensors are handed out a single time
        weights, stack = saved[: ctx.count], saved[ctx.count :]
        total = _product([weight.t() for weight in weights], gradients) if ctx.needs_input_grad[0] else None
        products = [_dots(gradient, *stack).to(weights[0].dtype) for gradient in gradients] if stack else ()
        return total, *(products or [None] * ctx.count)


def _product(weights: Sequence[Tensor], stacks: Sequence[Tensor]) -> Tensor:
    """Return `sum_k weights[k] @ stacks[k]`."""
    dtype = stacks[0].dtype
    total = torch.mm(weights[0].to(dtype), stacks[0])
    for weight, stack in zip(weights[1:], stacks[1:]):
        total = total.addmm_(weight.to(dtype), stack)
    return total


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b.T` of two matrices of few and long rows, by pieces of the rows: BLAS is slow at such a product."""
    length = max(1, a.shape[1] // _PIECES)
    whole = a.shape[1] // length * length
    a_pieces, b_pieces = (x[:, :whole].unflatten(1, (-1, length)).transpose(0, 1) for x in (a, b))
    total = torch.bmm(a_pieces, b_pieces.transpose(1, 2)).sum(0)
    return total if whole == a.shape[1] else total + a[:, whole:] @ b[:, whole:].t()
