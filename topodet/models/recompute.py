"""Gradient checkpointing runs modules twice; update their statistics only once."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def update_statistics_once(network: nn.Module) -> None:
    """Stop every normalization from updating its running statistics when its output is recomputed, in place.

    Gradient checkpointing, of torch and of timm, calls modules again in the backward pass. Batch normalization would
    then count the same batch twice in its statistics, as if its momentum were 0.19 and not 0.1. Its output in training
    does not depend on them. Modules that later replace a normalization (`convert_sync_batchnorm`) are not covered: call
    this after replacing them.
    """
    for module in network.modules():
        if isinstance(module, _NormBase) and _enter not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_enter)
            # Recomputation may stop with an exception in the middle of the last module that is needed.
            module.register_forward_hook(_leave, always_call=True)


def _enter(norm: nn.Module, _: object) -> None:
    # A compiler recomputes without calling modules. The id is that of a backward pass in this thread, -1 for none.
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        norm._before_recompute = norm.momentum, norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, None


def _leave(norm: nn.Module, *_: object) -> None:
    before = norm.__dict__.pop("_before_recompute", None)
    if before is not None:
        norm.momentum, norm.num_batches_tracked = before
