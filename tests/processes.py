"""Processes that train together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch


def run_two(function: Callable[[int, str, Path], None], folder: Path) -> None:
    """Run `function(rank, address, folder)` in two processes, to the end of both.

    They fork from a process that has imported the function's module: to import it in each takes longer than what they
    do. That process is started once; functions of other modules than the first one's are imported by both.
    """
    multiprocessing.set_forkserver_preload([function.__module__])
    arguments = (f"file://{folder}/rendezvous", folder)
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")
