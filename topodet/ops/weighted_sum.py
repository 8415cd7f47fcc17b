"""The weighted sums of a stage (the inner sum of Eq. 1), forward and backward, in one pass over their terms.

Edge by edge, as `y = y + alpha * x`, autograd would multiply, add and write once per edge and direction. Here a sum is
one pass over its terms, and so is the gradient of a feature: `_Read` gives every reader its own view, so that the
readers' gradients arrive together instead of being added one by one. They are the gradients g_i of the whole sums; from
them `_Read` computes `sum_i alpha_ji * g_i` and, with the feature, the gradients `<g_i, x_j>` of the weights of all
edges that leave it. Only the features are saved for the backward pass.

`dispatch.kernel` chooses the implementation of these passes. All kernels accumulate in float32 or wider and are
deterministic; `plain` adds the gradients of a feature in the feature's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, library

from .dispatch import Kernel, accumulation_dtype, kernel, triton_works

# For each node the nodes that it reads, or that read it, ascending.
Neighbors = tuple[tuple[int, ...], ...]


class Graph:
    """The edges of a stage, and the order in which its sums, and the gradients of its features, read them.

    Args:
        predecessors: for each node, in topological order, the nodes that it reads, ascending. Edges are in this order.
        alternate: let every other node read its terms in descending order, starting with those that the previous node
            read last, which may still be in the processor's cache.

    Attributes:
        predecessors: the given predecessors.
        sources: for each node the nodes that it reads, in reading order.
        readers: for each node the nodes that read it, in the order of its gradient's terms.
        order: two lists of edge indices, by target in the order of `sources` and by source in the order of `readers`.
    """

    def __init__(self, predecessors: Neighbors, *, alternate: bool = True):
        self.predecessors, nodes = predecessors, range(len(predecessors))
        successors = tuple(tuple(i for i in nodes if j in predecessors[i]) for j in nodes)
        self.sources, self.readers = (
            tuple(row[::-1] if alternate and k % 2 else row for k, row in enumerate(rows))
            for rows in (predecessors, successors)
        )
        place = {edge: k for k, edge in enumerate((j, i) for i in nodes for j in predecessors[i])}
        self.order = (
            [place[j, i] for i in nodes for j in self.sources[i]],
            [place[j, i] for j in nodes for i in self.readers[j]],
        )


class WeightedSums:
    """The weighted sums of one pass through a stage. Every node's feature must be put in before a later node reads.

    Args:
        graph: graph of the stage.
        alpha: [E], the weights of its edges.
        order: [2, E] int64, `graph.order` on the device of `alpha`.
        like: a feature; all have its dtype and device, and those that one node reads have one shape.
    """

    def __init__(self, graph: Graph, alpha: Tensor, order: Tensor, like: Tensor):
        self.sources, self.readers = graph.sources, graph.readers
        self.kernel = kernel(like)
        self.backward = torch.is_grad_enabled() and self.kernel != "plain"
        # For each node, what it reads from each of its sources.
        self.views: list[dict[int, Tensor]] = [{} for _ in self.sources]
        self.graph, self.alpha, self.recorded = graph, alpha, isinstance(like, fx.Proxy)
        self.incoming = self.outgoing = None
        if self.recorded:
            return
        if self.kernel == "plain":  # only the sums are traced
            self.sources, incoming = graph.predecessors, alpha
        else:
            incoming = alpha[order[0]].detach()
        self.incoming = incoming.split([len(row) for row in self.sources])
        self.outgoing = alpha[order[1]].split([len(row) for row in self.readers]) if self.backward else None

    def fork(self) -> WeightedSums:
        """Return an independent copy of the sums of the pass so far."""
        twin = WeightedSums.__new__(WeightedSums)  # one by one: a compiler cannot trace `copy.copy`
        twin.sources, twin.readers, twin.kernel, twin.backward = self.sources, self.readers, self.kernel, self.backward
        twin.graph, twin.alpha, twin.recorded = self.graph, self.alpha, self.recorded
        twin.incoming, twin.outgoing = self.incoming, self.outgoing
        twin.views = [dict(terms) for terms in self.views]
        return twin

    def put(self, j: int, feature: Tensor, start: int = 0, stop: int | None = None) -> None:
        """Take the feature of node j, [B, C, H, W], for its readers `start:stop`; for all of them by default."""
        readers = self.readers[j][start:stop]
        views = [feature] * len(readers)
        if self.backward and readers:
            views = _Read.apply(self.kernel, feature, self.outgoing[j][start:stop])
        for i, view in zip(readers, views):
            self.views[i][j] = view

    def read(self, i: int) -> Tensor:
        """Return the sum that node i reads, in a new tensor that nothing else refers to."""
        terms = [self.views[i][j] for j in self.sources[i]]
        if not torch.is_grad_enabled():
            self.views[i].clear()  # a feature is freed after its last reader
        if self.recorded:
            start = sum(map(len, self.graph.predecessors[:i]))
            return recorded_sum(terms, self.alpha, start, self.sources[i] != self.graph.predecessors[i])
        if self.backward:
            return _Sum.apply(self.kernel, self.incoming[i], *terms)
        return _ADD_UP[self.kernel](terms, self.incoming[i])


class _Sum(torch.autograd.Function):
    """`sum_j weights[j] * terms[j]`, where each term's gradient is that of the whole sum; `_Read` weighs it."""

    @staticmethod
    def forward(ctx, kernel: Kernel, weights: Tensor, *terms: Tensor) -> Tensor:
        ctx.terms = len(terms)
        return _ADD_UP[kernel](terms, weights)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *[gradient] * ctx.terms)


class _Read(torch.autograd.Function):
    """A view of `feature` for each of the `weights`, to be read by `_Sum`."""

    @staticmethod
    def forward(ctx, kernel: Kernel, feature: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        ctx.kernel = kernel
        # Only the gradient of learned weights needs the feature.
        ctx.save_for_backward(weights, *([feature] if ctx.needs_input_grad[2] else []))
        # `view_as` would change the strides of a batch of one image, and break batch normalization (torch 2.11).
        return tuple(torch.ops.aten.alias(feature) for _ in range(len(weights)))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, *feature = ctx.saved_tensors
        # Differentiable operators for higher-order gradients.
        kernel = "torch" if torch.is_grad_enabled() else ctx.kernel
        if not feature:
            return None, _ADD_UP[kernel](gradients, weights), None
        total, products = _ADD_UP_AND_DOT[kernel](gradients, weights, *feature)
        return None, total if ctx.needs_input_grad[1] else None, products.to(weights.dtype)


@fx.wrap
def recorded_sum(terms: Sequence[Tensor], alpha: Tensor, start: int, descending: bool) -> Tensor:
    """Return the sum of one node in a torch.fx graph, which records this call; the kernel is chosen at run time.

    Args:
        terms: inputs of the node.
        alpha: [E]; the weights of the terms start at `start`.
        descending: whether the terms are in reverse order of their weights.
    """
    weights = alpha[start : start + len(terms)]
    weights = weights.flip(0) if descending else weights
    if torch.is_grad_enabled():
        return weighted_sum(terms, weights)
    return _ADD_UP[kernel(terms[0])](terms, weights)


def weighted_sum(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return `sum_j weights[j] * terms[j]`, with operators that all of torch's tracers support.

    Args:
        terms: at least one tensor, all of one shape and dtype.
        weights: [len(terms)].
    """
    scalars = weights.to(accumulation_dtype(terms[0].dtype)).unbind()
    total = _cast(terms[0], scalars[0].dtype) * scalars[0]
    for term, scalar in zip(terms[1:], scalars[1:]):
        total = torch.addcmul(total, _cast(term, scalar.dtype), scalar)
    return _cast(total, terms[0].dtype)  # a float32 weight must not promote what autocast made bfloat16


def _weighted_sum_and_dot(terms: Sequence[Tensor], weights: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(feature.dtype)
    products = [(_cast(term, dtype) * _cast(feature, dtype)).sum() for term in terms]
    return weighted_sum(terms, weights), torch.stack(products)


# Operators, so that a compiler calls these functions instead of tracing them; it may choose the memory format.
_library = library.Library("topodet", "DEF")
for _schema in (
    "add_up(Tensor[] terms, Tensor weights) -> Tensor",
    "add_up_and_dot(Tensor[] terms, Tensor weights, Tensor feature) -> (Tensor, Tensor)",
):
    # Early versions of torch 2 lack the first one: there a compiler copies tensors that are not contiguous.
    _tags = [getattr(torch.Tag, name) for name in ("flexible_layout", "pt2_compliant_tag") if hasattr(torch.Tag, name)]
    _library.define(_schema, tags=_tags)


@library.register_fake("topodet::add_up")
def _(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    return torch.empty_like(terms[0])


@library.register_fake("topodet::add_up_and_dot")
def _(terms: Sequence[Tensor], weights: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(terms[0]), feature.new_empty(len(terms), dtype=accumulation_dtype(feature.dtype))


def _add_up(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    total = None
    for term, weight in zip(terms, weights.tolist()):
        total = _add(total, term, weight)
    return _narrow(total, terms[0])


def _add_up_and_dot(terms: Sequence[Tensor], weights: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    # In memory order, so that dense tensors of any format are flat without a copy.
    order = sorted(range(feature.ndim), key=feature.stride, reverse=True)
    flat, total, products = _flat(feature, order), None, []
    for term, weight in zip(terms, weights.tolist()):
        term = _cast(term, flat.dtype)
        total = _add(total, term, weight)
        products.append(torch.dot(_flat(term, order), flat))  # now, while the term is in the cache
    return _narrow(total, terms[0]), torch.stack(products)


def _add(total: Tensor | None, term: Tensor, weight: float) -> Tensor | None:
    if weight == 0:
        return total
    term = _cast(term, accumulation_dtype(term.dtype))  # before adding: mixed dtypes are many times slower
    return term * weight if total is None else total.add_(term, alpha=weight)


def _narrow(total: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if total is None else _cast(total, like.dtype)


def _flat(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return the elements, dimensions in `order`, in float32 or wider; without a copy if memory has that order."""
    return _cast(x.permute(order).reshape(-1), accumulation_dtype(x.dtype))


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # `x.to` of the same dtype is x itself; in an autograd.Function this makes torch.compile (2.11) lose gradients.
    return x if x.dtype == dtype else x.to(dtype)


def _add_up_on_gpu(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    if not triton_works(terms[0]):
        return weighted_sum(terms, weights)
    from .triton import add_up

    return add_up(terms, weights)


def _add_up_and_dot_on_gpu(terms: Sequence[Tensor], weights: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    if not triton_works(feature):
        return _weighted_sum_and_dot(terms, weights, feature)
    from .triton import add_up_and_dot

    return add_up_and_dot(terms, weights, feature)


for _name, _on_cpu, _on_gpu in (
    ("add_up", _add_up, _add_up_on_gpu),
    ("add_up_and_dot", _add_up_and_dot, _add_up_and_dot_on_gpu),
):
    _library.impl(_name, _on_cpu, "CPU")
    _library.impl(_name, _on_gpu, "CUDA")

_ADD_UP = {
    "fused": torch.ops.topodet.add_up,
    "triton": torch.ops.topodet.add_up,
    "torch": weighted_sum,
    "plain": weighted_sum,
}
_ADD_UP_AND_DOT = {
    "fused": torch.ops.topodet.add_up_and_dot,
    "triton": torch.ops.topodet.add_up_and_dot,
    "torch": _weighted_sum_and_dot,
}
