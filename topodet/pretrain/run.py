"""The run: from the options to the last checkpoint."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from timm.utils import distribute_bn
from torch import nn

from topodet import connectivity
from topodet.datasets.images import leads_outside
from topodet.errors import ConfigError, DataError, WeightsError
from topodet.files import atomic_write
from topodet.models import check_timm_name
from topodet.parse import is_text
from topodet.pretrain import build, data
from topodet.pretrain.engine import DivergedError, Training, check_finite, evaluate, seed_all, train_epoch
from topodet.pretrain.group import Group, join
from topodet.pretrain.loader import Loader
from topodet.pretrain.lock import hold
from topodet.pretrain.log import Progress, RunLogger, logging_to_stderr
from topodet.pretrain.options import Options, RunOptions
from topodet.pretrain.resume import check_same_data, check_same_run
from topodet.pretrain.saver import Saver, checkpoints, newest_checkpoint, read_checkpoint

_logger = logging.getLogger(__name__)


def run(options: Options) -> list[dict]:
    """Train with the given options; return the rows of summary.csv.

    Raises:
        TopodetError: the options, the data or a checkpoint cannot be used, or the loss is no longer finite.
        OSError: a file cannot be written.
    """
    with join(options.device.device) as group, logging_to_stderr(logging.INFO if group.primary else logging.WARNING):
        try:
            return _run(options, group)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("--resume auto continues after the last finished epoch") from None


def _run(options: Options, group: Group) -> list[dict]:
    folder = Path(options.run.output, options.run.experiment)
    flat = {key: _plain(value) for key, value in options.flat().items()} | {"world_size": group.world_size}
    # Report errors before anything slow starts; the fastest checks come first.
    check_timm_name(options.model.model)
    _check_text(flat)
    if leads_outside(options.run.experiment):
        raise ConfigError(f"--experiment {options.run.experiment!r} is outside --output: give a name within it")
    with hold(folder) if group.primary else contextlib.nullcontext():
        return _train(options, group, folder, flat)


def _train(options: Options, group: Group, folder: Path, flat: dict[str, Any]) -> list[dict]:
    path, checkpoint = _find_checkpoint(options.run, folder, group)
    if checkpoint is not None:
        check_same_run(checkpoint["args"], flat, str(path))
    channels = options.model.channels
    datasets = data.open_datasets(options, group, channels)
    _check_text({"class_names": datasets.class_names})
    if checkpoint is not None:
        check_same_data(checkpoint["data"], datasets.counts, str(path))

    seed_all(options.run.seed)
    trained = None if checkpoint is None else checkpoint["state_dict"]
    model = build.create_model(options, datasets.num_classes, channels, group, trained)
    data_config = data.preprocessing(options, model, channels)
    train_loader = data.train_loader(options, datasets.train, datasets.num_classes, data_config, group)
    val_loader = None if datasets.val is None else data.val_loader(options, datasets.val, data_config, group)
    training, epochs = build.prepare(options, group, model, train_loader, datasets.num_classes)

    history: list[dict] = [] if checkpoint is None else checkpoint["history"]
    saver = Saver(
        folder,
        training,
        facts={
            "arch": options.model.model,
            "args": flat,
            "num_classes": datasets.num_classes,
            "class_names": datasets.class_names,
            "data": datasets.counts,
            "data_config": _plain(data_config),
        },
        history=history,
        decreasing=options.run.eval_metric == "loss",
        max_history=options.run.checkpoint_hist,
    )
    start = 0
    if checkpoint is not None:
        start = checkpoint["epoch"] + 1
        try:
            training.load_state_dict(checkpoint)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        # In a new folder, the best checkpoint is the best of those saved there.
        known = history[:-1] if saver.best.exists() else []
        saver.load_state((row["epoch"], row["metric"]) for row in known if row["metric"] is not None)
    if not group.primary:
        _epochs(options, training, val_loader, saver, None, start, epochs)
        return history

    _tell(options, training, datasets, epochs, start, folder)
    for unfinished in folder.glob(".*.tmp"):
        unfinished.unlink()  # left by a killed process
    # A config file that starts the same run again.
    recipe = {key: value for key, value in flat.items() if key not in ("config", "resume", "world_size")}
    atomic_write(folder / "args.yaml", yaml.safe_dump(recipe))
    if checkpoint is not None:
        # The process may have been killed between the files of its last epoch: write all of them again.
        saver.save_epoch(start - 1, history[-1]["metric"])
    run_logger = RunLogger(folder, model, options.edges.figure_interval, start * training.updates_per_epoch)
    try:
        run_logger.summary(history)
        _epochs(options, training, val_loader, saver, run_logger, start, epochs)
    finally:
        run_logger.close()
    if saver.best_epoch is not None:
        best = (options.run.eval_metric, saver.best_metric, saver.best_epoch + 1)
        _logger.info("best %s %.4g in epoch %d; files in %s", *best, folder)
    return history


def _epochs(
    options: Options,
    training: Training,
    val_loader: Loader | None,
    saver: Saver,
    run_logger: RunLogger | None,
    start: int,
    epochs: int,
) -> None:
    group = training.group
    # An average in CPU memory is not validated.
    average = None if options.average.model_ema_force_cpu or training.model_ema is None else training.model_ema.module
    updates = training.updates_per_epoch
    progress = Progress(epochs, updates, start * updates, show=group.primary)
    for epoch in range(start, epochs):
        began = time.monotonic()
        try:
            row = {"epoch": epoch, **train_epoch(training, epoch, progress, run_logger)}
            check_finite(training.model, epoch)
        except DivergedError as error:
            last = f"The last good checkpoint is {saver.last}" if epoch else "There is no checkpoint yet"
            raise DivergedError(f"{error}. {last}") from error
        if group.world_size > 1 and options.device.dist_bn and not options.device.sync_bn:
            distribute_bn(training.model, group.world_size, options.device.dist_bn == "reduce")
            if average is not None:
                distribute_bn(average, group.world_size, options.device.dist_bn == "reduce")
        validates = val_loader is not None and ((epoch + 1) % options.run.val_interval == 0 or epoch + 1 == epochs)
        if validates:
            scores, bad_images = _validate(training, average, val_loader, epoch)
            row |= scores
            row["bad_images"] += bad_images
        row |= {f"edges_{name}": share for name, share in connectivity.sparsity(training.model).items()}
        row["seconds"] = time.monotonic() - began
        row["metric"] = _metric(row, options.run.eval_metric, val_loader is not None)
        saver.history.append(row)
        if run_logger is not None:
            # TensorBoard comes before the checkpoint: a resumed run logs only epochs without one. The summary comes
            # after it: it can be rebuilt from the checkpoint.
            run_logger.epoch(row, (epoch + 1) * updates)
            saver.save_epoch(epoch, row["metric"])
            run_logger.summary(saver.history)
            _logger.info("epoch %d/%d  %s", epoch + 1, epochs, _text(row))


def _validate(
    training: Training, average: nn.Module | None, loader: Loader, epoch: int
) -> tuple[dict[str, float], int]:
    """Return the scores of the weights and of their average, and how many images could not be read by any process."""
    loader.set_epoch(epoch)
    row = {f"eval_{name}": value for name, value in evaluate(training, training.forward, loader).items()}
    if average is not None:
        scores = evaluate(training, average, loader)
        row |= {f"ema_eval_{name}": value for name, value in scores.items()}
    return row, loader.bad_images(training.group)


def _metric(row: dict, name: str, validates: bool) -> float | None:
    """Return the metric of a checkpoint: the score of the average, else of the model; of training if not validated."""
    if not validates:
        return row.get(f"train_{name}")
    return row.get(f"ema_eval_{name}", row.get(f"eval_{name}"))


def _text(row: dict) -> str:
    parts = []
    for name, value in row.items():
        if name not in ("epoch", "metric"):
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "  ".join(parts)


def _plain(value: object) -> object:
    """Convert options to the types of JSON, so that a checkpoint has plain types and compares equal after reading."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _check_text(facts: Mapping[str, Any]) -> None:
    """Refuse names of files and classes that a checkpoint cannot store: the run could not be resumed."""
    for key, value in facts.items():
        parts = list(value) if isinstance(value, list | dict) else [value]
        for part in parts:
            if isinstance(part, str) and not is_text(part):
                what = "class" if key == "class_names" else f"--{key.replace('_', '-')}"
                raise DataError(f"{what} {part!r} is not valid UTF-8 or contains a NUL character: rename it")


def _find_checkpoint(options: RunOptions, folder: Path, group: Group) -> tuple[Path | None, dict | None]:
    """Return the checkpoint to resume from, read by the first process for all, or (None, None) for a new run."""
    path, state = None, None
    if group.primary:
        path = Path(options.resume) if options.resume not in (None, "", "auto") else None
        own = options.resume == "auto" or (path is not None and path.parent.resolve() == folder.resolve())
        if checkpoints(folder) and not own:
            raise ConfigError(
                f"{folder} contains the checkpoints of another run: continue it with --resume auto, or give this run "
                "a new --experiment name"
            )
        if options.resume == "auto":
            path, state = newest_checkpoint(folder)
            if path is not None and path != checkpoints(folder)[0]:
                _logger.warning("resuming from %s instead, of epoch %d", path, state["epoch"])
        elif path is not None:
            state = _read(path)
    return group.share((path, state))


def _read(path: Path) -> dict:
    """Read the checkpoint of --resume; if it is damaged, the error names the newest good one in the same folder."""
    try:
        return read_checkpoint(path)
    except WeightsError as error:
        try:
            other, state = newest_checkpoint(path.parent)
        except WeightsError:
            raise error from None
        if other is None:
            raise
        raise WeightsError(
            f"{error}. The newest good checkpoint there is {other}, of epoch {state['epoch']}: give --resume {other}"
        ) from error


def _tell(options: Options, training: Training, datasets: data.Datasets, epochs: int, start: int, folder: Path) -> None:
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    counts = {key: "streamed" if count is None else count for key, count in datasets.counts.items()}
    _logger.info(
        "%s: %s parameters; %s training images, %s validation images, %d classes; %d process(es) on %s",
        options.model.model,
        f"{parameters:,}",
        *(counts[key] for key in ("train_images", "val_images", "classes")),
        training.group.world_size,
        training.group.device.type,
    )
    if options.run.resume == "auto" and not start:
        _logger.info("nothing to resume in %s yet: starting a new run", folder)
    if start == epochs:
        _logger.info("all %d epochs are done: nothing is left to train", epochs)
        return
    _logger.info(
        "epochs %d to %d of %d updates; peak learning rate %.4g; files in %s",
        start + 1,
        epochs,
        training.updates_per_epoch,
        training.scheduler.base_values[0],
        folder,
    )
