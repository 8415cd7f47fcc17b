"""NN-Mass and layerwise dynamical isometry (CVPR 2021, arXiv 1910.00780)."""

from .cells import Cell, NNMass, nn_mass_of_cells
from .dense_cells import DenseCell, DenseCells, dense_cnn, dense_mlp
from .ldi import LDI, LayerIsometry, ldi
from .networks import nn_mass

__all__ = [
    "LDI",
    "Cell",
    "DenseCell",
    "DenseCells",
    "LayerIsometry",
    "NNMass",
    "dense_cnn",
    "dense_mlp",
    "ldi",
    "nn_mass",
    "nn_mass_of_cells",
]
