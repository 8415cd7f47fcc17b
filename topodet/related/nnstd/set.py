"""Sparse evolutionary training (SET): networks that are sparse from the first step, whose links move during training.

"Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity" (arXiv 1707.04780), in the setting
of "Topological Insights into Sparse Neural Networks" (ECML-PKDD 2020, arXiv 2006.14085).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, WeightsError, unknown_name

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class SET:
    """Make a model's layers sparse, keep them sparse, and move their links during training.

    A link of a linear layer is a weight, one of a convolution is a whole kernel from an input to an output channel. A
    layer starts as an Erdos-Renyi graph: each of its n_in * n_out possible links exists with probability p = epsilon
    (n_in + n_out) / (n_in n_out), within each group of a grouped convolution. A layer with p >= 1, like most
    classifiers, stays dense and is not changed. Absent links have weight exactly 0: their gradients are zeroed as they
    are computed (before clipping, averaging and the optimizer), and their weights are zeroed after each step.

        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        evolution = SET(model, optimizer, epsilon=20, zeta=0.3, seed=0)
        for epoch in range(epochs):
            if epoch:
                evolution.evolve()
            ...  # one epoch, as always; then evaluate, and save the state_dict() of all three

    New links start at 0, so adding them does not change the network's output. So right after `evolve`, the existing
    links are in `masks`, not in the non-zero weights.

    Args:
        model: already on its device. The weights of absent links are set to 0.
        optimizer: any torch optimizer with per-weight state; it must hold the weights of the sparse layers.
        epsilon: parameter of p; the papers use 20 on CIFAR-10 and 13 on Fashion-MNIST.
        zeta: share of the links that `evolve` moves, in [0, 1); 0 for fixed links.
        layers: names of the layers that become sparse; all linear and convolutional ones by default.
        rescale: divide the weights of a layer by the root of its p, so that random weights preserve as much variance as
            in a dense layer.
        seed: seed of the first links and of all later ones.

    Attributes:
        masks: the existing links, by the weight's name in the model, bool [n_out, n_in (per group), 1, ...]; broadcasts
            with the weight.

    Raises:
        ConfigError: a setting out of range, an unknown layer, no layer that becomes sparse, a layer without links, an
            optimizer that does not hold the weights or mixes them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        epsilon: float = 20.0,
        zeta: float = 0.3,
        layers: Sequence[str] | None = None,
        rescale: bool = True,
        seed: int = 0,
    ):
        if not (epsilon > 0 and math.isfinite(epsilon)):
            raise ConfigError(f"epsilon is {epsilon}: give a positive number, such as 20")
        if not 0 <= zeta < 1:
            raise ConfigError(f"zeta is {zeta}: give the share of links to move, at least 0 and below 1, such as 0.3")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigError("LBFGS keeps a joint history of all weights, from which single links cannot be removed")
        self.epsilon, self.zeta, self.evolutions = epsilon, zeta, 0
        self.masks: dict[str, Tensor] = {}
        self._optimizer = optimizer
        self._weights: dict[str, nn.Parameter] = {}
        # A separate random stream: with that of the weights' seed, links would be correlated with the weights.
        own = int.from_bytes(hashlib.sha256(f"SET {seed}".encode()).digest()[:8], "big") >> 1
        self._generator = torch.Generator().manual_seed(own)
        self._draw(_chosen(model, layers), rescale)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        foreign = [name for name, weight in self._weights.items() if id(weight) not in held]
        if foreign:
            raise ConfigError(
                f"the optimizer does not train {', '.join(foreign)}; name the layers to evolve in `layers`"
            )
        self._apply()
        self._hooks = [weight.register_hook(self._masked(name)) for name, weight in self._weights.items()]
        self._hooks.append(optimizer.register_step_post_hook(lambda *_: self._apply()))

    @property
    def links(self) -> dict[str, int]:
        """Number of links of each sparse layer, by its weight's name; it never changes."""
        return {name: int(mask.sum()) for name, mask in self.masks.items()}

    @torch.no_grad()
    def evolve(self) -> dict[str, int]:
        """Move links: in each layer remove the weakest, and add the same number at random empty places.

        Of the positive links, the fraction zeta with the smallest values is removed, of the negative ones the fraction
        with the largest, each rounded down. The value of a kernel is the sum of its absolute weights, with the sign of
        their sum; a link at 0 counts as positive. Removed and new links have weight 0 and no momentum: every state of
        the optimizer that has the weight's shape is 0 there.

        Returns:
            the number of links moved, by the weight's name.

        Raises:
            WeightsError: a weight is not finite.
        """
        moved = {}
        for name, weight in self._weights.items():
            if not torch.isfinite(weight).all():
                raise WeightsError(
                    f"{name} has values that are NaN or infinite: the training diverged; lower the learning rate"
                )
            mask = self.masks[name]
            removed = _weakest(_link_values(weight), mask, self.zeta)
            mask.view(-1)[removed] = False
            empty = (~mask).view(-1).nonzero().view(-1)
            order = torch.randperm(len(empty), generator=self._generator)[: len(removed)]
            new = empty[order.to(empty.device)]
            mask.view(-1)[new] = True
            changed = torch.zeros_like(mask)
            changed.view(-1)[torch.cat([removed, new])] = True
            for tensor in (weight, *self._states(weight)):
                tensor.masked_fill_(changed, 0)
            moved[name] = len(removed)
        self.evolutions += 1
        return moved

    def remove(self) -> None:
        """End sparse training: absent links may grow from now on."""
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume, besides those of model and optimizer, as tensors and plain types."""
        return {
            "epsilon": self.epsilon,
            "zeta": self.zeta,
            "evolutions": self.evolutions,
            "generator": self._generator.get_state(),
            "masks": {name: mask.cpu().clone() for name, mask in self.masks.items()},
            "non_zero": {name: int(weight.count_nonzero()) for name, weight in self._weights.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state_dict`, after model and optimizer have loaded their states of the same time.

        Raises:
            WeightsError: other layers or shapes, or weights of another time.
        """
        shapes = {name: list(mask.shape) for name, mask in self.masks.items()}
        saved = {name: list(mask.shape) for name, mask in state["masks"].items()}
        if saved != shapes:
            raise WeightsError(
                f"the state is of sparse layers {saved}, the model's are {shapes}; resume the same network"
            )
        for name, weight in self._weights.items():
            outside = weight.detach().masked_fill(state["masks"][name].to(weight.device), 0).count_nonzero()
            if outside or weight.count_nonzero() != state["non_zero"][name]:
                raise WeightsError(
                    f"the links of {name} do not match its weights: create SET first, then load the states of the "
                    "model and of SET from the same checkpoint, in this order"
                )
        self.epsilon, self.zeta, self.evolutions = state["epsilon"], state["zeta"], state["evolutions"]
        self._generator.set_state(state["generator"].cpu())
        for name, mask in self.masks.items():
            mask.copy_(state["masks"][name])

    @torch.no_grad()
    def _draw(self, layers: Mapping[str, nn.Module], rescale: bool) -> None:
        for name, layer in layers.items():
            groups = getattr(layer, "groups", 1)
            n_out, n_in = layer.weight.shape[0] // groups, layer.weight.shape[1]
            p = self.epsilon * (n_in + n_out) / (n_in * n_out)
            if p >= 1:
                continue
            shape = (*layer.weight.shape[:2], *(1 for _ in layer.weight.shape[2:]))
            mask = torch.rand(shape, generator=self._generator) < p
            if not mask.any():
                raise ConfigError(f"epsilon={self.epsilon} left {name} without a link (p = {p:.2g}); raise it")
            self.masks[f"{name}.weight"] = mask.to(layer.weight.device)
            self._weights[f"{name}.weight"] = layer.weight
            if rescale:
                layer.weight.div_(math.sqrt(p))
        if not self.masks:
            raise ConfigError(
                f"epsilon={self.epsilon} leaves every layer dense (p = epsilon (n_in + n_out) / (n_in n_out) is 1 or "
                f"more in {', '.join(layers) or 'none at all'}); lower it, or give a model with wider layers"
            )

    @torch.no_grad()
    def _apply(self) -> None:
        for name, weight in self._weights.items():
            weight.masked_fill_(~self.masks[name], 0)

    def _masked(self, name: str) -> Any:
        # Not a product, because 0 times an overflow of mixed precision is NaN.
        return lambda gradient: gradient.masked_fill(~self.masks[name], 0)

    def _states(self, weight: nn.Parameter) -> list[Tensor]:
        """Return the optimizer's state of each single weight: momentum, moments, averages."""
        state = self._optimizer.state.get(weight, {})
        return [value for value in state.values() if isinstance(value, Tensor) and value.shape == weight.shape]


def _chosen(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, _LAYERS)}
    for name in names or ():
        if name not in found:
            raise ConfigError(unknown_name("linear or convolutional layer", name, found))
    return found if names is None else {name: found[name] for name in names}


def _link_values(weight: Tensor) -> Tensor:
    """Return the strength of each link with its sign, [n_out * n_in]."""
    kernels = weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(2)
    size = kernels.abs().sum(dim=2)
    return torch.where(kernels.sum(dim=2) < 0, -size, size).view(-1)


def _weakest(values: Tensor, mask: Tensor, zeta: float) -> Tensor:
    """Return the indices of the links closest to 0, the fraction zeta of each sign; the first ones if equal."""
    weakest = []
    for links in (mask.view(-1) & (values >= 0), mask.view(-1) & (values < 0)):
        places = links.nonzero().view(-1)
        order = values[places].abs().sort(stable=True).indices
        weakest.append(places[order[: math.floor(zeta * len(places) + 1e-9)]])  # 0.29 * 100 is 28.999999999999996
    return torch.cat(weakest)
