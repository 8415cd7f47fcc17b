"""Parameters and multiply-adds of a network."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial

import torch
from torch import nn

from .connectivity import wirings


def parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters without edge weights, and of learned edge weights.

    A module that holds parameters without use says how many (`num_absent`); they do not count.
    """
    alphas = sum(wiring.alpha.numel() for wiring in wirings(model).values() if wiring.learned)
    absent = sum(getattr(module, "num_absent", 0) for module in model.modules())
    return sum(p.numel() for p in model.parameters()) - alphas - absent, alphas


def multiply_adds(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image of `input_size` (C, H, W).

    The convention of the paper's tables: normalization, activations and the weighted sums are not counted. A layer that
    computes otherwise than its class does (`multiply_adds`) is asked. Runs on the meta device, so that it costs no
    memory and leaves the model alone.
    """
    return sum(multiply_adds_by_layer(model, input_size).values())


def multiply_adds_by_layer(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Counter[str]:
    """Return the multiply-adds of each convolution and linear layer, by module name, as `multiply_adds` counts them."""
    model = copy.deepcopy(model).to("meta").eval()
    counts: Counter[str] = Counter()

    def count(name: str, module: nn.Module, _: object, output: torch.Tensor) -> None:
        if hasattr(module, "multiply_adds"):
            counts[name] += module.multiply_adds(output)
        else:
            counts[name] += output[0].numel() * module.weight[0].numel()

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(partial(count, name))
    with torch.no_grad():
        model(torch.zeros(1, *input_size, device="meta"))
    return counts
