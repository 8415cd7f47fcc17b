"""Looking at networks: measures, and pictures of their wiring."""

from .ldi import LDI, LayerIsometry, ldi
from .nn_mass import nn_mass

__all__ = ["LDI", "LayerIsometry", "ldi", "nn_mass"]
