"""Looking at networks: measures, how far two wirings are apart, and pictures."""

from .ldi import LDI, LayerIsometry, ldi
from .nn_mass import nn_mass
from .nnstd import nnstd
from .small_world_sweep import SmallWorldSweep, small_world_sweep

__all__ = ["LDI", "LayerIsometry", "SmallWorldSweep", "ldi", "nn_mass", "nnstd", "small_world_sweep"]
