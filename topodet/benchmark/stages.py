"""The same nodes combined in other ways: lower and upper bounds for the time of a stage.

Nothing here uses code of topodet.models or topodet.ops, so it stays the same when these change.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..models import Node, TopoNet, TopoStage


def plain_node(node: Node) -> nn.Sequential:
    """Return the layers of a node in series; parameters have the same names."""
    layers = {name: getattr(node, name) for name in ("conv_dw", "conv_pw", "norm")}
    return nn.Sequential(OrderedDict(act=nn.ReLU(inplace=node.inplace), **layers))


class Chain(nn.Module):
    """The lower bound: each node of a stage reads the previous one directly, and nothing is summed.

    Args:
        stage: whose nodes are used.
    """

    def __init__(self, stage: TopoStage):
        super().__init__()
        self.nodes = nn.ModuleList(map(plain_node, stage.nodes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the last node's output."""
        for node in self.nodes:
            x = node(x)
        return x


class PlainLoop(nn.Module):
    """The naive form of a stage: `y = y + alpha * x`, edge by edge.

    Args:
        stage: whose nodes and edges are used.
    """

    def __init__(self, stage: TopoStage):
        super().__init__()
        self.nodes = nn.ModuleList(map(plain_node, stage.nodes))
        self.wiring = stage.wiring

    def forward(self, x: Tensor) -> Tensor:
        """Return the last node's output."""
        features = [self.nodes[0](x)]
        alpha = self.wiring.alpha.to(features[0].dtype).unbind()
        topology = self.wiring.topology
        for i in range(1, topology.num_nodes):
            (first, weight), *others = zip(topology.predecessors[i], alpha[topology.incoming[i]])
            total = features[first] * weight
            for j, weight in others:
                total = torch.addcmul(total, features[j], weight)
            features.append(self.nodes[i](total))
        return features[-1]


def rebuilt(model: TopoStage | TopoNet, kind: type[Chain] | type[PlainLoop]) -> nn.Module:
    """Return a stage as `kind`, or a network with each of its stages as `kind`; parameters have the same names.

    They are called in sequence, in the given memory format.
    """
    if isinstance(model, TopoStage):
        return kind(model)
    stages = nn.Sequential(*map(kind, model.stages))
    return nn.Sequential(OrderedDict(stem=model.stem, stages=stages, head=model.head))
