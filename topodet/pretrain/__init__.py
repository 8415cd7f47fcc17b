"""Pretraining of classification networks with timm, a penalty on the edges, and exact resume after interruptions."""

from topodet.pretrain.run import main

__all__ = ["main"]
