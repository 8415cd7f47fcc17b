"""The options of a pretraining run: those of timm's training script, with the same names, and topodet's own.

A group of options is a dataclass. The command line (`pretrain.command_line`) is made from the fields: a field's type is
the type of its option, a `Literal` gives its choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from topodet.options import Pruning


def option(default: Any, help: str, *names: str, **arguments: Any) -> Any:
    """Return a dataclass field that is also a command-line option.

    Args:
        default: default value.
        help: its text in --help.
        names: additional names, e.g. "-b".
        arguments: arguments of `argparse.ArgumentParser.add_argument` that do not follow from the field's type.
    """
    metadata = {"help": help, "names": names, **arguments}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataOptions:
    """The training and validation data."""

    data_dir: str | None = option(None, "root folder of the dataset", metavar="DIR")
    dataset: str = option(
        "", "type of dataset: empty for image folders, npz for arrays, or timm's name", metavar="TYPE/NAME"
    )
    train_split: str = option("train", "split to train on", metavar="NAME")
    val_split: str = option("validation", "split to validate on; '' for none", metavar="NAME")
    train_num_samples: int | None = option(None, "number of training images, for streamed datasets", metavar="N")
    val_num_samples: int | None = option(None, "number of validation images, for streamed datasets", metavar="N")
    dataset_download: bool = option(False, "download missing torch/ and tfds/ datasets")
    class_map: str = option("", "file that maps class names to indices", metavar="FILE")
    input_img_mode: str | None = option(
        None, "PIL mode of the images; by default RGB for 3 channels, otherwise L", metavar="MODE"
    )
    input_key: str | None = option(None, "key of the image in a dataset's records", metavar="KEY")
    target_key: str | None = option(None, "key of the class in a dataset's records", metavar="KEY")
    dataset_trust_remote_code: bool = option(False, "let Hugging Face datasets run code from the dataset's repository")
    on_bad_image: Literal["skip", "stop"] = option("skip", "what to do with an image that cannot be read")
    on_device: bool = option(
        False, "keep a dataset of small images in device memory and augment it there, without loader processes"
    )
    workers: int = option(4, "loader processes per training process", "-j", metavar="N")
    worker_seeding: Literal["all", "part"] = option("all", "random generators that the loader processes seed")
    pin_mem: bool = option(False, "pin the memory of batches for transfer to a GPU")
    no_prefetcher: bool = option(False, "normalize images in the loader processes, not on the device")


@dataclass(frozen=True)
class ModelOptions:
    """The network and the format of its input."""

    model: str = option("toponet50", "architecture registered in timm", metavar="NAME")
    model_kwargs: dict[str, Any] = option({}, "arguments of the model", metavar="KEY=VALUE")
    pretrained: bool = option(False, "start with the architecture's published weights")
    initial_checkpoint: str = option(
        "",
        "start a new run with the weights of this file, with a new classifier if it has none for these classes",
        metavar="FILE",
    )
    num_classes: int | None = option(None, "number of classes; by default taken from the data", metavar="N")
    gp: str | None = option(None, "type of global pooling", metavar="POOL")
    img_size: int | None = option(None, "height and width of the input in pixels", metavar="N")
    in_chans: int | None = option(None, "number of input channels", metavar="N")
    input_size: list[int] | None = option(
        None, "channels, height and width of the input", metavar=("C", "H", "W"), nargs=3
    )
    crop_pct: float | None = option(None, "share of the image that the validation crop keeps", metavar="SHARE")
    mean: list[float] | None = option(None, "mean of each channel, for values in 0..1", metavar="MEAN")
    std: list[float] | None = option(None, "standard deviation of each channel", metavar="STD")
    interpolation: str = option("", "interpolation of validation images", metavar="NAME")
    drop: float | None = option(None, "dropout rate", metavar="RATE")
    drop_path: float | None = option(None, "stochastic depth rate", metavar="RATE")
    grad_checkpointing: bool = option(False, "save memory by recomputing activations in the backward pass")

    @property
    def channels(self) -> int:
        """Return the channels of the input, 3 by default."""
        return self.in_chans or (self.input_size[0] if self.input_size else 3)


@dataclass(frozen=True)
class EdgeOptions:
    """Whether edge weights are learned and penalized, and their initial values."""

    connect: Literal["learned", "fixed"] | None = option(
        None, "add weights to a network's edges, without changing its output at first"
    )
    connect_nodes: Literal["residuals", "blocks", "auto"] = option(
        "residuals",
        "nodes of --connect: residuals of known blocks, whole blocks, or (auto) blocks where residuals are not exact",
    )
    rewire: Literal["learned", "fixed"] | None = option(
        None, "turn a ResNet into a network of complete graphs, with a node per convolution; needs training"
    )
    sparsity: Literal["none", "uniform", "adaptive"] = option("none", "penalty on the edge weights")
    sparsity_weight: float = option(1e-4, "weight of the --sparsity penalty in the loss", metavar="LAMBDA")
    alpha_weight_decay: float = option(0.0, "weight decay of the edge weights", metavar="WD")
    figure_interval: int = option(10, "epochs between adjacency figures; 0 for none", metavar="N")
    edges_from: str = option("", "start with the graphs and edge weights of this file", metavar="FILE")
    shuffle_alpha: int | None = option(None, "shuffle the initial edge weights of each wiring", metavar="SEED")
    freeze_alpha: bool = option(False, "keep the edge weights at their initial values")


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer and the batch size."""

    batch_size: int = option(128, "batch size per process", "-b", metavar="N")
    validation_batch_size: int | None = option(None, "batch size of the validation per process", "-vb", metavar="N")
    grad_accum_steps: int = option(1, "batches accumulated per update", metavar="N")
    opt: str = option("sgd", "timm's name of the optimizer; 'sgd' uses Nesterov momentum", metavar="NAME")
    opt_eps: float | None = option(None, "epsilon of the optimizer", metavar="EPS")
    opt_betas: list[float] | None = option(None, "betas of the optimizer", metavar="BETA")
    opt_kwargs: dict[str, Any] = option({}, "further arguments of the optimizer", metavar="KEY=VALUE")
    momentum: float = option(0.9, "momentum", metavar="M")
    weight_decay: float = option(2e-5, "weight decay, not applied to norms and biases", metavar="WD")
    clip_grad: float | None = option(None, "gradient clipping threshold", metavar="NORM")
    clip_mode: Literal["norm", "value", "agc"] = option("norm", "how to clip gradients")


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate over the run."""

    # Without 'plateau', the only schedule that is not a function of the step: a resumed run would differ.
    sched: Literal["cosine", "tanh", "step", "multistep", "poly"] = option("cosine", "learning rate schedule")
    sched_on_updates: bool = option(True, "change the learning rate at each update, not each epoch")
    lr: float | None = option(None, "learning rate; overrides --lr-base", metavar="LR")
    lr_base: float = option(0.1, "learning rate for --lr-base-size images per update", metavar="LR")
    lr_base_size: int = option(256, "images per update that --lr-base refers to", metavar="N")
    lr_base_scale: Literal["", "linear", "sqrt"] = option(
        "", "how --lr-base scales with the images per update; '' depends on the optimizer"
    )
    lr_noise: list[float] | None = option(None, "start and end of noise on the learning rate", metavar="SHARE")
    lr_noise_pct: float = option(0.67, "bound of the learning rate noise", metavar="SHARE")
    lr_noise_std: float = option(1.0, "standard deviation of the learning rate noise", metavar="STD")
    lr_cycle_mul: float = option(1.0, "factor on the length of each cycle", metavar="F")
    lr_cycle_decay: float = option(0.5, "factor on the learning rate of each cycle", metavar="F")
    lr_cycle_limit: int = option(1, "number of cycles", metavar="N")
    lr_k_decay: float = option(1.0, "exponent of the schedule's progress (k-decay)", metavar="K")
    warmup_lr: float = option(1e-5, "learning rate at the start of the warm-up", metavar="LR")
    min_lr: float = option(0.0, "lowest learning rate of the schedule", metavar="LR")
    epochs: int = option(100, "number of epochs", metavar="N")
    decay_milestones: list[int] = option([30, 60, 90], "epochs at which 'multistep' lowers the rate", metavar="N")
    decay_epochs: float = option(30, "epochs between two drops of 'step'", metavar="N")
    warmup_epochs: int = option(5, "epochs of warm-up", metavar="N")
    warmup_prefix: bool = option(False, "do not count the warm-up as part of the schedule")
    cooldown_epochs: int = option(0, "epochs at the lowest learning rate after the schedule", metavar="N")
    decay_rate: float = option(0.1, "factor of each drop of the learning rate", "--dr", metavar="F")


@dataclass(frozen=True)
class AugmentationOptions:
    """Augmentation and loss."""

    no_aug: bool = option(False, "turn off all augmentation")
    train_crop_mode: str | None = option(
        None, "crop mode: rrc, rkrc or rkrr; by default random resized crop (rrc)", metavar="MODE"
    )
    scale: list[float] = option([0.08, 1.0], "range of the area of the random crop", metavar="SHARE", nargs=2)
    ratio: list[float] = option(
        [3 / 4, 4 / 3], "range of the aspect ratio of the random crop", metavar="RATIO", nargs=2
    )
    hflip: float = option(0.5, "probability of a horizontal flip", metavar="P")
    vflip: float = option(0.0, "probability of a vertical flip", metavar="P")
    crop_padding: int = option(0, "black pixels around an image before its random crop, with --on-device", metavar="N")
    cutout: int = option(0, "side of the cutout square in pixels, with --on-device", metavar="N")
    color_jitter: float = option(0.4, "strength of the color jitter", metavar="F")
    color_jitter_prob: float | None = option(None, "probability of the color jitter", metavar="P")
    grayscale_prob: float | None = option(None, "probability of conversion to grayscale", metavar="P")
    gaussian_blur_prob: float | None = option(None, "probability of Gaussian blur", metavar="P")
    aa: str | None = option(None, "timm's name of an AutoAugment, RandAugment or AugMix policy", metavar="NAME")
    aug_repeats: float = option(0, "augmented copies of each image per epoch", metavar="N")
    aug_splits: int = option(0, "augmented views of each image in a batch, for --jsd-loss", metavar="N")
    jsd_loss: bool = option(False, "use cross-entropy and the Jensen-Shannon divergence between the views")
    bce_loss: bool = option(False, "use binary cross-entropy")
    bce_sum: bool = option(False, "sum the binary cross-entropy over the classes")
    bce_target_thresh: float | None = option(
        None, "threshold that makes soft targets of --bce-loss 0 or 1", metavar="T"
    )
    reprob: float = option(0.0, "probability of random erasing", metavar="P")
    remode: Literal["const", "rand", "pixel"] = option("pixel", "content of the erased regions")
    recount: int = option(1, "number of erased regions", metavar="N")
    resplit: bool = option(False, "do not erase regions in the first of --aug-splits")
    mixup: float = option(0.0, "alpha of mixup; 0 for none", metavar="ALPHA")
    cutmix: float = option(0.0, "alpha of cutmix; 0 for none", metavar="ALPHA")
    cutmix_minmax: list[float] | None = option(
        None, "smallest and largest share of the image that cutmix replaces", metavar="SHARE", nargs=2
    )
    mixup_prob: float = option(1.0, "probability of mixup or cutmix", metavar="P")
    mixup_switch_prob: float = option(0.5, "probability of cutmix instead of mixup if both are on", metavar="P")
    mixup_mode: Literal["batch", "pair", "elem"] = option(
        "batch", "what shares one mixing ratio: the batch, a pair or a single image"
    )
    mixup_off_epoch: int = option(0, "epoch from which mixup and cutmix are off; 0 for never", metavar="N")
    smoothing: float = option(0.1, "label smoothing", metavar="EPS")
    train_interpolation: str = option("random", "interpolation of training images", metavar="NAME")

    @property
    def mixes(self) -> bool:
        """Return whether mixup or cutmix is on, so that targets are distributions over the classes."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None


@dataclass(frozen=True)
class AverageOptions:
    """The moving average of the weights (EMA)."""

    model_ema: bool = option(False, "keep a moving average of the weights")
    model_ema_force_cpu: bool = option(False, "keep the average in CPU memory, where it is not validated")
    model_ema_decay: float = option(0.9998, "decay factor of the average", metavar="F")
    model_ema_warmup: bool = option(False, "start the average with a lower decay factor")


@dataclass(frozen=True)
class DeviceOptions:
    """Devices, precision and processes."""

    device: str | None = option(None, "cuda or cpu; by default cuda if available", metavar="NAME")
    amp: bool = option(False, "use mixed precision")
    amp_dtype: Literal["float16", "bfloat16"] = option("float16", "the lower precision of --amp")
    channels_last: bool = option(False, "use the NHWC memory layout")
    torchcompile: str | None = option(
        None, "compile the model, with inductor if no backend is given", metavar="BACKEND", nargs="?", const="inductor"
    )
    torchcompile_mode: str | None = option(None, "mode of torch.compile", metavar="MODE")
    sync_bn: bool = option(False, "synchronize batch statistics over all processes")
    dist_bn: Literal["reduce", "broadcast", ""] = option(
        "reduce", "how to synchronize running statistics after an epoch"
    )
    no_ddp_bb: bool = option(False, "do not broadcast buffers at each step")


@dataclass(frozen=True)
class RunOptions:
    """Folders, initial weights and reports of a run."""

    output: str = option("runs/pretrain", "folder of all runs", metavar="DIR")
    experiment: str = option("", "subfolder of this run", metavar="NAME")
    resume: str = option("", "checkpoint to resume from; 'auto' for the last one of this run", metavar="auto|FILE")
    seed: int = option(42, "random seed of weights, order and augmentation", metavar="N")
    log_interval: int = option(50, "updates between two reports", metavar="N")
    val_interval: int = option(1, "epochs between two validations", metavar="N")
    checkpoint_hist: int = option(10, "number of best checkpoints to keep", metavar="N")
    eval_metric: Literal["top1", "top5", "loss"] = option("top1", "metric that selects the best checkpoint")


@dataclass(frozen=True)
class Options:
    """All options of a run, by group. `flat` has them by name, as checkpoints and args.yaml do."""

    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    edges: EdgeOptions = field(default_factory=EdgeOptions)
    pruning: Pruning = field(default_factory=Pruning)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    average: AverageOptions = field(default_factory=AverageOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    run: RunOptions = field(default_factory=RunOptions)
    config: str | None = None

    def flat(self) -> dict[str, Any]:
        """Return every option by its name."""
        values = {"config": self.config}
        for name in GROUPS:
            group = getattr(self, name)
            values |= {each.name: getattr(group, each.name) for each in fields(group)}
        return values

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Options:
        """Return the options from a result of `flat`, or a part of it; the others have their defaults."""
        groups = {
            name: group(**{each.name: values[each.name] for each in fields(group) if each.name in values})
            for name, group in GROUPS.items()
        }
        return cls(config=values.get("config"), **groups)


# In the order of --help.
GROUPS = {
    "data": DataOptions,
    "model": ModelOptions,
    "edges": EdgeOptions,
    "pruning": Pruning,
    "optimizer": OptimizerOptions,
    "schedule": ScheduleOptions,
    "augmentation": AugmentationOptions,
    "average": AverageOptions,
    "device": DeviceOptions,
    "run": RunOptions,
}
