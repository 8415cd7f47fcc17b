"""What training does to the edges, and what becomes of the network without some of them."""

from .penalty import (
    PENALTY_KINDS,
    THRESHOLDS,
    PenaltyKind,
    all_alphas,
    describe_sparsity,
    param_groups,
    penalize,
    penalty,
    sparsity,
    wirings,
)
from .prune import Cut, cut, freeze, mask, masked, prune

__all__ = [
    "PENALTY_KINDS",
    "THRESHOLDS",
    "Cut",
    "PenaltyKind",
    "all_alphas",
    "cut",
    "describe_sparsity",
    "freeze",
    "mask",
    "masked",
    "param_groups",
    "penalize",
    "penalty",
    "prune",
    "sparsity",
    "wirings",
]
