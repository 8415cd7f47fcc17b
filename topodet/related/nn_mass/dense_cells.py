"""Networks with DenseNet-type skip connections of a chosen mass, to study its effect (arXiv 1910.00780)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError, unknown_name
from ...models.fixed_tensors import FixedTensors
from .cells import nn_mass_of_cells

# From (input channels, output channels, stride) to the module of a layer.
LayerFactory = Callable[[int, int, int], nn.Module]
Fan = Literal["fan_in", "fan_out"]


class SkipLayer(FixedTensors):
    """A layer that reads chosen channels of all earlier layers' outputs.

    Args:
        layer: maps [B, len(reads), ...] to [B, width, ...].
        reads: the channels, as indices into the concatenated outputs; int64, saved with the weights.
    """

    def __init__(self, layer: nn.Module, reads: np.ndarray):
        super().__init__()
        self.layer = layer
        self.register_fixed("reads", torch.from_numpy(reads))

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """Compute the layer on its channels of the `outputs` of all earlier layers, [B, width, ...] each."""
        return self.layer(torch.cat(outputs, dim=1).index_select(1, self.reads))


class DenseCell(nn.Module):
    """Layers of one width in series, joined by skip connections: [B, in_chs, ...] to [B, width, ...].

    Layer 0 reads the input. Layer i reads layer i - 1 and min(width (i-1), skip_channels) channels that are drawn at
    random, once, from the outputs of the layers before that one.

    Args:
        in_chs: channels of the input.
        width: channels of every layer.
        depth: number of layers.
        skip_channels: maximum number of channels that a layer reads from before its predecessor.
        layer: function that creates a layer.
        stride: stride of layer 0.
        seed: seed of the draw.
    """

    def __init__(
        self,
        in_chs: int,
        width: int,
        depth: int,
        skip_channels: int,
        *,
        layer: LayerFactory,
        stride: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        self.width = width
        self.skip_channels = skip_channels
        rng = np.random.default_rng(seed)
        self.layers = nn.ModuleList([layer(in_chs, width, stride)])
        for i in range(1, depth):
            own = width * (i - 1)  # where the predecessor's channels start
            skips = np.sort(rng.permutation(own)[:skip_channels])
            reads = np.concatenate([skips, np.arange(own, own + width)])
            self.layers.append(SkipLayer(layer(len(reads), width, 1), reads))

    @property
    def cell(self) -> tuple[int, int, int]:
        """(width, depth, skip_channels), an argument of `topodet.related.nn_mass.nn_mass_of_cells`."""
        return self.width, len(self.layers), self.skip_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the last layer's output."""
        outputs = [self.layers[0](x)]
        for layer in self.layers[1:]:
            outputs.append(layer(outputs))
        return outputs[-1]


class DenseCells(nn.Module):
    """Cells in series, pooling over pixels if there are any, and a linear classifier; see `dense_mlp`, `dense_cnn`."""

    def __init__(self, cells: Sequence[DenseCell], num_classes: int, *, fan: Fan = "fan_in"):
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.head = nn.Linear(cells[-1].width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                if module is self.head:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                else:
                    nn.init.kaiming_normal_(module.weight, mode=fan)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, num_classes]."""
        for cell in self.cells:
            x = cell(x)
        return self.head(x.flatten(2).mean(2) if x.ndim > 2 else x)


def dense_mlp(
    cells: Iterable[Sequence[int]],
    *,
    in_features: int,
    num_classes: int,
    act_layer: Callable[[], nn.Module] = nn.ReLU,
    fan: Fan = "fan_in",
    seed: int = 0,
) -> DenseCells:
    """Build an MLP of DenseNet-type cells: [B, in_features] to [B, num_classes].

    Args:
        cells: (width, depth, skip_channels) of each; the depth does not count the classifier.
        in_features, num_classes: sizes of the data.
        act_layer: the activation after every layer but the classifier.
        fan: He-normal weights by fan-in or fan-out; "fan_out" gives the same variance to all layers of a width, however
            many skip channels they read.
        seed: cell k draws its skip channels with `seed + k`. Weights use torch's random generator.

    Raises:
        TopologyError: an invalid cell.
        ConfigError: no features or no classes, or an unknown `fan`.

    Example:
        >>> model = dense_mlp([(8, 4, 20)], in_features=64, num_classes=10)
        >>> [layer.layer[0].in_features for layer in model.cells[0].layers[1:]]
        [8, 16, 24]
    """
    return _build(cells, in_features, num_classes, partial(_linear, act_layer=act_layer), fan=fan, seed=seed)


def dense_cnn(
    cells: Iterable[Sequence[int]],
    *,
    in_chans: int,
    num_classes: int,
    width_multiplier: float = 1.0,
    act_layer: Callable[[], nn.Module] = nn.ReLU,
    fan: Fan = "fan_in",
    seed: int = 0,
) -> DenseCells:
    """Build a CNN of DenseNet-type cells: [B, in_chans, H, W] to [B, num_classes].

    A layer is a 3x3 convolution, batch normalization and the activation. Every cell but the first halves the
    resolution in its layer 0.

    Args:
        cells: (width, depth, skip_channels) of each.
        in_chans, num_classes: sizes of the data.
        width_multiplier: multiplies every cell's width, rounded; `skip_channels` is not changed.
        act_layer, fan, seed: see `dense_mlp`.

    Raises:
        TopologyError: an invalid cell, or a cell without width after the multiplication.
        ConfigError: no channels or no classes, or an unknown `fan`.
    """
    cells = [(round(width * width_multiplier), depth, skips) for width, depth, skips in cells]
    return _build(
        cells, in_chans, num_classes, partial(_convolution, act_layer=act_layer), stride=2, fan=fan, seed=seed
    )


def _build(
    cells: Iterable[Sequence[int]],
    in_chs: int,
    num_classes: int,
    layer: LayerFactory,
    *,
    stride: int = 1,
    fan: Fan,
    seed: int,
) -> DenseCells:
    if in_chs < 1 or num_classes < 1:
        raise ConfigError(f"a network needs inputs and classes, got {in_chs} inputs and num_classes={num_classes}")
    if fan not in get_args(Fan):
        raise ConfigError(unknown_name("fan", fan, get_args(Fan)))
    cells = list(cells)
    nn_mass_of_cells(cells)  # raises for invalid cells
    made = []
    for k, (width, depth, skip_channels) in enumerate(cells):
        options = {"layer": layer, "stride": stride if k else 1, "seed": seed + k}
        made.append(DenseCell(in_chs, width, depth, skip_channels, **options))
        in_chs = width
    return DenseCells(made, num_classes, fan=fan)


def _linear(in_chs: int, out_chs: int, _: int, *, act_layer: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(in_chs, out_chs), act_layer())


def _convolution(in_chs: int, out_chs: int, stride: int, *, act_layer: Callable[[], nn.Module]) -> nn.Module:
    conv = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs), act_layer())
