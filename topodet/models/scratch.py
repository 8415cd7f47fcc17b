"""Memory that is used again: a large buffer goes from one pass through a stage to the next.

malloc takes the memory of a buffer from the system, which clears it page by page when it is first touched, and gives it
back when the buffer goes. For the features of a stage that takes longer than its sums do.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Where buffers begin: a row that begins in the middle of a cache line is slow to read.
_ALIGNMENT = 4096

# What nobody uses now, by address. To take out of a dict or to put in is atomic: other threads may do so, and the
# garbage collector in the middle of what happens here.
_free: dict[int, np.ndarray] = {}


def borrow(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor on the CPU, of any content; its memory is lent again when the last tensor that shares it is gone.

    There are never more buffers than were in use at a time, and none is larger than the largest tensor asked for.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = _take(size)
    if memory is None or memory.nbytes < size:
        memory = _allocate(size)
    lent = memory[:size]
    weakref.finalize(lent, _free.__setitem__, memory.ctypes.data, memory).atexit = False
    return torch.from_numpy(lent).view(dtype).view(shape)


def order_of_memory(x: Tensor) -> list[int]:
    """Return the dimensions in the order of memory, in which dense tensors of any format are flat without a copy."""
    return sorted(range(x.ndim), key=x.stride, reverse=True)


class Layout:
    """How a dense tensor lies in memory: dimensions in the order of memory, so that no memory format needs a copy.

    Args:
        like: the tensor; it is not kept.
    """

    def __init__(self, like: Tensor):
        self.order = order_of_memory(like)
        self.shape = [like.shape[dim] for dim in self.order]
        self.back = [self.order.index(dim) for dim in range(like.ndim)]
        self.in_order = self.order == sorted(self.order)
        self.dtype, self.nbytes = like.dtype, like.nbytes

    def tensor(self, row: Tensor) -> Tensor:
        """Return a flat tensor, or one of the shape in memory, as such a tensor."""
        tensor = row.view(self.shape)
        return tensor if self.in_order else tensor.permute(self.back)

    def row(self, tensor: Tensor) -> Tensor:
        """Return such a tensor as a flat one."""
        return tensor.permute(self.order).reshape(-1)

    def borrow(self) -> Tensor:
        """Return another such tensor, of memory that is used again."""
        return self.tensor(borrow(self.shape, self.dtype))


def release() -> None:
    """Give what is not in use back to the system."""
    _free.clear()


def _take(size: int) -> np.ndarray | None:
    """Return the smallest free buffer of at least `size` bytes; where none is so large, the largest, to be given up.

    Of several that are equally small it is the one that came back last, which may still be in a cache.
    """
    free = [(memory.nbytes, -place, address) for place, (address, memory) in enumerate(list(_free.items()))]
    enough = [entry for entry in free if entry[0] >= size]
    _, _, address = min(enough) if enough else max(free, default=(0, 0, None))
    return _free.pop(address, None)


def _allocate(size: int) -> np.ndarray:
    # By numpy, which asks for large pages: they take a fraction of the time.
    memory = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size]
