"""The sparsity penalty of Eqs. 6-8, the optimizer group for edge weights, and measures of sparsity."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ConfigError, unknown_name
from ..models.wiring import Wiring

PenaltyKind = Literal["none", "uniform", "adaptive"]
PENALTY_KINDS: tuple[PenaltyKind, ...] = ("none", "uniform", "adaptive")
THRESHOLDS = (1e-3, 1e-2, 1e-1)


def wirings(model: nn.Module) -> dict[str, Wiring]:
    """Return every wiring of a model by its module name, in the order of the network."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Wiring)}


def penalty(model: nn.Module, kind: PenaltyKind) -> Tensor:
    """Return the sparsity penalty over the learned edges of any model, a float32 scalar without its weight lambda.

    uniform (Eq. 6-7): sum over all edges of |alpha|. adaptive (Eq. 8): sum over the nodes i of log(delta_i) * sum_j
    |alpha_ji| with delta_i the in-degree, so that nodes with many inputs lose edges first and a node's only input is
    not penalized. Frozen and fixed edges do not count, because they cannot change.

    In a run of whole blocks (`connect(nodes="blocks")`), which starts as a chain, |alpha| is replaced by the distance
    from the start: |alpha - 1| on the edges from a block to the next, so that the chain itself is not penalized, and
    |alpha| on all others. See docs/connect.md for measurements.

    Args:
        model: any module that contains `Wiring`s.
        kind: "none" is 0.

    Raises:
        ConfigError: unknown kind, or a model without learned edges, or with frozen ones only, for a kind that needs
            them.
    """
    if kind not in PENALTY_KINDS:
        raise ConfigError(unknown_name("sparsity", kind, PENALTY_KINDS))
    learned = [wiring for wiring in wirings(model).values() if wiring.learned]
    if kind == "none":
        return torch.zeros(())
    if not learned:
        frozen = any(isinstance(wiring.alpha, nn.Parameter) for wiring in wirings(model).values())
        reason = (
            f"model whose edge weights are all frozen ({type(model).__name__}); leave some stages trainable "
            "(frozen_stages, MODEL.BACKBONE.FREEZE_AT, --freeze-alpha), or use sparsity='none'"
            if frozen
            else f"model without learned edge weights ({type(model).__name__}); use sparsity='none' or an architecture "
            "with learned edges, e.g. toponet50"
        )
        raise ConfigError(f"sparsity={kind!r} on a {reason}")
    total = torch.zeros((), device=learned[0].alpha.device)
    for wiring in learned:
        size = _distance(wiring)
        if kind == "adaptive":
            size = size * _log_in_degree(wiring)
        total = total + size.sum()
    return total


def _distance(wiring: Wiring) -> Tensor:
    """Return the penalized size of each edge weight, float32 [E]."""
    alpha = wiring.alpha.float()
    if wiring.start == "chain":
        sources, targets = wiring.edges.to(alpha.device).unbind(1)  # node numbers before any pruning
        alpha = alpha - (targets - sources == 1).float()
    return alpha.abs()


def _log_in_degree(wiring: Wiring) -> Tensor:
    """Return log(delta_i) of each edge's target, float32 [E]."""
    # Computed on the device of the edges: values from the host would synchronize every step.
    targets = wiring.edges[:, 1].to(wiring.alpha.device)
    degrees = torch.zeros(wiring.numbers[-1] + 1, device=targets.device)
    degrees.index_add_(0, targets, torch.ones(len(targets), device=targets.device))
    return degrees.log()[targets]


def penalize(optimizer: torch.optim.Optimizer, model: nn.Module, kind: PenaltyKind, weight: float) -> RemovableHandle:
    """Add the gradient of `weight * penalty(model, kind)` to the edge weights before each `optimizer.step()`.

    This is the same update as adding the penalty to the loss, for training loops whose loss is not accessible. The
    gradient is added when the others are final: after the scaler has unscaled them, after data-parallel averaging, and
    once for all accumulated micro-batches. (Gradient clipping, if any, happens earlier and does not include it.)

    Returns:
        a handle whose `remove()` ends the penalty.

    Raises:
        ConfigError: unknown kind, a negative weight, or a model without learned edges.
    """
    if weight < 0:
        raise ConfigError(f"sparsity weight must not be negative, got {weight}")
    penalty(model, kind)  # refuse a wrong kind or model now, not at the first step

    added: list[Tensor] = []  # the gradients that already include the penalty of this step

    def add_gradient(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        alphas = [wiring.alpha for wiring in wirings(model).values() if wiring.learned]
        # A class that clips gradients around another optimizer's step may run the hooks twice. And if every edge was
        # frozen during training, there is nothing to penalize.
        if not alphas or [id(alpha.grad) for alpha in alphas] == list(map(id, added)):
            return
        with torch.enable_grad():
            gradients = torch.autograd.grad(weight * penalty(model, kind), alphas)
        # Fused optimizers take scaled gradients and unscale them in their own kernel.
        scale = getattr(optimizer, "grad_scale", None)
        for alpha, gradient in zip(alphas, gradients):
            gradient = gradient if scale is None else gradient * scale
            alpha.grad = gradient.to(alpha.dtype) if alpha.grad is None else alpha.grad + gradient
        added[:] = [alpha.grad for alpha in alphas]

    if kind == "none":
        return RemovableHandle(OrderedDict())  # without a hook; a plain dict has no weak references
    optimizer.register_step_post_hook(lambda *_: added.clear())  # may stay: it does nothing without the other hook
    return optimizer.register_step_pre_hook(add_gradient)


def param_groups(model: nn.Module, weight_decay: float, alpha_weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Split the trainable parameters for an optimizer: weights, vectors, edge weights.

    Vectors (biases and normalization) have no weight decay, as in timm, and neither has what a timm network lists in
    its `no_weight_decay()`: position embeddings, class tokens, bias tables. Alpha has `alpha_weight_decay` instead,
    because decay towards 0 would be an additional penalty. Groups without parameters are left out; each has a "name".
    """
    alphas = {id(wiring.alpha) for wiring in wirings(model).values()}
    groups = {
        "weights": {"params": [], "weight_decay": weight_decay},
        "vectors": {"params": [], "weight_decay": 0.0},
        "alpha": {"params": [], "weight_decay": alpha_weight_decay},
    }
    spared = _spared(model)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            vector = parameter.ndim <= 1 or key in spared
            name = "alpha" if id(parameter) in alphas else "vectors" if vector else "weights"
            groups[name]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def _spared(model: nn.Module) -> set[str]:
    """Return the names of the parameters that any part of a model exempts from weight decay, as timm's networks do."""
    names: set[str] = set()
    for prefix, module in model.named_modules():
        spares = getattr(module, "no_weight_decay", None)
        if callable(spares):
            names.update(f"{prefix}.{name}".removeprefix(".") for name in spares())
    return names


def sparsity(model: nn.Module, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, float]:
    """Return the share of all edges with |alpha| below each threshold, as {"below_0.01": share, ...} in [0, 1].

    Empty for a model without wirings.
    """
    alpha = all_alphas(wirings(model).values())
    if not len(alpha):
        return {}
    return {f"below_{threshold:g}": is_below(alpha.abs(), threshold).double().mean().item() for threshold in thresholds}


def is_below(sizes: Tensor, threshold: float) -> Tensor:
    """Return which edge magnitudes are below a threshold, compared as float32, the dtype of edge weights.

    As float64, an edge weight of 0.01 would be 0.00999..., which is below 0.01.
    """
    return sizes.float() < torch.tensor(threshold, dtype=torch.float32, device=sizes.device)


def describe_sparsity(shares: dict[str, float]) -> str:
    """Return the result of `sparsity` as text for a log: "12.5% below 0.01, ..."."""
    return ", ".join(f"{share:.1%} {name.replace('_', ' ')}" for name, share in shares.items())


def all_alphas(parts: Iterable[Wiring]) -> Tensor:
    """Return the edge weights of several wirings as one float32 tensor [E] on the CPU."""
    alphas = [wiring.alpha.detach().float().cpu() for wiring in parts]
    return torch.cat(alphas) if alphas else torch.zeros(0)
