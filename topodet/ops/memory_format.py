"""The fastest memory format for convolutions on a CPU, within a model that is called with a different one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.backends import mkldnn as onednn

from .dispatch import is_traced

_has_onednn = onednn.is_available()  # called once, since a compiler cannot trace this call


def to_fast_format(x: Tensor) -> Tensor:
    """Return a feature map or image, [B, C, H, W], in the fastest memory format for convolutions.

    This is channels_last where oneDNN computes them: it would convert every other format to its own, and the result
    back, at each convolution; torch's compiler makes the same choice. Otherwise `x` itself is returned: on GPUs, in
    float64, and in tracing.
    """
    return x.contiguous(memory_format=torch.channels_last) if _has_slow_format(x) else x


def from_fast_format(x: Tensor, given: Tensor) -> Tensor:
    """Return a feature map computed from `to_fast_format(given)`, in torch's default format if `given` has it."""
    return _FromFastFormat.apply(x) if _has_slow_format(given) else x


def _has_slow_format(x: Tensor) -> bool:
    maps = x.device.type == "cpu" and x.ndim == 4 and x.dtype != torch.float64
    if maps and _has_onednn and not is_traced(x) and (torch.compiler.is_dynamo_compiling() or onednn.enabled):
        return not x.is_contiguous(memory_format=torch.channels_last)
    return False


class _FromFastFormat(torch.autograd.Function):
    """Contiguous, but the gradient is channels_last: a normalization is slow if input and gradient differ in format."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format)  # a new tensor, which may be changed in place

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)
