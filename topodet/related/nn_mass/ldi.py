"""Layerwise dynamical isometry: the singular values of layer Jacobians (CVPR 2021, arXiv 1910.00780)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import ConfigError

# Elementwise modules that may follow a layer: their Jacobian is diagonal.
_ELEMENTWISE = (
    _BatchNorm,  # with its stored statistics
    nn.Identity,
    nn.Dropout,  # the identity in evaluation
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardtanh,  # and ReLU6
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
)
# Most entries of a Jacobian: 1 GB of float64.
_LIMIT = 2**27


@dataclass(frozen=True)
class LayerIsometry:
    """The singular values of one layer's Jacobian, over all inputs.

    Args:
        name: of the linear or convolutional module.
        mean, spread: of the singular values; the spread is their standard deviation.
    """

    name: str
    mean: float
    spread: float


@dataclass(frozen=True)
class LDI:
    """Layers in the order in which they compute; at perfect isometry every singular value is 1."""

    layers: tuple[LayerIsometry, ...]

    @property
    def mean(self) -> float:
        """The paper's LDI: the mean over layers of the mean singular value."""
        return mean(layer.mean for layer in self.layers)

    @property
    def spread(self) -> float:
        """The mean over layers of the spread of the singular values."""
        return mean(layer.spread for layer in self.layers)


def ldi(model: nn.Module, inputs: Tensor) -> LDI:
    """Return mean and spread of the singular values of a network's layer Jacobians, at the given inputs.

    A layer is an `nn.Linear` or `nn.Conv2d` with the batch normalization and activation modules that follow it. Its
    input is that of the linear part, with skip connections all channels that it reads, and the Jacobian is
    `diag(phi'(z)) diag(scale) W`: W is the linear part as a matrix (a convolution's has a row for every output pixel
    and a column for every input pixel), phi' the derivative of the activation, and both are left out if no such module
    follows, as after a classifier. Functions (`F.relu`) and other kinds of modules are ignored.

    Everything is computed in float64 on a copy in evaluation mode: batch normalization uses its stored statistics, at
    initialization those of mean 0 and variance 1. There are min(rows, columns) singular values; those of units that
    are off are 0 and count.

    Args:
        model: MLP or CNN, at initialization for the paper's LDI.
        inputs: [B, ...], inputs of the model; the singular values of all B are pooled.

    Raises:
        ConfigError: no layer, a linear layer on more than two dimensions, or a Jacobian of more than 2**27 entries.
    """
    model = copy.deepcopy(model).double().eval()
    traces = _trace(model, inputs.double())
    if not traces:
        raise ConfigError(f"ldi: {type(model).__name__} calls no nn.Linear and no nn.Conv2d")
    return LDI(tuple(LayerIsometry(trace.name, *_moments(trace)) for trace in traces))


@dataclass
class _Trace:
    """A layer's call: its linear part, the sizes of its input, what it returned, and the modules that followed."""

    name: str
    linear: nn.Linear | nn.Conv2d
    in_shape: torch.Size
    z: Tensor
    output: Tensor  # of the last module, to recognize the next one
    followers: list[nn.Module]


@torch.no_grad()
def _trace(model: nn.Module, inputs: Tensor) -> list[_Trace]:
    traces: list[_Trace] = []
    names = {id(module): name for name, module in model.named_modules()}

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            # A copy, because an activation may work in place.
            traces.append(_Trace(names[id(module)], module, args[0].shape, output.clone(), output, []))
            return
        for trace in traces:
            if trace.output is args[0]:
                trace.followers.append(module)
                trace.output = output

    hooks = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, *_ELEMENTWISE))
    ]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return traces


def _moments(trace: _Trace) -> tuple[float, float]:
    """Return mean and standard deviation of the singular values over all inputs."""
    matrix = _matrix(trace)
    if matrix.shape[1] > matrix.shape[0]:
        matrix = torch.linalg.qr(matrix.T).R.T  # an orthogonal factor does not change singular values
    z = trace.z.requires_grad_()
    y = z.clone()
    for follower in trace.followers:
        y = follower(y)
    slopes = torch.autograd.grad(y.sum(), z)[0].flatten(1)
    values = torch.cat([torch.linalg.svdvals(slope[:, None] * matrix) for slope in slopes])
    return values.mean().item(), values.std(correction=0).item()


@torch.no_grad()
def _matrix(trace: _Trace) -> Tensor:
    """Return the linear part as a matrix [outputs, inputs], both flattened in the order of C, H, W."""
    linear = trace.linear
    rows, columns = trace.z[0].numel(), trace.in_shape[1:].numel()
    if rows * columns > _LIMIT:
        raise ConfigError(
            f"ldi: the Jacobian of {trace.name} would be {rows:,} x {columns:,}; give smaller inputs: this layer "
            f"reads {list(trace.in_shape)}"
        )
    if isinstance(linear, nn.Linear):
        if trace.z.ndim != 2:
            raise ConfigError(f"ldi: {trace.name} reads {list(trace.in_shape)}; a linear layer of an MLP reads [B, C]")
        return linear.weight.detach()
    basis = torch.eye(columns, dtype=linear.weight.dtype, device=linear.weight.device)
    images = linear(basis.reshape(-1, *trace.in_shape[1:]))
    if linear.bias is not None:
        images = images - linear.bias[:, None, None]
    return images.flatten(1).T
