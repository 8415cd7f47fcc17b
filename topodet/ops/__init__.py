"""Weighted sums of feature maps, the kernels that compute them, and the memory format of a network.

All device-dependent code is in this package; the modules that use it are plain torch.
"""

from .dispatch import Kernel, kernel, use_kernel
from .weighted_sum import Graph, WeightedSums

__all__ = ["Graph", "Kernel", "WeightedSums", "kernel", "use_kernel"]
