"""Interleaved timing, and peak memory of each contestant alone."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from ..errors import ConfigError
from .contestants import Contestant, build, detectors
from .settings import Settings

Megabytes = dict[str, float]


def interleaved(
    contestants: Mapping[str, Contestant], mode: str, *, rounds: int, warmup: int, cuda: bool
) -> dict[str, list[float]]:
    """Return the milliseconds of each step of each contestant that has steps of `mode`.

    A round is one step of each, so a temporary slowdown of the machine affects all of them. Every other round is in
    reverse order, so that no contestant always follows the same one.

    Args:
        contestants: by name.
        mode: "train" or "eval".
        rounds: timed ones.
        warmup: rounds before them.
        cuda: time by the GPU's own events.
    """
    playing = {name: contestant for name, contestant in contestants.items() if mode in contestant.modes}
    for contestant in playing.values():
        contestant.module.train(mode == "train")
    timed = _cuda_milliseconds if cuda else _milliseconds
    found: dict[str, list[float]] = {name: [] for name in playing}
    for k in range(-warmup, rounds):
        for name in playing if k % 2 else reversed(playing):
            duration = timed(lambda name=name: playing[name].step(mode))
            if k >= 0:
                found[name].append(duration)
    return found


def keep_freed_memory() -> bool:
    """Let this process's malloc keep freed memory, if it is glibc's; return whether it is.

    By default, glibc sometimes returns the end of its heap to the system and takes it back page by page: depending on
    what happens to lie there, a training step of the stage of 26 nodes has up to 30,000 page faults or none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    options = ((trim_threshold, 2**31 - 1), (top_pad, 2**26), (mmap_threshold, 2**25))
    return all(mallopt(option, value) for option, value in options)


def summary(durations: list[float]) -> dict[str, float]:
    """Return median, quartiles and number of some milliseconds."""
    low, middle, high = (
        statistics.quantiles(durations, n=4, method="inclusive") if len(durations) > 1 else durations * 3
    )
    return {"median_ms": middle, "q1_ms": low, "q3_ms": high, "iqr_ms": high - low, "rounds": len(durations)}


def gpu_memory(contestant: Contestant, before: int) -> Megabytes:
    """Return the peak memory allocated by a contestant's steps, including its parameters and inputs.

    Args:
        contestant: on a GPU.
        before: bytes that were allocated before it was built.
    """
    found = {"baseline_mb": 0.0}
    for mode in _lighter_first(contestant):
        contestant.module.train(mode == "train")
        for _ in range(2):  # compiles, and chooses algorithms
            contestant.step(mode)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        contestant.step(mode)
        torch.cuda.synchronize()
        found[f"{mode}_peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        contestant.drop_gradients()
    return found


def process_memory(settings: Settings, name: str) -> Megabytes:
    """Return the peak memory of a new process that only runs a contestant's steps.

    Memory layout makes the peak vary by a tenth, so it is the median of `settings.memory_runs` processes.

    Returns:
        in MB of 2**20 bytes: "baseline_mb" after the imports, before anything is built; "eval_peak_mb" after
        evaluation, "train_peak_mb" after training steps.

    Raises:
        ConfigError: the process died, most likely because of lack of memory.
    """
    runs = [_of_a_process(settings, name) for _ in range(settings.memory_runs)]
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def _of_a_process(settings: Settings, name: str) -> Megabytes:
    # Spawned, not forked: a fork starts with the memory of its parent.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_own_memory, settings, name).result()
        except BrokenProcessPool as error:
            raise ConfigError(
                f"the process that measures the memory of {name!r} died, perhaps out of memory: use a smaller "
                "--batch or --size, or --no-memory"
            ) from error


def copy_bandwidth(device: str, size: int = 2**30) -> float:
    """Return the bytes per second that a copy of `size` bytes on the GPU reads and writes, the memory's bandwidth."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    durations = [_cuda_milliseconds(lambda: target.copy_(source)) for _ in range(20)]
    return 2 * size / (statistics.median(durations) / 1e3)


def _own_memory(settings: Settings, name: str) -> Megabytes:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.what == "detector":
        detectors(name.rpartition("_")[0])  # so that its import belongs to the baseline
    found = {"baseline_mb": _peak_megabytes()}
    contestant = build(settings, name)
    for mode in _lighter_first(contestant):
        contestant.module.train(mode == "train")
        for _ in range(2):
            contestant.step(mode)
        found[f"{mode}_peak_mb"] = _peak_megabytes()
    return found


def _lighter_first(contestant: Contestant) -> list[str]:
    # A process's peak only ever rises.
    return sorted(contestant.modes)


def _peak_megabytes() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which a child process inherits from its parent.
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _milliseconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def _cuda_milliseconds(step: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)
