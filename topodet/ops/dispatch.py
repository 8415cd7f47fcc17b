"""Choice of the kernel for a weighted sum, by device and by tracing mode."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ConfigError, unknown_name

Kernel = Literal["fused", "triton", "torch", "plain"]

_forced: Kernel | None = None

# Whether the Triton kernel works, by GPU and dtype; filled on first use.
_tried: dict[tuple[torch.device, torch.dtype], bool] = {}


def kernel(x: Tensor) -> Kernel:
    """Return the name of the kernel that currently sums tensors like `x`.

    - `fused`, on a CPU: one pass over the terms of a sum, see `weighted_sum`.
    - `triton`, on GPUs: the same passes as one kernel each, see `ops.triton`.
    - `torch`, on other devices and where the Triton kernel does not work: the same passes in torch operators.
    - `plain`: edge by edge, for tracing, export, functorch and forward-mode differentiation, which record operators and
      cannot follow functions, and for torch.compile on a CPU, which compiles it into loops over many edges.
    """
    if is_traced(x):
        return "plain"
    if _forced in ("torch", "plain"):
        return _forced
    compiling = torch.compiler.is_dynamo_compiling()
    if x.device.type == "cpu":
        if compiling and _forced != "fused":
            # In plain sums, autograd would add up a feature's gradients in the dtype of the feature.
            return "plain" if x.dtype == accumulation_dtype(x.dtype) else "torch"
        return "fused"
    # A compiler cannot test the kernel; it records the operators, which test it when they run.
    if x.device.type == "cuda" and (compiling or triton_works(x)):
        return "triton"
    return "torch"


@contextmanager
def use_kernel(name: Kernel) -> Iterator[None]:
    """Use a given kernel wherever "plain" is not required, e.g. for comparison, in all threads.

    "fused" is for the CPU and "triton" for GPUs; on other devices they have no effect.

    Raises:
        ConfigError: an unknown kernel.
    """
    global _forced
    if name not in get_args(Kernel):
        raise ConfigError(unknown_name("kernel", name, get_args(Kernel)))
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def is_traced(x: Tensor) -> bool:
    """Return whether something other than torch.compile and autograd records operations on `x`.

    Such tracers do not support our operators, and a choice made by one tensor's size would apply to every size.
    """
    return (
        _is_exporting()
        or (torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling())
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or type(x) not in (Tensor, nn.Parameter)  # distributed and other tensor subclasses
    )


# Evaluated at compile time and not traced, because dynamo would always replace it by True.
@torch.compiler.assume_constant_result
def _is_exporting() -> bool:
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()  # since torch 2.7


def triton_works(x: Tensor) -> bool:
    """Return whether the Triton kernel can be used for tensors like `x`; it is tested once per GPU and dtype."""
    key = (x.device, x.dtype)
    if key not in _tried:
        if torch.cuda.is_current_stream_capturing():
            return False  # nothing can be compiled and compared in a CUDA graph: test it next time
        try:
            from .triton import check

            check(*key)
            _tried[key] = True
        except Exception as error:  # no Triton, no C compiler, an old GPU: use another kernel
            _tried[key] = False
            warnings.warn(
                f"topodet's Triton kernel does not work for {x.dtype} on {x.device} ({type(error).__name__}: {error}). "
                "Weighted sums use torch's operators there, which is slower",
                stacklevel=2,
            )
    return _tried[key]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which values of `dtype` are accumulated: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
