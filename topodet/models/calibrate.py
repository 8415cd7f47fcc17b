"""Batch normalization statistics for networks with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def calibrate_batchnorm(model: nn.Module, run: Callable[..., Any], *args: Any) -> Any:
    """Set batch normalization to the statistics of one forward pass, in place; return the output of the pass.

    Without it, a deep network with random weights overflows.

    Args:
        model: a network in evaluation mode; any normalization of [B, C, H, W] with `running_mean` and `running_var` is
            set.
        run: the model, or a function that calls it.
        args: arguments of `run`.
    """

    def settle(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    norms = [part for part in model.modules() if isinstance(getattr(part, "running_var", None), Tensor)]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    try:
        return run(*args)
    finally:
        for hook in hooks:
            hook.remove()
