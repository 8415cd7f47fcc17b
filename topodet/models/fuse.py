"""Optimize a trained network for inference: less computation, the same result."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from ..ops import Graph, WeightedSums
from ..topology.paths import live_edges
from .connected import ConnectedBlock, prune_run_, runs
from .fixed_tensors import FixedTensors
from .reparametrized import refuse_reparametrized
from .stage import Node, TopoStage
from .trunk import Stem


@torch.no_grad()
def fuse_for_inference(model: nn.Module) -> nn.Module:
    """Return a copy of a model, in eval mode, whose stems and stages compute the same with fewer operations.

    In every `Stem` and `TopoStage` of the model (a network, a backbone, a whole detector):

    - Normalization by stored statistics (batch normalization, synchronized or frozen) is folded into the previous
      convolution: `scale * (W x - mean) + shift = (scale W) x + (shift - scale mean)`, with `scale = weight / sqrt(var
      + eps)`. Other normalization layers are not changed, and neither is batch normalization without stored statistics.
    - Edges whose alpha is exactly 0 are removed, and with them the nodes that no longer reach the stage's output. A
      node without inputs is constant, one number per channel, which is added to the sums of its readers.

    In connected networks (`connect`, `rewire`), edges of weight 0 and nodes that no longer reach the output of their
    run are removed as by `connectivity.prune`; other blocks are not changed. A run in which a node has no inputs left
    stays whole.

    The output equals that of `model.eval()` up to rounding: the new weights are computed in float64, and have the dtype
    of the old ones. Fuse before `torch.compile`, tracing or export, which all accept the result. Fusing a fused model
    copies it.

    The result is not for training: its fused parameters have no gradient, and `train()` does not restore batch
    statistics. Its state dict fits no other model; load weights before fusing. Hooks on the replaced modules are lost.
    Subclasses of `Stem` and `TopoStage` are not changed, because they may compute something else.

    Args:
        model: any module that contains a `TopoStage` or connected blocks, or is one. It is not changed.

    Raises:
        ConfigError: a model without a `TopoStage` and without connected blocks, or with weights that are computed at
            each call, as after `torch.nn.utils.prune`.

    Example:
        >>> model = TopoNet(nodes=(3, 3), width=4, num_classes=2).eval()
        >>> fuse_for_inference(model)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 2])
    """
    if not any(type(module) in (TopoStage, FusedStage) for module in model.modules()) and not runs(model):
        raise ConfigError(
            f"fuse_for_inference: {type(model).__name__} contains no TopoStage and no connected blocks, there is "
            "nothing to fuse; give a TopoNet, a connected network, or a backbone or detector that has one"
        )
    refuse_reparametrized(model, "fuse_for_inference")
    replacements: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        if type(module) is Stem:
            replacements[id(module)] = _fused_stem(module)
        elif type(module) is TopoStage:
            fused = replacements[id(module)] = FusedStage(module)
            if "0" not in fused.nodes:
                warnings.warn(
                    f"fuse_for_inference: the edges of {name or 'the stage'} whose alpha is not 0 do not connect its "
                    "input with its output; its feature map does not depend on the image",
                    stacklevel=3,  # the decorator adds a frame
                )
    # `deepcopy` uses the modules in its memo instead of copying.
    fused = copy.deepcopy(model, replacements).eval()
    for blocks in runs(fused).values():
        _drop_zeros(blocks)
    return fused


def _drop_zeros(blocks: Mapping[str, ConnectedBlock]) -> None:
    """Remove the edges of weight 0 from a run, in place, unless a node would be left without input."""
    wiring = next(iter(blocks.values())).wiring
    edges = [edge for edge, alpha in zip(wiring.topology.edges, wiring.alpha.tolist()) if alpha]
    live = live_edges(wiring.topology, edges)
    inputs = [[j for j, target in edges if target == i] for i in range(wiring.topology.num_nodes)]
    needed = _ancestors(wiring.topology.num_nodes - 1, inputs)
    # A node without inputs returns a constant, which is not 0.
    if {i for _, i in live} == set(needed) - {0} and len(live) == sum(len(inputs[i]) for i in needed):
        prune_run_(blocks, live)


class FusedNode(nn.Module):
    """A `Node` after its sum: ReLU, 3x3 depthwise, 1x1 pointwise, and the rest of the normalization.

    Args:
        node: a copy, which is consumed.
        offset: float64 [C], the part of the sum that is the same for every image; None for nothing.
    """

    def __init__(self, node: Node, offset: Tensor | None):
        super().__init__()
        self.conv_dw, self.conv_pw = node.conv_dw, node.conv_pw
        self.norm = _fold(node.norm, node.conv_pw)
        self.register_buffer("offset", None if offset is None else offset.to(node.conv_dw.weight)[:, None, None])
        self.inplace = node.inplace
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the node on the sum of its inputs, [B, in_chs, H, W]."""
        x = x if self.offset is None else x + self.offset
        x = F.relu(x, inplace=self.inplace)
        x = self.conv_dw(x)
        x = self.conv_pw(x)
        return self.norm(x)


class FusedStage(FixedTensors):
    """A `TopoStage` after `fuse_for_inference`; the remaining nodes keep their names.

    Args:
        stage: the stage, which is not changed.

    Attributes:
        topology: the graph of the original stage.
        edges: the remaining edges, in their order.
        alpha: their weights.
        out_chs: channels of the output.
        stride: stride of the first node.
    """

    def __init__(self, stage: TopoStage):
        super().__init__()
        self.topology, self.out_chs, self.stride = stage.topology, stage.out_chs, stage.stride
        last = self.topology.num_nodes - 1
        alpha = dict(zip(self.topology.edges, stage.wiring.alpha.tolist()))
        inputs = [[j for j in sources if alpha[j, i]] for i, sources in enumerate(self.topology.predecessors)]
        # A node without inputs is the same for every image: 0 after the convolutions, and then normalized. The last
        # node is computed anyway, since its feature map is the output of the stage.
        constant = {i: _at_zero(stage.nodes[i]) for i in range(1, last) if not inputs[i]}
        kept = [i for i in _ancestors(last, inputs) if i not in constant]
        self.nodes = nn.ModuleDict()
        for i in kept:
            same = [alpha[j, i] * constant[j] for j in inputs[i] if j in constant]
            self.nodes[str(i)] = FusedNode(copy.deepcopy(stage.nodes[i]), sum(same) if same else None)
        self.edges = tuple((j, i) for i in kept for j in inputs[i] if j not in constant)
        self.graph = Graph(tuple(tuple(kept.index(j) for j, target in self.edges if target == i) for i in kept))
        like = stage.nodes[last].conv_dw.weight
        self.register_buffer("alpha", like.new_tensor([alpha[edge] for edge in self.edges]))
        self.register_fixed("order", torch.tensor(self.graph.order, dtype=torch.int64), persistent=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the last node's output, [B, out_chs, ceil(H / stride), ceil(W / stride)]."""
        height, width = ((side + self.stride - 1) // self.stride for side in (x.shape[2], x.shape[3]))
        size = x.shape[0], self.out_chs, height, width
        sums = None
        for k, (name, node) in enumerate(self.nodes.items()):
            if name == "0":
                feature = node(x)
            elif self.graph.sources[k]:
                feature = node(sums.read(k))
            else:
                feature = node(x.new_zeros(size))
            if k + 1 < len(self.nodes):
                sums = sums or WeightedSums(self.graph, self.alpha, self.order.to(self.alpha.device), feature)
                sums.put(k, feature)
                del feature  # so that it is freed after its last use
        return feature

    def extra_repr(self) -> str:
        """Show the remaining graph in the printed module."""
        return f"{len(self.nodes)} nodes and {len(self.edges)} edges of {self.topology}"


def _ancestors(last: int, inputs: Sequence[Collection[int]]) -> list[int]:
    """Return the nodes from which `last` can be reached, and itself, ascending."""
    found = {last}
    for i in range(last, 0, -1):
        if i in found:
            found.update(inputs[i])
    return sorted(found)


def _at_zero(node: Node) -> Tensor:
    """Return the output of a node without inputs, float64 [C]; it is the same at every position."""
    weight = node.conv_dw.weight
    zeros = weight.new_zeros(1, node.conv_dw.in_channels, 2, 2)
    return copy.deepcopy(node).eval()(zeros)[0, :, 0, 0].double()


def _fused_stem(stem: Stem) -> Stem:
    fused = copy.deepcopy(stem)
    fused.norm = _fold(fused.norm, fused.conv)
    return fused.requires_grad_(False)


def _fold(norm: nn.Module, conv: nn.Conv2d) -> nn.Module:
    """Fold a normalization into the convolution before it, in place; return the remaining operations."""
    if not _has_statistics(norm):
        return norm
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    bias = -scale * norm.running_mean.double()
    bias = bias if norm.bias is None else bias + norm.bias.double()
    weight = conv.weight
    conv.weight = nn.Parameter((weight.double() * scale[:, None, None, None]).to(weight.dtype))
    conv.bias = nn.Parameter(bias.to(weight.dtype))
    # Some layers of timm combine normalization and activation.
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


def _has_statistics(norm: nn.Module) -> bool:
    # By name, because torchvision, Detectron2 and timm each have their own frozen version.
    kind = isinstance(norm, _BatchNorm) or type(norm).__name__.startswith("FrozenBatchNorm")
    return kind and norm.running_mean is not None
