"""What a run trains with, made as the options say: model, optimiser, loss, schedule."""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Mapping

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import ModelEmaV3, NativeScaler
from torch import Tensor, nn

from topodet import connectivity, weights
from topodet.errors import ConfigError, WeightsError, did_you_mean
from topodet.models import ARCHITECTURES, create_timm_network
from topodet.models.recompute import update_statistics_once
from topodet.options import pruning
from topodet.pretrain import data
from topodet.pretrain.engine import Training, autocast_context
from topodet.pretrain.group import Group
from topodet.pretrain.loader import Loader
from topodet.pretrain.options import mixes

_logger = logging.getLogger(__name__)


def create_model(
    args: argparse.Namespace,
    num_classes: int,
    channels: int,
    group: Group,
    trained: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Return the network on its device, with the weights it is to start from.

    Args:
        trained: what the caller will load into it; it has the graphs that pruning left, and no other file is read.

    Raises:
        ConfigError: arguments it does not take, blocks that cannot be connected, a penalty on edges it does not learn,
            or pruning that is impossible.
        WeightsError: --initial-checkpoint or --edges-from is missing or does not fit.
    """
    source = trained
    if trained is None and args.edges_from:
        source = weights.read(args.edges_from).state_dict
    try:
        model = create_timm_network(
            args.model,
            wiring=args.connect or args.rewire or "none",
            rewire=args.rewire is not None,
            pretrained=args.pretrained and trained is None,
            num_classes=num_classes,
            in_chans=channels,
            global_pool=args.gp,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            **{**args.model_kwargs, **_graphs(args, source)},
        )
    except ConfigError as error:
        edges = "".join(f" --{name} {vars(args)[name]}" for name in ("connect", "rewire") if vars(args)[name])
        raise ConfigError(f"--model {args.model}{edges}: {error}") from error
    if trained is None:
        if args.initial_checkpoint:
            _load_initial(model, args.initial_checkpoint)
        if source is not None:
            _read_edges(model, source, args.edges_from)
        model = _pruned(args, model)
    if args.freeze_alpha:
        connectivity.freeze(model)
        if args.sparsity != "none":
            raise ConfigError(
                f"--freeze-alpha leaves --sparsity {args.sparsity} nothing to press: give --sparsity none"
            )
    if args.sparsity != "none":
        connectivity.penalty(model, args.sparsity)  # refuses a model without learned edges
    if args.sync_bn:
        if group.device.type != "cuda":
            raise ConfigError("--sync-bn works on GPUs only: leave it out, or use --model-kwargs norm_layer=groupnorm")
        model = convert_sync_batchnorm(model)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
        update_statistics_once(model)  # networks of timm do not do it themselves
    model.to(group.device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def _load_initial(model: nn.Module, path: str) -> None:
    if not os.path.isfile(path):
        raise WeightsError(f"no file at --initial-checkpoint {path}; check the path")
    try:
        timm.models.load_checkpoint(model, path)
    except WeightsError as error:
        raise WeightsError(
            f"--initial-checkpoint {path!r} does not fit the model: {error}, or give it the graphs of the file: "
            f"--edges-from {path}"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"--initial-checkpoint {path!r} does not fit the model: {error}") from error


def _graphs(args: argparse.Namespace, source: Mapping[str, Tensor] | None) -> dict[str, object]:
    """Return the arguments that give a network the graphs of a state dict."""
    if source is None:
        return {}
    if args.model.split(".")[0] not in ARCHITECTURES:
        return {"edges": weights.run_edges(source)}
    graphs = {
        name: value for name, value in weights.infer_architecture(source).items() if name in ("nodes", "topology")
    }
    given = graphs.keys() & args.model_kwargs.keys()
    if args.edges_from and given:
        raise ConfigError(f"--edges-from gives the graphs: leave {', '.join(sorted(given))} out of --model-kwargs")
    return graphs


def _read_edges(model: nn.Module, source: Mapping[str, Tensor], path: str) -> None:
    """Give a network the edge weights of a state dict, in place.

    Raises:
        WeightsError: names `path` and the wiring that it lacks.
    """
    for name, wiring in connectivity.wirings(model).items():
        own = {key: source.get(f"{name}.{key}") for key in wiring.state_dict()}
        if any(value is None for value in own.values()):
            raise WeightsError(f"--edges-from {path!r} has no {name}: it is of another kind of network")
        wiring.load_state_dict(own)


def _pruned(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    """Return the network without the edges that are to be pruned; itself if none are."""
    prune = pruning(args)
    if prune is None:
        return model
    if not (args.edges_from or args.initial_checkpoint or args.pretrained):
        raise ConfigError(
            "pruning needs edge weights that were trained: give --initial-checkpoint FILE, or --edges-from FILE to "
            "train the pruned graphs from scratch"
        )
    pruned = connectivity.prune(model, **prune)
    _logger.info("pruned from %s to %s", *map(_edges_and_nodes, (model, pruned)))
    return pruned


def _edges_and_nodes(model: nn.Module) -> str:
    graphs = [wiring.topology for wiring in connectivity.wirings(model).values()]
    return f"{sum(graph.num_edges for graph in graphs)} edges of {sum(graph.num_nodes for graph in graphs)} nodes"


def prepare(
    args: argparse.Namespace, group: Group, model: nn.Module, loader: Loader, num_classes: int
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
        # Of [C, 1, 3, 3] in channels_last: strides of dimensions of size 1, which nothing is read by.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        ids = [device.index] if device.type == "cuda" else None
        parallel = nn.parallel.DistributedDataParallel(forward, device_ids=ids, broadcast_buffers=not args.no_ddp_bb)
    optimizer = create_optimizer(args, model, args.lr or scaled_lr(args, group))
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
        loss=create_loss(args).to(device),
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


def create_optimizer(args: argparse.Namespace, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return timm's optimiser over weights, vectors and edge weights with their own weight decay.

    Raises:
        ConfigError: an unknown name, or arguments it does not take.
    """
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
        raise ConfigError(f"--opt {args.opt!r}: {error}.{did_you_mean(args.opt, list_optimizers())}") from error
    except TypeError as error:
        raise ConfigError(f"--opt {args.opt!r} does not take the arguments given: {error}") from error


def scaled_lr(args: argparse.Namespace, group: Group) -> float:
    """Return --lr-base scaled from --lr-base-size to the images of an update: linearly, or by the root."""
    images = args.batch_size * args.grad_accum_steps * group.world_size
    adaptive = any(part in args.opt.lower() for part in ("ada", "lamb"))
    scale = args.lr_base_scale or ("sqrt" if adaptive else "linear")
    ratio = images / args.lr_base_size
    return args.lr_base * (ratio**0.5 if scale == "sqrt" else ratio)


def create_loss(args: argparse.Namespace) -> nn.Module:
    """Return the task loss of (logits [B, classes], classes [B] or shares [B, classes])."""
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    if args.bce_loss:
        # Mixed targets are smoothed where they are mixed.
        smoothing = 0.0 if mixes(args) else args.smoothing
        return BinaryCrossEntropy(smoothing, target_threshold=args.bce_target_thresh, sum_classes=args.bce_sum)
    if mixes(args):
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()
