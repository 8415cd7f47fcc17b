"""Small stages with random edge weights, and Eq. 1 written down edge by edge to compare them with."""

import torch
from torch import nn

from topodet.models import TopoStage


def make_stage(topology, *, in_chs=2, out_chs=3, dtype=torch.float64, **kwargs):
    stage = TopoStage(in_chs, out_chs, topology, **kwargs).to(dtype)
    if stage.wiring.learned:
        nn.init.normal_(stage.wiring.alpha)
    return stage


def edge_by_edge(stage, x):
    """Eq. 1 as it stands, with autograd's own gradients."""
    alpha = dict(zip(stage.wiring.topology.edges, stage.wiring.alpha.unbind()))
    x = {0: stage.nodes[0](x)}
    for i in range(1, len(stage.nodes)):
        terms = [alpha[j, i].to(x[j].dtype) * x[j] for j in range(i) if (j, i) in alpha]
        x[i] = stage.nodes[i](sum(terms[1:], terms[0]))
    return x[len(stage.nodes) - 1]


def gradients(stage, run, x):
    """Return the output, and the gradients of the input and of all parameters."""
    stage.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.mul(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in stage.parameters() if p.grad is not None)]
