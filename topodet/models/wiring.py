"""`Wiring`: a topology with one weight an edge, as a module that any stage can own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError, WeightsError, unknown_name
from ..topology import Topology
from .aggregation import Graph, Sums, make_sums

EdgeWeights = Literal["learned", "fixed"]


class Wiring(nn.Module):
    """The edges of one stage and their weights alpha (Eq. 1), saved together.

    A state dict holds `alpha`, float [E], and `edges`, int64 [E, 2] of (source, target): a file tells its own
    topology, and one that differs from this module's is refused.

    Args:
        topology: the stage's graph.
        edge_weights: "learned" makes alpha a parameter, "fixed" a buffer. Both start at 1.

    Raises:
        ConfigError: another `edge_weights`.
        WeightsError: on `load_state_dict`, when the file has another topology.
    """

    def __init__(self, topology: Topology, edge_weights: EdgeWeights = "learned"):
        super().__init__()
        self.topology = topology
        alpha = torch.ones(topology.num_edges)
        if edge_weights == "learned":
            self.alpha = nn.Parameter(alpha)
        elif edge_weights == "fixed":
            self.register_buffer("alpha", alpha)
        else:
            raise ConfigError(unknown_name("edge_weights", edge_weights, ("learned", "fixed")))
        self.register_buffer("edges", torch.tensor(topology.edges, dtype=torch.int64))
        # Of the same graph as `edges`: a file with another one is refused.
        self.graph = Graph(topology.predecessors)
        self.register_buffer("by_source", torch.tensor(self.graph.by_source, dtype=torch.int64), persistent=False)

    @property
    def learned(self) -> bool:
        """Whether training changes alpha."""
        return isinstance(self.alpha, nn.Parameter) and self.alpha.requires_grad

    def reset_parameters(self) -> None:
        """Set every edge weight to 1, as the paper does."""
        nn.init.ones_(self.alpha)

    def sums(self, like: Tensor) -> Sums:
        """Return the weighted sums of one pass, over features that have the dtype and device of `like`."""
        return make_sums(self.graph, self.alpha, self.by_source, like)

    def extra_repr(self) -> str:
        """Show the graph in the printed module."""
        return f"{self.topology}, {'learned' if self.learned else 'fixed'}"

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Raised here and not collected, because frameworks that load with strict=False only log what is collected.
        edges = state_dict.get(f"{prefix}edges")
        if edges is not None and (edges.shape != self.edges.shape or not torch.equal(edges.cpu(), self.edges.cpu())):
            raise WeightsError(self._describe_mismatch(prefix, edges))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _describe_mismatch(self, prefix: str, edges: Tensor) -> str:
        theirs = {tuple(edge) for edge in edges.tolist()}
        ours = set(self.topology.edges)
        parts = [
            f"{len(extra)} edge(s) only in the {where}, e.g. {sorted(extra)[0]}"
            for where, extra in (("file", theirs - ours), ("model", ours - theirs))
            if extra
        ]
        return (
            f"{prefix}edges: the file has another topology than the model: file {len(theirs)} edges, "
            f"model {len(ours)} edges; {'; '.join(parts) or 'the edges are in another order'}. Build the model from "
            "the file (topodet.weights.build) or choose the architecture that the file was trained with"
        )
