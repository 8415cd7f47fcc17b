"""Integer tensors of a module that training and weight averaging must not change."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FixedTensors(nn.Module):
    """A module with tensors that describe its structure: saved, loaded and moved like buffers, but not buffers.

    Weight averaging iterates over a network's buffers, or writes into the tensors of its state dict, and computes
    `0.9999 * 11 + 0.0001 * 11 = 10.99...`, which is 10 as an integer: a different graph. Tensors registered here are
    not in any list of buffers, and a state dict contains copies.
    """

    @property
    def fixed_tensors(self) -> dict[str, bool]:
        """Whether a state dict contains each tensor, by name."""
        return self.__dict__.setdefault("_fixed_tensors", {})

    def register_fixed(self, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
        """Make `tensor` the attribute `name`; a state dict contains it if it is persistent."""
        self.fixed_tensors[name] = persistent
        setattr(self, name, tensor)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        for name in self.fixed_tensors:
            setattr(self, name, fn(getattr(self, name)))
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, persistent in self.fixed_tensors.items():
            if persistent:
                destination[prefix + name] = getattr(self, name).clone()

    @torch.no_grad()
    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        rest = dict(state_dict)
        for name, persistent in self.fixed_tensors.items():
            theirs, ours = rest.pop(prefix + name, None) if persistent else None, getattr(self, name)
            if theirs is None:
                if persistent and strict:
                    missing_keys.append(prefix + name)
            elif theirs.shape != ours.shape:
                error_msgs.append(
                    f"size mismatch for {prefix}{name}: {list(theirs.shape)} in the file, {list(ours.shape)} here"
                )
            elif ours.is_meta:
                setattr(self, name, theirs.clone())
            else:
                ours.copy_(theirs)
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
