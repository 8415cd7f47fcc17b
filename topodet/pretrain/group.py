"""The processes of a run and the device of each. One process is a group of one, so the same code handles both cases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from topodet.errors import ConfigError


@dataclass(frozen=True)
class Group:
    """This process among all processes of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def primary(self) -> bool:
        """Return whether this process writes files and reports."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add `values` up over all processes, in place, and return them."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def total(self, value: int) -> int:
        """Return the sum of each process's `value`."""
        return int(self.sum(torch.tensor([value], device=self.device)))

    def share(self, value: object) -> object:
        """Return the first process's `value` in every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Wait until every process has reached this point."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join(device: str | None) -> Iterator[Group]:
    """Join the processes that torchrun started, or form a group of one, and leave it at the end.

    Args:
        device: "cuda", "cpu", or None for cuda if available. torchrun's LOCAL_RANK selects the GPU.

    Raises:
        ConfigError: a device that is unknown or missing.
    """
    here = _device(device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = Group(dist.get_rank(), world_size, here)
    try:
        yield group
        # Gloo's threads need the interpreter lock to release the last tensors; destroying the group before that can
        # deadlock.
        group.wait()
    finally:
        dist.destroy_process_group()


def _device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}: give cuda or cpu") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ConfigError(f"device {name!r} is not supported: give cuda or cpu")
    count = torch.cuda.device_count()
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    if index >= count:
        raise ConfigError(f"device {name!r}: process {index} of this machine has no GPU, only {count} found")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
