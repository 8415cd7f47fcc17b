"""`ConnectedBlock`: a block of an existing network as nodes of a graph (Eq. 1), in its original place.

The class of a connected block is a subclass of its original class, made by `connect_block`. So its name, its tensors'
names, its hooks and the container or loop that calls it stay the same. Earlier outputs of a pass are carried from block
to block as an attribute of the tensor. Modules store nothing about a pass, so passes can be nested, run in threads, or
be partly recomputed by gradient checkpointing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from ...errors import ConfigError
from ...ops import WeightedSums
from ...ops.dispatch import is_traced
from ..wiring import Wiring
from .residual import Branch

Form = Literal["residuals", "blocks", "rewired"]
_PASS = "_topodet_pass"  # attribute of a tensor between two blocks of a run


class RunWiring(Wiring):
    """The wiring of a run of blocks: a `Wiring` that may be missing in a checkpoint of the original network.

    If a state dict has the block that owns the wiring, but neither `alpha` nor `edges`, it is from the original
    network: every weight is set to its initial value. Only one of the two, or another graph, is an error as usual; so
    is a state dict without edges for a graph that is not complete. A state dict without any tensor of the block does
    not change the wiring.
    """

    alternate = False  # terms are added in the order of the original network, for bitwise equal results

    @property
    def complete(self) -> bool:
        """Whether nothing was pruned from the run."""
        nodes = self.topology.num_nodes
        return self.numbers == tuple(range(nodes)) and self.topology.num_edges == nodes * (nodes - 1) // 2

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        """Return the input: a block that is an `nn.Sequential` calls all of its children, including this one."""
        return x

    def add_missing(self, state_dict: dict[str, Tensor], prefix: str, device: torch.device) -> None:
        """Add the initial weights and the edges to a state dict without them, in place."""
        if self.complete and f"{prefix}alpha" not in state_dict and f"{prefix}edges" not in state_dict:
            state_dict |= {
                f"{prefix}alpha": self.initial_alpha(device=device, dtype=self.alpha.dtype),
                f"{prefix}edges": torch.tensor(self._numbered(), dtype=torch.int64, device=device),
            }


class Run:
    """A run of blocks that one wiring connects: the properties that its links share.

    Args:
        form: see `connect` and `rewire`.
        width: channels of the stream, None if the blocks do not tell.
    """

    def __init__(self, form: Form, width: int | None):
        self.form, self.width, self.compiled = form, width, False


@dataclass(frozen=True)
class Link:
    """The place of a block in its run.

    Args:
        run: the same object in all links of a run, also in a copy or pickle of the network.
        branches: functions of (block, *arguments of its call) that compute its nodes; none for a block that pruning has
            emptied.
        node: number of the first branch's node; the others follow.
        place: position of the block in its run.
        ends: whether it is the last block.
        opens: whether it has its first branch, which reads an activated sum if blocks have an `activation`; all other
            branches activate their input themselves.
        parts: see `Residual`, for each branch.
        switch: (attribute, value) that is swapped with the block's own when it is connected, and swapped back when it
            is disconnected; see `Residual`.
        activation: see `Residual`.
        shortcut: see `Residual`; for a block whose shortcut begins a run, None for others.
        argument: the position or name of the call's argument that is the stream.
        result: the index of the stream in the block's outputs, if it returns several.
    """

    run: Run
    branches: tuple[Branch, ...]
    node: int
    place: int
    ends: bool = False
    opens: bool = True
    parts: tuple[str, ...] = ()
    switch: tuple[str, Any] | None = None
    activation: str | None = None
    shortcut: str | None = None
    argument: int | str = 0
    result: int | None = None

    @property
    def begins(self) -> bool:
        """Whether the block is the first of its run."""
        return self.place == 0

    @property
    def end(self) -> int:
        """The node after the last branch."""
        return self.node + len(self.branches)


@dataclass(frozen=True, eq=False)
class _Pass:
    """The state of a run, an attribute of the tensor that a block returns. Immutable: the next block makes a new one.

    It does not refer to anything computed from that tensor later, because autograd saves the tensor: the reference
    cycle would keep both alive.
    """

    run: Run
    place: int  # of the block that reads the tensor
    sums: WeightedSums


class ConnectedBlock(nn.Module):
    """A block whose nodes read weighted sums of the outputs of earlier nodes of its run; see `connect_block`."""

    link: Link

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the block's nodes and return the sum that the next node reads, or the last node's output."""
        link, x = self.link, self._stream(args, kwargs)
        if torch.compiler.is_dynamo_compiling():
            # A compiler loses attributes of tensors in gradient checkpointing. There it leaves functions with side
            # effects, such as this one, to Python.
            link.run.compiled = True
        if link.begins:
            sums, given = self.wiring.sums(x), x
            if link.shortcut is None:
                sums.put(0, x)
            else:
                if link.opens:
                    sums.put(0, x, stop=1)
                sums.put(0, getattr(self, link.shortcut)(x).to(x.dtype), start=int(link.opens))
            x = sums.read(1)
            args, kwargs = _put_in(args, kwargs, given, x)
        else:
            before = _carried(x)
            if before is None or before.run is not link.run or before.place != link.place:
                raise ConfigError(self._lost())
            sums = before.sums.fork()
        dtype, output = x.dtype, x
        for node, branch in enumerate(link.branches, link.node):
            output = branch(_Original(self), *args, **kwargs)
            result = output if link.result is None else output[link.result]
            if link.run.form == "blocks" and not is_traced(x) and result.shape != x.shape:
                raise ConfigError(self._misshapen(x, result))
            given, x = x, result
            if node + 1 < len(sums.sources):
                # Autocast may change the dtype of a branch; all terms of a sum have the dtype of the stream.
                sums.put(node, result.to(dtype))
                x = sums.read(node + 1)
                args, kwargs = _put_in(args, kwargs, given, x)
        if link.activation:
            x = getattr(self, link.activation)(x)
        if not link.ends:
            setattr(x, _PASS, _Pass(link.run, link.place + 1, sums))
        return x if link.result is None else _with(output, link.result, x)

    def _stream(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        argument = self.link.argument
        try:
            return kwargs[argument] if isinstance(argument, str) else args[argument]
        except (KeyError, IndexError):
            raise ConfigError(
                f"a connected {original_class(self).__name__} expects its stream in argument {argument!r}, as the "
                f"network passed it on the sample; this call has {len(args)} positional arguments and "
                f"{sorted(kwargs) or 'no'} keywords. Leave the block out: connect(..., leave_out=[its name])"
            ) from None

    def _lost(self) -> str:
        return (
            f"{original_class(self).__name__} of a connected run was not called on the output of the block "
            "before it: the network changes its stream between blocks, or skips some, or recomputes it "
            "with use_reentrant=True. Leave these blocks out: connect(..., leave_out=[their names])"
        )

    def _misshapen(self, x: Tensor, result: Tensor) -> str:
        return (
            f"{original_class(self).__name__} of a connected run returns {list(result.shape)} for {list(x.shape)}: "
            "its nodes can be summed only if blocks keep the shape. Give images of a size for which it does, such as "
            "the sample that the network was connected with, or leave the block out: connect(..., leave_out=[its name])"
        )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if self.link.begins:
            wiring = f"{prefix}wiring."
            own = (value for key, value in state_dict.items() if key.startswith(prefix) and not key.startswith(wiring))
            if (tensor := next(own, None)) is not None:
                # On the device of the file's tensors: a network on the meta device has none yet.
                self.wiring.add_missing(state_dict, wiring, tensor.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __reduce_ex__(self, protocol: int) -> tuple:
        # The class was created at run time, so a pickle cannot find it by name.
        _, (made,), *rest = super().__reduce_ex__(protocol)
        return _new, made.__mro__[1:3], *rest


class ConnectedSeries(nn.Module):
    """A container of blocks in series that can be cut within a run: `model.blocks[:2]`, as timm does."""

    def __getitem__(self, key: int | slice) -> nn.Module:
        """Return a block, or a container of the first blocks; the last one returns what the next one would read."""
        part = super().__getitem__(key)
        if not isinstance(key, slice):
            return part
        if range(len(self))[key] != range(len(part)):
            raise ConfigError(
                f"blocks of a connected run can only be cut at their end, [:n], got {key} of {len(self)} blocks"
            )
        _cut_run(part)
        return part

    def __reduce_ex__(self, protocol: int) -> tuple:
        _, (made,), *rest = super().__reduce_ex__(protocol)
        return _new, made.__mro__[1:3], *rest


class _Original:
    """A block without its link: calling it runs the `forward` of its original class."""

    __slots__ = ("block",)

    def __init__(self, block: ConnectedBlock):
        self.block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super(ConnectedBlock, self.block).forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self.__slots__:
            raise AttributeError(name)  # a compiler may access it before __init__, when there is no block yet
        return getattr(self.block, name)


def whole(block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Compute a node that is a whole block."""
    return block(*args, **kwargs)


def connect_block(block: nn.Module, link: Link) -> None:
    """Turn a block, in place, into the nodes of `link`; the first block of a run already has its `wiring`."""
    block.link = _exchange(block, link)
    block.__class__ = _subclass(ConnectedBlock, type(block))


def _exchange(block: nn.Module, link: Link) -> Link:
    if link.switch is None:
        return link
    attribute, value = link.switch
    own = getattr(block, attribute)
    setattr(block, attribute, value)
    return replace(link, switch=(attribute, own))


def connect_series(container: nn.Module) -> None:
    """Turn a container, in place, into one that can be cut within a run."""
    if not isinstance(container, ConnectedSeries):
        container.__class__ = _subclass(ConnectedSeries, type(container))


def disconnect_modules(model: nn.Module) -> None:
    """Restore the original classes of blocks and containers, in place."""
    for module in model.modules():
        if isinstance(module, ConnectedBlock):
            if _exchange(module, module.link).begins:
                del module.wiring
            del module.link
        if isinstance(module, ConnectedBlock | ConnectedSeries):
            module.__class__ = original_class(module)


def runs(model: nn.Module) -> dict[str, dict[str, ConnectedBlock]]:
    """Return the blocks of each run of a model, in order and by name, by the name of the run's wiring."""
    found: dict[Run, dict[str, ConnectedBlock]] = {}
    for name, module in model.named_modules():
        if isinstance(module, ConnectedBlock):
            found.setdefault(module.link.run, {})[name] = module
    named = {}
    for blocks in found.values():
        (first, block), *_ = in_series = sorted(blocks.items(), key=lambda item: item[1].link.place)
        if block.link.begins:  # otherwise the model is a part of the network, without the start of the run
            named[f"{first}.wiring".removeprefix(".")] = dict(in_series)
    return named


def _cut_run(container: nn.Module) -> None:
    """Shorten the wiring of the last run of a container if its further blocks were cut off."""
    blocks = list(container._modules.values())
    last = blocks[-1] if blocks else None
    if not isinstance(last, ConnectedBlock) or last.link.ends:
        return
    name, block = next(
        ((name, block) for name, block in container._modules.items() if _begins(block, last.link.run)), (None, None)
    )
    if block is None:
        return  # the run starts in another container, which keeps its edges
    topology, end = block.wiring.topology, last.link.end
    if topology.num_nodes > end + 1:
        if not block.wiring.complete:
            raise ConfigError(f"the run of block {name} was pruned and can no longer be cut: cut first, then prune")
        twin = copy.copy(block)  # the block of the longer run keeps its wiring
        twin._modules = block._modules.copy()
        twin.wiring = block.wiring.subset([edge for edge in topology.edges if edge[1] <= end], renumber=False)
        container.add_module(name, twin)


def _begins(block: nn.Module, run: Run) -> bool:
    return isinstance(block, ConnectedBlock) and block.link.run is run and block.link.begins


@cache
def _subclass(mixin: type, kind: type) -> type:
    name = f"Connected{kind.__name__}"
    return type(name, (mixin, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def original_class(module: nn.Module) -> type:
    """Return the class that a connected block or container had."""
    return type(module).__mro__[2]


def _new(mixin: type, kind: type) -> nn.Module:
    made = _subclass(mixin, kind)
    return made.__new__(made)


def _carried(x: Tensor) -> _Pass | None:
    # A proxy of torch.fx returns something for any attribute.
    return vars(x).get(_PASS) if isinstance(x, fx.Proxy) else getattr(x, _PASS, None)


def _put_in(args: tuple, kwargs: Mapping[str, Any], old: Tensor, new: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Return arguments with each occurrence of one tensor replaced by another."""
    return (
        tuple(new if value is old else value for value in args),
        {name: new if value is old else value for name, value in kwargs.items()},
    )


def _with(output: Any, index: int, x: Tensor) -> Any:
    """Return a block's results with the stream replaced."""
    values = [*output[:index], x, *output[index + 1 :]]
    if isinstance(output, list):
        return values
    return output._make(values) if hasattr(output, "_make") else tuple(values)  # a named tuple, or a plain one
