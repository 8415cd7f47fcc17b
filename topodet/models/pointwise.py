"""A 1x1 convolution as what it is in channels_last memory: a product of matrices, pixels by channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aggregation import is_followed, products_are_exact
from .norm import is_untouched

# Pixels of a batch up to which a product takes less time: for a convolution, oneDNN brings the weights into a format of
# its own at each call, which many pixels make up for.
_FEW = 2048

# Without it an export, which takes no choice by size, cannot be told from a compiler (before torch 2.7).
_may_compile = hasattr(torch.compiler, "is_exporting")


def convolve(conv: nn.Conv2d, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `conv(x)` of a 1x1 convolution; on a CPU as a product of matrices where that is faster.

    That is for few pixels, and where the result can be written into `out`. A convolution that is hooked, patched or of
    another class is called as it is.

    Args:
        conv: 1x1, of stride 1, one group and no padding.
        x: [B, C, H, W].
        out: where the result may be written, if it fits and there is a bias; autograd does not follow it.
    """
    if not is_untouched(conv, nn.Conv2d) or not _is_product(conv, x):
        return conv(x)
    weight = conv.weight.flatten(1)
    if out is not None and conv.bias is not None and _may_hold(out, x, conv.out_channels):
        torch.addmm(conv.bias, _rows(x), weight.t(), out=_rows(out))
        return out
    if x.shape[0] * x.shape[2] * x.shape[3] > _FEW:
        return conv(x)
    return F.linear(x.permute(0, 2, 3, 1), weight, conv.bias).permute(0, 3, 1, 2)


def _is_product(conv: nn.Conv2d, x: Tensor) -> bool:
    """Tell whether a CPU multiplies x as exactly as it convolves it, channels side by side, and nothing minds."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.stride(1) == 1  # a compiler that knows no sizes does not know that it is channels_last
        and x.dtype == conv.weight.dtype
        and products_are_exact(x)
        and not is_followed(x)
        and (_may_compile or not torch.compiler.is_dynamo_compiling())
    )


def _may_hold(out: Tensor, x: Tensor, channels: int) -> bool:
    same = out.device == x.device and out.dtype == x.dtype and out.shape == (x.shape[0], channels, *x.shape[2:])
    return same and all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in (x, out))


def _rows(x: Tensor) -> Tensor:
    """Return a channels_last feature map as it lies in memory, [B H W, C]."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])
