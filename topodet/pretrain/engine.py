"""One epoch of training and one evaluation."""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch import Tensor, nn

from topodet import connectivity
from topodet.errors import DataError, TopodetError, WeightsError
from topodet.pretrain.group import Group
from topodet.pretrain.loader import Loader
from topodet.pretrain.log import Progress, RunLogger
from topodet.pretrain.unreadable import NO_TARGET


class DivergedError(TopodetError, ArithmeticError):
    """The loss or a weight is no longer finite."""


@dataclass
class Training:
    """The training state of a run.

    Attributes:
        model: the unwrapped network, which is saved.
        forward: the same network, compiled if requested.
        parallel: `forward` with the gradients averaged over the processes.
        loss: task loss of (logits [B, classes], targets).
        autocast: context of the forward pass.
        sparsity, sparsity_weight: the penalty on the edges.
    """

    group: Group
    model: nn.Module
    forward: nn.Module
    parallel: nn.Module
    model_ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    scaler: NativeScaler | None
    loss: nn.Module
    autocast: Callable[[], contextlib.AbstractContextManager]
    loader: Loader
    mixup: Mixup | None
    mixup_off_epoch: int
    sparsity: str
    sparsity_weight: float
    grad_accum_steps: int
    clip_grad: float | None
    clip_mode: str
    channels_last: bool
    seed: int
    log_interval: int

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.loader.batches // self.grad_accum_steps

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume exactly after an epoch, under the keys of timm's checkpoints."""
        state = {"state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.model_ema is not None:
            state["state_dict_ema"] = self.model_ema.module.state_dict()
        if self.scaler is not None:
            state[self.scaler.state_dict_key] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of `state_dict`; other entries are ignored. The schedule follows from the epoch.

        Raises:
            WeightsError: it does not fit the model or the optimizer.
        """
        try:
            self.model.load_state_dict(state["state_dict"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.model_ema is not None:
                self.model_ema.module.load_state_dict(state["state_dict_ema"])
            if self.scaler is not None and self.scaler.state_dict_key in state:
                self.scaler.load_state_dict(state[self.scaler.state_dict_key])
        except (RuntimeError, ValueError, KeyError) as error:
            raise WeightsError(f"the state does not fit the model or the optimizer: {error}") from error


def seed_all(*numbers: int) -> None:
    """Seed every random generator of this process from a few numbers, the same way each time."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm's augmentations draw from the global generator
    random.seed(seed)


def autocast_context(
    device: torch.device, dtype: torch.dtype | None
) -> Callable[[], contextlib.AbstractContextManager]:
    """Return the context of the forward pass: autocast to `dtype`, or nothing for None."""
    if dtype is None:
        return contextlib.nullcontext
    return partial(torch.autocast, device_type=device.type, dtype=dtype)


def train_epoch(training: Training, epoch: int, progress: Progress, run_logger: RunLogger | None) -> dict[str, float]:
    """Train one epoch, which depends only on the weights, the seed and `epoch`.

    Returns:
        train_loss, penalty (already weighted), train_top1 in percent, lr of the last update, images_per_s, bad_images.

    Raises:
        DivergedError: the loss is not finite; names the update.
        DataError: an image cannot be read, with --on-bad-image stop.
    """
    seed_all(training.seed, epoch, training.group.rank)
    training.loader.set_epoch(epoch)
    if training.mixup_off_epoch and epoch >= training.mixup_off_epoch:
        training.loader.set_mixup(False)
        if training.mixup is not None:
            training.mixup.mixup_enabled = False
    training.parallel.train()
    training.scheduler.step(epoch)

    updates = training.updates_per_epoch
    watch = _Watch(training, epoch, progress, run_logger)
    batches = _unwrapped(training.loader)
    progress.start_epoch(epoch)
    try:
        for update in range(updates):
            done = epoch * updates + update
            training.scheduler.step_update(done)
            sums = _update(training, batches)
            if training.model_ema is not None:
                training.model_ema.update(training.model, step=done + 1)
            watch.add(sums, training.optimizer.param_groups[0]["lr"])
            progress.step()
            if (update + 1) % training.log_interval == 0 or update + 1 == updates:
                watch.report(update + 1)
    finally:
        progress.end_epoch()
        batches.close()
    if hasattr(training.optimizer, "sync_lookahead"):
        training.optimizer.sync_lookahead()
    return watch.result()


def _update(training: Training, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Make one optimizer step; return the means [task loss, weighted penalty, share right] over its images."""
    parts = training.grad_accum_steps
    sums = torch.zeros(3, device=training.group.device)
    training.optimizer.zero_grad()
    for part in range(parts):
        images, targets = _next(batches)
        if training.group.device.type != images.device.type:
            images, targets = images.to(training.group.device), targets.to(training.group.device)
        if training.mixup is not None:
            images, targets = training.mixup(images, targets)
        if training.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        last = part == parts - 1
        waits = not last and training.group.world_size > 1
        with training.parallel.no_sync() if waits else contextlib.nullcontext():
            with training.autocast():
                logits = training.parallel(images)
                task = training.loss(logits, targets)
            # Outside autocast, because the penalty sums many small numbers.
            penalty = _penalty(training)
            _backward(training, (task + penalty) / parts, step=last)
        with torch.no_grad():
            classes = targets.argmax(1) if targets.ndim == 2 else targets
            right = (logits.argmax(1) == classes).float().mean()
            sums += torch.stack([task.float(), penalty.float(), right]) / parts
    return sums


def _unwrapped(loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches; raise a DataError of a loader process again, without the traceback around its message."""
    try:
        yield from loader
        return
    except DataError as error:
        message = str(error).strip().rsplit("DataError: ", 1)[-1]
        # The frames keep the loader's iterator alive; its processes would end only with a later garbage collection.
        traceback.clear_frames(error.__traceback__)
    raise DataError(message)


def _next(batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    batch = next(batches, None)
    if batch is None:
        raise DataError(
            "the training data ended before the epoch did: give the actual number of images with --train-num-samples"
        )
    return batch


def _penalty(training: Training) -> Tensor:
    if training.sparsity == "none":
        return torch.zeros((), device=training.group.device)
    return training.sparsity_weight * connectivity.penalty(training.model, training.sparsity)


def _backward(training: Training, loss: Tensor, step: bool) -> None:
    parameters = clipped_parameters(training.model, training.clip_mode)
    # Some optimizers differentiate the gradients once more.
    second_order = getattr(training.optimizer, "is_second_order", False)
    if training.scaler is not None:
        training.scaler(
            loss,
            training.optimizer,
            clip_grad=training.clip_grad,
            clip_mode=training.clip_mode,
            parameters=parameters,
            create_graph=second_order,
            need_update=step,
        )
        return
    loss.backward(create_graph=second_order)
    if step:
        if training.clip_grad is not None:
            dispatch_clip_grad(parameters, value=training.clip_grad, mode=training.clip_mode)
        training.optimizer.step()


def clipped_parameters(model: nn.Module, mode: str) -> list[nn.Parameter]:
    """Return the parameters whose gradients are clipped.

    Adaptive clipping bounds a gradient relative to its weights. As in the paper and timm, it excludes the classifier,
    whose bias starts at 0.
    """
    if mode != "agc":
        return list(model.parameters())
    classifiers = model.get_classifier()  # a distilled network has two
    classifiers = classifiers if isinstance(classifiers, tuple | list) else [classifiers]
    head = {id(parameter) for module in classifiers for parameter in module.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in head]


class _Watch:
    """Collects the results of updates, and reads them only at reports to avoid synchronizing with a GPU."""

    def __init__(self, training: Training, epoch: int, progress: Progress, run_logger: RunLogger | None) -> None:
        self.training = training
        self.epoch = epoch
        self.progress = progress
        self.run_logger = run_logger
        self._pending: list[Tensor] = []
        self._lrs: list[float] = []
        self._rows: list[list[float]] = []
        self._started = self._reported = time.monotonic()

    def add(self, sums: Tensor, lr: float) -> None:
        self._pending.append(sums)
        self._lrs.append(lr)

    def report(self, update: int) -> None:
        """Show the mean over all processes since the last report; `update` counts from 1."""
        group = self.training.group
        rows = (group.sum(torch.stack(self._pending)) / group.world_size).tolist()
        first = update - len(rows) + 1
        for offset, row in enumerate(rows):
            if not np.isfinite(row).all():
                self._stop(first + offset, row, self._lrs[offset])
        now = time.monotonic()
        speed = len(rows) * self._images_per_update() / (now - self._reported)
        self._reported = now
        mean = np.mean(rows, axis=0)
        lr = self._lrs[-1]
        self.progress.report(update, mean[0], mean[1], 100 * mean[2], speed, lr)
        if self.run_logger is not None:
            before = self.epoch * self.training.updates_per_epoch
            names = ("loss", "penalty", "top1", "lr")
            values = [(row[0], row[1], 100 * row[2], lr) for row, lr in zip(rows, self._lrs)]
            self.run_logger.updates(before + first, [dict(zip(names, value)) for value in values])
        self._rows += rows
        self._pending.clear()
        self._lrs.clear()
        self._lr = lr

    def result(self) -> dict[str, float]:
        group = self.training.group
        mean = np.mean(self._rows, axis=0)
        return {
            "train_loss": float(mean[0]),
            "penalty": float(mean[1]),
            "train_top1": float(100 * mean[2]),
            "lr": float(self._lr),
            "images_per_s": len(self._rows) * self._images_per_update() / (self._reported - self._started),
            "bad_images": self.training.loader.bad_images(group),
        }

    def _images_per_update(self) -> int:
        training = self.training
        return training.loader.batch_size * training.grad_accum_steps * training.group.world_size

    def _stop(self, update: int, row: list[float], lr: float) -> None:
        updates = self.training.updates_per_epoch
        raise DivergedError(
            f"the loss is {row[0] + row[1]} in epoch {self.epoch + 1}, update {update} of {updates} (update "
            f"{self.epoch * updates + update} of the run) at learning rate {lr:.3g}. "
            "Try a lower --lr, a longer --warmup-epochs or --clip-grad 1, and --amp-dtype bfloat16 with --amp"
        )


def check_finite(model: nn.Module, epoch: int) -> None:
    """Refuse to continue, and so to save, if a weight or buffer of the model is not finite.

    Raises:
        DivergedError: names the tensor.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DivergedError(
                f"{name!r} has a value that is not finite after the last update of epoch {epoch + 1}. "
                "Try a lower --lr, a longer --warmup-epochs or --clip-grad 1"
            )


def evaluate(training: Training, forward: nn.Module, loader: Loader) -> dict[str, float]:
    """Return loss, top1 and top5 (percent) over all images of the dataset, in any number of processes.

    Raises:
        DataError: an image cannot be read, with --on-bad-image stop, or no image can be read.
    """
    group = training.group
    sums = _sums(
        forward.eval(),
        _unwrapped(loader),
        group.device,
        # The sampler repeats images so that all processes have the same number.
        places=range(group.rank, loader.count, group.world_size) if loader.count is not None else None,
        channels_last=training.channels_last,
        autocast=training.autocast,
    )
    return _means(group.sum(sums), "no image of the validation split can be read")


def accuracy(batches: Iterable[tuple[Tensor, Tensor]]) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that evaluates a classifier on a timm loader: top1, top5 (percent) and loss of a model.

    Args:
        batches: (images [B, C, H, W], classes [B]), normalized; iterated again for each model. Images of class -1 do
            not count.
    """

    def evaluate(model: nn.Module) -> dict[str, float]:
        means = _means(_sums(model, batches, next(model.parameters()).device), "there are no images to evaluate on")
        return {
            name: means[name] for name in ("top1", "top5", "loss")
        }  # the first is the default score of damage curves

    return evaluate


@torch.no_grad()
def _sums(
    forward: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    *,
    places: range | None = None,
    channels_last: bool = False,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Tensor:
    """Return the sums of `_scores` over all batches.

    Args:
        places: positions of this process's images in the dataset; any further images are repeated and do not count.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    seen = 0
    for images, targets in batches:
        images, targets = images.to(device), targets.to(device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            logits = forward(images)
        counts = targets != NO_TARGET  # exclude substitutes of unreadable images
        if places is not None:
            counts &= torch.arange(seen, seen + len(targets), device=device) < len(places)
        seen += len(targets)
        sums += _scores(logits.float(), targets, counts)
    return sums


def _means(sums: Tensor, nothing: str) -> dict[str, float]:
    loss, top1, top5, count = sums.tolist()
    if not count:
        raise DataError(nothing)
    return {"loss": loss / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}


def _scores(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Return the sums [loss, top-1 right, top-5 right, images] over the images that count, float64."""
    targets = targets.clamp(min=0)
    losses = F.cross_entropy(logits, targets, reduction="none")
    right = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
    scores = torch.stack([losses, right[:, 0], right.any(dim=1), torch.ones_like(losses)]).double()
    # Not a product, since the loss of an excluded image may be infinite.
    return torch.where(counts, scores, 0.0).sum(dim=1)
