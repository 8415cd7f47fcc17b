"""The settings of a benchmark, checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError, unknown_name
from ..frameworks import PACKAGES
from ..models import ARCHITECTURES
from ..topology import GENERATORS
from .presets import DTYPES, PRESETS

_SIZE = {"stage": 28, "network": 224, "detector": 800}
_BATCH = {"stage": 8, "network": 8, "detector": 2}


@dataclass(frozen=True)
class Settings:
    """One benchmark.

    Attributes:
        what: "stage", "network" or "detector".
        arch: name of the network ("network"); the detectors are those of configs/.
        nodes, in_chs, out_chs, topology: parameters of the stage ("stage").
        keep: share of the edges that the pruned contestant keeps, in (0, 1]; 1 for no such contestant.
        growth: numbers of nodes to repeat the stage with, for the growth table; () for none.
        batch: images per step.
        size: height and width of the input in pixels; a detector's images are `size` high and 4/3 as wide.
        device: torch device.
        dtype: "float32", or the dtype of autocast.
        memory_format: of the input and the weights, "contiguous" or "channels_last"; the chain is in both.
        compile: every contestant goes through `torch.compile`.
        rounds: timed steps of each contestant.
        warmup: steps of each contestant before that.
        threads: torch threads; 0 for torch's default.
        malloc: "steady" lets glibc keep freed memory while steps are timed on a CPU, "default" does not change it;
            without glibc there is only "default".
        memory: whether peak memory is measured.
        memory_runs: number of processes whose median the peak memory is, on a CPU.
        module: "PATH.py:FUNCTION" of one more contestant, "" for none.
        contestants: names of the contestants; () for all.
        frameworks: frameworks of the detectors; () for those that are installed.
        seed: of weights, inputs and the choice of edges.
    """

    what: str = "stage"
    arch: str = "toponet50"
    nodes: int = 26
    in_chs: int = 256
    out_chs: int = 512
    topology: str = "complete"
    keep: float = 1.0
    growth: tuple[int, ...] = ()
    batch: int = 8
    size: int = 28
    device: str = "cpu"
    dtype: str = "float32"
    memory_format: str = "contiguous"
    compile: bool = False
    rounds: int = 15
    warmup: int = 3
    threads: int = 0
    malloc: str = "steady"
    memory: bool = True
    memory_runs: int = 3
    module: str = ""
    contestants: tuple[str, ...] = ()
    frameworks: tuple[str, ...] = ()
    seed: int = 0

    @property
    def cuda(self) -> bool:
        """Whether the device is an NVIDIA GPU, which is timed by its own events and counts its own memory."""
        return torch.device(self.device).type == "cuda"

    @property
    def layout(self) -> torch.memory_format:
        """`memory_format` as torch's type."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format

    @property
    def precision(self) -> torch.dtype:
        """`dtype` as torch's type."""
        return getattr(torch, self.dtype)


def make_settings(preset: str = "", **options: Any) -> Settings:
    """Return the settings of a preset, replaced by the `options` that are not None.

    Raises:
        ConfigError: an unknown name, an invalid number, or a missing device.
    """
    if preset and preset not in PRESETS:
        raise ConfigError(unknown_name("--preset", preset, PRESETS))
    given = {**PRESETS.get(preset, {}), **{name: value for name, value in options.items() if value is not None}}
    what = given.get("what", "stage")
    _check_name("--what", what, _SIZE)
    settings = Settings(**{"what": what, "size": _SIZE[what], "batch": _BATCH[what], **given})
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    _check_name("--arch", settings.arch, ARCHITECTURES)
    _check_name("--topology", settings.topology, GENERATORS)
    _check_name("--dtype", settings.dtype, DTYPES)
    _check_name("--memory-format", settings.memory_format, ("contiguous", "channels_last"))
    _check_name("--malloc", settings.malloc, ("steady", "default"))
    for framework in settings.frameworks:
        _check_name("--frameworks", framework, PACKAGES)
    at_least = {"batch": 1, "size": 2, "in_chs": 1, "out_chs": 1, "rounds": 1, "warmup": 0, "memory_runs": 1}
    for name, least in at_least.items():
        value = getattr(settings, name)
        if value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: give at least {least}")
    for option, counts in (("--nodes", (settings.nodes,)), ("--growth", settings.growth)):
        for count in counts:
            if count < 2:
                raise ConfigError(f"{option} {count}: a stage needs at least 2 nodes, its input and its output")
    smallest = -(-settings.size // {"stage": 2, "network": 32, "detector": 1}[settings.what])
    if settings.batch * smallest**2 < 2:
        raise ConfigError(
            f"--batch {settings.batch} --size {settings.size}: the smallest feature map has one value per channel, "
            "which batch normalization cannot train on; give a larger --batch or --size"
        )
    if not 0 < settings.keep <= 1:
        raise ConfigError(f"--keep {settings.keep}: the share of edges that stay lies in (0, 1], e.g. 0.2")
    if settings.what != "stage" and settings.growth:
        raise ConfigError(f"--growth repeats a stage with more nodes: use it with --what stage, not {settings.what}")
    if settings.what == "detector" and (settings.keep < 1 or settings.module or settings.compile):
        raise ConfigError("--keep, --module and --compile are for --what stage and network, not for detectors")
    _check_device(settings.device)


def _check_name(option: str, name: str, known: Any) -> None:
    if name not in known:
        raise ConfigError(unknown_name(option, name, known))


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: unknown to torch; use cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: time and memory are measured on cpu and cuda only")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: this torch ({torch.__version__}) sees {torch.cuda.device_count()} GPUs; use --device cpu"
        )
