"""NNSTD, the distance between sparse topologies, and SET, sparse evolutionary training (ECML 2020, Liu et al.)."""

from .distance import NNSTD, Ties, nnstd_of_layers
from .networks import Distances, channel_graphs, distance_figure, distances, nnstd
from .set import SET

__all__ = [
    "NNSTD",
    "SET",
    "Distances",
    "Ties",
    "channel_graphs",
    "distance_figure",
    "distances",
    "nnstd",
    "nnstd_of_layers",
]
