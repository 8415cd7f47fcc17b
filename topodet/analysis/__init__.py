"""Looking at networks: measures, how far two wirings are apart, and pictures."""

from .ldi import LDI, LayerIsometry, ldi
from .nn_mass import nn_mass
from .nnstd import nnstd

__all__ = ["LDI", "LayerIsometry", "ldi", "nn_mass", "nnstd"]
