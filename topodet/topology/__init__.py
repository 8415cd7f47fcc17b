"""Wirings: graphs of a stage, their generators and their paths. No torch here."""

from .generators import (
    GENERATORS,
    barabasi_albert,
    complete,
    erdos_renyi,
    make_topology,
    random,
    residual,
    small_world_chain,
    watts_strogatz,
)
from .graph import Topology

__all__ = [
    "GENERATORS",
    "Topology",
    "barabasi_albert",
    "complete",
    "erdos_renyi",
    "make_topology",
    "random",
    "residual",
    "small_world_chain",
    "watts_strogatz",
]
