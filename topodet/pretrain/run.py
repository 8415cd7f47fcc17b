"""The run: from the options to the last checkpoint."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import yaml
from timm.data import resolve_data_config
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import ModelEmaV3, NativeScaler, distribute_bn
from torch import nn

from topodet import connectivity
from topodet.errors import ConfigError, TopodetError, WeightsError
from topodet.files import atomic_write
from topodet.pretrain import data
from topodet.pretrain.engine import Training, autocast_context, check_finite, evaluate, seed_all, train_epoch
from topodet.pretrain.group import Group, join
from topodet.pretrain.log import Progress, Records, logging_to_stderr
from topodet.pretrain.options import mixes, parse
from topodet.pretrain.resume import check_same_data, check_same_run
from topodet.pretrain.saver import LAST, Saver, read_checkpoint

_logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 after telling what is wrong with the input."""
    try:
        run(parse(argv))
    except (TopodetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; --resume auto goes on after the last finished epoch", file=sys.stderr)
        return 130
    return 0


def run(args: argparse.Namespace) -> list[dict]:
    """Train as the options say; return the rows of summary.csv.

    Raises:
        TopodetError: the options, the data or a checkpoint cannot be used, or the loss is no finite number any more.
        OSError: a file cannot be written.
    """
    with join(args.device) as group, logging_to_stderr(logging.INFO if group.primary else logging.WARNING):
        return _run(args, group)


def _run(args: argparse.Namespace, group: Group) -> list[dict]:
    folder = Path(args.output, args.experiment)
    options = {key: _plain(value) for key, value in vars(args).items()} | {"world_size": group.world_size}
    _check_model_name(args.model)
    path, checkpoint = _find_checkpoint(args, folder, group)
    if checkpoint is not None:
        check_same_run(checkpoint["args"], options, str(path))
    channels = args.in_chans or (args.input_size[0] if args.input_size else 3)
    datasets = data.open_datasets(args, group, channels)
    counts = {
        "train_images": len(datasets.train),
        "val_images": None if datasets.val is None else len(datasets.val),
        "classes": datasets.num_classes,
    }
    if checkpoint is not None:
        check_same_data(checkpoint["data"], counts, str(path))

    seed_all(args.seed)
    model = _create_model(args, datasets.num_classes, channels, group)
    data_config = resolve_data_config({**vars(args), "in_chans": channels}, model=model)
    train_loader = data.train_loader(args, datasets.train, datasets.num_classes, data_config, group)
    val_loader = None
    if datasets.val is not None:
        val_loader = data.val_loader(args, datasets.val, data_config, group)
    training, epochs = _prepare(args, group, model, train_loader, datasets.num_classes)

    history: list[dict] = [] if checkpoint is None else checkpoint["history"]
    facts = {
        "arch": args.model,
        "args": options,
        "num_classes": datasets.num_classes,
        "class_names": datasets.class_names,
        "data": counts,
        "data_config": {key: _plain(value) for key, value in data_config.items()},
    }
    saver = Saver(
        folder,
        model,
        training.optimizer,
        training.model_ema,
        training.scaler,
        facts=facts,
        history=history,
        decreasing=args.eval_metric == "loss",
        max_history=args.checkpoint_hist,
    )
    start = 0
    if checkpoint is not None:
        start = checkpoint["epoch"] + 1
        _restore(training, checkpoint, path)
        saver.restore((row["epoch"], row["metric"]) for row in history[:-1] if row["metric"] is not None)
    records = None
    if group.primary:
        _tell(args, training, counts, epochs, start, folder)
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".*.tmp"):
            unfinished.unlink()  # what a killed process was writing
        atomic_write(folder / "args.yaml", yaml.safe_dump(options))
        if checkpoint is not None:
            # The kill may have come between the files of the last epoch: write them all again.
            saver.save_epoch(start - 1, history[-1]["metric"])
        records = Records(folder, model, args.figure_interval, start * training.updates_per_epoch)
        records.summary(history)
    try:
        _epochs(args, training, val_loader, saver, records, start, epochs)
    finally:
        if records is not None:
            records.close()
    if group.primary and saver.best_epoch is not None:
        best = (args.eval_metric, saver.best_metric, saver.best_epoch)
        _logger.info("best %s %.4g in epoch %d; files in %s", *best, folder)
    return history


def _epochs(
    args: argparse.Namespace,
    training: Training,
    val_loader: data.Loader | None,
    saver: Saver,
    records: Records | None,
    start: int,
    epochs: int,
) -> None:
    group = training.group
    updates = training.updates_per_epoch
    progress = Progress(epochs, updates, start * updates, show=group.primary)
    for epoch in range(start, epochs):
        began = time.monotonic()
        last = f"The last good checkpoint is {saver.last}" if epoch else "There is no checkpoint yet"
        row = {"epoch": epoch, **train_epoch(training, epoch, progress, records, last)}
        check_finite(training.model, epoch, last)
        if group.world_size > 1 and args.dist_bn and not args.sync_bn:
            distribute_bn(training.model, group.world_size, args.dist_bn == "reduce")
            if training.model_ema is not None and not args.model_ema_force_cpu:
                distribute_bn(training.model_ema.module, group.world_size, args.dist_bn == "reduce")
        validates = val_loader is not None and ((epoch + 1) % args.val_interval == 0 or epoch + 1 == epochs)
        if validates:
            scores, bad_images = _validate(args, training, val_loader, epoch)
            row |= scores
            row["bad_images"] += bad_images
        row |= {f"edges_{name}": share for name, share in connectivity.sparsity(training.model).items()}
        row["seconds"] = time.monotonic() - began
        row["metric"] = _metric(row, args.eval_metric, val_loader is not None)
        saver.history.append(row)
        if records is not None:
            # The checkpoint comes first: all that follows can be made again from it.
            saver.save_epoch(epoch, row["metric"])
            records.summary(saver.history)
            records.epoch(row, (epoch + 1) * updates)
            _logger.info("epoch %d/%d  %s", epoch, epochs - 1, _text(row))


def _validate(
    args: argparse.Namespace, training: Training, loader: data.Loader, epoch: int
) -> tuple[dict[str, float], int]:
    """Return the scores of the weights and of their average, and how many images could not be read."""
    loader.set_epoch(epoch)
    row = {f"eval_{name}": value for name, value in evaluate(training, training.forward, loader).items()}
    if training.model_ema is not None and not args.model_ema_force_cpu:
        scores = evaluate(training, training.model_ema.module, loader)
        row |= {f"ema_eval_{name}": value for name, value in scores.items()}
    return row, training.group.total(loader.bad_images)


def _metric(row: dict, name: str, validates: bool) -> float | None:
    """Return what ranks the epoch's checkpoint: the average's score, the model's, or without validation training's."""
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
    """Return options as JSON has them, so that a checkpoint holds plain types and compares equal after reading."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _check_model_name(name: str) -> None:
    if ":" in name or timm.is_model(name.split(".")[0]):
        return
    known = timm.list_models()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    ours = ", ".join(timm.list_models("toponet*"))
    raise ConfigError(f"unknown model {name!r}.{hint} topodet has {ours}; timm.list_models() has all {len(known)}")


def _find_checkpoint(args: argparse.Namespace, folder: Path, group: Group) -> tuple[Path | None, dict | None]:
    """Return the checkpoint to resume from, read by the first process for all, or (None, None) for a new run."""
    path, state = None, None
    if group.primary:
        path = folder / LAST if args.resume == "auto" else Path(args.resume) if args.resume else None
        if args.resume == "auto" and not path.exists():
            path = None
        own = args.resume == "auto" or (path is not None and path.parent.resolve() == folder.resolve())
        if (folder / LAST).exists() and not own:
            raise ConfigError(
                f"{folder} holds the checkpoints of another run: go on with that one by --resume auto, or give this "
                "one a new --experiment name"
            )
        if path is not None:
            state = read_checkpoint(path)
    return group.share((path, state))


def _create_model(args: argparse.Namespace, num_classes: int, channels: int, group: Group) -> nn.Module:
    try:
        model = timm.create_model(
            args.model,
            pretrained=args.pretrained,
            num_classes=num_classes,
            in_chans=channels,
            global_pool=args.gp,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            **args.model_kwargs,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--model {args.model} cannot be made with the arguments given: {error}") from error
    if args.initial_checkpoint:
        _load_initial(model, args.initial_checkpoint)
    if args.sparsity != "none":
        connectivity.penalty(model, args.sparsity)  # refuses a model without learned edges
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    if args.sync_bn:
        if group.device.type != "cuda":
            raise ConfigError("--sync-bn works on GPUs only: leave it out, or use --model-kwargs norm_layer=groupnorm")
        model = convert_sync_batchnorm(model)
    model.to(group.device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def _load_initial(model: nn.Module, path: str) -> None:
    try:
        timm.models.load_checkpoint(model, path)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"--initial-checkpoint {path!r} does not fit the model: {error}") from error


def _prepare(
    args: argparse.Namespace, group: Group, model: nn.Module, loader: data.Loader, num_classes: int
) -> tuple[Training, int]:
    """Return all that trains the model, and the number of epochs."""
    device = group.device
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    model_ema = None
    if args.model_ema:
        model_ema = ModelEmaV3(
            model,
            decay=args.model_ema_decay,
            use_warmup=args.model_ema_warmup,
            device=torch.device("cpu") if args.model_ema_force_cpu else None,
        )
    forward = model
    if args.torchcompile:
        forward = torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    parallel = forward
    if group.world_size > 1:
        ids = [device.index] if device.type == "cuda" else None
        parallel = nn.parallel.DistributedDataParallel(forward, device_ids=ids, broadcast_buffers=not args.no_ddp_bb)
    optimizer = _create_optimizer(args, model, args.lr or _scaled_lr(args, group))
    scheduler, epochs = create_scheduler_v2(
        optimizer, **scheduler_kwargs(args), updates_per_epoch=loader.batches // args.grad_accum_steps
    )
    amp_dtype = getattr(torch, args.amp_dtype) if args.amp else None
    training = Training(
        group=group,
        model=model,
        forward=forward,
        parallel=parallel,
        model_ema=model_ema,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=NativeScaler(device=device.type) if amp_dtype == torch.float16 else None,
        loss=_create_loss(args).to(device),
        autocast=autocast_context(device, amp_dtype),
        loader=loader,
        mixup=data.batch_mixup(args, num_classes),
        mixup_off_epoch=args.mixup_off_epoch,
        sparsity=args.sparsity,
        sparsity_weight=args.sparsity_weight,
        grad_accum_steps=args.grad_accum_steps,
        clip_grad=args.clip_grad,
        clip_mode=args.clip_mode,
        channels_last=args.channels_last,
        seed=args.seed,
        log_interval=args.log_interval,
    )
    return training, epochs


def _create_optimizer(args: argparse.Namespace, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    given = {"eps": args.opt_eps, "betas": args.opt_betas}
    try:
        return create_optimizer_v2(
            connectivity.param_groups(model, args.weight_decay, args.alpha_weight_decay),
            opt=args.opt,
            lr=lr,
            momentum=args.momentum,
            **{key: value for key, value in given.items() if value is not None},
            **args.opt_kwargs,
        )
    except ValueError as error:
        near = difflib.get_close_matches(args.opt, list_optimizers(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near and args.opt not in near else ""
        raise ConfigError(f"--opt {args.opt!r}: {error}.{hint}") from error
    except TypeError as error:
        raise ConfigError(f"--opt {args.opt!r} does not take the arguments given: {error}") from error


def _scaled_lr(args: argparse.Namespace, group: Group) -> float:
    images = args.batch_size * args.grad_accum_steps * group.world_size
    adaptive = any(part in args.opt.lower() for part in ("ada", "lamb"))
    scale = args.lr_base_scale or ("sqrt" if adaptive else "linear")
    ratio = images / args.lr_base_size
    return args.lr_base * (ratio**0.5 if scale == "sqrt" else ratio)


def _create_loss(args: argparse.Namespace) -> nn.Module:
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    if args.bce_loss:
        # Mixed targets are smoothed where they are mixed.
        smoothing = 0.0 if mixes(args) else args.smoothing
        return BinaryCrossEntropy(smoothing, target_threshold=args.bce_target_thresh, sum_classes=args.bce_sum)
    if mixes(args):
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def _restore(training: Training, checkpoint: dict, path: Path) -> None:
    try:
        training.model.load_state_dict(checkpoint["state_dict"])
        training.optimizer.load_state_dict(checkpoint["optimizer"])
        if training.model_ema is not None:
            training.model_ema.module.load_state_dict(checkpoint["state_dict_ema"])
        if training.scaler is not None and training.scaler.state_dict_key in checkpoint:
            training.scaler.load_state_dict(checkpoint[training.scaler.state_dict_key])
    except (RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(f"the state in {path} does not fit the model or the optimiser: {error}") from error


def _tell(args: argparse.Namespace, training: Training, counts: dict, epochs: int, start: int, folder: Path) -> None:
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    _logger.info(
        "%s: %s parameters; %s training images, %s validation images, %d classes; %d process(es) on %s",
        args.model,
        f"{parameters:,}",
        counts["train_images"],
        counts["val_images"],
        counts["classes"],
        training.group.world_size,
        training.group.device.type,
    )
    if start == epochs:
        _logger.info("all %d epochs are done: nothing is left to train", epochs)
        return
    _logger.info(
        "epochs %d to %d of %d updates; peak learning rate %.4g; files in %s",
        start,
        epochs - 1,
        training.updates_per_epoch,
        training.scheduler.base_values[0],
        folder,
    )
