"""Parameters and multiply-adds of a network."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from .connectivity import wirings

_LAYERS = (F.conv1d, F.conv2d, F.conv3d, F.linear)


def parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters without edge weights, and of learned edge weights.

    Parameters that a module holds but does not use (`num_absent`) are not counted.
    """
    alphas = sum(wiring.alpha.numel() for wiring in wirings(model).values() if wiring.learned)
    absent = sum(getattr(module, "num_absent", 0) for module in model.modules())
    return sum(p.numel() for p in model.parameters()) - alphas - absent, alphas


def multiply_adds(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image of `input_size` (C, H, W).

    The convention of the paper's tables: normalization, activations, the weighted sums and the products of queries,
    keys and values are not counted. A layer with its own `multiply_adds` is asked for its count. Runs on the meta
    device, so it uses no memory and does not change the model.
    """
    return sum(multiply_adds_by_layer(model, input_size).values())


def multiply_adds_by_layer(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Counter[str]:
    """Return the multiply-adds of convolutions and linear layers, by the module that computes them.

    Every call counts, of a layer (`nn.Conv2d`, `nn.Linear`) or of a function (`F.linear`): attention may use a layer's
    weights without calling the layer, and a convolution may mix its weights for each image.
    """
    model = copy.deepcopy(model).to("meta").eval()
    calls = _Calls()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(partial(calls.enter, name))
        module.register_forward_hook(calls.leave)
    image = torch.zeros(1, *input_size, device="meta")
    with torch.no_grad(), calls:
        model(image)
    return calls.counts


class _Calls(TorchFunctionMode):
    """Counts the multiply-adds of one image's forward pass, by the innermost running module."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._running: list[str] = []
        self._learned: list[bool] = []
        self._before: list[int] = []

    def enter(self, name: str, module: nn.Module, _: object) -> None:
        self._running.append(name)
        self._learned.append(next(module.parameters(), None) is not None)
        self._before.append(self.counts[name])

    def leave(self, module: nn.Module, _: object, output: object) -> None:
        name, _, before = self._running.pop(), self._learned.pop(), self._before.pop()
        if hasattr(module, "multiply_adds"):
            self.counts[name] = before + module.multiply_adds(output)
        if not self.counts[name]:
            del self.counts[name]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.batch_norm:  # on the meta device PyTorch computes it in Python; only its shape is needed
            return torch.empty_like(args[0] if args else kwargs["input"])
        output = func(*args, **kwargs)
        # A filter without parameters, such as anti-aliasing, counts as pooling.
        if func in _LAYERS and self._running and self._learned[-1]:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.counts[self._running[-1]] += output.numel() * weight[0].numel()
        return output
