"""Layers whose weight torch recomputes at each call, so that their weights cannot be copied or changed."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import ConfigError


def refuse_reparametrized(model: nn.Module, what: str, *, parametrized: bool = True) -> None:
    """Refuse a model with layers of `torch.nn.utils.prune`, `weight_norm`, `spectral_norm` or `parametrize`.

    Args:
        model: any module.
        what: the intended operation, for the error.
        parametrized: also refuse those of `parametrize`, which can be copied, but whose weights cannot be changed.

    Raises:
        ConfigError: names the first such layer and the function that makes its weight a parameter again.
    """
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            remedy = next((text for kinds, text in _REMEDIES.items() if isinstance(hook, kinds)), None)
            if remedy:
                raise ConfigError(
                    f"{what}: the weight of {name or 'the model'} is computed at each call ({type(hook).__name__}). "
                    f"Make it a parameter first: {remedy}"
                )
        if parametrized and is_parametrized(module):
            raise ConfigError(
                f"{what}: {name or 'the model'} is parametrized. Make its tensors parameters first: "
                "torch.nn.utils.parametrize.remove_parametrizations(module, name)"
            )


_REMEDIES = {
    BasePruningMethod: "torch.nn.utils.prune.remove(module, name)",
    WeightNorm: "torch.nn.utils.remove_weight_norm(module)",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm(module)",
}
