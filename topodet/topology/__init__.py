"""What a wiring is: graphs of a stage, their generators and their measures. No torch here."""

from .generators import (
    GENERATORS,
    barabasi_albert,
    complete,
    erdos_renyi,
    make_topology,
    random,
    residual,
    watts_strogatz,
)
from .graph import Topology
from .nnstd import NNSTD, nnstd

__all__ = [
    "GENERATORS",
    "NNSTD",
    "Topology",
    "barabasi_albert",
    "complete",
    "erdos_renyi",
    "make_topology",
    "nnstd",
    "random",
    "residual",
    "watts_strogatz",
]
