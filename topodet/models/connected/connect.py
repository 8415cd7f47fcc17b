"""Learned connectivity for existing networks: "this learning process is compatible with existing networks".

A residual network whose stream is a sum of residuals is the complete graph with all weights 1 (section 3.2 of the
paper, arXiv 2008.08261). `connect` makes these weights parameters: the network's output and its pretrained weights stay
the same, and its edges can be trained, penalized and pruned like those of a TopoNet.

    >>> import timm
    >>> from topodet import connectivity
    >>> from topodet.models import connect
    >>> model = connect(timm.create_model("convnext_atto"))
    >>> [name for name in connectivity.wirings(model)]
    ['stages.0.blocks.0.wiring', 'stages.1.blocks.0.wiring', 'stages.2.blocks.0.wiring', 'stages.3.blocks.0.wiring']

Most networks are not such sums: in a ResNet an activation follows each addition. But blocks that keep the shape of
their input form a chain in any network, and a chain is a complete graph whose other weights are 0:

    >>> model = connect(timm.create_model("resnet18"), nodes="blocks")
    >>> model.layer1[0].wiring.alpha.tolist()  # of the edges (0, 1), (0, 2) and (1, 2)
    [1.0, 0.0, 1.0]

`rewire` turns a ResNet into a different network with the same parameters, as the paper does for its Table 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from timm.models.regnet import RegStage
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ...errors import ConfigError, unknown_name
from ...topology import Topology, complete
from ..wiring import EdgeWeights
from .block import (
    ConnectedBlock,
    Form,
    Link,
    Run,
    RunWiring,
    connect_block,
    connect_series,
    disconnect_modules,
    runs,
    whole,
)
from .follow import Call, Sample, call, copy_network, follow, runs_of_blocks
from .residual import ADDITIVE, FOLLOWS, Residual, Table
from .rewired import REWIRED

# Modules that call their children one after the other, or whose parents do.
_CONTAINERS = (nn.Sequential, nn.ModuleList, RegStage)

_FOR_RESNETS = (
    ". Whole blocks as nodes give the same network: nodes='auto' or 'blocks' (connect_nodes, --connect-nodes). What "
    "the paper does with such blocks (interval 2 to 1: every convolution a node) makes a different network, to be "
    "trained: topodet.models.rewire"
)

Nodes = Literal["residuals", "blocks", "auto"]
Residuals = Mapping[type[nn.Module], Residual]


@dataclass(frozen=True)
class RunPlan:
    """A run of blocks that can be connected.

    Attributes:
        form: "residuals" or "blocks", see `connect`, or "rewired".
        links: the blocks in series, by name, and their places.
        topology: the graph.
    """

    form: Form
    links: dict[str, Link] = field(repr=False)
    topology: Topology

    @property
    def name(self) -> str:
        """The name of the wiring that the run will have."""
        return f"{next(iter(self.links))}.wiring"

    def __str__(self) -> str:
        first, last = next(iter(self.links)), next(reversed(self.links))
        blocks = f"{len(self.links)} blocks from {first} to {last}" if first != last else f"block {first}"
        return f"{self.form}: {blocks}, {self.topology.num_edges} edges"


def connect(
    model: nn.Module,
    *,
    nodes: Nodes = "residuals",
    sample: Sample | None = None,
    edge_weights: EdgeWeights = "learned",
    leave_out: Collection[str] = (),
    blocks: Residuals | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Return a copy of a network, with the same output, in which runs of blocks are complete graphs with weights alpha.

    Nodes of a run:

    - "residuals": what residual blocks add to their stream. Each branch reads `s_i = sum_{j<i} alpha_ji * r_j` (Eq. 1)
      of the input r_0 and all earlier residuals r_j of its run. The run returns such a sum, and all alphas are 1. A run
      ends at a block without identity shortcut (stride, width), whose output is the input of the next. For supported
      blocks (see `connectable`) and those given as `blocks`.
    - "blocks": whole blocks, `x_i = block_i(sum_{j<i} alpha_ji * x_j)` of the run's input x_0 and the outputs of its
      earlier blocks. A run is a series of blocks that keep the shape of their input, whatever is inside of them. It
      starts as the original chain: alpha is 1 from a block to the next, and 0 on all other edges, which have gradients
      from the first step on. Runs are found by tracing the network on a sample.
    - "auto": residuals where that is exact, which is tested on the sample, and blocks elsewhere.

    Parameters keep their names. Each run adds `wiring.alpha` (float32 [E]) and `wiring.edges` to its first block;
    checkpoints of the original still load strictly, with the alphas at their initial values. Feature maps taken between
    two blocks are the sums that the next one reads. Gradient checkpointing, torch.compile, tracing and torch.export
    work as they do for the original; torch.jit.script does not. Create the optimizer afterwards: alpha is a
    new parameter, and all parameters of a copy are.

    Args:
        model: any network; for "residuals" a timm network, also from `create_model(..., features_only=True)`, or any
            sequence of such blocks.
        nodes: see above.
        sample: for "blocks" and "auto" an input of the network, [B, C, H, W], or a tuple of all arguments of its call;
            by default random images of a size that it accepts. The network is called on it in evaluation mode, and
            the connected network is compared with it, so zeros are a weak sample.
        edge_weights: "learned" or "fixed", see `Wiring`.
        leave_out: names of blocks, or of modules that contain them, to leave unchanged.
        blocks: how blocks of other classes add to their stream.
        inplace: change the network itself and return it, which takes half the memory and less time.

    Raises:
        ConfigError: no block of the network can be connected, with the reasons; it is already connected; a name in
            `leave_out` that the network does not have; a sample that the network does not accept, or for which it
            returns no finite number; a network that cannot be copied.
    """
    plans, reasons = _plan(model, nodes, sample, leave_out, blocks)
    if not plans:
        raise ConfigError(_nothing_to_do(model, nodes, reasons))
    return _apply(model if inplace else copy_network(model), plans, edge_weights)


def rewire(
    model: nn.Module,
    *,
    edge_weights: EdgeWeights = "learned",
    leave_out: Collection[str] = (),
    blocks: Residuals | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Return a new network, to be trained, made of a ResNet's blocks: shortcuts of interval 2 become interval 1.

    As in the paper for BasicBlocks (Table 1), the activation moves from after the addition to the nodes that read the
    sum, and every node reads all earlier ones. The output differs from the original's. Names and shapes of the
    parameters stay the same, so trained weights can be loaded as a starting point.

    The graph of a run with m computing nodes is complete, with m + 2 nodes and weights alpha, all 1:

    - Node 0 is the input of the run, activated by the stem or the previous stage. If the first block has a projection
      on its shortcut (1x1 convolution of a stage that changes stride or width), nodes from 2 on read the projection;
      node 1, which changes stride and width itself, reads the input as it is: `s_1 = alpha_01 * x`.
    - Nodes 1..m compute `r_i = o_i(s_i)` of `s_i = sum_{j<i} alpha_ji * r_j`, o = ReLU -> convolution -> normalization
      (Eq. 1); s_1 is an activated input and is not activated again. Each 3x3 convolution of a BasicBlock is a node. The
      inner convolutions of a Bottleneck have other widths than its stream, so its whole residual is one node. The same
      holds for all blocks that cannot be split between two convolutions of equal width. Such a network initially
      differs from the original only in that the stream keeps negative values: s + f(ReLU(s)) instead of ReLU(x + f(x)).
    - Node m + 1, the output, only sums. The run returns the ReLU of that sum. This is the feature map that the next
      stage and the classifier read; like the original's, it is not negative.

    Drop path drops single nodes. Everything else is as in `connect`: names, loading of the original's checkpoints with
    alphas 1, feature maps, gradient checkpointing, torch.compile and export.

    Args:
        model: a ResNet of timm (ResNeXt, SE-ResNet, RegNetX/Y and so on) or torchvision, also from `create_model(...,
            features_only=True)`, or any sequence of such blocks.
        edge_weights, leave_out: see `connect`.
        blocks: how blocks of other classes add to their stream and activate.
        inplace: see `connect`.

    Raises:
        ConfigError: no block of the network can be rewired, with the reasons; it is already connected; a name in
            `leave_out` that the network does not have.
    """
    _check(model, leave_out)
    plans, reasons = _plan_residuals(model, REWIRED, "rewired", leave_out, blocks)
    if not plans:
        raise ConfigError(_nothing_to_do(model, "rewired", reasons))
    return _apply(model if inplace else copy_network(model), plans, edge_weights)


def connectable(
    model: nn.Module,
    *,
    nodes: Nodes = "residuals",
    sample: Sample | None = None,
    leave_out: Collection[str] = (),
    blocks: Residuals | None = None,
) -> dict[str, RunPlan | str]:
    """Return the runs that `connect` would make of a network, by wiring name, and why other blocks are in none.

    Args:
        model, nodes, sample, leave_out, blocks: see `connect`.

    Returns:
        a `RunPlan` for each run; for each block in no run, by name, the reason.

    Raises:
        ConfigError: the network is already connected, or lacks a name in `leave_out`; see `connect`.

    Example:
        >>> for name, run in connectable(timm.create_model("resnet18"), nodes="auto").items():
        ...     print(name, "->", run)
        layer1.0.wiring -> blocks: 2 blocks from layer1.0 to layer1.1, 3 edges
        layer2 -> it does not keep the shape of its input
        layer3 -> it does not keep the shape of its input
        layer4 -> it does not keep the shape of its input
    """
    plans, reasons = _plan(model, nodes, sample, leave_out, blocks)
    return {**{plan.name: plan for plan in plans}, **reasons}


def rewirable(
    model: nn.Module, *, leave_out: Collection[str] = (), blocks: Residuals | None = None
) -> dict[str, RunPlan | str]:
    """Return the runs that `rewire` would make of a network, and the reasons for other blocks; see `connectable`.

    Args:
        model, leave_out, blocks: see `rewire`.

    Raises:
        ConfigError: the network is already connected, or lacks a name in `leave_out`.
    """
    _check(model, leave_out)
    plans, reasons = _plan_residuals(model, REWIRED, "rewired", leave_out, blocks)
    return {**{plan.name: plan for plan in plans}, **reasons}


def disconnect(model: nn.Module) -> nn.Module:
    """Return a copy of a connected network as it was before `connect`: original modules and names, no part of topodet.

    Raises:
        ConfigError: an alpha differs from its initial value, so the original blocks would have another output; or the
            network is rewired, or not connected.
    """
    if not any(isinstance(module, ConnectedBlock) for module in model.modules()):
        raise ConfigError(f"{type(model).__name__} is not connected: there is nothing to undo")
    for name, blocks in runs(model).items():
        first = next(iter(blocks.values()))
        if first.link.run.form == "rewired":
            raise ConfigError(
                f"{name.removesuffix('.wiring')} is rewired: with any edge weights, the original blocks would "
                "compute something else. Keep it (it can be exported as it is)"
            )
        if not first.wiring.complete:
            raise ConfigError(f"{name} was pruned: blocks of the original are missing. Keep the network as it is")
        alpha = first.wiring.alpha.detach()
        off = (alpha - first.wiring.initial_alpha(device=alpha.device, dtype=alpha.dtype)).abs().max()
        if bool(off != 0):
            raise ConfigError(
                f"{name}.alpha differs from its initial value by up to {off.item():.3g}: without its edge weights the "
                "network would compute something else. Keep it connected (it can be exported as it is), or reset the "
                "weights with reset_parameters() and train on"
            )
    model = copy_network(model)
    disconnect_modules(model)
    return model


def _plan(
    model: nn.Module, nodes: Nodes, sample: Sample | None, leave_out: Collection[str], blocks: Residuals | None
) -> tuple[list[RunPlan], dict[str, str]]:
    """Return the runs of a network that can be connected, and for other blocks why not, by name."""
    if nodes not in get_args(Nodes):
        raise ConfigError(unknown_name("nodes", nodes, get_args(Nodes)))
    _check(model, leave_out)
    plans, reasons = [], {}
    if nodes != "blocks":
        plans, reasons = _plan_residuals(model, ADDITIVE, "residuals", leave_out, blocks)
    if nodes == "residuals":
        return plans, reasons
    root, output, sample = follow(copy_network(model, share=True), sample)
    if not any(x.is_meta or x.isfinite().any() for x in _tensors_in(output)):
        raise ConfigError(
            f"{type(model).__name__} returns no finite number for the sample, so the connected network cannot be "
            "compared with it. Give another sample, such as torch.randn(1, 3, height, width)"
        )
    if plans and _difference(_apply(copy_network(model, share=True), plans), sample, output, model):
        plans = []
    of_blocks, others = _plan_blocks(root, leave_out, [name for plan in plans for name in plan.links])
    plans = plans + of_blocks
    difference = of_blocks and _difference(_apply(copy_network(model, share=True), plans), sample, output, model)
    if difference:
        raise ConfigError(
            f"{type(model).__name__} computes something else when its blocks are connected, although they are called "
            f"one after the other: {'; '.join(map(str, of_blocks))}. On the sample {difference}. Find the run with "
            "connect(..., leave_out=[names of blocks])"
        )
    return plans, others if of_blocks or not reasons else {**reasons, **others}


def _check(model: nn.Module, leave_out: Collection[str]) -> None:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(f"only an nn.Module can be connected, before torch.jit, but this is a {type(model).__name__}")
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ConfigError(f"{lazy[0]} of a lazy module has no shape yet: call {type(model).__name__} once before")
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, ConnectedBlock):
            way_back = "" if module.link.run.form == "rewired" else "; disconnect(model) undoes it"
            raise ConfigError(f"{name or type(model).__name__} is already connected{way_back}")
    for name in leave_out:
        if name not in modules:
            raise ConfigError(unknown_name("module in leave_out", name, modules))


def _obstacle(name: str, block: nn.Module, leave_out: Collection[str]) -> str | None:
    """Return why a module cannot be a connected block, whatever it computes; None if it can."""
    if any(name == out or name.startswith(f"{out}.") for out in leave_out):
        return "it is in leave_out"
    if isinstance(block, torch.jit.ScriptModule) or hasattr(type(block), "__deepcopy__"):
        return f"its class {type(block).__name__} has its own way to be copied"
    if "forward" in vars(block):
        return "its forward was replaced by a wrapper: connect the network first, then wrap it"
    taken = [attribute for attribute in ("wiring", "link") if hasattr(block, attribute)]
    return f"it already has an attribute {taken[0]!r}" if taken else None


def _plan_residuals(
    model: nn.Module, table: Table, form: Form, leave_out: Collection[str], own: Residuals | None
) -> tuple[list[RunPlan], dict[str, str]]:
    """Return the runs of residual blocks in the containers of a network, and for other such blocks why not."""
    modules = dict(model.named_modules())
    uses = Counter(id(child) for module in modules.values() for child in module._modules.values())
    containers = [(name, module) for name, module in modules.items() if isinstance(module, _CONTAINERS)]
    in_series = {id(block) for _, container in containers for block in container.children()}
    reasons: dict[str, str | None] = {}
    for name, block in modules.items():
        kind = table.find(block, own)
        if kind is None:
            continue
        if id(block) not in in_series:
            reasons[name] = f"it is not in {', '.join(kind.__name__ for kind in _CONTAINERS)}: its order is not known"
        elif uses[id(block)] > 1:
            reasons[name] = "the network uses it in more than one place"
        else:
            reasons[name] = _obstacle(name, block, leave_out) or kind.obstacle(block)
    plans = []
    for prefix, container in containers:
        children = {f"{prefix}.{key}".removeprefix("."): block for key, block in container._modules.items()}
        kinds = {name: table.find(children[name], own) for name in children if reasons.get(name, "") is None}
        for links in _unfold(children, kinds, form):
            plans.append(RunPlan(form, links, complete(next(reversed(links.values())).end + 1)))
    return plans, {name: reason for name, reason in reasons.items() if reason is not None}


def _unfold(blocks: Mapping[str, nn.Module], kinds: Mapping[str, Residual], form: Form) -> Iterator[dict[str, Link]]:
    """Yield the places of a container's blocks run by run; those in `kinds` add to the stream."""
    found: list[dict[str, Link]] = [{}]
    for name, block in blocks.items():
        kind = kinds.get(name)
        begins = kind is not None and kind.begins_run(block)
        if kind is None or begins:
            found.append({})
        if kind is not None:
            place = len(found[-1])
            run = found[-1][next(iter(found[-1]))].run if place else Run(form, kind.stream_width(block))
            found[-1][name] = Link(
                run,
                kind.branches,
                next(reversed(found[-1].values())).end if place else 1,
                place,
                parts=kind.parts,
                switch=kind.switch,
                activation=kind.activation,
                shortcut=kind.shortcut if begins else None,
            )
    for links in filter(None, found):
        last = next(reversed(links))
        yield {**links, last: replace(links[last], ends=True)}


def _plan_blocks(
    root: Call, leave_out: Collection[str], taken: Collection[str]
) -> tuple[list[RunPlan], dict[str, str]]:
    """Return the runs of whole blocks in a network that was followed, and for other blocks that keep shapes why not.

    Args:
        root: see `follow`.
        leave_out: see `connect`.
        taken: names of blocks in other runs.
    """

    found, reasons = runs_of_blocks(root, lambda name, block: _obstacle(name, block, leave_out), taken)
    plans = []
    for nodes in found:
        run = Run("blocks", Residual(()).stream_width(root.module.get_submodule(nodes[0].name)))
        links = {
            node.name: Link(
                run, (whole,), k + 1, k, ends=k + 1 == len(nodes), argument=node.argument, result=node.result
            )
            for k, node in enumerate(nodes)
        }
        plans.append(RunPlan("blocks", links, complete(len(nodes) + 1)))
    return plans, reasons


@torch.inference_mode(False)
def _apply(model: nn.Module, plans: Collection[RunPlan], edge_weights: EdgeWeights = "learned") -> nn.Module:
    """Connect runs of a network in place, and return it."""
    device = next(model.parameters(), torch.empty(0)).device
    for plan in plans:
        start = "chain" if plan.form == "blocks" else "ones"
        for name, link in plan.links.items():
            block = model.get_submodule(name)
            if link.begins:
                wiring = RunWiring(plan.topology, edge_weights, start=start, device=device)
                block.wiring = wiring.train(block.training)
            connect_block(block, link)
            parent = model.get_submodule(name.rpartition(".")[0])
            if isinstance(parent, nn.Sequential | nn.ModuleList):
                connect_series(parent)
    return model


@torch.no_grad()
def _difference(connected: nn.Module, sample: Sample, output: Any, original: nn.Module) -> str | None:
    """Return how a connected network differs on a sample from the original, by more than rounding; None if not."""
    try:
        found = call(connected, sample)
    except Exception as error:  # a ConfigError if it skips blocks of a run; any other if a result has another type
        return f"it raises {type(error).__name__}: {error}"
    if _equal(found, output):
        return None
    # A network that draws random numbers in evaluation mode cannot be compared.
    same = _equal(call(copy_network(original, share=True), sample), output)
    return "its output is another one; it may overwrite the outputs of its blocks" if same else None


def _equal(ours: Any, theirs: Any) -> bool:
    ours, theirs = _tensors_in(ours), _tensors_in(theirs)
    return len(ours) == len(theirs) and all(map(_close, ours, theirs))


def _tensors_in(values: Any, *, depth: int = 4) -> list[Tensor]:
    """Return the tensors in a network's output, also those that are attributes of objects, such as dataclasses."""
    found = []
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif depth and hasattr(leaf, "__dict__"):
            found += _tensors_in(vars(leaf), depth=depth - 1)
    return found


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.is_meta:
        return ours.shape == theirs.shape
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    scale = theirs.abs().nan_to_num(0, 0, 0).max().item() if theirs.numel() else 0.0
    rounding = 1e-5 if ours.dtype in (torch.float32, torch.float64) else 1e-2
    return torch.allclose(ours, theirs, rtol=rounding, atol=rounding * scale, equal_nan=True)


def _nothing_to_do(model: nn.Module, nodes: Nodes | Literal["rewired"], reasons: Mapping[str, str]) -> str:
    name = "rewire" if nodes == "rewired" else "connect"
    table = REWIRED if nodes == "rewired" else ADDITIVE
    prefix = f"nothing to {name} in {type(model).__name__}: "
    if not reasons:
        if nodes in ("blocks", "auto"):
            return f"{prefix}no two blocks in series keep the shape of their input"
        if nodes == "rewired" and any(ADDITIVE.find(block) for block in model.modules()):
            return f"{prefix}none of its blocks is known to activate after its addition. Try connect(model)"
        return (
            f"{prefix}it has no residual block that topodet knows. Known in timm.models: "
            f"{', '.join(table.classes())}. For others say how they add: {name}(..., blocks={{Class: Residual(...)}})"
            f"{'' if nodes == 'rewired' else ', or connect whole blocks: nodes=' + repr('blocks')}"
        )
    named: dict[str, list[str]] = {}  # blocks by reason
    for block, reason in reasons.items():
        named.setdefault(reason, []).append(f"{block} ({type(model.get_submodule(block)).__name__})")
    found = "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in named.items()
    )
    # With "auto", blocks were tried as well.
    advice = _FOR_RESNETS if nodes == "residuals" and any(reason.endswith(FOLLOWS) for reason in named) else ""
    return f"{prefix}{found}{advice}"
