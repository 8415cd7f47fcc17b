"""A stage of a TopoNet: nodes that read weighted sums of earlier nodes (Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..ops import WeightedSums
from ..topology import Topology
from ..topology.graph import Edge
from ..topology.paths import check_paths
from .wiring import EdgeWeights, Wiring

NormLayer = Callable[..., nn.Module]  # takes channels, and device and dtype if they are given


class Node(nn.Module):
    """The operation o_i: ReLU, 3x3 depthwise, 1x1 pointwise, normalization.

    Maps [B, in_chs, H, W] to [B, out_chs, ceil(H / stride), ceil(W / stride)]; with `inplace` the ReLU overwrites its
    input. `factory` is the device and dtype of the parameters, if given.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm_layer: NormLayer = nn.BatchNorm2d,
        inplace: bool = False,
        **factory: Any,
    ):
        super().__init__()
        self.inplace = inplace
        self.conv_dw = nn.Conv2d(
            in_chs, in_chs, 3, stride=stride, padding=dilation, dilation=dilation, groups=in_chs, bias=False, **factory
        )
        self.conv_pw = nn.Conv2d(in_chs, out_chs, 1, bias=False, **factory)
        self.norm = norm_layer(out_chs, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the node on the sum of its inputs."""
        x = F.relu(x, inplace=self.inplace)
        x = self.conv_dw(x)
        x = self.conv_pw(x)
        return self.norm(x)


class TopoStage(nn.Module):
    """The nodes of one graph; node 0 halves the resolution and changes the width, the last one is the output.

    Maps [B, in_chs, H, W] to [B, out_chs, ceil(H / stride), ceil(W / stride)].

    "The change of filters is implied by the first calculation node in each graph" (section 4). Every node computes: of
    the possible readings, this one is closest to the paper's 23.23M parameters and 3.95G multiply-adds.

    Args:
        in_chs: channels of the input.
        out_chs: channels of every node.
        topology: the graph.
        edge_weights: "learned" or "fixed", see `Wiring`.
        norm_layer: takes the number of channels and returns a normalization module.
        stride: stride of node 0.
        first_dilation, dilation: dilations of the 3x3 convolutions of node 0, and of the others.
        factory: device and dtype of the parameters, if given; passed to `norm_layer` too.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        topology: Topology,
        *,
        edge_weights: EdgeWeights = "learned",
        norm_layer: NormLayer = nn.BatchNorm2d,
        stride: int = 2,
        first_dilation: int = 1,
        dilation: int = 1,
        **factory: Any,
    ):
        super().__init__()
        self.wiring = Wiring(topology, edge_weights, **factory)
        self.nodes = nn.ModuleList(
            # A node may overwrite the sum that it reads, but not the input of a stage, which is also a feature map.
            Node(out_chs, out_chs, dilation=dilation, norm_layer=norm_layer, inplace=True, **factory)
            if i
            else Node(in_chs, out_chs, stride=stride, dilation=first_dilation, norm_layer=norm_layer, **factory)
            for i in range(topology.num_nodes)
        )
        self.out_chs = out_chs
        self.stride = stride
        self.grad_checkpointing = False

    @property
    def topology(self) -> Topology:
        """The graph."""
        return self.wiring.topology

    def prune_to_edges_(self, edges: Collection[Edge]) -> None:
        """Remove, in place, all edges but these, and the nodes left without edges; renumber the other nodes.

        Raises:
            TopologyError: they are not all on paths from the stage's input to its output.
        """
        check_paths(self.topology, edges)
        gone = self.removed_names(edges)
        self.wiring = self.wiring.subset(edges, renumber=True)
        left = (node for i, node in enumerate(self.nodes) if f"nodes.{i}" not in gone)
        self.nodes = nn.ModuleList(left).train(self.nodes.training)

    def removed_names(self, edges: Collection[Edge]) -> list[str]:
        """Return the names of the modules that `prune_to_edges_` would remove; changes nothing."""
        left = {node for edge in edges for node in edge}
        return [f"nodes.{i}" for i in range(len(self.nodes)) if i not in left]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the nodes in topological order and return the last one's output."""
        x = self.nodes[0](x)
        sums = self.wiring.sums(x)
        for i in range(1, len(self.nodes)):
            sums.put(i - 1, x)
            if self.grad_checkpointing and self.training:
                # The features are kept anyway for the other nodes that read them; only the inside is recomputed.
                x = checkpoint(_read_and_compute, self.nodes[i], sums, i, use_reentrant=False)
            else:
                x = _read_and_compute(self.nodes[i], sums, i)
        return x


def _read_and_compute(node: Node, sums: WeightedSums, i: int) -> Tensor:
    return node(sums.read(i))
