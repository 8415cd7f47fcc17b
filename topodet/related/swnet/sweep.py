"""Small-world-ness of a CNN's channels over the probability of retargeting, and the choice of it (arXiv 1904.04862)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import ConfigError
from .channels import ChannelGraph
from .model import channel_graph
from .small_world import SmallWorld, small_world

PROBABILITIES = tuple(k / 10 for k in range(11))
# Chooses the p with the largest S.
MAX_S = "max_s"


@dataclass(frozen=True)
class SmallWorldSweep:
    """The result of `small_world_sweep`: `worlds` has the measures of the graph retargeted with each p in `ps`."""

    ps: tuple[float, ...]
    worlds: tuple[SmallWorld, ...]

    @property
    def best(self) -> float:
        """The p of largest S; the smallest if there are several."""
        return self.ps[max(range(len(self.ps)), key=lambda k: self.worlds[k].small_worldness)]

    def choose(self, p: float | str = MAX_S) -> float:
        """Return the p for retargeting: `best` for "max_s", or the given one.

        Raises:
            ConfigError: neither "max_s" nor a number from 0 to 1.
        """
        if p == MAX_S:
            return self.best
        try:
            chosen = float(p)
        except ValueError:
            chosen = -1.0
        if not 0 <= chosen <= 1:
            raise ConfigError(f"p={p!r} is invalid: give {MAX_S!r} or a number from 0 to 1")
        return chosen


def small_world_sweep(
    network: nn.Module | ChannelGraph,
    ps: Sequence[float] = PROBABILITIES,
    *,
    references: int = 10,
    samples: int | None = 1024,
    seed: int = 0,
    image_size: int = 224,
    progress: Callable[[Sequence[float]], Any] = list,
) -> SmallWorldSweep:
    """Measure C, L and S of a network's channel graph, retargeted with each of the probabilities.

    Args:
        network: a CNN that is not retargeted, see `topodet.related.swnet.swnet`, or its graph.
        ps: probabilities from 0 to 1.
        references, samples: see `small_world`.
        seed: seed of the retargeting and of `small_world`.
        image_size: see `topodet.related.swnet.swnet`.
        progress: wraps the probabilities, for example tqdm.

    Raises:
        ConfigError: no p, one that is not between 0 and 1, or a network that cannot be retargeted.
    """
    if not ps:
        raise ConfigError("a sweep needs at least one p")
    graph = network if isinstance(network, ChannelGraph) else channel_graph(network, image_size=image_size)
    options = {"num_nodes": graph.num_nodes, "references": references, "samples": samples, "seed": seed}
    worlds = [small_world(graph.retargeted(p, seed=seed).edges, **options) for p in progress(ps)]
    return SmallWorldSweep(tuple(map(float, ps)), tuple(worlds))
