"""Networks as training leaves them, and what they compute without some of their edges, by brute force."""

import torch
from torch import nn

from topodet import connectivity


@torch.no_grad()
def shake(model):
    """Give a model what training would: statistics, scales and shifts, edge weights of all sizes."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.weight.normal_(1, 0.3)
            module.bias.normal_()
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for wiring in connectivity.wirings(model).values():
        wiring.alpha.copy_(torch.randn_like(wiring.alpha) * 10 ** -torch.rand_like(wiring.alpha))
    return model.double().eval()


def strengths(wiring, per):
    """|alpha| of each edge, by (source, target), as `per` measures it."""
    size = {edge: abs(value) for edge, value in zip(wiring.topology.edges, wiring.alpha.tolist())}
    if per == "network":
        return size
    return {
        (j, i): value / max(v for (_, k), v in size.items() if per == "stage" or k == i)
        for (j, i), value in size.items()
    }


def left(topology, kept):
    """The nodes that stay and their sources, by taking out what has no input or no output until nothing changes."""
    last = topology.num_nodes - 1
    nodes = set(range(topology.num_nodes))
    while True:
        sources = {i: [j for j, k in kept if k == i and j in nodes] for i in nodes}
        read = {j for found in sources.values() for j in found}
        stay = {i for i in nodes if (i == 0 or sources[i]) and (i == last or i in read)}
        if stay == nodes:
            return sources
        nodes = stay


def reference(stage, x, sources):
    """Eq. 1, node by node and edge by edge, over the nodes that stay."""
    alpha = dict(zip(stage.wiring.topology.edges, stage.wiring.alpha))
    features = {0: stage.nodes[0](x)}
    for i in sorted(sources)[1:]:
        features[i] = stage.nodes[i](sum(alpha[j, i] * features[j] for j in sources[i]))
    return features[stage.topology.num_nodes - 1]
