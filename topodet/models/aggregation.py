"""The weighted sums of a stage (the inner sum of Eq. 1), forward and backward, at the price of reading their terms.

Edge by edge, as `y = y + alpha * x`, autograd would multiply, add and write once an edge and direction. Here a sum is
one pass over its terms, and so is the gradient of a feature: `_Read` gives every reader a view of its own, so that
the readers' gradients arrive together instead of being added up one by one as they come. They are the gradients g_i of
the whole sums; from them `_Read` computes `sum_i alpha_ji * g_i` and, with the feature at hand, the gradients
`<g_i, x_j>` of the weights of all edges that leave it. Only the features are kept for the backward pass.

`kernel` names what computes these passes:

- `blocked`, on a CPU in float32 and float64: matrix products for blocks of nodes (`blocks`), where a stage has enough
  edges for that; as `fused` where not.
- `fused`, on a CPU otherwise: adds into one buffer, multiplies what it has just read, and passes over edges whose
  weight is exactly 0.
- `triton`, on GPUs: the same operators as one kernel each (`aggregation_triton`). It is tried once on every GPU, with
  numbers that are known; where it does not compile or is wrong, a warning says so and `torch` takes its place.
- `torch`, elsewhere: the same passes made of torch's operators, which a compiler turns into one loop each; also for a
  second differentiation.
- `plain`: edge by edge, for what follows operators and not functions: tracing, export, functorch, forward-mode AD; and
  torch.compile on a CPU in float32 and float64, whose own loops over many edges are the fastest there.

All accumulate in float32 or wider and are deterministic; `plain` adds up the gradients of a feature in its own type.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn

from ..errors import ConfigError, unknown_name
from .blocks import BlockSums, Neighbours, divide, pays
from .scratch import Layout, order_of_memory

Kernel = Literal["blocked", "fused", "triton", "torch", "plain"]

_forced: Kernel | None = None

# Bytes of a feature above which to take its memory from malloc takes longer than Python does to look for another.
_LARGE = 2**20

# Whether the Triton kernel works, by GPU and dtype, as far as it was tried.
_tried: dict[tuple[torch.device, torch.dtype], bool] = {}


def kernel(x: Tensor) -> Kernel:
    """Return the name of the kernel that sums tensors like `x` here and now."""
    if is_traced(x):
        return "plain"
    compiling = torch.compiler.is_dynamo_compiling()
    if _forced in ("torch", "plain"):
        return _forced
    if x.device.type == "cpu":
        if compiling and _forced != "fused":
            # Autograd alone would add up a feature's gradients in the type of the feature.
            return "plain" if x.dtype == _wide(x.dtype) else "torch"
        return "blocked" if _forced != "fused" and products_are_exact(x) else "fused"
    # A compiler cannot try the kernel; it takes the operators as they are, which try it when they run.
    if x.device.type == "cuda" and (compiling or _triton_works(x)):
        return "triton"
    return "torch"


def products_are_exact(x: Tensor) -> bool:
    """Tell whether torch's matrix products of tensors like `x` on a CPU lose no more than additions do."""
    if x.dtype == torch.float32:
        return _precision() == "highest" and not torch.is_autocast_enabled("cpu")
    return x.dtype == torch.float64


# What these two return is asked when something is compiled and not traced: dynamo cannot trace the first one, and
# answers the second one with True whatever it compiles.
@torch.compiler.assume_constant_result
def _precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "mixed"  # torch 2.9 has precisions by device, which need not be one of the three


@torch.compiler.assume_constant_result
def _is_exporting() -> bool:
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()  # since torch 2.7


def is_traced(x: Tensor) -> bool:
    """Tell whether something other than torch.compile and autograd records what is computed with `x`.

    It does not understand our operators, and what we choose by one tensor's size would hold for every size.
    """
    return (
        _is_exporting()
        or (torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling())
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or type(x) not in (Tensor, nn.Parameter)  # distributed and other tensors that stand for something else
    )


def _triton_works(x: Tensor) -> bool:
    """Whether the Triton kernel can be used for tensors like `x`; tries it when first asked for a GPU and a dtype."""
    key = (x.device, x.dtype)
    if key not in _tried:
        if torch.cuda.is_current_stream_capturing():
            return False  # a CUDA graph is no place to compile and compare: ask again
        try:
            from .aggregation_triton import check

            check(*key)
            _tried[key] = True
        except Exception as error:  # no Triton, no C compiler, an old GPU: whatever it is, there is another kernel
            _tried[key] = False
            warnings.warn(
                f"topodet's Triton kernel does not work for {x.dtype} on {x.device} ({type(error).__name__}: {error}). "
                "Weighted sums are made of torch's operators there, which is slower",
                stacklevel=2,
            )
    return _tried[key]


@contextmanager
def use_kernel(name: Kernel) -> Iterator[None]:
    """Use a kernel where not only "plain" can be used, e.g. to compare; in all threads.

    "blocked" and "fused" are for the CPU and "triton" for GPUs: elsewhere they leave the choice as it is.

    Raises:
        ConfigError: no such kernel.
    """
    global _forced
    if name not in get_args(Kernel):
        raise ConfigError(unknown_name("kernel", name, get_args(Kernel)))
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


class Graph:
    """The edges of a stage as its sums read them.

    Args:
        predecessors: for each node, in topological order, the nodes that it reads, ascending. Edges are in this order.
    """

    def __init__(self, predecessors: Neighbours):
        self.predecessors = predecessors
        self.successors = tuple(
            tuple(i for i, row in enumerate(predecessors) if j in row) for j in range(len(predecessors))
        )
        edges = [(j, i) for i, row in enumerate(predecessors) for j in row]
        # The edges ordered by source, then target, as indices.
        self.by_source = tuple(sorted(range(len(edges)), key=edges.__getitem__))
        self.blocks = divide(predecessors) if pays(predecessors) else None


def make_sums(graph: Graph, alpha: Tensor, by_source: Tensor, like: Tensor) -> Sums:
    """Return the weighted sums of one pass through a stage. Every node's feature is put in before a later node reads.

    Args:
        graph: of the stage.
        alpha: [E], the weights of its edges.
        by_source: [E] int64, `graph.by_source` on the device of `alpha`.
        like: a feature; all have its dtype and device, and those that one node reads have one shape.
    """
    name = kernel(like)
    if name == "blocked" and graph.blocks is not None:
        return BlockSums(graph.blocks, graph.successors, alpha, like)
    return EdgeSums(graph, alpha, by_source, name)


class EdgeSums:
    """The weighted sums of one pass through a stage, edge by edge.

    Args:
        graph, alpha, by_source: see `make_sums`.
        name: of the kernel.
    """

    def __init__(self, graph: Graph, alpha: Tensor, by_source: Tensor, name: Kernel):
        self.sources, self.readers = graph.predecessors, graph.successors
        self.kernel = name
        self.backward = torch.is_grad_enabled() and name != "plain"
        fixed = alpha if name == "plain" else alpha.detach()
        self.incoming = fixed.split([len(row) for row in self.sources])
        self.outgoing = alpha[by_source].split([len(row) for row in self.readers]) if self.backward else None
        # What each node reads of each of its sources.
        self.views: list[dict[int, Tensor]] = [{} for _ in self.sources]
        self.layout: Layout | None = None  # of a feature, in evaluation on a CPU

    def put(self, j: int, feature: Tensor, start: int = 0, stop: int | None = None) -> None:
        """Take the feature of node j, [B, C, H, W], for its readers `start:stop`; for all of them by default."""
        readers = self.readers[j][start:stop]
        views = [feature] * len(readers)
        if self.backward and readers:
            views = _Read.apply(self.kernel, feature, self.outgoing[j][start:stop])
        for i, view in zip(readers, views):
            self.views[i][j] = view
        if self.layout is None and not self.backward and self.kernel in ("blocked", "fused"):
            self.layout = Layout(feature)

    def row(self, i: int) -> Tensor | None:
        """Return where the feature of node i may be written, if another place than malloc's makes that faster.

        In evaluation features go, one by one, and malloc would give them back to the system and take them anew. In
        training they stay for the backward pass.
        """
        if self.layout is None or self.layout.nbytes < _LARGE or i + 1 == len(self.sources):  # which leaves the stage
            return None
        return self.layout.borrow()

    def read(self, i: int, *, relu: bool = False) -> Tensor:
        """Return the sum that node i reads, or its ReLU, in a tensor of its own; nothing else refers to it."""
        terms = [self.views[i][j] for j in self.sources[i]]
        if not torch.is_grad_enabled():
            self.views[i].clear()  # a feature goes with its last reader
        if self.backward:
            total = _Sum.apply(self.kernel, self.incoming[i], *terms)
        else:
            total = _ADD_UP[self.kernel](terms, self.incoming[i])
        return F.relu(total, inplace=True) if relu else total


Sums = EdgeSums | BlockSums


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
        # Fixed weights have no gradient that would need the feature.
        ctx.save_for_backward(weights, *([feature] if ctx.needs_input_grad[2] else []))
        # `view_as` would give a batch of one image other strides, at which batch normalisation is wrong (torch 2.11).
        return tuple(torch.ops.aten.alias(feature) for _ in range(len(weights)))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, *feature = ctx.saved_tensors
        # Differentiable operators where the gradients are to be differentiated themselves.
        kernel = "torch" if torch.is_grad_enabled() else ctx.kernel
        if not feature:
            return None, _ADD_UP[kernel](gradients, weights), None
        total, products = _ADD_UP_AND_DOT[kernel](gradients, weights, *feature)
        return None, total if ctx.needs_input_grad[1] else None, products.to(weights.dtype)


def weighted_sum(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return `sum_j weights[j] * terms[j]`, by operators that everything in torch can follow.

    Args:
        terms: at least one tensor, all of one shape and dtype.
        weights: [len(terms)].
    """
    scalars = weights.to(_wide(terms[0].dtype)).unbind()
    total = _cast(terms[0], scalars[0].dtype) * scalars[0]
    for term, scalar in zip(terms[1:], scalars[1:]):
        total = torch.addcmul(total, _cast(term, scalar.dtype), scalar)
    return _cast(total, terms[0].dtype)  # a float32 weight must not lift what autocast made bfloat16


def _weighted_sum_and_dot(terms: Sequence[Tensor], weights: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(feature.dtype)
    products = [(_cast(term, wide) * _cast(feature, wide)).sum() for term in terms]
    return weighted_sum(terms, weights), torch.stack(products)


# Operators, so that a compiler calls these functions instead of tracing them; it may choose the memory format.
_library = library.Library("topodet", "DEF")
for _schema in (
    "add_up(Tensor[] terms, Tensor weights) -> Tensor",
    "add_up_and_dot(Tensor[] terms, Tensor weights, Tensor feature) -> (Tensor, Tensor)",
):
    # Early torch 2 lacks the first one: there a compiler copies tensors that are not contiguous.
    _tags = [getattr(torch.Tag, name) for name in ("flexible_layout", "pt2_compliant_tag") if hasattr(torch.Tag, name)]
    _library.define(_schema, tags=_tags)


@library.register_fake("topodet::add_up")
def _(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    return torch.empty_like(terms[0])


@library.register_fake("topodet::add_up_and_dot")
def _(terms: Sequence[Tensor], weights: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(terms[0]), feature.new_empty(len(terms), dtype=_wide(feature.dtype))


def _add_up(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    total = None
    for term, weight in zip(terms, weights.tolist()):
        total = _add(total, term, weight)
    return _narrow(total, terms[0])


def _add_up_and_dot(terms: Sequence[Tensor], weights: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    order = order_of_memory(feature)
    flat, total, products = _flat(feature, order), None, []
    for term, weight in zip(terms, weights.tolist()):
        term = _cast(term, flat.dtype)
        total = _add(total, term, weight)
        products.append(torch.dot(_flat(term, order), flat))  # now, while the term is in the cache
    return _narrow(total, terms[0]), torch.stack(products)


def _add(total: Tensor | None, term: Tensor, weight: float) -> Tensor | None:
    if weight == 0:
        return total
    term = _cast(term, _wide(term.dtype))  # first: to add two types is many times slower
    return term * weight if total is None else total.add_(term, alpha=weight)


def _narrow(total: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if total is None else _cast(total, like.dtype)


def _flat(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return the elements, dimensions in `order`, in float32 or wider; without a copy where memory has that order."""
    return _cast(x.permute(order).reshape(-1), _wide(x.dtype))


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # `x.to` of the same dtype is x itself; in an autograd.Function this makes torch.compile (2.11) lose gradients.
    return x if x.dtype == dtype else x.to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _add_up_on_gpu(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    if not _triton_works(terms[0]):
        return weighted_sum(terms, weights)
    from .aggregation_triton import add_up

    return add_up(terms, weights)


def _add_up_and_dot_on_gpu(terms: Sequence[Tensor], weights: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    if not _triton_works(feature):
        return _weighted_sum_and_dot(terms, weights, feature)
    from .aggregation_triton import add_up_and_dot

    return add_up_and_dot(terms, weights, feature)


for _name, _on_cpu, _on_gpu in (
    ("add_up", _add_up, _add_up_on_gpu),
    ("add_up_and_dot", _add_up_and_dot, _add_up_and_dot_on_gpu),
):
    _library.impl(_name, _on_cpu, "CPU")
    _library.impl(_name, _on_gpu, "CUDA")

_ADD_UP = {
    "blocked": torch.ops.topodet.add_up,
    "fused": torch.ops.topodet.add_up,
    "triton": torch.ops.topodet.add_up,
    "torch": weighted_sum,
    "plain": weighted_sum,
}
_ADD_UP_AND_DOT = {
    "blocked": torch.ops.topodet.add_up_and_dot,
    "fused": torch.ops.topodet.add_up_and_dot,
    "triton": torch.ops.topodet.add_up_and_dot,
    "torch": _weighted_sum_and_dot,
}
