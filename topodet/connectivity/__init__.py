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

__all__ = [
    "PENALTY_KINDS",
    "THRESHOLDS",
    "PenaltyKind",
    "all_alphas",
    "describe_sparsity",
    "param_groups",
    "penalize",
    "penalty",
    "sparsity",
    "wirings",
]
