"""Learned wiring for networks that exist: residual streams unfolded into graphs (Eq. 1) whose weights can learn."""

from .connect import connect, connectable, disconnect, rewirable, rewire
from .residual import Residual
from .sequential import ConnectedSequential, ResidualWiring

__all__ = [
    "ConnectedSequential",
    "Residual",
    "ResidualWiring",
    "connect",
    "connectable",
    "disconnect",
    "rewirable",
    "rewire",
]
