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


def convolve(conv: nn.Conv2d, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `conv(x)` of a 1x1 convolution, as a product on a CPU where that is faster.

    A convolution that is hooked, patched or of another class is called as it is.

    Args:
        conv: 1x1, of stride 1, one group and no padding.
        x: [B, C, H, W].
        out: where the result may be written; followed by autograd neither itself nor through the convolution. Used if
            it has the shape and dtype of the result, x and it are channels_last, and there is a bias.
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
    """Tell whether x lies in memory as a matrix, and a CPU multiplies it as exactly as it convolves it."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.dtype == conv.weight.dtype
        and products_are_exact(x)
        and not is_followed(x)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _may_hold(out: Tensor, x: Tensor, channels: int) -> bool:
    shape = (x.shape[0], channels, *x.shape[2:])
    same = out.device == x.device and out.dtype == x.dtype and out.shape == shape
    return same and out.is_contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """Return a channels_last feature map as it lies in memory, [B H W, C]."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])
