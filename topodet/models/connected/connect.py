"""Learned connectivity for networks that exist: "this learning process is compatible with existing networks".

A residual network whose stream is a sum of residuals is the complete graph with all weights 1 (section 3.2 of the
paper, arXiv 2008.08261). `connect` makes these weights parameters: the network computes what it did, its pretrained
weights stay, and what is done to the edges of a TopoNet can be done to its own.

    >>> import timm
    >>> from topodet import connectivity
    >>> from topodet.models import connect
    >>> model = connect(timm.create_model("convnext_atto"))
    >>> [name for name in connectivity.wirings(model)]
    ['stages.0.blocks.0.wiring', 'stages.1.blocks.0.wiring', 'stages.2.blocks.0.wiring', 'stages.3.blocks.0.wiring']

ResNets are no such sums, because an activation follows each addition. `rewire` makes another network of one, with the
same parameters, as the paper does for its Table 1.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import torch
from timm.models.regnet import RegStage
from torch import nn

from ...errors import ConfigError, unknown_name
from ...topology import complete
from ..wiring import EdgeWeights
from .residual import ADDITIVE, Residual, Table
from .rewired import REWIRED
from .sequential import ConnectedSequential, Link, ResidualWiring

# Modules that call their children one after the other, or whose owners do.
_CONTAINERS = (nn.Sequential, nn.ModuleList, RegStage)

Residuals = Mapping[type[nn.Module], Residual]


def connect(
    model: nn.Module,
    *,
    edge_weights: EdgeWeights = "learned",
    leave_out: Collection[str] = (),
    blocks: Residuals | None = None,
) -> nn.Module:
    """Return a copy of a network in which every run of residual blocks is a complete graph with weights alpha, all 1.

    Each branch reads `s_i = sum_{j<i} alpha_ji * r_j` (Eq. 1) of the input r_0 and all earlier residuals r_j of its
    run, and the run hands on such a sum: the network computes what it did until training changes an alpha. A run ends
    at a block without identity shortcut (stride, width), whose output is the input of the next.

    Parameters keep their names. Each run adds `wiring.alpha` (float32 [E]) and `wiring.edges` to its first block;
    checkpoints of the original load strictly all the same, with alphas 1. Feature maps taken between two blocks are
    the sums that the next one reads. Gradient checkpointing, torch.compile, tracing and torch.export work as they do
    for the original; torch.jit.script does not. Make the optimiser afterwards: the copy has parameters of its own.

    Args:
        model: a network of timm, also from `create_model(..., features_only=True)`, or any of such blocks in series.
        edge_weights: "learned" or "fixed", see `Wiring`.
        leave_out: names of blocks, or of what contains them, to keep as they are.
        blocks: how blocks of other classes add to their stream.

    Raises:
        ConfigError: no block of the network can be connected, with the reasons; it is connected already; a name in
            `leave_out` that the network does not have.
    """
    return _chained(model, ADDITIVE, edge_weights, leave_out, blocks)


def rewire(
    model: nn.Module,
    *,
    edge_weights: EdgeWeights = "learned",
    leave_out: Collection[str] = (),
    blocks: Residuals | None = None,
) -> nn.Module:
    """Return another network, to be trained, of the blocks of a ResNet: shortcuts of interval 2 become interval 1.

    As the paper does with BasicBlocks (Table 1): the activation goes from behind the addition to those who read the
    sum, and every node reads all earlier ones. What it computes differs from the original; what it keeps are the names
    and shapes of the parameters, so that trained weights are a starting point.

    The graph of a run of blocks with m nodes that compute is complete, with m + 2 nodes and weights alpha, all 1:

    - Node 0 is what the run is given, activated by the stem or the stage before. Where the first block has a projection
      on its shortcut (1x1 convolution of a stage that changes stride or width), nodes from 2 on read the projection;
      node 1, which changes stride and width itself, reads the input as it is: `s_1 = alpha_01 * x`.
    - Nodes 1..m compute `r_i = o_i(s_i)` of `s_i = sum_{j<i} alpha_ji * r_j`, o = ReLU -> convolution -> normalisation
      (Eq. 1); s_1 is an activated input and is not activated again. Each 3x3 convolution of a BasicBlock is a node.
      The inner convolutions of a Bottleneck have other widths than its stream: its whole residual is one node, as that
      of all blocks that cannot be taken apart between two convolutions of one width. Such a network differs from the
      original at first only in that the stream keeps what is negative: s + f(ReLU(s)) for ReLU(x + f(x)).
    - Node m + 1, the output, only sums. The run hands on ReLU of that sum: the feature map of a stage is what the next
      stage and the classifier read, and not negative, as the original's is.

    Drop path takes out nodes one by one. All else is as `connect` has it: names, loading of the original's checkpoints
    with alphas 1, feature maps, gradient checkpointing, torch.compile and export.

    Args:
        model: a ResNet of timm (ResNeXt, SE-ResNet, RegNetX/Y and so on) or torchvision, also from
            `create_model(..., features_only=True)`, or any of such blocks in series.
        edge_weights, leave_out: see `connect`.
        blocks: how blocks of other classes add and activate.

    Raises:
        ConfigError: no block of the network can be rewired, with the reasons; it is connected already; a name in
            `leave_out` that the network does not have.
    """
    return _chained(model, REWIRED, edge_weights, leave_out, blocks)


def connectable(
    model: nn.Module, *, leave_out: Collection[str] = (), blocks: Residuals | None = None
) -> dict[str, str | None]:
    """Return for each residual block of a network, by name, why `connect` leaves it as it is; None where it connects.

    Args:
        model, leave_out, blocks: see `connect`.

    Raises:
        ConfigError: the network is connected already, or has not what is to be left out.
    """
    return _obstacles(model, ADDITIVE, leave_out, blocks)


def rewirable(
    model: nn.Module, *, leave_out: Collection[str] = (), blocks: Residuals | None = None
) -> dict[str, str | None]:
    """Return for each block that activates after its addition, by name, why `rewire` leaves it as it is, or None.

    Args:
        model, leave_out, blocks: see `rewire`.

    Raises:
        ConfigError: the network is connected already, or has not what is to be left out.
    """
    return _obstacles(model, REWIRED, leave_out, blocks)


def _obstacles(
    model: nn.Module, table: Table, leave_out: Collection[str], blocks: Residuals | None
) -> dict[str, str | None]:
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, ConnectedSequential):
            way_back = "" if module.rewired else "; disconnect(model) undoes it"
            raise ConfigError(f"{name or type(model).__name__} is connected already{way_back}")
    for name in leave_out:
        if name not in modules:
            raise ConfigError(unknown_name("module in leave_out", name, modules))
    uses = Counter(id(child) for module in modules.values() for child in module._modules.values())
    in_series = {id(block) for _, container in _containers(model) for block in container.children()}
    reasons = {}
    for name, block in modules.items():
        kind = table.find(block, blocks)
        if kind is None:
            continue
        if any(name == out or name.startswith(f"{out}.") for out in leave_out):
            reasons[name] = "it is in leave_out"
        elif id(block) not in in_series:
            reasons[name] = f"it is not in {', '.join(kind.__name__ for kind in _CONTAINERS)}: its order is not known"
        elif uses[id(block)] > 1:
            reasons[name] = "the network uses it in more than one place"
        elif block._forward_hooks or block._forward_pre_hooks:
            reasons[name] = "it has forward hooks, which would not see what it hands on"
        else:
            reasons[name] = kind.obstacle(block)
    return reasons


def disconnect(model: nn.Module) -> nn.Module:
    """Return a copy of a connected network as it was before `connect`: its modules and names, nothing of topodet.

    Raises:
        ConfigError: an alpha is not 1, so that the original blocks would compute something else; or the network
            is not connected, or rewired.
    """
    if not any(isinstance(module, ConnectedSequential) for module in model.modules()):
        raise ConfigError(f"{type(model).__name__} is not connected: there is nothing to undo")
    for name, module in model.named_modules():
        if isinstance(module, ConnectedSequential) and module.rewired:
            raise ConfigError(
                f"{name or type(model).__name__} is rewired: whatever its edge weights, the original blocks would "
                "compute something else. Keep it (it can be exported as it is)"
            )
        if isinstance(module, ResidualWiring) and not module.complete:
            raise ConfigError(f"{name} was pruned: blocks of the original are gone. Keep the network as it is")
        if isinstance(module, ResidualWiring) and bool((module.alpha != 1).any()):
            off = (module.alpha.detach() - 1).abs().max().item()
            raise ConfigError(
                f"{name}.alpha differs from 1 by up to {off:.3g}: without its edge weights the network would compute "
                "something else. Keep it connected (it can be exported as it is), or set the weights back with "
                "reset_parameters() and train on"
            )
    model = copy.deepcopy(model)
    for name, chain in [item for item in model.named_modules() if isinstance(item[1], ConnectedSequential)]:
        for block_name, link in chain.links.items():
            block = chain._modules.get(block_name)
            if block is None:
                continue  # cut off
            if link.begins:
                del block.wiring
            if link.addition:
                setattr(block, *link.addition)
        chain.original[0].training = chain.training
        model = _replace(model, name, chain.original[0])
    return model


def _chained(
    model: nn.Module,
    table: Table,
    edge_weights: EdgeWeights,
    leave_out: Collection[str],
    blocks: Residuals | None,
) -> nn.Module:
    reasons = _obstacles(model, table, leave_out, blocks)
    if all(reasons.values()):  # none at all is all of none
        raise ConfigError(_nothing_to_do(model, table, reasons))
    model = copy.deepcopy(model)
    for name, container in list(_containers(model)):
        kinds = {
            key: table.find(block, blocks)
            for key, block in container._modules.items()
            if reasons.get(f"{name}.{key}" if name else key, "it is no residual block") is None
        }
        if kinds:
            model = _replace(model, name, _unfold(container, kinds, edge_weights))
    return model


def _containers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, _CONTAINERS))


def _unfold(container: nn.Module, kinds: Mapping[str, Residual], edge_weights: EdgeWeights) -> ConnectedSequential:
    """Return the chain of a container's blocks, of which those in `kinds` read weighted sums."""
    runs: list[dict[str, Link]] = [{}]
    for key, block in container._modules.items():
        kind = kinds.get(key)
        begins = kind is not None and kind.begins_run(block)
        if kind is None or begins:
            runs.append({})
        if kind is not None:
            before = next(reversed(runs[-1].values())) if runs[-1] else None
            node = before.end if before else 1
            runs[-1][key] = Link(
                kind.branches,
                node,
                begins=node == 1,
                parts=kind.parts,
                addition=_switch_off(block, kind),
                activation=kind.activation,
                shortcut=kind.shortcut if begins else None,
                width=before.width if before else kind.stream_width(block),
            )
    runs = [run for run in runs if run]
    device = next(container.parameters(), torch.empty(0)).device
    for run in runs:
        first = container.get_submodule(next(iter(run)))
        output = next(reversed(run.values())).end
        first.wiring = ResidualWiring(complete(output + 1), edge_weights, device=device).train(first.training)
    chain = ConnectedSequential(container, {key: link for run in runs for key, link in run.items()})
    for attribute, value in vars(container).items():
        if "_hooks" in attribute:  # what looks at a stage looks at its chain
            setattr(chain, attribute, value)
    return chain


def _switch_off(block: nn.Module, kind: Residual) -> tuple[str, object] | None:
    """Make a block leave out its addition where it can; return what `setattr` needs to undo it."""
    if kind.switch is None:
        return None
    attribute, off = kind.switch
    addition = attribute, getattr(block, attribute)
    setattr(block, attribute, off)
    return addition


def _replace(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Return the model with `module` in the place called `name`; that is `module` itself for the root."""
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).add_module(child, module)
    return model


def _nothing_to_do(model: nn.Module, table: Table, reasons: Mapping[str, str | None]) -> str:
    name = "connect" if table is ADDITIVE else "rewire"
    prefix = f"nothing to {name} in {type(model).__name__}: "
    if not reasons:
        if table is REWIRED and any(ADDITIVE.find(block) for block in model.modules()):
            return f"{prefix}no block of it is known to activate after its addition. connect(model) says what it can do"
        return (
            f"{prefix}it has no residual block that topodet knows. Known in timm.models: "
            f"{', '.join(table.classes())}. For others say how they add: {name}(..., blocks={{Class: Residual(...)}})"
        )
    named: dict[str, list[str]] = {}  # blocks by reason
    for block, reason in reasons.items():
        named.setdefault(reason, []).append(f"{block} ({type(model.get_submodule(block)).__name__})")
    return prefix + "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in named.items()
    )
