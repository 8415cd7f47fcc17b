"""Check that a checkpoint and the given options belong to one run."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from topodet.errors import ConfigError

_logger = logging.getLogger(__name__)

# Options that only affect the location, the reports or the speed of a run.
_FREE = frozenset(
    [
        "config",
        "output",
        "experiment",
        "resume",
        "data_dir",
        "dataset_download",
        "log_interval",
        "checkpoint_hist",
        "figure_interval",
        "pin_mem",
        "validation_batch_size",
        "dataset_trust_remote_code",
    ]
)
# Options that may change rounding or the random stream, but not the experiment.
_INEXACT = frozenset(
    [
        "device",
        "amp",
        "amp_dtype",
        "channels_last",
        "torchcompile",
        "torchcompile_mode",
        "grad_checkpointing",
        "workers",
        "worker_seeding",
        "no_prefetcher",
        "on_bad_image",
        "no_ddp_bb",
        "sync_bn",
        "dist_bn",
        "val_interval",
        "model_ema_force_cpu",
    ]
)
_BATCH = ("batch_size", "grad_accum_steps", "world_size")


def check_same_run(saved: Mapping, given: Mapping, path: str) -> None:
    """Compare the options of a checkpoint with the given ones, both with the number of processes as world_size.

    Options that only change speed or location may differ. Those that change rounding or the random stream cause a
    warning, and so does another split of the same global batch over processes and accumulation steps.

    Raises:
        ConfigError: options that make it another run, each named with both values.
    """
    differing = [key for key in given if key in saved and key not in _FREE and saved[key] != given[key]]
    inexact = [key for key in differing if key in _INEXACT]
    if _global_batch(saved) == _global_batch(given):
        inexact += [key for key in differing if key in _BATCH]
    refused = [key for key in differing if key not in inexact]
    if refused:
        raise ConfigError(
            f"{path} was trained with different options: {_changes(refused, saved, given)}. Resume with those of "
            "the checkpoint, or start a new run from its weights: --initial-checkpoint FILE and another --experiment"
        )
    if inexact:
        _logger.warning(
            "resuming with %s: the result is close to the uninterrupted run, not equal to it",
            _changes(inexact, saved, given),
        )


def check_same_data(saved: Mapping, given: Mapping, path: str) -> None:
    """Compare the counts of images and classes.

    Raises:
        ConfigError: the dataset is a different one or has changed.
    """
    if dict(saved) != dict(given):
        keys = [key for key in given if saved.get(key) != given[key]]
        changes = ", ".join(f"{key} {saved.get(key)} -> {given[key]}" for key in keys)
        raise ConfigError(f"{path} was trained on different data: {changes}. Give the dataset of the checkpoint")


def _global_batch(options: Mapping) -> int:
    size = 1
    for key in _BATCH:
        size *= options.get(key, 1)
    return size


def _changes(keys: list[str], saved: Mapping, given: Mapping) -> str:
    names = {key: "processes" if key == "world_size" else "--" + key.replace("_", "-") for key in keys}
    return ", ".join(f"{names[key]} {saved.get(key)!r} -> {given[key]!r}" for key in keys)
