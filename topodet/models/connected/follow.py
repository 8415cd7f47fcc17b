"""Runs of blocks that keep their shape, found by tracing a network on a sample input.

Class names do not matter: blocks form a run if each is called on the same tensor that the previous one returned,
whether in `nn.Sequential`, in a loop over a `ModuleList`, or line by line in a `forward`.

Of nested blocks, the outermost make a run; the inside of a block is not changed. A module that only calls blocks in
sequence, such as a stage of an isotropic network, is not a block but a container: its blocks are nodes, and a run
continues into the next such container.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError

Sample = Tensor | Sequence[Any]


@dataclass(eq=False)
class Call:
    """A call of a module.

    Attributes:
        name: name of the module in the network.
        module: the module.
        inputs: the tensors among its arguments, by position or name, with their versions at the start of the call.
        outputs: the tensors that it returned, by position, or by None if it returned one, with their versions.
        start, stop: times in the order of all calls.
        children: the calls within it.
    """

    name: str
    module: nn.Module
    inputs: dict[int | str, tuple[Tensor, int]]
    start: int
    stop: int = 0
    outputs: dict[int | None, tuple[Tensor, int]] = field(default_factory=dict)
    children: list[Call] = field(default_factory=list)

    def walk(self) -> Iterator[Call]:
        """Yield this call and all within it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Node:
    """A block of a run: its name, and which argument and which result of its call are the stream."""

    name: str
    argument: int | str
    result: int | None


@torch.inference_mode(False)  # its tensors cannot be trained
def copy_network(model: nn.Module, *, share: bool = False) -> nn.Module:
    """Return a copy of a network.

    Args:
        model: the network.
        share: whether the copy has the network's own parameters, for calls in evaluation mode without gradients. Such a
            call may change a module, which can cache results such as positions, and its buffers, but no parameter.

    Raises:
        ConfigError: the network cannot be copied.
    """
    shared = {id(parameter): parameter for parameter in model.parameters() if share}
    try:
        return copy.deepcopy(model, shared)
    except Exception as error:  # whatever the copy of any attribute raises
        raise ConfigError(
            f"{type(model).__name__} cannot be copied: {error}. Connect it before it is called or wrapped. Of "
            "weight_norm and spectral_norm, use those in torch.nn.utils.parametrizations"
        ) from error


@torch.inference_mode(False)  # its tensors do not count their changes
@torch.no_grad()
def call(model: nn.Module, sample: Sample) -> Any:
    """Return a network's output for a sample in evaluation mode; the network stays in that mode."""
    model.eval()  # not chained: the `eval` of MMDetection's backbones returns None
    with torch.random.fork_rng(devices=[]):
        return model(*_arguments(sample))


def follow(model: nn.Module, sample: Sample | None = None) -> tuple[Call, Any, Sample]:
    """Call a network on a sample in evaluation mode and leave it there; return the call, the output and the sample.

    Args:
        model: any network.
        sample: the input, [B, C, H, W], or all arguments of the call; by default random images of a size that the
            network accepts.

    Raises:
        ConfigError: the network cannot be called on the sample.
    """
    if sample is not None and not isinstance(sample, Tensor | list | tuple):
        raise ConfigError(
            f"sample is of type {type(sample).__name__}, but must be a tensor, such as torch.randn(1, 3, height, "
            "width), or a tuple of all arguments of the network's call"
        )
    problems = []
    for given in samples(model) if sample is None else (sample,):
        calls: list[Call] = []
        handles = list(_watch(model, calls))
        try:
            output = call(model, given)
            return calls[0], output, given
        except Exception as error:  # a network can raise anything for an input size that it does not support
            problems.append(f"{_in_words(given)}: {type(error).__name__}: {error}")
        finally:
            for handle in handles:
                handle.remove()
    raise ConfigError(
        f"{type(model).__name__} cannot be traced on the sample {'; '.join(problems)}. Give an input that it accepts: "
        "sample=torch.randn(1, 3, height, width), or a tuple of all its arguments"
    )


def samples(model: nn.Module) -> Iterator[Tensor]:
    """Yield random images, float [1, C, H, W], one by one until the network accepts one."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    conv = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    own = next((module.img_size for module in model.modules() if getattr(module, "img_size", None)), None)
    sizes = [own, (cfg.get("input_size") or (None,))[1:], (224, 224)]
    if own is None and not cfg.get("fixed_input_size"):
        # Small, for speed; the map at stride 32 is 3 by 3, so that another stride would change it.
        sizes.insert(0, (96, 96))
    channels = [conv.in_channels if conv else 3, (cfg.get("input_size") or (3,))[0]]
    sizes = [(size, size) if isinstance(size, int) else tuple(size or ()) for size in sizes]
    for shape in dict.fromkeys((chans, *size) for size in sizes for chans in channels if len(size) == 2):
        generator = torch.Generator().manual_seed(0)
        yield torch.randn(1, *shape, generator=generator, device="cpu").to(parameter.device, parameter.dtype)


def runs_of_blocks(
    root: Call, obstacle: Callable[[str, nn.Module], str | None], taken: Collection[str] = ()
) -> tuple[list[list[Node]], dict[str, str]]:
    """Return the runs of at least two blocks that keep their shape, and by name why other such blocks are in no run.

    Args:
        root: the call of the network.
        obstacle: takes a module and its name and returns why it cannot be a node, or None if it can.
        taken: names of blocks in other runs; neither these nor modules that contain them are nodes.
    """
    taken = set(taken)
    around = {".".join(name.split(".")[:k]) for name in taken for k in range(name.count(".") + 1)}
    everything = list(root.walk())
    uses = Counter(id(call.module) for call in everything)
    passed_on = [call for call in everything if _passes_on(call)]
    reasons: dict[str, str] = {}

    def refuse(call: Call) -> str | None:
        if uses[id(call.module)] > 1:
            return f"it is called {uses[id(call.module)]} times"
        return obstacle(call.name, call.module)

    def is_block(call: Call) -> bool:
        if call is root or call.name in taken or call.name in around or not _keeps_shape(call):
            return False
        reason = refuse(call)
        if reason:
            reasons[call.name] = reason
        return reason is None

    def follows(before: Call, after: Call) -> tuple[int | None, int | str] | None:
        """Return which result of one call is which argument of another."""
        for result, (output, version) in before.outputs.items():
            for argument, (tensor, now) in after.inputs.items():
                if _same((output, version), (tensor, now)) and not _between(before, after, output, passed_on):
                    return result, argument
        return None

    def atoms(call: Call) -> Iterator[Call]:
        """Yield the calls within a call; a container of blocks is replaced by the calls of its blocks."""
        for child in call.children:
            yield from _inner(child) if is_block(child) else (child,)

    def _inner(call: Call) -> Iterator[Call]:
        inside = [child for child in call.children if not _is_identity(child.module)]
        if inside and all(map(is_block, inside)) and _in_series(call, inside):
            for child in inside:
                yield from _inner(child)
        else:
            yield call

    found: list[list[Node]] = []

    def search(call: Call) -> bool:
        """Find the runs within a call; return whether it has any, also of blocks that are already taken."""
        chains: list[list[Call]] = []
        parts = list(atoms(call))
        for part in filter(is_block, parts):
            before = next((chain for chain in reversed(chains) if follows(chain[-1], part)), None)
            if before and _nodes([*before, part], follows):
                before.append(part)
            else:
                chains.append([part])
        chains = [chain for chain in chains if len(chain) > 1]
        found.extend(_nodes(chain, follows) for chain in chains)
        in_runs = {id(part) for chain in chains for part in chain}
        left = [part for part in parts if id(part) not in in_runs and part.name not in taken]
        empty = [part for part in left if not search(part)]
        for part in empty:
            if part.children and any(parameter.ndim > 1 for parameter in part.module.parameters()):
                inside = [name for name in reasons if name.startswith(f"{part.name}.")]
                refused = {name: reasons.pop(name) for name in inside}
                reasons.setdefault(part.name, next(iter(refused.values()), _ALONE if _keeps_shape(part) else _CHANGES))
        return len(empty) < len(parts)

    search(root)
    return _outermost(found, reasons, everything, taken)


def _outermost(
    found: Sequence[list[Node]], reasons: Mapping[str, str], calls: Sequence[Call], taken: Collection[str]
) -> tuple[list[list[Node]], dict[str, str]]:
    """Return runs without those inside blocks, and the reasons that concern blocks.

    A module of the class of a run's block is a block too, and stays whole even if it is in no run. (Except for classes
    whose modules contain each other, as in trees, or contain anything, such as `nn.Sequential`.) Single layers, such as
    two convolutions, are nodes only if there are no blocks of several modules.
    """
    by_name = {call.name: call for call in reversed(calls)}

    def around(name: str) -> list[str]:
        parts = name.split(".")
        return [outer for k in range(1, len(parts)) if (outer := ".".join(parts[:k])) in by_name]

    def kind(name: str) -> type:
        return type(by_name[name].module)

    of_many = {nn.Sequential, *(kind(name) for name in by_name if kind(name) in map(kind, around(name)))}
    of_blocks = [run for run in found if any(by_name[node.name].children for node in run)]
    found = of_blocks if of_blocks or taken else found
    kinds = {kind(name) for name in taken if name in by_name} - of_many
    kept = []
    for run in sorted(found, key=lambda run: run[0].name.count(".")):
        if not kinds & set(map(kind, around(run[0].name))):
            kept.append(run)
            kinds |= {kind(node.name) for node in run} - of_many
    left = {}
    for name, reason in reasons.items():
        block = next((outer for outer in around(name) if kind(outer) in kinds), name)
        # Of modules that change the shape, only report such blocks or what contains them: no stem and no head.
        if reason != _CHANGES or not kinds or any(type(part) in kinds for part in by_name[block].module.modules()):
            left[block] = reason if block == name else _ALONE if _keeps_shape(by_name[block]) else _CHANGES
    return [run for run in found if run in kept], left


_CHANGES = "it does not keep the shape of its input"
_ALONE = "no block that keeps this shape is called directly before or after it, on the same tensor"


def _nodes(chain: Sequence[Call], follows: Callable[[Call, Call], Any]) -> list[Node] | None:
    """Return the blocks of a chain of calls as nodes; None if the stream changes its shape."""
    links = [follows(before, after) for before, after in pairwise(chain)]
    shape = chain[0].outputs[links[0][0]][0]
    first = [argument for argument, (tensor, _) in chain[0].inputs.items() if _alike(tensor, shape)]
    last = [result for result, (tensor, _) in chain[-1].outputs.items() if _alike(tensor, shape)]
    if not first or not last or any(not _alike(call.outputs[link[0]][0], shape) for call, link in zip(chain, links)):
        return None
    arguments = [links[0][1] if links[0][1] in first else first[0], *(argument for _, argument in links)]
    results = [*(result for result, _ in links), links[-1][0] if links[-1][0] in last else last[0]]
    return [Node(call.name, *place) for call, *place in zip(chain, arguments, results)]


def _keeps_shape(call: Call) -> bool:
    """Whether a call turns one of its tensors into another of its shape, and not only by a normalization."""
    return any(parameter.ndim > 1 for parameter in call.module.parameters()) and any(
        _alike(tensor, output) and tensor is not output
        for tensor, _ in call.inputs.values()
        for output, _ in call.outputs.values()
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.is_floating_point() and a.ndim > 1


def _in_series(call: Call, inside: Sequence[Call]) -> bool:
    """Whether a call only passes its input to the first call within it, each output to the next, and returns the last.

    A tensor of a different version was changed in between, for example by adding a shortcut in place.
    """
    stream = list(call.inputs.values())
    for child in inside:
        if not any(_same(tensor, one) for tensor in child.inputs.values() for one in stream):
            return False
        stream = list(child.outputs.values())
    last, own = inside[-1].outputs, call.outputs
    return last.keys() == own.keys() and all(_same(last[key], own[key]) for key in own)


def _same(one: tuple[Tensor, int], other: tuple[Tensor, int]) -> bool:
    """Whether two tensors are the same object, unchanged according to their versions."""
    return one[0] is other[0] and one[1] == other[1]


def _is_identity(module: nn.Module) -> bool:
    """Whether a module returns its input unchanged, in training too."""
    children = list(module.children())
    if children:
        return isinstance(module, nn.Sequential) and all(map(_is_identity, children))
    nothing = isinstance(module, nn.Identity | nn.Sequential)
    return nothing or getattr(module, "p", None) == 0 or getattr(module, "drop_prob", None) == 0


def _passes_on(call: Call) -> bool:
    """Whether a call returned its input, and might not in training, such as dropout."""
    return not _is_identity(call.module) and any(
        tensor is output for tensor, _ in call.inputs.values() for output, _ in call.outputs.values()
    )


def _between(before: Call, after: Call, stream: Tensor, passed_on: Sequence[Call]) -> bool:
    return any(
        before.stop < call.start and call.stop < after.start and any(t is stream for t, _ in call.inputs.values())
        for call in passed_on
    )


def _watch(model: nn.Module, calls: list[Call]) -> Iterator[Any]:
    """Register hooks that record every call; yield their handles."""
    open_calls: list[Call] = []
    clock = count()

    def enter(name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        call = Call(name, module, _tensors([*enumerate(args), *kwargs.items()]), next(clock))
        (open_calls[-1].children if open_calls else calls).append(call)
        open_calls.append(call)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        call = open_calls.pop()
        call.outputs = _tensors(enumerate(output) if isinstance(output, tuple | list) else [(None, output)])
        call.stop = next(clock)

    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield module.register_forward_pre_hook(
                lambda module, args, kwargs, name=name: enter(name, module, args, kwargs), with_kwargs=True
            )
            yield module.register_forward_hook(leave)


def _tensors(values: Collection[tuple[Any, Any]]) -> dict[Any, tuple[Tensor, int]]:
    return {key: (value, value._version) for key, value in values if isinstance(value, Tensor)}


def _arguments(sample: Sample) -> Sequence[Any]:
    arguments = (sample,) if isinstance(sample, Tensor) else sample
    return [x.clone() if isinstance(x, Tensor) and x.is_inference() else x for x in arguments]


def _in_words(sample: Sample) -> str:
    return ", ".join(str(list(x.shape)) if isinstance(x, Tensor) else repr(x) for x in _arguments(sample))
