"""The operators of `weighted_sum` on a GPU: one Triton kernel that reads every term once.

A program sums one block of elements over all terms, so a sum of n terms takes n reads and one write for any n:

    total[e] = sum_k weights[k] * terms[k][e]        partial[k, b] = sum_{e in block b} terms[k][e] * feature[e]

The products of a term with the feature are the sums of `partial` over the blocks: two passes in a fixed order and
without atomics, so the same input gives bitwise equal results. Sums are accumulated in float32, those of float64 in
float64.

The terms are passed as a tuple of pointers in the launch arguments. A table of pointers on the GPU would need a copy
from the host at every call, and a CUDA graph would replay it with outdated addresses. The weights stay on the GPU, so
there is no synchronization.

Importing this needs Triton, which torch installs for GPUs on Linux.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# Terms per launch. The pointers are read from constant memory, and the compiler keeps no more loads in flight than it
# has registers for: it uses 32 to 72 of them and spills none for 1 to 64 terms in float32 and bfloat16. But the loop
# over the terms is unrolled, and with products, compiling for 64 terms takes four seconds, for 32 one. Longer sums
# continue from a float32 buffer, at 8 bytes per element for every 32 terms.
MAX_TERMS = 32

# Elements and warps of a program. Fixed: autotuning would stall the first iterations of a training for each number of
# terms, and a pass that only reads and adds is bound by memory for any block that has a few 16-byte loads per thread in
# flight. With products a program is one warp, which sums a block by shuffles; several warps would have to synchronize
# three times per term.
SUM = {"BLOCK": 1024, "num_warps": 4}
SUM_AND_DOT = {"BLOCK": 512, "num_warps": 1}


# The weights are slices of one tensor, aligned or not, and `terms_given` is any number: specializing on them would only
# compile the same code again.
@triton.jit(do_not_specialize=["terms_given"], do_not_specialize_on_alignment=["weights"])
def _kernel(
    total, carry, partial, terms, weights, feature, terms_given, numel, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum one block; with `carry` continue from there, with `feature` write the partial products."""
    # A tensor may have more elements than int32 can count, a block cannot.
    start = tl.program_id(0).to(tl.int64) * BLOCK
    block = tl.arange(0, BLOCK)
    inside = block < numel - start
    y = tl.zeros([BLOCK], WIDE) if carry is None else tl.load(carry + start + block, mask=inside, other=0)
    if feature is not None:
        f = tl.load(feature + start + block, mask=inside, other=0).to(WIDE)
    for k in tl.static_range(len(terms)):
        given = k < terms_given
        weight = tl.load(weights + k, mask=given, other=0).to(WIDE)
        # A mask needs no branch, and masked elements are not read.
        read = tl.where(given if feature is not None else weight != 0, inside, False)
        x = tl.load(terms[k] + start + block, mask=read, other=0).to(WIDE)
        if feature is not None:
            products = partial + tl.program_id(0) + k * tl.num_programs(0).to(tl.int64)
            tl.store(products, tl.sum(x * f), mask=given)
            x = tl.where(weight != 0, x, 0)  # the operator skips such a term, even one with NaN
        y += weight * x
    tl.store(total + start + block, y.to(total.dtype.element_ty), mask=inside)


def add_up(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return `sum_k weights[k] * terms[k]`; terms of weight 0 are not read.

    Args:
        terms: at least one tensor, all of one shape and floating dtype.
        weights: [len(terms)], of any floating dtype.

    Returns:
        in the dtype of the terms and the layout of the first one.
    """
    return _run(terms, weights, None)[0]


def add_up_and_dot(terms: Sequence[Tensor], weights: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of `add_up`, and `<terms[k], feature>` for every k.

    Args:
        terms: at least one tensor, all of one shape and floating dtype.
        weights: [len(terms)], of any floating dtype.
        feature: of the shape and dtype of the terms.

    Returns:
        The sum; the products [len(terms)], float32, of float64 terms float64.
    """
    total, partial = _run(terms, weights, feature)
    return total, partial.sum(dim=1)


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Compile the kernel for a GPU and a dtype and compare it with known numbers.

    Raises:
        RuntimeError: the results differ. Errors of the compiler are passed on.
    """
    # Small integers, exact in every dtype. Several blocks, the last one partial, and a term that is not read.
    x = torch.arange(SUM["BLOCK"] + 16, device=device).remainder(5).to(dtype)
    unread = torch.full_like(x, torch.nan)
    terms, weights = [x, unread, x + 1], torch.tensor([2.0, 0.0, -1.0], device=device)
    total, products = add_up_and_dot([x, x + 1], weights[::2].contiguous(), x)
    expected = torch.stack([x.double().square().sum(), (x.double() * (x + 1)).sum()])
    if not (torch.equal(add_up(terms, weights), x - 1) and torch.equal(total, x - 1)):
        raise RuntimeError("it computes a wrong sum")
    if not torch.equal(products.double(), expected):
        raise RuntimeError("it computes wrong products")


def _run(terms: Sequence[Tensor], weights: Tensor, feature: Tensor | None) -> tuple[Tensor, Tensor | None]:
    options = SUM if feature is None else SUM_AND_DOT
    # Always dense, with the strides of the first term if that is dense; equal strides mean equal flat order.
    total = torch.empty_like(terms[0])
    terms, weights = [_flat(term, total) for term in terms], weights.contiguous()
    feature = None if feature is None else _flat(feature, total)
    wide = torch.promote_types(total.dtype, torch.float32)
    buffer = torch.empty_like(total, dtype=wide) if len(terms) > MAX_TERMS else total
    blocks = triton.cdiv(total.numel(), options["BLOCK"])
    partial = None if feature is None else total.new_empty(len(terms), blocks, dtype=wide)
    with torch.cuda.device_of(total):  # Triton launches on the current GPU
        for k in range(0, len(terms) if blocks else 0, MAX_TERMS):
            chunk = terms[k : k + MAX_TERMS]
            # Padded to the next power of two, to compile for six numbers of terms instead of 32.
            pointers = chunk + chunk[:1] * (triton.next_power_of_2(len(chunk)) - len(chunk))
            _kernel[(blocks,)](
                total if k + MAX_TERMS >= len(terms) else buffer,
                buffer if k else None,
                None if partial is None else partial[k:],
                tuple(pointers),
                weights[k:],
                feature,
                len(chunk),
                total.numel(),
                WIDE=tl.float64 if wide == torch.float64 else tl.float32,
                **options,
            )
    return total, partial


def _flat(x: Tensor, like: Tensor) -> Tensor:
    """Return `x` with the strides of `like`, at an address for 16-byte loads; without a copy if it is so already."""
    return x if x.stride() == like.stride() and x.data_ptr() % 16 == 0 else torch.empty_like(like).copy_(x)
