"""What a wiring is: graphs of a stage, their generators and their measures. No torch here."""

from .channels import ChannelGraph, layered
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
from .nn_mass import Cell, NNMass, nn_mass
from .nnstd import NNSTD, nnstd
from .small_world import SmallWorld, small_world

__all__ = [
    "GENERATORS",
    "NNSTD",
    "Cell",
    "ChannelGraph",
    "NNMass",
    "SmallWorld",
    "Topology",
    "barabasi_albert",
    "complete",
    "erdos_renyi",
    "layered",
    "make_topology",
    "nn_mass",
    "nnstd",
    "random",
    "residual",
    "small_world",
    "small_world_chain",
    "watts_strogatz",
]
