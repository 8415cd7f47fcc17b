"""How much a network's score depends on each of its nodes and on its weak edges (section 4.4, Fig. 4).

Nothing is trained: a part is removed, the score is measured, and the part is restored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from ..errors import ConfigError
from ..files import atomic_csv
from ..models.connected import runs
from ..models.stage import TopoStage
from .penalty import wirings
from .prune import OnDisconnected, Per, masked, plan_pruning, preserve_alphas

# Called with the model as it is at that moment; a single number is the score "score".
Evaluate = Callable[[nn.Module], float | Mapping[str, float]]
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Damage:
    """Scores of a network, whole and with a part removed.

    Attributes:
        kind: what was removed.
        whole: the scores without damage, by name.
        rows: one per removal: what was removed, and the scores.
    """

    kind: Literal["nodes", "edges"]
    whole: dict[str, float]
    rows: list[dict[str, Any]]

    def save(self, path: str | os.PathLike) -> None:
        """Write the rows as CSV. The whole network comes first, with empty cells for what was removed.

        Raises:
            OSError: the file could not be written; an existing file is unchanged.
        """
        names = self.rows[0] if self.rows else self.whole
        atomic_csv(path, [{**dict.fromkeys(names), **self.whole}, *self.rows])


def remove_nodes(
    model: nn.Module, evaluate: Evaluate, *, csv: str | os.PathLike | None = None, progress: bool = True
) -> Damage:
    """Remove each node in turn, as `without_node` does, and measure the score.

    The output node of a wiring counts if it computes something: in a `TopoStage` and a run of whole blocks, but not in
    a run of residuals, where it only sums. The model is in evaluation mode meanwhile; its edge weights and modes are
    restored afterwards.

    Args:
        model: any module that contains `Wiring`s, on its device.
        evaluate: takes the model and returns its score, or scores by name.
        csv: file that is rewritten after each node, so that an interrupted run keeps its results.
        progress: show a progress bar.

    Returns:
        rows {"wiring": name, "node": number, "in_degree", "out_degree", **scores} in the order of the network.

    Raises:
        ConfigError: a model without wiring; `evaluate` returns no numbers.
    """
    parts = wirings(model)
    if not parts:
        raise ConfigError(f"{type(model).__name__} has no wiring with nodes to remove; give a model that contains one")
    removals = []
    for name, wiring in parts.items():
        graph = wiring.topology
        for node in range(graph.num_nodes - (_output(model, name) is None)):
            degrees = {"in_degree": graph.in_degree[node], "out_degree": graph.out_degree[node]}
            removals.append(({"wiring": name, "node": node, **degrees}, without_node(model, name, node)))
    return _measure("nodes", model, evaluate, removals, csv, progress)


def remove_edges(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    thresholds: Sequence[float] | None = None,
    keep: Sequence[float] | None = None,
    per: Per = "network",
    on_disconnected: OnDisconnected = "allow",
    random: int | None = None,
    csv: str | os.PathLike | None = None,
    progress: bool = True,
) -> Damage:
    """Drop more and more weak edges, each time from the whole network, and measure the score.

    Args:
        model, evaluate, csv, progress: see `remove_nodes`.
        thresholds: see `plan_pruning`, each in turn.
        keep: alternatively, shares of the edges to keep; with neither, 0.9 to 0.1.
        per, random: see `plan_pruning`.
        on_disconnected: see `plan_pruning`. With "allow", a disconnected graph is measured without any of its edges.

    Returns:
        rows {"threshold" or "keep": as given, "weak": edges that were too weak, "edges": edges left, "nodes": nodes
        left, "removed": share of all edges removed, "disconnected": number of disconnected graphs, repaired or not,
        **scores} in the order given.

    Raises:
        ConfigError: what `plan_pruning` raises, before anything is measured; `evaluate` returns no numbers.
    """
    if thresholds is not None and keep is not None:
        raise ConfigError("remove_edges accepts thresholds or keep, not both")
    option, values = ("keep", SHARES if keep is None else keep) if thresholds is None else ("threshold", thresholds)
    removals = []
    for value in values:
        plans = plan_pruning(model, **{option: value}, per=per, on_disconnected=on_disconnected, random=random)
        total = sum(part.topology.num_edges for part in plans.values())
        left = sum(len(part.edges) for part in plans.values())
        row = {
            option: float(value),
            "weak": sum(part.weak for part in plans.values()),
            "edges": left,
            "nodes": sum(part.nodes for part in plans.values()),
            "removed": 1 - left / total,
            "disconnected": sum(part.disconnected for part in plans.values()),
        }
        removals.append((row, masked(model, plans)))
    return _measure("edges", model, evaluate, removals, csv, progress)


@contextmanager
def without_node(model: nn.Module, wiring: str, node: int) -> Iterator[None]:
    """Set the output of one node to 0 in a `with` block; nothing else changes, even for nodes that read only this one.

    Args:
        model: any module that contains `Wiring`s.
        wiring: name of the node's wiring in `connectivity.wirings(model)`.
        node: number of the node.

    Raises:
        ConfigError: no such wiring or node, or an output node that only sums.
    """
    parts = wirings(model)
    if wiring not in parts or not 0 <= node < parts[wiring].topology.num_nodes:
        known = ", ".join(f"{name} (nodes 0..{part.topology.num_nodes - 1})" for name, part in parts.items())
        raise ConfigError(f"no node {node} in a wiring {wiring!r}; {type(model).__name__} has {known or 'no wiring'}")
    graph, alpha = parts[wiring].topology, parts[wiring].alpha
    with preserve_alphas(model):
        if node < graph.num_nodes - 1:
            outgoing = torch.tensor([j == node for j, _ in graph.edges], device=alpha.device)
            with torch.no_grad():
                alpha.masked_fill_(outgoing, 0)
            yield
            return
        output = _output(model, wiring)
        if output is None:
            raise ConfigError(f"node {node} of {wiring} is its output, which only sums: it cannot be removed")
        module, result = output
        handle = module.register_forward_hook(lambda module, inputs, output: _without(output, result))
        try:
            yield
        finally:
            handle.remove()


def _measure(
    kind: Literal["nodes", "edges"],
    model: nn.Module,
    evaluate: Evaluate,
    removals: Sequence[tuple[dict[str, Any], AbstractContextManager]],
    csv: str | os.PathLike | None,
    progress: bool,
) -> Damage:
    modes = [(module, module.training) for module in model.modules()]
    try:
        damage = Damage(kind, _scores(evaluate, model), [])
        clash = {name for row, _ in removals for name in row if name in damage.whole}
        if clash:
            raise ConfigError(f"evaluate must not name a score {', '.join(sorted(clash))}: the table has such a column")
        for row, removed in tqdm(removals, desc=f"removing {kind}", disable=not progress):
            with removed:
                scores = _scores(evaluate, model)
            if scores.keys() != damage.whole.keys():
                raise ConfigError(f"evaluate returned {sorted(scores)} after {sorted(damage.whole)}: the names differ")
            damage.rows.append({**row, **scores})
            if csv is not None:
                damage.save(csv)
    finally:
        for module, training in modes:
            module.training = training
    return damage


def _scores(evaluate: Evaluate, model: nn.Module) -> dict[str, float]:
    found = evaluate(model.eval())  # each time, since `evaluate` may change the mode
    named = found if isinstance(found, Mapping) else {"score": found}
    try:
        scores = {str(name): float(value) for name, value in named.items()}
    except (TypeError, ValueError):
        scores = {}
    if not scores:
        raise ConfigError(f"evaluate must return a number or a dict of numbers, but returned {found!r}")
    return scores


def _output(model: nn.Module, wiring: str) -> tuple[nn.Module, int | None] | None:
    """Return the module of a wiring's output node, and the index of its result; None if the node only sums."""
    blocks = runs(model).get(wiring)
    if blocks is None:
        owner = model.get_submodule(wiring.rpartition(".")[0])
        return (owner, None) if isinstance(owner, TopoStage) else None
    *_, last = blocks.values()
    computes = last.link.end == model.get_submodule(wiring).topology.num_nodes
    return (last, last.link.result) if computes else None


def _without(output: Any, result: int | None) -> Any:
    """Return a module's output with one result replaced by zeros."""
    if result is None:
        return torch.zeros_like(output)
    return type(output)(torch.zeros_like(value) if k == result else value for k, value in enumerate(output))
