"""Remove edges from runs of connected blocks, and the modules that only these used."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress, pairwise

from torch import nn

from ...errors import ConfigError, TopologyError, unknown_name
from ...topology.graph import Edge
from ...topology.paths import check_paths
from .block import ConnectedBlock, Link, original_class, runs

# Edges of runs by the names of their wirings, as a mapping or pairs; sources and targets are nodes of the run.
RunEdges = Mapping[str, Sequence[Edge]] | Sequence[tuple[str, Sequence[Edge]]]


def prune_run_(blocks: Mapping[str, ConnectedBlock], edges: Collection[Edge]) -> None:
    """Remove from a run, in place, all edges but these, and the branches of nodes left without edges.

    Modules that only these branches used are removed too; the other parameters keep their names, and the nodes their
    numbers in a file. The output of the run is the same as with the weights of the removed edges at 0. Blocks that have
    lost all of their branches stay in their places and return their input, so that the number of blocks is the same.

    Args:
        blocks: the run's blocks in series, by name.
        edges: the edges of the run's topology to keep, with its node numbers.

    Raises:
        TopologyError: they are not all on paths from the run's input to its output.
        ConfigError: a block of several branches would lose some, but does not say which modules they use; a block that
            returns more than its stream would be removed.
    """
    links = _links_of(blocks, edges)
    first, *_ = blocks.values()
    wiring = first.wiring.subset(edges, renumber=False)
    for name, block in blocks.items():
        for lost in _unused(block, links[name]):
            delattr(block, lost)
        block.link = links[name]
        if not (block.link.opens or block.link.begins):
            _not_in_place(block)
    first.wiring = wiring


def keep_edges_(network: nn.Module, edges: RunEdges) -> None:
    """Remove all edges but these from whole runs, in place; runs that are not named stay whole.

    Raises:
        ConfigError: the network has no runs, or not these, or the edges do not lead from a run's input to its output.
    """
    connected = runs(network)
    for run, left in dict(edges).items():
        if not connected:
            raise ConfigError(
                f"edges of {run} are given, but the network has none: connect or rewire it as the file was trained "
                "(wiring='learned', connect_nodes, rewire; `topodet pretrain --connect learned` or `--rewire learned`)"
            )
        if run not in connected:
            raise ConfigError(f"{unknown_name('run in edges', run, connected)}. The edges are of a different network")
        kept = {tuple(edge) for edge in left}
        try:
            if kept != set(network.get_submodule(run).topology.edges):
                prune_run_(connected[run], kept)
        except TopologyError as error:
            raise ConfigError(f"edges of {run}: {error}") from error


def removed_from_run(blocks: Mapping[str, ConnectedBlock], edges: Collection[Edge]) -> list[str]:
    """Return the names of the modules and tensors that `prune_run_` would remove; changes nothing."""
    links = _links_of(blocks, edges)
    return [f"{name}.{lost}".removeprefix(".") for name in blocks for lost in _unused(blocks[name], links[name])]


def _links_of(blocks: Mapping[str, ConnectedBlock], edges: Collection[Edge]) -> dict[str, Link]:
    """Return the places of a run's blocks when it has only these edges."""
    first, *_ = blocks.values()
    check_paths(first.wiring.topology, edges)
    nodes = {node for edge in edges for node in edge}
    of_projection = any(j == 0 and not (i == 1 and first.link.opens) for j, i in edges)
    links: dict[str, Link] = {}
    next_node = 1
    for name, block in blocks.items():
        before = block.link
        left = [node in nodes for node in range(before.node, before.end)]
        if any(left) and not all(left) and not before.parts:
            raise ConfigError(
                f"block {name} ({original_class(block).__name__}) would lose some of its branches, but "
                "does not say what they use: give Residual(..., parts=(...)) to connect or rewire"
            )
        if left and not any(left) and before.result is not None:
            raise ConfigError(
                f"block {name} ({original_class(block).__name__}) would be removed, but returns more than its stream, "
                "which nothing else computes: keep one of the edges from it"
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
    for name, following in pairwise(blocks):
        if not links[following].opens:  # the block that reads the sum activates it
            links[name] = replace(links[name], activation=None)
    return links


def _unused(block: ConnectedBlock, after: Link) -> list[str]:
    """Return the names of modules and tensors that only the lost branches of a block used."""
    before = block.link
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
    """Stop a block from activating its input in place: it is no longer a sum that only this block reads."""
    for module in block.modules():
        if getattr(module, "inplace", False):
            module.inplace = False


def _names(parts: Iterable[str]) -> set[str]:
    return set(" ".join(parts).split())
