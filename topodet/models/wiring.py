"""`Wiring`: a topology with one weight per edge, as a module that any stage can own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError, WeightsError, unknown_name
from ..ops import Graph, WeightedSums
from ..topology import Topology
from ..topology.graph import Edge
from ..topology.paths import subgraph
from .fixed_tensors import FixedTensors

EdgeWeights = Literal["learned", "fixed"]
Start = Literal["ones", "chain"]


def other_dtype(theirs: Tensor, ours: Tensor) -> bool:
    """Whether a tensor's dtype does not fit a network's: floats of any width fit floats, other dtypes must be equal."""
    return theirs.dtype != ours.dtype and not (theirs.is_floating_point() and ours.is_floating_point())


def check_dtypes(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Refuse values that torch would convert silently: integers, booleans and complex numbers for floats.

    Raises:
        WeightsError: names a tensor and both dtypes.
    """
    for name, ours in module.state_dict(keep_vars=True).items():
        theirs = state_dict.get(prefix + name)
        if isinstance(theirs, Tensor) and other_dtype(theirs, ours):
            words = [str(tensor.dtype).removeprefix("torch.") for tensor in (theirs, ours)]
            raise WeightsError(f"{prefix}{name} is {words[0]} in the file and {words[1]} in the model")


class Wiring(FixedTensors):
    """The edges of one stage and their weights alpha (Eq. 1), saved together.

    A state dict contains `alpha`, float [E], and `edges`, int64 [E, 2] of (source, target): a file contains its own
    topology, and is refused if that differs from this module's.

    Args:
        topology: the stage's graph.
        edge_weights: "learned" makes alpha a parameter, "fixed" a buffer.
        start: initial alpha: "ones", or "chain" for 1 on the edges from a node to the next and 0 on others.
        numbers: numbers of the nodes in `edges`, ascending; 0, 1, ... by default. The remaining nodes of a larger graph
            can keep their numbers.
        device, dtype: device and dtype of alpha; the edges are on the same device.

    Raises:
        ConfigError: an invalid `edge_weights`.
        WeightsError: on `load_state_dict`, when the file has a different topology.
    """

    alternate = True  # see `ops.Graph`

    def __init__(
        self,
        topology: Topology,
        edge_weights: EdgeWeights = "learned",
        *,
        start: Start = "ones",
        numbers: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.topology = topology
        self.numbers = tuple(range(topology.num_nodes) if numbers is None else numbers)
        self.start = start
        alpha = self.initial_alpha(device=device, dtype=dtype)
        if edge_weights == "learned":
            self.alpha = nn.Parameter(alpha)
        elif edge_weights == "fixed":
            self.register_buffer("alpha", alpha)
        else:
            raise ConfigError(unknown_name("edge_weights", edge_weights, ("learned", "fixed")))
        self.register_fixed("edges", torch.tensor(self._numbered(), dtype=torch.int64, device=device))
        # Always of the same graph as `edges`, since a file with a different one is refused.
        self.graph = Graph(topology.predecessors, alternate=self.alternate)
        order = torch.tensor(self.graph.order, dtype=torch.int64, device=device)
        self.register_fixed("order", order, persistent=False)

    @property
    def learned(self) -> bool:
        """Whether training changes alpha."""
        return isinstance(self.alpha, nn.Parameter) and self.alpha.requires_grad

    def initial_alpha(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return the initial alpha, float [E]."""
        values = [float(self.start == "ones" or i - j == 1) for j, i in self._numbered()]
        return torch.tensor(values, device=device, dtype=dtype or torch.get_default_dtype())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set every edge weight to its initial value, and the edges, which `to_empty` leaves undefined."""
        self.alpha.copy_(self.initial_alpha())
        self._fill("edges", self._numbered())
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Set the tensors that are not saved and that `to_empty` leaves undefined; the name is timm's."""
        self._fill("order", self.graph.order)

    @torch.no_grad()
    def subset(self, edges: Collection[Edge], *, renumber: bool) -> Wiring:
        """Return a wiring of some of these edges with their current weights; a learned wiring stays learned.

        Args:
            edges: edges of `topology`, with its node numbers.
            renumber: whether the remaining nodes are numbered 0, 1, ... in a file, or keep their numbers.

        Raises:
            TopologyError: one of their nodes is not on a path from the first to the last.
        """
        topology, nodes = subgraph(edges)
        numbers = None if renumber else [self.numbers[node] for node in nodes]
        kind = "learned" if isinstance(self.alpha, nn.Parameter) else "fixed"
        part = type(self)(topology, kind, start=self.start, numbers=numbers).to(self.alpha).train(self.training)
        wanted = set(edges)
        kept = [edge in wanted for edge in self.topology.edges]
        # The edges keep their order, as the nodes keep theirs.
        part.alpha.copy_(self.alpha[torch.tensor(kept, device=self.alpha.device)])
        part.alpha.requires_grad_(self.alpha.requires_grad)
        return part

    def sums(self, like: Tensor) -> WeightedSums:
        """Return the weighted sums of one pass, over features that have the dtype and device of `like`."""
        # Some code moves only parameters and buffers.
        return WeightedSums(self.graph, self.alpha, self.order.to(self.alpha.device), like)

    def extra_repr(self) -> str:
        """Show the graph in the printed module."""
        return f"{self.topology}, {'learned' if self.learned else 'fixed'}"

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Raised here and not collected, because frameworks that load with strict=False only log collected errors.
        # Compared with the topology and not with the buffer, which has no values on the meta device.
        check_dtypes(self, state_dict, prefix)
        edges = state_dict.get(f"{prefix}edges")
        if edges is not None and not edges.is_meta and not self._is_same_graph(prefix, edges):
            raise WeightsError(self._describe_mismatch(prefix, edges))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if edges is None:
            self._fill("edges", self._numbered())
        self.init_non_persistent_buffers()

    @torch.no_grad()
    def _fill(self, name: str, values: Sequence[Sequence[int]]) -> None:
        """Set a buffer, on the device of alpha; in place if it is already there, to keep references valid."""
        tensor = torch.tensor(values, dtype=torch.int64, device=self.alpha.device)
        if getattr(self, name).device == tensor.device:
            getattr(self, name).copy_(tensor)
        else:
            setattr(self, name, tensor)

    def _numbered(self) -> list[Edge]:
        return [(self.numbers[j], self.numbers[i]) for j, i in self.topology.edges]

    def _is_same_graph(self, prefix: str, edges: Tensor) -> bool:
        if edges.ndim != 2 or edges.shape[1] != 2:
            raise WeightsError(
                f"{prefix}edges is {list(edges.shape)}, not [edges, 2]: the file is damaged, fetch it again"
            )
        return len(edges) == self.topology.num_edges and edges.tolist() == [list(edge) for edge in self._numbered()]

    def _describe_mismatch(self, prefix: str, edges: Tensor) -> str:
        theirs = {tuple(edge) for edge in edges.tolist()}
        ours = set(self._numbered())
        parts = [
            f"{len(extra)} edge(s) only in the {where}, e.g. {sorted(extra)[0]}"
            for where, extra in (("file", theirs - ours), ("model", ours - theirs))
            if extra
        ]
        return (
            f"{prefix}edges: the file has a different topology than the model: file {len(theirs)} edges, "
            f"model {len(ours)} edges; {'; '.join(parts) or 'the edges are in a different order'}. Build the model "
            "from the file (topodet.weights.build) or choose the architecture that the file was trained with"
        )
