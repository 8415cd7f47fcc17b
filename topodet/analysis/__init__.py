"""Looking at trained networks: pictures of their wiring, and how far two wirings are apart."""

from .nnstd import nnstd

__all__ = ["nnstd"]
