"""Batch normalisation that writes where it is told to, so that a feature need not be copied there."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module


def normalise(norm: nn.Module, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `norm(x)`, written into `out` where that is possible.

    That is torch's own batch normalisation, by running statistics, without hooks. Everything else is called as it is.

    Args:
        norm: any normalisation.
        x: [B, C, H, W].
        out: on the CPU, not followed by autograd; used if it has the shape, strides and dtype of x, and the statistics
            have that dtype.
    """
    if out is None or not _is_plain(norm) or not _is_like(x, out) or x.dtype != norm.running_mean.dtype:
        return norm(x)
    if norm.training:
        norm.num_batches_tracked.add_(1)
    tensors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    options = norm.training, norm.momentum, norm.eps
    if torch.is_grad_enabled():
        return _Into.apply(x, *tensors, *options, out)
    return torch.native_batch_norm(x, *tensors, *options, out=(out, x.new_empty(0), x.new_empty(0)))[0]


def _is_plain(norm: nn.Module) -> bool:
    return is_untouched(norm, nn.BatchNorm2d) and norm.momentum is not None and norm.running_mean is not None


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether a layer is exactly torch's and nobody waits for a call of it: its work may be done another way."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return type(layer) is kind and "forward" not in vars(layer) and not hooks and not module._has_any_global_hook()


def _is_like(x: Tensor, out: Tensor) -> bool:
    same = x.shape == out.shape and x.stride() == out.stride() and x.dtype == out.dtype
    return same and x.device == out.device and x.numel() > x.shape[1]  # of one value torch says that it is one


class _Into(torch.autograd.Function):
    """torch's batch normalisation, whose result is the memory of `out`."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        out: Tensor,
    ) -> Tensor:
        saved = x.new_empty(0), x.new_empty(0)
        torch.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps, out=(out, *saved))
        ctx.save_for_backward(x, weight, mean, var, *saved)
        ctx.training, ctx.eps = training, eps
        return out.data  # for autograd no view of other rows

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, *ctx.saved_tensors, ctx.training, ctx.eps, wanted
        )
        return *(g if w else None for g, w in zip(gradients, wanted)), *[None] * 6
