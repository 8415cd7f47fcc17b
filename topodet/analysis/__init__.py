"""Looking at networks: measures, and pictures of their wiring."""

from .ldi import LDI, LayerIsometry, ldi
from .nn_mass import nn_mass
from .small_world_sweep import SmallWorldSweep, small_world_sweep

__all__ = ["LDI", "LayerIsometry", "SmallWorldSweep", "ldi", "nn_mass", "small_world_sweep"]
