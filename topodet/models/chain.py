"""`Chain`: blocks in series whose residual stream is unfolded into a graph (Eq. 1)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from timm.models import checkpoint_seq
from torch import Tensor, nn

from ..errors import ConfigError
from ..topology import complete
from .aggregation import Sums
from .residual import Branch
from .wiring import Wiring


class RunWiring(Wiring):
    """The wiring of a run of blocks: a `Wiring` that a checkpoint of the original network need not know.

    Where a state dict has neither `alpha` nor `edges` every weight becomes 1, as `connect` and `rewire` begin. Half of
    them, or another graph, is an error as ever.
    """

    def cut(self, num_nodes: int) -> RunWiring:
        """Return a wiring of its own for the first nodes of a complete graph, with the weights that they have."""
        part = RunWiring(complete(num_nodes), "learned" if isinstance(self.alpha, nn.Parameter) else "fixed")
        part = part.to(self.alpha).train(self.training)
        part.alpha.data.copy_(self.alpha[: part.topology.num_edges])  # edges are sorted by target
        part.alpha.requires_grad_(self.alpha.requires_grad)
        return part

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if f"{prefix}alpha" not in state_dict and f"{prefix}edges" not in state_dict:
            state_dict |= {
                f"{prefix}alpha": self.alpha.detach().new_ones(self.alpha.shape),
                f"{prefix}edges": self.edges,
            }
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@dataclass(frozen=True)
class Link:
    """The place of a block in its run.

    Args:
        branches: what the block adds, see `Residual`.
        node: of the first branch; the others follow.
        restore: (attribute, value) of the block that gives it back its addition.
        activation: see `Residual`.
        shortcut: see `Residual`; of a block that begins a run by it, None for others.
    """

    branches: tuple[Branch, ...]
    node: int
    restore: tuple[str, Any] | None = None
    activation: str | None = None
    shortcut: str | None = None

    @property
    def end(self) -> int:
        """The node after the last branch."""
        return self.node + len(self.branches)


class Chain(nn.Module):
    """The blocks of a container in series; runs of blocks with identity shortcuts read weighted sums.

    A run of branches f_1..f_m computes `s_i = sum_{j<i} alpha_ji * r_j` and `r_i = f_i(s_i)` from r_0, its input, and
    hands on s_{m+1}: a graph of m + 2 nodes, whose last one only sums. With all alphas 1, s_i is the residual stream.
    Where a run begins with a projection of the stream (`Link.shortcut`), that is what the nodes read as r_0; node 1
    alone reads the stream as it was, `s_1 = alpha_01 * x`. Blocks of a network that `rewire` made activate what they
    hand on (`Link.activation`), and leave r_i as it is.

    The wiring is a child of the run's first block, `wiring`; all other names are those of the original container.

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
        passage = None
        for name, block in self._modules.items():
            link = self.links.get(name)
            if link is None:
                yield block
                continue
            if link.node == 1:
                passage = _Pass(block.wiring)
            yield _Step(passage, block, link)

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
        return Chain(container, self.links)

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
    first = next(name for name in reversed(names) if links[name].node == 1)
    block = container._modules[first]
    if block.wiring.topology.num_nodes > last.end + 1:
        twin = copy.copy(block)  # the block of the longer chain keeps its own
        twin._modules = block._modules.copy()
        twin.wiring = block.wiring.cut(last.end + 1)
        container.add_module(first, twin)


class _Pass:
    """One pass through a run: the sums, and where it stands."""

    def __init__(self, wiring: Wiring):
        self.wiring = wiring
        self.sums: Sums | None = None
        self.node = 1
        self.stream: Tensor | None = None

    def __call__(self, block: nn.Module, link: Link, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # A checkpointed block comes a second time, in the backward pass. It does then what it did before, with values
        # that are the same or that nobody reads any more.
        first_time = link.node == self.node
        if link.node == 1:
            made = self.wiring.sums(x)  # even then: what is kept for the backward pass is counted
            sums = self.sums = self.sums or made
            if link.shortcut is None:
                sums.put(0, x)
            else:
                sums.put(0, x, stop=1)
                sums.put(0, getattr(block, link.shortcut)(x).to(x.dtype), start=1)
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
            self.node, self.stream = link.end, x
        return x


class _Step:
    """A block at its place in a pass; its attributes are those of the block."""

    __slots__ = ("block", "link", "passage")  # setting any other attribute is an error and not lost

    def __init__(self, passage: _Pass, block: nn.Module, link: Link):
        self.passage = passage
        self.block = block
        self.link = link

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.passage(self.block, self.link, x, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self.__slots__:
            raise AttributeError(name)  # before __init__, as a compiler sees it: there is no block to ask yet
        return getattr(self.block, name)
