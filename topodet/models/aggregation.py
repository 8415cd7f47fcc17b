"""The weighted sum over the predecessors of a node: the inner sum of Eq. 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_sum(features: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return `sum_j weights[j] * features[j]`.

    Args:
        features: at least one tensor [B, C, H, W], all of one shape and dtype.
        weights: as many 0-dim tensors of the same dtype.

    One multiply-add an edge: no product is kept for the backward pass beyond the features themselves.
    """
    total = features[0] * weights[0]
    for feature, weight in zip(features[1:], weights[1:]):
        total = torch.addcmul(total, feature, weight)
    return total
