"""A 1x1 convolution as what it is in channels_last memory: a product of matrices, pixels by channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aggregation import is_traced, products_are_exact
from .norm import is_untouched

try:
    from torch.fx.experimental.symbolic_shapes import has_static_value
except ImportError:  # before torch 2.7

    def has_static_value(size: int) -> bool:
        """Claim of no size that a compiler knows it."""
        return False


# Pixels of a batch up to which a product takes less time: for a convolution, oneDNN brings the weights into a format of
# its own at each call, which many pixels make up for.
_FEW = 2048

# Kernel, stride, padding, groups.
_POINTWISE = ((1, 1), (1, 1), (0, 0), 1)


def convolve(conv: nn.Module, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `conv(x)`; a 1x1 convolution is a product of matrices on a CPU where that is faster.

    That is for few pixels, and where the result can be written into `out`. A convolution that is hooked, patched, of
    another class or another shape is called as it is.

    Args:
        conv: usually a 1x1 convolution of stride 1, one group and no padding.
        x: [B, C, H, W].
        out: where the result may be written, if it fits and there is a bias; autograd does not follow it.
    """
    if not _is_pointwise(conv) or not _is_product(conv, x):
        return conv(x)
    weight = conv.weight.flatten(1)
    if out is not None and conv.bias is not None and _may_hold(out, x, conv.out_channels):
        torch.addmm(conv.bias, _rows(x), weight.t(), out=_rows(out))
        return out
    if not _has_few_pixels(x):
        return conv(x)
    return F.linear(x.permute(0, 2, 3, 1), weight, conv.bias).permute(0, 3, 1, 2)


def _is_pointwise(conv: nn.Module) -> bool:
    return is_untouched(conv, nn.Conv2d) and (conv.kernel_size, conv.stride, conv.padding, conv.groups) == _POINTWISE


def _is_product(conv: nn.Conv2d, x: Tensor) -> bool:
    """Tell whether a CPU multiplies x as exactly as it convolves it, channels side by side, and nothing minds."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.stride(1) == 1
        and x.dtype == conv.weight.dtype
        and products_are_exact(x)
        and not is_traced(x)
    )


def _has_few_pixels(x: Tensor) -> bool:
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    # Where a compiler leaves sizes open, no choice may become a condition on them; and inductor (torch 2.11) fails at
    # the strides of such products.
    if torch.compiler.is_dynamo_compiling() and not has_static_value(pixels):
        return False
    return pixels <= _FEW


def _may_hold(out: Tensor, x: Tensor, channels: int) -> bool:
    same = out.device == x.device and out.dtype == x.dtype and out.shape == (x.shape[0], channels, *x.shape[2:])
    return same and all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in (x, out))


def _rows(x: Tensor) -> Tensor:
    """Return a channels_last feature map as it lies in memory, [B H W, C]."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])
