"""SWNet: CNNs retargeted into small worlds at the level of channels."""

from .channels import ChannelGraph, layered
from .model import RetargetedConv2d, channel_graph, rebuild_swnet, swnet
from .small_world import SmallWorld, small_world
from .sweep import SmallWorldSweep, small_world_sweep

__all__ = [
    "ChannelGraph",
    "RetargetedConv2d",
    "SmallWorld",
    "SmallWorldSweep",
    "channel_graph",
    "layered",
    "rebuild_swnet",
    "small_world",
    "small_world_sweep",
    "swnet",
]
