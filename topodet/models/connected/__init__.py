"""Learned wiring for existing networks: runs of blocks as graphs (Eq. 1) with learned weights."""

from .block import ConnectedBlock, RunWiring, runs
from .connect import Nodes, RunPlan, connect, connectable, disconnect, rewirable, rewire
from .prune import RunEdges, keep_edges_, prune_run_, removed_from_run
from .residual import Residual

__all__ = [
    "ConnectedBlock",
    "Nodes",
    "Residual",
    "RunEdges",
    "RunPlan",
    "RunWiring",
    "connect",
    "connectable",
    "disconnect",
    "keep_edges_",
    "prune_run_",
    "removed_from_run",
    "rewirable",
    "rewire",
    "runs",
]
