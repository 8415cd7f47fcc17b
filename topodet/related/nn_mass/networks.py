"""NN-Mass of a network: its skip connections found in its modules (CVPR 2021, arXiv 1910.00780)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import timm.models.densenet
import timm.models.resnet
import torchvision.models.densenet
import torchvision.models.mobilenetv2
import torchvision.models.resnet
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from torch import nn

from ...errors import ConfigError
from ...models import TopoStage
from ...models.connected import runs
from ...models.wiring import Wiring
from .cells import Cell, NNMass, possible_skips
from .dense_cells import DenseCell


def nn_mass(model: nn.Module) -> NNMass:
    """Return density and mass of every cell of a network, by the names of its modules, in their order.

    In a cell nodes hold channels. A channel that a node reads from a node before its predecessor is a skip channel.
    Density is their number divided by the largest possible one, mass is density times the channels of the cell's nodes.

    - DenseNet-type cells (`DenseCell`): the paper's formula, over the channels that the layers read.
    - Blocks of DenseNets (timm, torchvision): nodes are the block's input and its layers, with what each adds. Every
      layer reads everything, so the density is 1. A layer's bottleneck is inside its node.
    - Additive blocks, the paper's rule: nodes are the inputs of the block's convolutions, and its sum. A BasicBlock of
      widths w_in, w has mass w_in + w, a Bottleneck (w_in + 2 w) w_in / (2 w_in + w), an InvertedResidual the same if
      its shortcut is the identity, otherwise 0. ResNets (timm, torchvision), MobileNetV2 (timm, torchvision) and timm's
      other networks with the same blocks, such as EfficientNets; squeeze-and-excitation does not count as a
      convolution.
    - Wirings, our extension of the paper: nodes are those of the graph and have the stage's channels. Each edge (j, i)
      with j < i - 1 adds as many skip channels as its source has: node i has in_degree(i) such edges, or one fewer if
      node i - 1 is among its inputs. A complete graph has density 1, as a DenseNet-type cell whose layers read all, and
      a chain 0. Edges whose alpha is exactly 0 do not count. The last node of a stage computes, and its channels count;
      that of a run of connected blocks (`topodet.models.connect`) only sums, as at the end of an additive block, and
      its channels do not count. The inside of a connected block does not count either.

    The masses of cells are added. The connected and the original form of a network have different masses, which must
    not be compared.

    Args:
        model: any module with such cells. It is not run.

    Raises:
        ConfigError: it has no cells.
    """
    runs = dict(_runs(model))
    cells = tuple(
        cell
        for name, module in model.named_modules()
        for cell in (runs[name] if name in runs else _cells(name, module))
    )
    if not cells:
        raise ConfigError(
            f"{type(model).__name__} has no cell that nn_mass supports: DenseCell, TopoStage, connected blocks, blocks "
            "of DenseNets, BasicBlock, Bottleneck and InvertedResidual of timm and torchvision"
        )
    return NNMass(cells)


def _cells(name: str, module: nn.Module) -> Iterator[Cell]:
    """Yield the module's cell, if it is one."""
    if isinstance(module, DenseCell):
        width, depth, _ = module.cell
        reads = [layer.reads.numel() for layer in module.layers[1:]]
        yield Cell(width * depth, sum(reads) - width * (depth - 1), possible_skips([width] * (depth - 1)), name)
    elif isinstance(module, TopoStage):
        yield _wired(name, module.wiring, module.topology.num_nodes, module.out_chs, sums_only=False)
    else:
        for kinds, make in _BLOCKS.items():
            if isinstance(module, kinds):
                yield make(name, module)
                break


def _runs(model: nn.Module) -> Iterator[tuple[str, list[Cell]]]:
    """Yield the names of all connected blocks, each run's cell with its first one."""
    for blocks in runs(model).values():
        (first, block), *others = blocks.items()
        end, wiring, width = next(reversed(blocks.values())).link.end, block.wiring, block.link.run.width
        sums_only = end < wiring.topology.num_nodes
        computes = any(block.link.branches for block in blocks.values())  # pruning may have removed all branches
        if computes and width is None:
            raise ConfigError(f"{type(block).__name__} has no layer to read the width of its stream from")
        yield first, [_wired(first, wiring, end + sums_only, width, sums_only=sums_only)] if computes else []
        yield from ((other, []) for other, _ in others)


def _wired(name: str, wiring: Wiring, nodes: int, channels: int, *, sums_only: bool) -> Cell:
    """Return the cell of the first nodes of a wiring."""
    alive = (wiring.alpha != 0).tolist()
    skips = sum(is_alive for is_alive, (j, i) in zip(alive, wiring.topology.edges) if j < i - 1 and i < nodes)
    counted = nodes - 1 if sums_only else nodes
    return Cell(channels * counted, channels * skips, possible_skips([channels] * (nodes - 1)), name)


def _additive(name: str, widths: Sequence[int], *, shortcut: bool) -> Cell:
    """Return the cell of a block from the input channels of its convolutions."""
    return Cell(sum(widths), widths[0] if shortcut else 0, possible_skips(widths), name)


def _basic(name: str, block: nn.Module) -> Cell:
    return _additive(name, [block.conv1.in_channels, block.conv2.in_channels], shortcut=True)


def _bottleneck(name: str, block: nn.Module) -> Cell:
    convs = (block.conv1, block.conv2, block.conv3)
    return _additive(name, [conv.in_channels for conv in convs], shortcut=True)


def _timm_inverted(name: str, block: nn.Module) -> Cell:
    convs = (block.conv_pw, block.conv_dw, block.conv_pwl)
    return _additive(name, [conv.in_channels for conv in convs], shortcut=block.has_skip)


def _timm_separable(name: str, block: nn.Module) -> Cell:
    convs = (block.conv_dw, block.conv_pw)
    return _additive(name, [conv.in_channels for conv in convs], shortcut=block.has_skip)


def _torchvision_inverted(name: str, block: nn.Module) -> Cell:
    convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    return _additive(name, [conv.in_channels for conv in convs], shortcut=block.use_res_connect)


def _dense(name: str, block: nn.Module) -> Cell:
    layers = list(block.children())
    # No later layer reads the last one; its output counts in the cell's channels.
    widths = [layers[0].conv1.in_channels, *(layer.conv2.out_channels for layer in layers)]
    possible = possible_skips(widths[:-1])
    return Cell(sum(widths), possible, possible, name)


_BLOCKS: dict[tuple[type[nn.Module], ...], Callable[[str, nn.Module], Cell]] = {
    (timm.models.resnet.BasicBlock, torchvision.models.resnet.BasicBlock): _basic,
    (timm.models.resnet.Bottleneck, torchvision.models.resnet.Bottleneck): _bottleneck,
    (InvertedResidual,): _timm_inverted,
    (DepthwiseSeparableConv,): _timm_separable,
    (torchvision.models.mobilenetv2.InvertedResidual,): _torchvision_inverted,
    (timm.models.densenet.DenseBlock, torchvision.models.densenet._DenseBlock): _dense,
}
