"""Options that several command lines share, with the same names everywhere."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any, Protocol

# The same as the types of `topodet.connectivity`; repeated here so that `--help` does not import torch.
PER = ("network", "stage", "node")


class _Group(Protocol):
    def add_argument(self, *names: str, **options: Any) -> argparse.Action: ...


def add_pruning(group: _Group, *, several: bool = False, allow: bool = False) -> None:
    """Add --threshold, --keep, --per, --random-edges and --on-disconnected.

    Args:
        group: a parser or an argument group.
        several: --threshold and --keep take a list of values, to prune several times.
        allow: --on-disconnected may be, and by default is, "allow", because the network is only analyzed, not kept.
    """
    number = {"type": float, "nargs": "+"} if several else {"type": float}
    group.add_argument("--threshold", **number, metavar="T", help="remove edges weaker than this")
    group.add_argument("--keep", **number, metavar="SHARE", help="keep this share of the edges, the strongest")
    group.add_argument(
        "--per", choices=PER, default="network", help="group of edges that --keep and --threshold refer to"
    )
    group.add_argument(
        "--random-edges", type=int, metavar="SEED", help="remove the same number of random edges, not the weakest"
    )
    group.add_argument(
        "--on-disconnected",
        choices=(*(["allow"] if allow else []), "error", "repair"),
        default="allow" if allow else "error",
        help="what to do if removal leaves a node without input or output",
    )


@dataclass(frozen=True)
class Pruning:
    """The options of `add_pruning`."""

    threshold: float | None = None
    keep: float | None = None
    per: str = "network"
    random_edges: int | None = None
    on_disconnected: str = "error"

    @classmethod
    def from_options(cls, args: argparse.Namespace) -> Pruning:
        """Return the options of a command line with one value for each."""
        return cls(**{each.name: getattr(args, each.name) for each in fields(cls)})

    def arguments(self) -> dict[str, Any] | None:
        """Return the arguments of `topodet.connectivity.prune`, or None if nothing is pruned."""
        chosen = {"threshold": self.threshold, "keep": self.keep}
        given = {name: value for name, value in chosen.items() if value is not None}
        if not given:
            return None
        random = {} if self.random_edges is None else {"random": self.random_edges}
        return {**given, "per": self.per, "on_disconnected": self.on_disconnected, **random}
