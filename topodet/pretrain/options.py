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
        help: its line in --help.
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
    dataset: str = option("", "empty: image folder; npz: arrays; else timm's name", metavar="TYPE/NAME")
    train_split: str = option("train", "split to train on", metavar="NAME")
    val_split: str = option("validation", "split to validate on; '' for none", metavar="NAME")
    train_num_samples: int | None = option(None, "images of the train split, for streamed datasets", metavar="N")
    val_num_samples: int | None = option(None, "images of the validation split, for streamed datasets", metavar="N")
    dataset_download: bool = option(False, "download torch/ and tfds/ datasets that are not there")
    class_map: str = option("", "file that maps class names to indices", metavar="FILE")
    input_img_mode: str | None = option(None, "PIL mode of the images; RGB for 3 channels, else L", metavar="MODE")
    input_key: str | None = option(None, "key of the image in a dataset's records", metavar="KEY")
    target_key: str | None = option(None, "key of the class in a dataset's records", metavar="KEY")
    dataset_trust_remote_code: bool = option(False, "let Hugging Face datasets run code of the dataset's repository")
    on_bad_image: Literal["skip", "stop"] = option("skip", "what an image that cannot be read does")
    on_device: bool = option(
        False, "keep a dataset of small images on the device and vary them there; no loader processes"
    )
    workers: int = option(4, "loader processes for each training process", "-j", metavar="N")
    worker_seeding: Literal["all", "part"] = option("all", "which generators the loader processes seed")
    pin_mem: bool = option(False, "pin the memory of batches on their way to a GPU")
    no_prefetcher: bool = option(False, "normalize images in the loader processes, not on the device")


@dataclass(frozen=True)
class ModelOptions:
    """The network and the format of its input."""

    model: str = option("toponet50", "architecture registered in timm", metavar="NAME")
    model_kwargs: dict[str, Any] = option({}, "its arguments", metavar="KEY=VALUE")
    pretrained: bool = option(False, "start with the architecture's published weights")
    initial_checkpoint: str = option("", "start a new run with the weights of this file", metavar="FILE")
    num_classes: int | None = option(None, "classes; taken from the data where it tells", metavar="N")
    gp: str | None = option(None, "type of the global pooling", metavar="POOL")
    img_size: int | None = option(None, "side of the input in pixels", metavar="N")
    in_chans: int | None = option(None, "channels of the input", metavar="N")
    input_size: list[int] | None = option(None, "all dimensions of the input", metavar=("C", "H", "W"), nargs=3)
    crop_pct: float | None = option(None, "share of the image the validation crop keeps", metavar="SHARE")
    mean: list[float] | None = option(None, "mean of each channel, of values in 0..1", metavar="MEAN")
    std: list[float] | None = option(None, "standard deviation of each channel", metavar="STD")
    interpolation: str = option("", "interpolation of validation images", metavar="NAME")
    drop: float | None = option(None, "dropout rate", metavar="RATE")
    drop_path: float | None = option(None, "stochastic depth rate", metavar="RATE")
    grad_checkpointing: bool = option(False, "save memory by computing activations twice")

    @property
    def channels(self) -> int:
        """Return the channels of the input, 3 by default."""
        return self.in_chans or (self.input_size[0] if self.input_size else 3)


@dataclass(frozen=True)
class EdgeOptions:
    """Whether edge weights are learned and penalized, and their initial values."""

    connect: Literal["learned", "fixed"] | None = option(
        None, "make the weights of a network's edges parameters; it computes the same at first"
    )
    connect_nodes: Literal["residuals", "blocks", "auto"] = option(
        "residuals", "what the nodes of --connect are: residuals of known blocks, whole blocks, or what is exact"
    )
    rewire: Literal["learned", "fixed"] | None = option(
        None, "make every convolution of a ResNet a node of complete graphs, to be trained"
    )
    sparsity: Literal["none", "uniform", "adaptive"] = option("none", "penalty on the edge weights")
    sparsity_weight: float = option(1e-4, "weight of that penalty in the loss", metavar="LAMBDA")
    alpha_weight_decay: float = option(0.0, "weight decay of the edge weights", metavar="WD")
    figure_interval: int = option(10, "epochs between adjacency pictures; 0 for none", metavar="N")
    edges_from: str = option("", "start with the graphs and edge weights of this file", metavar="FILE")
    shuffle_alpha: int | None = option(None, "start with each wiring's edge weights in random order", metavar="SEED")
    freeze_alpha: bool = option(False, "leave the edge weights at what they start with")


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer, and the images per step."""

    batch_size: int = option(128, "images of a step in each process", "-b", metavar="N")
    validation_batch_size: int | None = option(None, "images of a validation step", "-vb", metavar="N")
    grad_accum_steps: int = option(1, "steps whose gradients make one update", metavar="N")
    opt: str = option("sgd", "optimizer as timm names it; 'sgd' is Nesterov's", metavar="NAME")
    opt_eps: float | None = option(None, "epsilon of the optimizer", metavar="EPS")
    opt_betas: list[float] | None = option(None, "betas of the optimizer", metavar="BETA")
    opt_kwargs: dict[str, Any] = option({}, "further arguments", metavar="KEY=VALUE")
    momentum: float = option(0.9, "momentum", metavar="M")
    weight_decay: float = option(2e-5, "weight decay; norms and biases have none", metavar="WD")
    clip_grad: float | None = option(None, "bound of the gradient", metavar="NORM")
    clip_mode: Literal["norm", "value", "agc"] = option("norm", "what --clip-grad bounds")


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate over the run."""

    # 'plateau' is left out: it is the one schedule that is no function of the step, so a resumed run would differ.
    sched: Literal["cosine", "tanh", "step", "multistep", "poly"] = option("cosine", "schedule")
    sched_on_updates: bool = option(True, "set the rate at each update, not each epoch")
    lr: float | None = option(None, "learning rate; goes before --lr-base", metavar="LR")
    lr_base: float = option(0.1, "learning rate for --lr-base-size images an update", metavar="LR")
    lr_base_size: int = option(256, "images an update that --lr-base is meant for", metavar="N")
    lr_base_scale: Literal["", "linear", "sqrt"] = option("", "how it scales; '' asks the optimizer")
    lr_noise: list[float] | None = option(None, "when noise on the rate starts and ends", metavar="SHARE")
    lr_noise_pct: float = option(0.67, "bound of that noise", metavar="SHARE")
    lr_noise_std: float = option(1.0, "standard deviation of that noise", metavar="STD")
    lr_cycle_mul: float = option(1.0, "factor on the length of each cycle", metavar="F")
    lr_cycle_decay: float = option(0.5, "factor on the rate of each cycle", metavar="F")
    lr_cycle_limit: int = option(1, "number of cycles", metavar="N")
    lr_k_decay: float = option(1.0, "exponent of the schedule's progress", metavar="K")
    warmup_lr: float = option(1e-5, "rate at the start of the warm-up", metavar="LR")
    min_lr: float = option(0.0, "rate at the end", metavar="LR")
    epochs: int = option(100, "epochs", metavar="N")
    decay_milestones: list[int] = option([30, 60, 90], "epochs of 'multistep'", metavar="N")
    decay_epochs: float = option(30, "epochs between two drops of 'step'", metavar="N")
    warmup_epochs: int = option(5, "epochs of warm-up", metavar="N")
    warmup_prefix: bool = option(False, "do not count the warm-up in the schedule")
    cooldown_epochs: int = option(0, "epochs at the lowest rate after the schedule", metavar="N")
    decay_rate: float = option(0.1, "factor of each drop", "--dr", metavar="F")


@dataclass(frozen=True)
class AugmentationOptions:
    """Augmentation and loss."""

    no_aug: bool = option(False, "no augmentation at all")
    train_crop_mode: str | None = option(None, "rrc, rkrc or rkrr; random resized crop if not given", metavar="MODE")
    scale: list[float] = option([0.08, 1.0], "area of the random crop", metavar="SHARE", nargs=2)
    ratio: list[float] = option([3 / 4, 4 / 3], "sides' ratio of that crop", metavar="RATIO", nargs=2)
    hflip: float = option(0.5, "probability of a horizontal flip", metavar="P")
    vflip: float = option(0.0, "probability of a vertical flip", metavar="P")
    crop_padding: int = option(0, "--on-device: crop out of N pixels of black around", metavar="N")
    cutout: int = option(0, "--on-device: side of the square that is cut out", metavar="N")
    color_jitter: float = option(0.4, "strength of the color jitter", metavar="F")
    color_jitter_prob: float | None = option(None, "probability of the color jitter", metavar="P")
    grayscale_prob: float | None = option(None, "probability of a gray image", metavar="P")
    gaussian_blur_prob: float | None = option(None, "probability of a blurred image", metavar="P")
    aa: str | None = option(None, "AutoAugment, RandAugment or AugMix policy, as timm names it", metavar="NAME")
    aug_repeats: float = option(0, "augmented copies of an image in an epoch", metavar="N")
    aug_splits: int = option(0, "augmented views of an image in a batch, for --jsd-loss", metavar="N")
    jsd_loss: bool = option(False, "Jensen-Shannon divergence between the views and cross-entropy")
    bce_loss: bool = option(False, "binary cross-entropy")
    bce_sum: bool = option(False, "sum the binary cross-entropy over the classes")
    bce_target_thresh: float | None = option(None, "make soft targets of --bce-loss hard at this value", metavar="T")
    reprob: float = option(0.0, "probability of random erasing", metavar="P")
    remode: Literal["const", "rand", "pixel"] = option("pixel", "what is put in the erased place")
    recount: int = option(1, "erased places", metavar="N")
    resplit: bool = option(False, "do not erase in the first of --aug-splits")
    mixup: float = option(0.0, "mixup", metavar="ALPHA")
    cutmix: float = option(0.0, "cutmix", metavar="ALPHA")
    cutmix_minmax: list[float] | None = option(
        None, "smallest and largest share cutmix replaces", metavar="SHARE", nargs=2
    )
    mixup_prob: float = option(1.0, "probability of mixup or cutmix", metavar="P")
    mixup_switch_prob: float = option(0.5, "probability of cutmix where both are on", metavar="P")
    mixup_mode: Literal["batch", "pair", "elem"] = option("batch", "what shares a mixing ratio")
    mixup_off_epoch: int = option(0, "epoch from which mixup is off; 0 for never", metavar="N")
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
    model_ema_force_cpu: bool = option(False, "keep it in CPU memory; it is not validated then")
    model_ema_decay: float = option(0.9998, "share that is kept", metavar="F")
    model_ema_warmup: bool = option(False, "keep less at the start")


@dataclass(frozen=True)
class DeviceOptions:
    """Devices, precision and processes."""

    device: str | None = option(None, "cuda or cpu; cuda where there is one", metavar="NAME")
    amp: bool = option(False, "mixed precision")
    amp_dtype: Literal["float16", "bfloat16"] = option("float16", "the lower precision of --amp")
    channels_last: bool = option(False, "memory layout NHWC")
    torchcompile: str | None = option(None, "compile the model", metavar="BACKEND", nargs="?", const="inductor")
    torchcompile_mode: str | None = option(None, "mode of the compiler", metavar="MODE")
    sync_bn: bool = option(False, "batch statistics over all processes")
    dist_bn: Literal["reduce", "broadcast", ""] = option("reduce", "running statistics after an epoch")
    no_ddp_bb: bool = option(False, "do not broadcast buffers at each step")


@dataclass(frozen=True)
class RunOptions:
    """Folders, initial weights and reports of a run."""

    output: str = option("runs/pretrain", "folder of all runs", metavar="DIR")
    experiment: str = option("", "sub-folder of this run", metavar="NAME")
    resume: str = option("", "go on where this checkpoint ends; 'auto': the run's last", metavar="auto|FILE")
    seed: int = option(42, "seed of weights, order and augmentation", metavar="N")
    log_interval: int = option(50, "updates between two reports", metavar="N")
    val_interval: int = option(1, "epochs between two validations", metavar="N")
    checkpoint_hist: int = option(10, "best checkpoints that are kept", metavar="N")
    eval_metric: Literal["top1", "top5", "loss"] = option("top1", "what makes a checkpoint the best")


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
