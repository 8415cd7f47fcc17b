"""`ConnectedSequential`: blocks in series whose residual stream is unfolded into a graph (Eq. 1)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress, pairwise
from typing import Any

import torch
from timm.models import checkpoint_seq
from torch import Tensor, fx, nn

from ...errors import ConfigError
from ...ops import WeightedSums
from ...topology.graph import Edge
from ...topology.paths import check_paths
from ..wiring import Wiring
from .residual import Branch


class ResidualWiring(Wiring):
    """The wiring of a run of blocks: a `Wiring` that a checkpoint of the original network need not know.

    Where a state dict has neither `alpha` nor `edges` every weight becomes 1, as `connect` and `rewire` begin. Half of
    them, or another graph, is an error as ever; so is a state dict without edges for a graph that is not complete.
    """

    alternate = False  # terms are added as the original network adds them: the results are equal to the bit

    @property
    def complete(self) -> bool:
        """Whether nothing was pruned from the run."""
        nodes = self.topology.num_nodes
        return self.numbers == tuple(range(nodes)) and self.topology.num_edges == nodes * (nodes - 1) // 2

    def add_missing(self, state_dict: dict[str, Tensor], prefix: str, device: torch.device) -> None:
        """Put weights 1 and the edges into a state dict, in place, that knows nothing of them."""
        if self.complete and f"{prefix}alpha" not in state_dict and f"{prefix}edges" not in state_dict:
            state_dict |= {
                f"{prefix}alpha": torch.ones(self.alpha.shape, dtype=self.alpha.dtype, device=device),
                f"{prefix}edges": torch.tensor(self._numbered(), dtype=torch.int64, device=device),
            }

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        self.add_missing(state_dict, prefix, self.alpha.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@dataclass(frozen=True)
class Link:
    """The place of a block in its run.

    Args:
        branches: what the block adds, see `Residual`; none of a block that pruning has emptied.
        node: of the first branch; the others follow.
        begins: whether the block is the first of its run.
        opens: whether its first branch is there, which reads an activated sum where blocks have an `activation`; all
            others activate what they read themselves.
        parts: see `Residual`; of each branch.
        addition: (attribute, value) of the block that gives it back its addition.
        activation: see `Residual`.
        shortcut: see `Residual`; of a block that begins a run by it, None for others.
        width: channels of the run's stream, None where the blocks do not tell.
    """

    branches: tuple[Branch, ...]
    node: int
    begins: bool
    opens: bool = True
    parts: tuple[str, ...] = ()
    addition: tuple[str, Any] | None = None
    activation: str | None = None
    shortcut: str | None = None
    width: int | None = None

    @property
    def end(self) -> int:
        """The node after the last branch."""
        return self.node + len(self.branches)


class ConnectedSequential(nn.Module):
    """The blocks of a container in series; runs of blocks with identity shortcuts read weighted sums.

    A run of branches f_1..f_m computes `s_i = sum_{j<i} alpha_ji * r_j` and `r_i = f_i(s_i)` from r_0, its input, and
    hands on s_{m+1}: a graph of m + 2 nodes, whose last one only sums. With all alphas 1, s_i is the residual stream.
    Where a run begins with a projection of the stream (`Link.shortcut`), that is what the nodes read as r_0; node 1
    alone reads the stream as it was, `s_1 = alpha_01 * x`. Blocks of a network that `rewire` made activate what they
    hand on (`Link.activation`), and leave r_i as it is.

    The wiring is a child of the run's first block, `wiring`; all other names are those of the original container.
    Blocks that pruning has emptied (`prune_to_edges_`) stay in their places: a network finds as many as it expects.

    Networks use their blocks in many ways: they call the container, iterate over it, cut it, or recompute parts of it
    in the backward pass. All of these go through `__iter__`: each iteration is a pass of its own, and its items are
    to be called one after the other on what the one before returned.

    Args:
        container: what holds the blocks; it is kept, and untouched but for its blocks.
        links: places in runs by block name; the other blocks are called as they are.
    """

    def __init__(self, container: nn.Module, links: dict[str, Link]):
        super().__init__()
        for name, block in container._modules.items():  # with those that occur twice
            self.add_module(name, block)
        self.links = links
        self.original = (container,)  # in a tuple, so that it is no child
        self.training = container.training
        self.grad_checkpointing = getattr(container, "grad_checkpointing", False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Call the blocks in series; further arguments go to each."""
        if self.grad_checkpointing and not (args or kwargs):
            return checkpoint_seq(self, x)
        for block in self:
            x = block(x, *args, **kwargs)
        return x

    def __iter__(self) -> Iterator[Callable[..., Tensor]]:
        state = None
        for place, (name, block) in enumerate(self._modules.items()):
            link = self.links.get(name)
            if link is None:
                yield block
                continue
            if link.begins:
                state = ForwardState(block.wiring, place)
            yield _Step(state, block, link, place)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, key: int | slice) -> nn.Module:
        """Return a block, or a chain of the first blocks, which hands on what the next block would read."""
        if isinstance(key, int):
            return list(self._modules.values())[key]
        if range(len(self))[key] != range(len(range(len(self))[key])):
            raise ConfigError(f"a connected chain can be cut at its end only, [:n], got {key} of {len(self)} blocks")
        container = self.original[0][key]
        _cut_run(container, self.links)
        return ConnectedSequential(container, self.links)

    def runs(self) -> Iterator[list[str]]:
        """Yield the names of the blocks of each run."""
        run: list[str] = []
        for name in self._modules:
            link = self.links.get(name)
            if run and (link is None or link.begins):
                yield run
                run = []
            if link is not None:
                run.append(name)
        if run:
            yield run

    def prune_to_edges_(self, first: str, edges: Collection[Edge]) -> None:
        """Take out of a run, in place, all edges but these and the branches of nodes that are on none of them.

        What only these branches used goes from their blocks; the other parameters keep their names, and the nodes
        their numbers in a file. The run computes what it would with the weights of the other edges at 0. Between two
        blocks the network now sees what the next node that is left reads.

        Args:
            first: name of the run's first block.
            edges: of `wiring.topology`, as nodes are numbered there.

        Raises:
            TopologyError: they are not all on paths from the run's input to its output.
            ConfigError: a block of several branches is to lose some, and does not tell what they use.
        """
        links = self._links_of(first, edges)
        wiring = self._modules[first].wiring.subset(edges, renumber=False)
        for name, link in links.items():
            block = self._modules[name]
            for lost in _unused(block, self.links[name], link):
                delattr(block, lost)
            if not (link.opens or link.begins):
                _not_in_place(block)
        self._modules[first].wiring = wiring
        self.links = self.links | links  # a shorter chain may have the old ones

    def removed_names(self, first: str, edges: Collection[Edge]) -> list[str]:
        """Return the names within the chain of what `prune_to_edges_` would remove; changes nothing."""
        return [
            f"{name}.{lost}"
            for name, link in self._links_of(first, edges).items()
            for lost in _unused(self._modules[name], self.links[name], link)
        ]

    def _links_of(self, first: str, edges: Collection[Edge]) -> dict[str, Link]:
        """Return the places of a run's blocks when it has only these edges."""
        run = next(run for run in self.runs() if run[0] == first)
        check_paths(self._modules[first].wiring.topology, edges)
        nodes = {node for edge in edges for node in edge}
        of_projection = any(j == 0 and not (i == 1 and self.links[first].opens) for j, i in edges)
        links: dict[str, Link] = {}
        next_node = 1
        for name in run:
            before = self.links[name]
            left = [node in nodes for node in range(before.node, before.end)]
            if any(left) and not all(left) and not before.parts:
                raise ConfigError(
                    f"block {name} ({type(self._modules[name]).__name__}) would lose some of its branches, and nothing "
                    "tells what they use: give Residual(..., parts=(...)) to connect or rewire"
                )
            links[name] = replace(
                before,
                branches=tuple(compress(before.branches, left)),
                parts=tuple(compress(before.parts, left)),
                node=next_node,
                opens=before.opens and left[:1] == [True],
                shortcut=before.shortcut if of_projection else None,
            )
            next_node = links[name].end
        for name, following in pairwise(run):
            if not links[following].opens:  # who reads the sum activates it
                links[name] = replace(links[name], activation=None)
        return links

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # A network built on the meta device has no device yet: that of the file's tensors, of which a wiring that the
        # file does not know will see none.
        device = next((tensor.device for key, tensor in state_dict.items() if key.startswith(prefix)), None)
        for name, link in self.links.items():
            if link.begins and name in self._modules and self._modules[name].wiring.alpha.is_meta and device:
                self._modules[name].wiring.add_missing(state_dict, f"{prefix}{name}.wiring.", device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def rewired(self) -> bool:
        """Whether its blocks would compute something else without it, whatever the weights of its edges."""
        return any(link.activation for link in self.links.values())


def _cut_run(container: nn.Module, links: dict[str, Link]) -> None:
    """Give the last run of a container, whose further blocks are cut off, a wiring without them."""
    names = list(container._modules)
    last = links.get(names[-1]) if names else None
    if last is None:
        return
    first = next(name for name in reversed(names) if links[name].begins)
    block = container._modules[first]
    edges = block.wiring.topology.edges
    if block.wiring.topology.num_nodes > last.end + 1:
        if not block.wiring.complete:
            raise ConfigError(f"the run of block {first} was pruned and cannot be cut any more: cut first, then prune")
        twin = copy.copy(block)  # the block of the longer chain keeps its own
        twin._modules = block._modules.copy()
        twin.wiring = block.wiring.subset([edge for edge in edges if edge[1] <= last.end], renumber=False)
        container.add_module(first, twin)


def _unused(block: nn.Module, before: Link, after: Link) -> list[str]:
    """Return what of a block only the branches used that it has lost: names of modules and tensors."""
    held = [*block._modules, *block._parameters, *block._buffers]
    if not after.branches:
        gone = set(held)
    else:
        gone = _names(part for part in before.parts if part not in after.parts) - _names(after.parts)
        if before.parts and before.activation and before.activation not in _names(after.parts):
            gone.add(before.activation)
    gone |= {before.shortcut}
    return [name for name in held if name in gone - {after.activation, after.shortcut, "wiring"}]


def _not_in_place(block: nn.Module) -> None:
    """Let a block that may activate what it is given leave that as it is: it is not the block's own sum."""
    for module in block.modules():
        if getattr(module, "inplace", False):
            module.inplace = False


def _names(parts: Iterable[str]) -> set[str]:
    return set(" ".join(parts).split())


class ForwardState:
    """One pass through a run: the sums, and where it stands."""

    def __init__(self, wiring: Wiring, place: int):
        self.wiring = wiring
        self.sums: WeightedSums | None = None
        self.place = place
        self.stream: Tensor | None = None

    def __call__(self, block: nn.Module, link: Link, place: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # A checkpointed block comes a second time, in the backward pass. It does then what it did before, with values
        # that are the same or that nobody reads any more.
        first_time = place == self.place
        if link.begins:
            made = self.wiring.sums(x)  # even then: what is kept for the backward pass is counted
            sums = self.sums = self.sums or made
            if link.shortcut is None:
                sums.put(0, x)
            else:
                if link.opens:
                    sums.put(0, x, stop=1)
                sums.put(0, getattr(block, link.shortcut)(x).to(x.dtype), start=int(link.opens))
            x = sums.read(1)
        else:
            sums = self.sums
            if sums is None or (first_time and x is not self.stream):
                raise ConfigError(
                    f"{type(block).__name__} of a connected chain was called on something else than what the block "
                    "before it returned: the network changes its stream between blocks, or recomputes it with "
                    "use_reentrant=True. Leave the chain out: connect(..., leave_out=[its name])"
                )
        dtype = x.dtype
        for node, branch in enumerate(link.branches, link.node):
            # Autocast may give a branch another dtype than the stream; all terms of a sum have that of the stream.
            sums.put(node, branch(block, x, *args, **kwargs).to(dtype))
            x = sums.read(node + 1)
        if link.activation:
            x = getattr(block, link.activation)(x)
        if first_time:
            self.place, self.stream = place + 1, x
        return x


class _Step:
    """A block at its place in a pass; its attributes are those of the block."""

    __slots__ = ("block", "link", "place", "state")  # setting any other attribute is an error and not lost

    def __init__(self, state: ForwardState, block: nn.Module, link: Link, place: int):
        self.state = state
        self.block = block
        self.link = link
        self.place = place

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        run = partial(self.state, self.block, self.link, self.place)
        if isinstance(x, fx.Proxy) and not x.tracer.is_leaf_module(self.block, ""):
            # In a graph of torch.fx the sum is the output of the block, as the addition of the original is.
            return x.tracer.call_module(self.block, run, (x, *args), kwargs)
        return run(x, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self.__slots__:
            raise AttributeError(name)  # before __init__, as a compiler sees it: there is no block to ask yet
        return getattr(self.block, name)
