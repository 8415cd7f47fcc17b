"""What training does to the edges, and what becomes of the network without some of them."""

from .damage import SHARES, Damage, remove_edges, remove_nodes, without_node
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
from .prune import Cut, OnDisconnected, Per, cut, freeze, keep_edges, lost, mask, masked, prune, strengths

__all__ = [
    "PENALTY_KINDS",
    "SHARES",
    "THRESHOLDS",
    "Cut",
    "Damage",
    "OnDisconnected",
    "PenaltyKind",
    "Per",
    "all_alphas",
    "cut",
    "describe_sparsity",
    "freeze",
    "keep_edges",
    "lost",
    "mask",
    "masked",
    "param_groups",
    "penalize",
    "penalty",
    "prune",
    "remove_edges",
    "remove_nodes",
    "sparsity",
    "strengths",
    "wirings",
    "without_node",
]
