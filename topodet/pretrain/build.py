"""Build the parts of a run from its options: model, optimizer, loss, schedule."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping

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
from topodet.pretrain import data
from topodet.pretrain.engine import Training, autocast_context
from topodet.pretrain.group import Group
from topodet.pretrain.loader import Loader
from topodet.pretrain.options import AugmentationOptions, OptimizerOptions, Options

_logger = logging.getLogger(__name__)


def create_model(
    options: Options,
    num_classes: int,
    channels: int,
    group: Group,
    trained: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Return the network on its device, with its initial weights.

    Args:
        trained: state dict that the caller will load afterwards; the network gets its graphs, pruned or not, and no
            other file is read.

    Raises:
        ConfigError: arguments that it does not accept, blocks that cannot be connected, a penalty on edges that are not
            learned, or pruning that is impossible.
        WeightsError: --initial-checkpoint or --edges-from is missing or does not fit.
    """
    source = trained
    if trained is None and options.edges.edges_from:
        source = weights.read(options.edges.edges_from).state_dict
    start = options.model.pretrained and trained is None
    model = create_network(options, num_classes, channels, source, pretrained=start)
    if start and model.pretrained_cfg.get("num_classes") != num_classes:
        _new_classifier(model, options.model.gp)
    if trained is None:
        if options.model.initial_checkpoint:
            _load_initial(model, options.model.initial_checkpoint, options.model.gp)
        if source is not None:
            _read_edges(model, source, options.edges.edges_from)
        if options.edges.shuffle_alpha is not None:
            _shuffle(model, options.edges.shuffle_alpha)
        model = _pruned(options, model)
    if options.edges.freeze_alpha:
        connectivity.freeze(model)
        if options.edges.sparsity != "none":
            raise ConfigError(
                f"--freeze-alpha leaves --sparsity {options.edges.sparsity} with nothing to penalize: give "
                "--sparsity none"
            )
    if options.edges.sparsity != "none":
        connectivity.penalty(model, options.edges.sparsity)  # refuses a model without learned edges
    if options.device.sync_bn:
        if group.device.type != "cuda":
            raise ConfigError("--sync-bn works on GPUs only: leave it out, or use --model-kwargs norm_layer=groupnorm")
        model = convert_sync_batchnorm(model)
    if options.model.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
        update_statistics_once(model)  # timm's networks do not do this themselves
    model.to(group.device)
    if options.device.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def create_network(
    options: Options,
    num_classes: int,
    channels: int,
    source: Mapping[str, Tensor] | None,
    *,
    pretrained: bool = False,
) -> nn.Module:
    """Return the network of the options as timm creates it, with the graphs of the tensors in `source`.

    Raises:
        ConfigError: arguments that it does not accept, or blocks that cannot be connected.
    """
    try:
        return create_timm_network(
            options.model.model,
            wiring=options.edges.connect or options.edges.rewire or "none",
            connect_nodes=options.edges.connect_nodes,
            rewire=options.edges.rewire is not None,
            pretrained=pretrained,
            num_classes=num_classes,
            in_chans=channels,
            global_pool=options.model.gp,
            drop_rate=options.model.drop,
            drop_path_rate=options.model.drop_path,
            **{**options.model.model_kwargs, **_graphs(options, source)},
        )
    except ConfigError as error:
        chosen = {"connect": options.edges.connect, "rewire": options.edges.rewire}
        edges = "".join(f" --{name} {value}" for name, value in chosen.items() if value)
        raise ConfigError(f"--model {options.model.model}{edges}: {error}") from error


def _load_initial(model: nn.Module, path: str, pooling: str | None) -> None:
    """Load the weights of a file, with a new classifier if the file has none for as many classes."""
    try:
        file = weights.read(path)
    except WeightsError as error:
        raise WeightsError(f"--initial-checkpoint {path!r} cannot be read: {error}") from error
    head = weights.has_classifier(model, file.state_dict)
    if not head:
        _new_classifier(model, pooling)
    try:
        weights.load(model, file, head=head)
    except WeightsError as error:
        hint = f"; or use the graphs of the file: --edges-from {path}" if "does not fit" in str(error) else ""
        raise WeightsError(f"--initial-checkpoint {path!r} does not fit the model: {error}{hint}") from error


def _new_classifier(model: nn.Module, pooling: str | None) -> None:
    """Replace the classifier of a network whose other weights are trained, by that of timm's `reset_classifier`.

    Some networks, e.g. EfficientNets, create a classifier for training from scratch, with weights several times as
    large, whose gradients damage trained weights in the first updates.
    """
    # Without an argument, some networks of timm go back to average pooling.
    model.reset_classifier(model.num_classes, **({"global_pool": pooling} if pooling else {}))


def _graphs(options: Options, source: Mapping[str, Tensor] | None) -> dict[str, object]:
    """Return the arguments that give a network the graphs of a state dict."""
    if source is None:
        return {}
    if options.model.model.split(".")[0] not in ARCHITECTURES:
        return {"edges": weights.run_edges(source)}
    graphs = {
        name: value for name, value in weights.infer_architecture(source).items() if name in ("nodes", "topology")
    }
    given = graphs.keys() & options.model.model_kwargs.keys()
    if options.edges.edges_from and given:
        raise ConfigError(f"--edges-from sets the graphs: leave {', '.join(sorted(given))} out of --model-kwargs")
    return graphs


def _read_edges(model: nn.Module, source: Mapping[str, Tensor], path: str) -> None:
    """Load the edge weights of a state dict into a network, in place.

    Raises:
        WeightsError: names `path` and the wiring that it lacks.
    """
    for name, wiring in connectivity.wirings(model).items():
        own = {key: source.get(f"{name}.{key}") for key in wiring.state_dict()}
        if any(value is None for value in own.values()):
            raise WeightsError(f"--edges-from {path!r} has no {name}: it comes from a different kind of network")
        wiring.load_state_dict(own)


@torch.no_grad()
def _shuffle(model: nn.Module, seed: int) -> None:
    """Put the edge weights of each wiring into a random order, in place."""
    order = torch.Generator().manual_seed(seed)
    for wiring in connectivity.wirings(model).values():
        wiring.alpha.copy_(wiring.alpha[torch.randperm(len(wiring.alpha), generator=order)])


def _pruned(options: Options, model: nn.Module) -> nn.Module:
    """Return the pruned network, or the network itself if no pruning is requested."""
    prune = options.pruning.arguments()
    if prune is None:
        return model
    if not (options.edges.edges_from or options.model.initial_checkpoint or options.model.pretrained):
        raise ConfigError(
            "pruning needs trained edge weights: give --initial-checkpoint FILE, or --edges-from FILE to "
            "train the pruned graphs from scratch"
        )
    pruned = connectivity.prune(model, **prune)
    _logger.info("pruned from %s to %s", *map(_edges_and_nodes, (model, pruned)))
    return pruned


def _edges_and_nodes(model: nn.Module) -> str:
    graphs = [wiring.topology for wiring in connectivity.wirings(model).values()]
    return f"{sum(graph.num_edges for graph in graphs)} edges of {sum(graph.num_nodes for graph in graphs)} nodes"


def prepare(options: Options, group: Group, model: nn.Module, loader: Loader, num_classes: int) -> tuple[Training, int]:
    """Return everything that trains the model, and the number of epochs."""
    device = group.device
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    model_ema = None
    if options.average.model_ema:
        model_ema = ModelEmaV3(
            model,
            decay=options.average.model_ema_decay,
            use_warmup=options.average.model_ema_warmup,
            device=torch.device("cpu") if options.average.model_ema_force_cpu else None,
        )
    forward = model
    if options.device.torchcompile:
        forward = torch.compile(model, backend=options.device.torchcompile, mode=options.device.torchcompile_mode)
    parallel = forward
    if group.world_size > 1:
        # Raised for weights [C, 1, 3, 3] in channels_last; the strides differ only in the dimension of size 1.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        ids = [device.index] if device.type == "cuda" else None
        broadcast = not options.device.no_ddp_bb
        parallel = nn.parallel.DistributedDataParallel(forward, device_ids=ids, broadcast_buffers=broadcast)
    optimizer = create_optimizer(
        options.optimizer, options.edges.alpha_weight_decay, model, options.schedule.lr or scaled_lr(options, group)
    )
    schedule = {**scheduler_kwargs(options.schedule), "noise_seed": options.run.seed}
    updates = loader.batches // options.optimizer.grad_accum_steps
    scheduler, epochs = create_scheduler_v2(optimizer, **schedule, updates_per_epoch=updates)
    amp_dtype = getattr(torch, options.device.amp_dtype) if options.device.amp else None
    training = Training(
        group=group,
        model=model,
        forward=forward,
        parallel=parallel,
        model_ema=model_ema,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=NativeScaler(device=device.type) if amp_dtype == torch.float16 else None,
        loss=create_loss(options.augmentation).to(device),
        autocast=autocast_context(device, amp_dtype),
        loader=loader,
        mixup=data.batch_mixup(options, num_classes),
        mixup_off_epoch=options.augmentation.mixup_off_epoch,
        sparsity=options.edges.sparsity,
        sparsity_weight=options.edges.sparsity_weight,
        grad_accum_steps=options.optimizer.grad_accum_steps,
        clip_grad=options.optimizer.clip_grad,
        clip_mode=options.optimizer.clip_mode,
        channels_last=options.device.channels_last,
        seed=options.run.seed,
        log_interval=options.run.log_interval,
    )
    return training, epochs


def create_optimizer(
    options: OptimizerOptions, alpha_weight_decay: float, model: nn.Module, lr: float
) -> torch.optim.Optimizer:
    """Return timm's optimizer over weights, vectors and edge weights, with a separate weight decay for edge weights.

    Raises:
        ConfigError: an unknown name, or arguments that it does not accept.
    """
    given = {"eps": options.opt_eps, "betas": options.opt_betas}
    try:
        return create_optimizer_v2(
            connectivity.param_groups(model, options.weight_decay, alpha_weight_decay),
            opt=options.opt,
            lr=lr,
            momentum=options.momentum,
            **{key: value for key, value in given.items() if value is not None},
            **options.opt_kwargs,
        )
    except ValueError as error:
        raise ConfigError(f"--opt {options.opt!r}: {error}.{did_you_mean(options.opt, list_optimizers())}") from error
    except TypeError as error:
        raise ConfigError(f"--opt {options.opt!r} does not accept the given arguments: {error}") from error


def scaled_lr(options: Options, group: Group) -> float:
    """Return --lr-base scaled from --lr-base-size to the images per update, linearly or by the square root."""
    images = options.optimizer.batch_size * options.optimizer.grad_accum_steps * group.world_size
    adaptive = any(part in options.optimizer.opt.lower() for part in ("ada", "lamb"))
    scale = options.schedule.lr_base_scale or ("sqrt" if adaptive else "linear")
    ratio = images / options.schedule.lr_base_size
    return options.schedule.lr_base * (ratio**0.5 if scale == "sqrt" else ratio)


def create_loss(options: AugmentationOptions) -> nn.Module:
    """Return the task loss of (logits [B, classes], classes [B] or shares [B, classes])."""
    if options.jsd_loss:
        return JsdCrossEntropy(num_splits=options.aug_splits, smoothing=options.smoothing)
    if options.bce_loss:
        # Mixup already smooths its targets.
        smoothing = 0.0 if options.mixes else options.smoothing
        return BinaryCrossEntropy(smoothing, target_threshold=options.bce_target_thresh, sum_classes=options.bce_sum)
    if options.mixes:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(options.smoothing) if options.smoothing else nn.CrossEntropyLoss()
