"""A detection framework's own backbone with learned wiring, for the adapters of both frameworks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatch
from functools import partial
from typing import Any

from torch import Tensor, nn

from . import connectivity, weights
from .errors import ConfigError, WeightsError, unknown_name
from .models import connect
from .models.connected import Nodes, RunEdges, keep_edges_, runs

WIRINGS = ("learned", "fixed")


def connect_backbone(
    backbone: nn.Module,
    *,
    nodes: Nodes,
    wiring: str,
    leave_out: Collection[str],
    edges: RunEdges | None,
    missing_ok: Collection[str],
    say: Callable[[str], None],
) -> nn.Module:
    """Return a copy of a framework's backbone with its runs connected; class, names and outputs stay the same.

    The runs of frozen blocks are frozen too. A detector's checkpoint must fill the whole backbone, or the run stops.
    Only the tensors of the wiring may be absent; they then keep the initial values of `connect`. Weights for the
    backbone only (MMEngine's `init_cfg`) are loaded by the framework.

    Args:
        backbone: as its framework built it, called on images [B, C, H, W].
        nodes, leave_out: see `topodet.models.connect`.
        wiring: "learned", or "fixed" at the start.
        edges: remaining edges of pruned runs.
        missing_ok: patterns (`fnmatch`) of further tensors that a checkpoint may lack, e.g. "*conv_offset*".
        say: function that prints a line.

    Raises:
        ConfigError: nothing to connect; an unknown kind of wiring; edges of other runs.
    """
    if wiring not in WIRINGS:
        raise ConfigError(unknown_name("wiring", wiring, WIRINGS))
    connected = connect(backbone, nodes=nodes, edge_weights=wiring, leave_out=leave_out)
    keep_edges_(connected, edges or {})
    for blocks in runs(connected).values():
        first, *_ = blocks.values()
        others = [p for block in blocks.values() for p in block.parameters() if p is not first.wiring.alpha]
        if others and not any(parameter.requires_grad for parameter in others):
            first.wiring.alpha.requires_grad_(False)
    check = partial(_check, missing_ok=tuple(missing_ok), say=say)
    connected.register_load_state_dict_pre_hook(check)
    graphs = [part.topology for part in connectivity.wirings(connected).values()]
    say(
        f"topodet: {type(backbone).__name__} connected: {len(graphs)} runs, {sum(g.num_edges for g in graphs)} edges; "
        "its output is unchanged"
    )
    return connected


def _check(
    backbone: nn.Module,
    state_dict: Mapping[str, Tensor],
    prefix: str,
    *_: Any,
    missing_ok: Collection[str],
    say: Callable[[str], None],
) -> None:
    """Before a state dict is loaded, check that it is complete and report missing edge weights."""
    given = {name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)}
    own = backbone.state_dict()
    name = type(backbone).__name__
    if prefix:
        absent = own.keys() - given
        optional = {key for key in absent if any(fnmatch(key, pattern) for pattern in missing_ok)}
        filled, total = weights.check_filled(
            backbone,
            state_dict,
            prefix,
            optional=optional | (absent & _statistics_of_frozen(backbone)),
            remedy="Choose the backbone that the checkpoint was trained with, or list in missing_ok what it may lack",
        )
        say(f"topodet: {filled}/{total} tensors of the backbone are in the checkpoint")
    elif given.isdisjoint(own):
        raise WeightsError(
            f"none of the {len(own)} tensors of {name} is in the checkpoint: it comes from a different backbone"
        )
    new = {key.rpartition(".")[0] for key in weights.missing_wiring_keys(backbone, given)}
    if new:
        say(f"topodet: {len(new)} runs of {name} are not in the checkpoint: their edges start as in the original")


def _statistics_of_frozen(backbone: nn.Module) -> set[str]:
    """Return the statistics of Detectron2's frozen batch normalization, which may be merged into scale and bias."""
    frozen = (name for name, module in backbone.named_modules() if type(module).__name__ == "FrozenBatchNorm2d")
    return {f"{name}.{statistic}" for name in frozen for statistic in ("running_mean", "running_var")}
