"""Pretraining of classification networks: timm's parts, a penalty on the edges, and runs that survive a kill."""

from topodet.pretrain.run import main

__all__ = ["main"]
