"""Run one benchmark, from settings to results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from ..errors import ConfigError
from ..models import architecture_arguments
from ..ops import kernel
from ..topology import Topology
from .contestants import CHAINS, MODES, Contestant, build, names, topologies
from .measure import copy_bandwidth, gpu_memory, interleaved, keep_freed_memory, process_memory, summary
from .settings import Settings

Results = dict[str, Any]


def benchmark(settings: Settings, say: Callable[[str], None] = lambda _: None) -> Results:
    """Measure everything in `settings`.

    Returns:
        the measured part of a record: "settings", "contestants" (see `compare`), the ratios of the model to every other
        contestant (`train_ratio_to_chain`, ...), and "keep", "bandwidth", "growth" where they were measured.

    Raises:
        ConfigError: settings that cannot be measured here.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.malloc == "steady" and (settings.cuda or not keep_freed_memory()):
        settings = replace(settings, malloc="default")  # the record lists what was used
    if settings.compile:
        # Every contestant and mode is a recompilation of the same code; beyond the limit torch falls back silently.
        torch._dynamo.config.cache_size_limit = 256
    if settings.cuda:
        torch.cuda.set_device(torch.device(settings.device).index or 0)
        torch.backends.cudnn.benchmark = True
    playing = names(settings)
    if (settings.keep < 1 or settings.growth) and not ("model" in playing and CHAINS.keys() & set(playing)):
        raise ConfigError(
            f"--keep and --growth compare model with {' or '.join(CHAINS)}; --contestants has {', '.join(playing)}"
        )
    rows = compare(settings, say)
    results: Results = {"settings": asdict(settings), **ratios(rows), "contestants": rows}
    if "pruned" in rows:
        results["keep"] = keep_results(rows)
    if settings.cuda and "model" in rows and CHAINS.keys() & rows.keys():
        results["bandwidth"] = bandwidth_results(rows, settings)
    if settings.growth:
        results["growth"] = [growth_results(settings, nodes, say) for nodes in settings.growth]
    return results


def compare(settings: Settings, say: Callable[[str], None]) -> dict[str, Results]:
    """Return for each contestant its parameters, edges, times ("train" and "eval") and "memory"."""
    contestants: dict[str, Contestant] = {}
    rows: dict[str, Results] = {}
    for name in names(settings):
        say(f"building {name}")
        before = torch.cuda.memory_allocated() if settings.cuda else 0
        contestants[name] = made = build(settings, name)
        rows[name] = {"parameters": sum(p.numel() for p in made.module.parameters()), "edges": made.edges}
        if settings.cuda and settings.memory:
            rows[name]["memory"] = gpu_memory(made, before)
    for mode in MODES:
        say(f"timing {mode}: {settings.warmup} + {settings.rounds} rounds")
        counts = {"rounds": settings.rounds, "warmup": settings.warmup}
        for name, durations in interleaved(contestants, mode, cuda=settings.cuda, **counts).items():
            rows[name][mode] = summary(durations)
    contestants.clear()
    if settings.memory and not settings.cuda:
        for name, row in rows.items():
            say(f"memory of {name}, in fresh processes ({settings.memory_runs})")
            row["memory"] = process_memory(settings, name)
    return rows


def ratios(rows: dict[str, Results]) -> dict[str, float]:
    """Return how many times the model takes of every other contestant: medians of time, peaks of memory.

    "chain" is the better one of the chains for each number. A detector with toponet50 is compared with its framework's
    R50.
    """
    found: dict[str, float] = {}
    rows = {name: row for name, row in rows.items() if name not in CHAINS} | floor(rows)
    for subject, other, prefix in _pairs(rows):
        ours, theirs = rows[subject], rows[other]
        to = f"ratio_to_{other.rpartition('_')[2] if prefix else other}"
        for mode in MODES:
            if mode in ours and mode in theirs:
                found[f"{prefix}{mode}_{to}"] = ours[mode]["median_ms"] / theirs[mode]["median_ms"]
        if "memory" not in ours:
            continue
        ours, theirs = ours["memory"], theirs["memory"]
        for key, mode in (("memory", "train"), ("eval_memory", "eval")):
            peak = f"{mode}_peak_mb"
            if peak in ours and peak in theirs:
                found[f"{prefix}{key}_{to}"] = ours[peak] / theirs[peak]
                above = [memory[peak] - memory["baseline_mb"] for memory in (ours, theirs)]
                if above[1] > 0:
                    found[f"{prefix}{key}_above_baseline_{to}"] = above[0] / above[1]
    return found


def floor(rows: dict[str, Results]) -> dict[str, Results]:
    """Return the row of a "chain" with the least time and memory of those of any memory format, or no row."""
    chains = [row for name, row in rows.items() if name in CHAINS]
    if not chains:
        return {}
    best: Results = {mode: min((row[mode] for row in chains), key=lambda found: found["median_ms"]) for mode in MODES}
    if "memory" in chains[0]:
        best["memory"] = {key: min(row["memory"][key] for row in chains) for key in chains[0]["memory"]}
    return {"chain": best}


def keep_results(rows: dict[str, Results]) -> Results:
    """Return the measured gain of fewer edges, and the expected one.

    Expected: the time beyond the chain's shrinks with the number of edges, and the cost of the nodes stays the same.
    """
    rows = rows | floor(rows)
    share = rows["pruned"]["edges"] / rows["model"]["edges"]
    found: Results = {"share": share, "edges": rows["pruned"]["edges"], "full_edges": rows["model"]["edges"]}
    for mode in MODES:
        full, chain, pruned = (rows[name][mode]["median_ms"] for name in ("model", "chain", "pruned"))
        found[mode] = {"promised_ratio": (chain + share * (full - chain)) / full, "measured_ratio": pruned / full}
    return found


def bandwidth_results(rows: dict[str, Results], settings: Settings) -> Results:
    """Return the share of memory bandwidth that aggregation reaches, and its kernel.

    The share is None if the chain was not faster.

    Bytes that must move, in feature maps, for N nodes and E edges. Forward: E reads, N - 1 sums written. Backward: E
    reads of a sum's gradient, and every node but the last read once (for the gradient of alpha) and its gradient
    written once.
    """
    rows = rows | floor(rows)
    peak = copy_bandwidth(settings.device)
    element = torch.finfo(settings.precision).bits // 8
    forward = backward = 0
    for graph, elements in _feature_maps(settings):
        forward += element * elements * (graph.num_edges + graph.num_nodes - 1)
        backward += element * elements * (graph.num_edges + 2 * (graph.num_nodes - 1))
    like = torch.empty(0, device=settings.device, dtype=settings.precision)
    found: Results = {"kernel": kernel(like), "peak_gb_per_s": peak / 1e9}
    for mode, size in (("train", forward + backward), ("eval", forward)):
        seconds = (rows["model"][mode]["median_ms"] - rows["chain"][mode]["median_ms"]) / 1e3
        reached = size / seconds if seconds > 0 else None
        found[mode] = {
            "gb_moved": size / 1e9,
            "gb_per_s": reached and reached / 1e9,
            "share_of_peak": reached and reached / peak,
        }
    return found


def growth_results(settings: Settings, nodes: int, say: Callable[[str], None]) -> Results:
    """Return one row of the growth table: a stage with this number of nodes, and the time of aggregation per edge."""
    say(f"{nodes} nodes")
    playing = tuple(name for name in settings.contestants if "pruned" not in name)
    rows = compare(replace(settings, nodes=nodes, keep=1.0, growth=(), contestants=playing), say)
    edges, best = rows["model"]["edges"], floor(rows)
    found: Results = {"nodes": nodes, "edges": edges, "contestants": {}}
    for name, row in rows.items():
        cells = {f"{mode}_ms": row[mode]["median_ms"] for mode in MODES if mode in row}
        for mode in MODES:
            if mode in row and name not in CHAINS:
                extra = row[mode]["median_ms"] - best["chain"][mode]["median_ms"]
                cells[f"{mode}_us_per_edge"] = 1e3 * extra / edges
        cells |= {key: value for key, value in row.get("memory", {}).items() if key != "baseline_mb"}
        found["contestants"][name] = cells
    return found


def _pairs(rows: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (subject, other, prefix of the keys) of each ratio."""
    if "model" in rows:
        return [("model", other, "") for other in rows if other != "model"]
    frameworks = [name.removesuffix("_toponet50") for name in rows if name.endswith("_toponet50")]
    return [(f"{name}_toponet50", f"{name}_r50", f"{name}_") for name in frameworks if f"{name}_r50" in rows]


def _feature_maps(settings: Settings) -> list[tuple[Topology, int]]:
    """Return each stage's graph and the elements of one node's feature map."""
    graphs = topologies(settings)
    if settings.what == "stage":
        shapes = [(settings.out_chs, 2)]
    else:
        width = architecture_arguments(settings.arch).get("width", 64)
        shapes = [(width * 2 ** (k + 1), 4 * 2**k) for k in range(len(graphs))]
    return [
        (graph, settings.batch * channels * (-(-settings.size // stride)) ** 2)
        for graph, (channels, stride) in zip(graphs, shapes)
    ]
