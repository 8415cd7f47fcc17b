"""The options of the pretraining entry point: those of timm's training script, by the same names, and topodet's own.

A YAML file (`-c FILE`) gives values for any of them by name; the command line goes before the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from timm.utils import ParseKwargs

from topodet.errors import ConfigError, did_you_mean
from topodet.options import add_pruning

_ON_DEVICE = ("crop_padding", "cutout")
_NOT_ON_DEVICE = (
    *("train_crop_mode", "scale", "ratio", "train_interpolation", "interpolation", "input_img_mode"),
    *("color_jitter", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "aa", "aug_repeats", "aug_splits"),
    *("reprob", "no_prefetcher"),
)


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are `ConfigError`s, so that every wrong setting is reported one way."""

    def error(self, message: str) -> None:
        raise ConfigError(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all options, each with its default."""
    parser = _Parser(
        prog="topodet pretrain",
        description="Train an image classifier, with or without a penalty on the edges of its wiring.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file with values for these options")
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_edges(parser.add_argument_group("edges of the wiring"))
    _add_optimizer(parser.add_argument_group("optimiser"))
    _add_schedule(parser.add_argument_group("learning rate schedule"))
    _add_augmentation(parser.add_argument_group("augmentation and loss"))
    _add_average(parser.add_argument_group("moving average of the weights"))
    _add_device(parser.add_argument_group("device and processes"))
    _add_run(parser.add_argument_group("run"))
    return parser


def _flag(group: argparse._ArgumentGroup, name: str, default: bool = False, **kwargs: object) -> None:
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=default, **kwargs)


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--data-dir", metavar="DIR", help="root folder of the dataset")
    add("--dataset", metavar="TYPE/NAME", default="", help="empty: image folder; npz: arrays; else timm's name")
    add("--train-split", metavar="NAME", default="train", help="split to train on")
    add("--val-split", metavar="NAME", default="validation", help="split to validate on; '' for none")
    add("--train-num-samples", type=int, metavar="N", help="images of the train split, for streamed datasets")
    add("--val-num-samples", type=int, metavar="N", help="images of the validation split, for streamed datasets")
    _flag(group, "--dataset-download", help="download torch/ and tfds/ datasets that are not there")
    add("--class-map", metavar="FILE", default="", help="file that maps class names to indices")
    add("--input-img-mode", metavar="MODE", help="PIL mode of the images; RGB for 3 channels, else L")
    add("--input-key", metavar="KEY", help="key of the image in a dataset's records")
    add("--target-key", metavar="KEY", help="key of the class in a dataset's records")
    _flag(group, "--dataset-trust-remote-code", help="let Hugging Face datasets run code of the dataset's repository")
    add("--on-bad-image", choices=("skip", "stop"), default="skip", help="what an image that cannot be read does")
    _flag(
        group,
        "--on-device",
        help="keep a dataset of small images on the device and vary them there; no loader processes",
    )
    add("-j", "--workers", type=int, default=4, metavar="N", help="loader processes for each training process")
    add("--worker-seeding", choices=("all", "part"), default="all", help="which generators the loader processes seed")
    _flag(group, "--pin-mem", help="pin the memory of batches on their way to a GPU")
    add("--no-prefetcher", action="store_true", help="normalise images in the loader processes, not on the device")


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model", default="toponet50", metavar="NAME", help="architecture registered in timm")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="its arguments")
    _flag(group, "--pretrained", help="start with the architecture's published weights")
    add("--initial-checkpoint", default="", metavar="FILE", help="start a new run with the weights of this file")
    add("--num-classes", type=int, metavar="N", help="classes; taken from the data where it tells")
    add("--gp", metavar="POOL", help="type of the global pooling")
    add("--img-size", type=int, metavar="N", help="side of the input in pixels")
    add("--in-chans", type=int, metavar="N", help="channels of the input")
    add("--input-size", type=int, nargs=3, metavar=("C", "H", "W"), help="all dimensions of the input")
    add("--crop-pct", type=float, metavar="SHARE", help="share of the image the validation crop keeps")
    add("--mean", type=float, nargs="+", metavar="MEAN", help="mean of each channel, of values in 0..1")
    add("--std", type=float, nargs="+", metavar="STD", help="standard deviation of each channel")
    add("--interpolation", default="", metavar="NAME", help="interpolation of validation images")
    add("--drop", type=float, metavar="RATE", help="dropout rate")
    add("--drop-path", type=float, metavar="RATE", help="stochastic depth rate")
    _flag(group, "--grad-checkpointing", help="save memory by computing activations twice")


def _add_edges(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    wirings = ("learned", "fixed")
    add("--connect", choices=wirings, help="make the weights of a residual network's edges parameters, all 1 at first")
    add("--rewire", choices=wirings, help="make every convolution of a ResNet a node of complete graphs, to be trained")
    add("--sparsity", choices=("none", "uniform", "adaptive"), default="none", help="penalty on the edge weights")
    add("--sparsity-weight", type=float, default=1e-4, metavar="LAMBDA", help="weight of that penalty in the loss")
    add("--alpha-weight-decay", type=float, default=0.0, metavar="WD", help="weight decay of the edge weights")
    add("--figure-interval", type=int, default=10, metavar="N", help="epochs between adjacency pictures; 0 for none")
    add("--edges-from", default="", metavar="FILE", help="start with the graphs and edge weights of this file")
    add_pruning(group)
    _flag(group, "--freeze-alpha", help="leave the edge weights at what they start with")


def _add_optimizer(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-b", "--batch-size", type=int, default=128, metavar="N", help="images of a step in each process")
    add("-vb", "--validation-batch-size", type=int, metavar="N", help="images of a validation step")
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="steps whose gradients make one update")
    add("--opt", default="sgd", metavar="NAME", help="optimiser as timm names it; 'sgd' is Nesterov's")
    add("--opt-eps", type=float, metavar="EPS", help="epsilon of the optimiser")
    add("--opt-betas", type=float, nargs="+", metavar="BETA", help="betas of the optimiser")
    add("--opt-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="further arguments")
    add("--momentum", type=float, default=0.9, metavar="M", help="momentum")
    add("--weight-decay", type=float, default=2e-5, metavar="WD", help="weight decay; norms and biases have none")
    add("--clip-grad", type=float, metavar="NORM", help="bound of the gradient")
    add("--clip-mode", choices=("norm", "value", "agc"), default="norm", help="what --clip-grad bounds")


def _add_schedule(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    # 'plateau' is left out: it is the one schedule that is no function of the step, so a resumed run would differ.
    add("--sched", choices=("cosine", "tanh", "step", "multistep", "poly"), default="cosine", help="schedule")
    _flag(group, "--sched-on-updates", default=True, help="set the rate at each update, not each epoch")
    add("--lr", type=float, metavar="LR", help="learning rate; goes before --lr-base")
    add("--lr-base", type=float, default=0.1, metavar="LR", help="learning rate for --lr-base-size images an update")
    add("--lr-base-size", type=int, default=256, metavar="N", help="images an update that --lr-base is meant for")
    add("--lr-base-scale", choices=("", "linear", "sqrt"), default="", help="how it scales; '' asks the optimiser")
    add("--lr-noise", type=float, nargs="+", metavar="SHARE", help="when noise on the rate starts and ends")
    add("--lr-noise-pct", type=float, default=0.67, metavar="SHARE", help="bound of that noise")
    add("--lr-noise-std", type=float, default=1.0, metavar="STD", help="standard deviation of that noise")
    add("--lr-cycle-mul", type=float, default=1.0, metavar="F", help="factor on the length of each cycle")
    add("--lr-cycle-decay", type=float, default=0.5, metavar="F", help="factor on the rate of each cycle")
    add("--lr-cycle-limit", type=int, default=1, metavar="N", help="number of cycles")
    add("--lr-k-decay", type=float, default=1.0, metavar="K", help="exponent of the schedule's progress")
    add("--warmup-lr", type=float, default=1e-5, metavar="LR", help="rate at the start of the warm-up")
    add("--min-lr", type=float, default=0.0, metavar="LR", help="rate at the end")
    add("--epochs", type=int, default=100, metavar="N", help="epochs")
    add("--decay-milestones", type=int, nargs="+", default=[30, 60, 90], metavar="N", help="epochs of 'multistep'")
    add("--decay-epochs", type=float, default=30, metavar="N", help="epochs between two drops of 'step'")
    add("--warmup-epochs", type=int, default=5, metavar="N", help="epochs of warm-up")
    _flag(group, "--warmup-prefix", help="do not count the warm-up in the schedule")
    add("--cooldown-epochs", type=int, default=0, metavar="N", help="epochs at the lowest rate after the schedule")
    add("--decay-rate", "--dr", type=float, default=0.1, metavar="F", help="factor of each drop")


def _add_augmentation(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--no-aug", action="store_true", help="no augmentation at all")
    add("--train-crop-mode", metavar="MODE", help="rrc, rkrc or rkrr; random resized crop if not given")
    add("--scale", type=float, nargs=2, default=[0.08, 1.0], metavar="SHARE", help="area of the random crop")
    add("--ratio", type=float, nargs=2, default=[3 / 4, 4 / 3], metavar="RATIO", help="sides' ratio of that crop")
    add("--hflip", type=float, default=0.5, metavar="P", help="probability of a horizontal flip")
    add("--vflip", type=float, default=0.0, metavar="P", help="probability of a vertical flip")
    add("--crop-padding", type=int, default=0, metavar="N", help="--on-device: crop out of N pixels of black around")
    add("--cutout", type=int, default=0, metavar="N", help="--on-device: side of the square that is cut out")
    add("--color-jitter", type=float, default=0.4, metavar="F", help="strength of the colour jitter")
    add("--color-jitter-prob", type=float, metavar="P", help="probability of the colour jitter")
    add("--grayscale-prob", type=float, metavar="P", help="probability of a grey image")
    add("--gaussian-blur-prob", type=float, metavar="P", help="probability of a blurred image")
    add("--aa", metavar="NAME", help="AutoAugment, RandAugment or AugMix policy, as timm names it")
    add("--aug-repeats", type=float, default=0, metavar="N", help="augmented copies of an image in an epoch")
    add("--aug-splits", type=int, default=0, metavar="N", help="augmented views of an image in a batch, for --jsd-loss")
    _flag(group, "--jsd-loss", help="Jensen-Shannon divergence between the views and cross-entropy")
    _flag(group, "--bce-loss", help="binary cross-entropy")
    _flag(group, "--bce-sum", help="sum the binary cross-entropy over the classes")
    add("--bce-target-thresh", type=float, metavar="T", help="make soft targets of --bce-loss hard at this value")
    add("--reprob", type=float, default=0.0, metavar="P", help="probability of random erasing")
    add("--remode", choices=("const", "rand", "pixel"), default="pixel", help="what is put in the erased place")
    add("--recount", type=int, default=1, metavar="N", help="erased places")
    _flag(group, "--resplit", help="do not erase in the first of --aug-splits")
    add("--mixup", type=float, default=0.0, metavar="ALPHA", help="mixup")
    add("--cutmix", type=float, default=0.0, metavar="ALPHA", help="cutmix")
    add("--cutmix-minmax", type=float, nargs=2, metavar="SHARE", help="smallest and largest share cutmix replaces")
    add("--mixup-prob", type=float, default=1.0, metavar="P", help="probability of mixup or cutmix")
    add("--mixup-switch-prob", type=float, default=0.5, metavar="P", help="probability of cutmix where both are on")
    add("--mixup-mode", choices=("batch", "pair", "elem"), default="batch", help="what shares a mixing ratio")
    add("--mixup-off-epoch", type=int, default=0, metavar="N", help="epoch from which mixup is off; 0 for never")
    add("--smoothing", type=float, default=0.1, metavar="EPS", help="label smoothing")
    add("--train-interpolation", default="random", metavar="NAME", help="interpolation of training images")


def _add_average(group: argparse._ArgumentGroup) -> None:
    _flag(group, "--model-ema", help="keep a moving average of the weights")
    _flag(group, "--model-ema-force-cpu", help="keep it in CPU memory; it is not validated then")
    group.add_argument("--model-ema-decay", type=float, default=0.9998, metavar="F", help="share that is kept")
    _flag(group, "--model-ema-warmup", help="keep less at the start")


def _add_device(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--device", metavar="NAME", help="cuda or cpu; cuda where there is one")
    _flag(group, "--amp", help="mixed precision")
    add("--amp-dtype", choices=("float16", "bfloat16"), default="float16", help="the lower precision of --amp")
    _flag(group, "--channels-last", help="memory layout NHWC")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile the model")
    add("--torchcompile-mode", metavar="MODE", help="mode of the compiler")
    _flag(group, "--sync-bn", help="batch statistics over all processes")
    add("--dist-bn", choices=("reduce", "broadcast", ""), default="reduce", help="running statistics after an epoch")
    add("--no-ddp-bb", action="store_true", help="do not broadcast buffers at each step")


def _add_run(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--output", default="runs/pretrain", metavar="DIR", help="folder of all runs")
    add("--experiment", default="", metavar="NAME", help="sub-folder of this run")
    add("--resume", default="", metavar="auto|FILE", help="go on where this checkpoint ends; 'auto': the run's last")
    add("--seed", type=int, default=42, metavar="N", help="seed of weights, order and augmentation")
    add("--log-interval", type=int, default=50, metavar="N", help="updates between two reports")
    add("--val-interval", type=int, default=1, metavar="N", help="epochs between two validations")
    add("--checkpoint-hist", type=int, default=10, metavar="N", help="best checkpoints that are kept")
    add("--eval-metric", choices=("top1", "top5", "loss"), default="top1", help="what makes a checkpoint the best")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options from `argv` (None: the command line) and the YAML file it names.

    Raises:
        ConfigError: an option or key that does not exist, a value of the wrong type, or two that contradict.
    """
    parser = build_parser()
    chooser = _Parser(add_help=False, allow_abbrev=False)
    chooser.add_argument("-c", "--config")
    chosen, argv = chooser.parse_known_args(argv)
    tokens = []
    if chosen.config:
        tokens = _config_tokens(Path(chosen.config), parser)
        _parse_known(parser, tokens, where=f"{chosen.config}: ")
    args = _parse_known(parser, [*tokens, *argv])
    args.config = chosen.config
    check(args)
    return args


def parse_over(saved: Mapping[str, object], argv: Sequence[str]) -> argparse.Namespace:
    """Read the options from `argv` over those that a checkpoint was trained with (its "args").

    Raises:
        ConfigError: see `parse`.
    """
    parser = build_parser()
    known = vars(parser.parse_args([]))
    parser.set_defaults(**{name: value for name, value in saved.items() if name in known and name != "config"})
    args = _parse_known(parser, argv)
    check(args)
    return args


def _parse_known(parser: argparse.ArgumentParser, tokens: Sequence[str], where: str = "") -> argparse.Namespace:
    try:
        args, unknown = parser.parse_known_args(tokens)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None
    if unknown:
        name = unknown[0].split("=")[0]
        known = ["--" + key.replace("_", "-") for key in vars(args)]
        raise ConfigError(f"{where}unknown option {name!r}.{_nearest(name, known)}")
    return args


def _nearest(name: str, known: Sequence[str]) -> str:
    return f"{did_you_mean(name, known)} --help lists all."


def _config_tokens(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of a YAML file as command line tokens, so that the parser checks types and choices."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML file: {error}") from None
    if values is None:
        return []
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold one 'option: value' a line, but holds a {type(values).__name__}")
    defaults = vars(parser.parse_args([]))
    defaults.pop("config")
    tokens = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in defaults:
            raise ConfigError(f"{path}: unknown key {key!r}.{_nearest(name, list(defaults))}")
        if isinstance(defaults[name], bool) and not isinstance(value, bool):
            raise ConfigError(f"{path}: {key} must be true or false, not {value!r}")
        tokens += _tokens(_option(name), value, defaults[name])
    return tokens


def _tokens(option: str, value: object, default: object) -> list[str]:
    if value is None:
        return []
    if value is True:
        return [option]
    if value is False:
        # Flags named --no-... have no opposite: they are off unless given.
        return ["--no-" + option[2:]] if isinstance(default, bool) and not option.startswith("--no-") else []
    if isinstance(value, dict):
        return [option, *(f"{key}={item!r}" for key, item in value.items())]
    if isinstance(value, list):
        return [option, *(str(item) for item in value)]
    return [f"{option}={value}"]


def command_line(values: Mapping[str, object]) -> list[str]:
    """Return the words that give these values on the command line, without those that are the defaults."""
    defaults = vars(build_parser().parse_args([]))
    words = []
    for name, value in values.items():
        if name in defaults and value != defaults[name]:
            words += _tokens(_option(name), value, defaults[name])
    return words


def check(args: argparse.Namespace) -> None:
    """Refuse values out of range and options that contradict each other.

    Raises:
        ConfigError: names the option, its value and the remedy.
    """
    for name in ("batch_size", "grad_accum_steps", "epochs", "log_interval", "val_interval", "checkpoint_hist"):
        _at_least(args, name, 1)
    for name in ("workers", "figure_interval", "warmup_epochs", "cooldown_epochs", "seed"):
        _at_least(args, name, 0)
    for name in ("lr", "lr_base", "validation_batch_size", "img_size", "in_chans", "clip_grad", "model_ema_decay"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{_option(name)} must be above 0, not {value}")
    for name in ("crop_padding", "cutout", "sparsity_weight", "weight_decay", "alpha_weight_decay", "mixup", "cutmix"):
        _at_least(args, name, 0)
    if not 0 <= args.smoothing < 1:
        raise ConfigError(f"--smoothing must be at least 0 and below 1, not {args.smoothing}")
    if args.num_classes is not None and args.num_classes < 2:
        raise ConfigError(f"--num-classes must be at least 2, not {args.num_classes}")
    if args.aug_splits == 1 or args.aug_splits < 0:
        raise ConfigError(f"--aug-splits must be 0 or at least 2, not {args.aug_splits}")
    if args.jsd_loss and not args.aug_splits:
        raise ConfigError("--jsd-loss compares views of an image: give --aug-splits 2 or more")
    if args.aug_splits and mixes(args):
        raise ConfigError("--aug-splits cannot be combined with --mixup or --cutmix: leave one out")
    if mixes(args) and args.batch_size % 2:
        raise ConfigError(f"--mixup and --cutmix pair images: --batch-size must be even, not {args.batch_size}")
    if args.in_chans and args.input_size and args.in_chans != args.input_size[0]:
        raise ConfigError(f"--in-chans {args.in_chans} contradicts --input-size {args.input_size}: leave one out")
    if args.threshold is not None and args.keep is not None:
        raise ConfigError("--threshold and --keep are two ways to choose the edges: leave one out")
    if args.per != "network" and args.threshold is None and args.keep is None:
        raise ConfigError(f"--per {args.per} prunes nothing alone: give --keep or --threshold too")
    if not args.val_split and args.eval_metric == "top5":
        raise ConfigError("--eval-metric top5 needs a validation split; training itself counts top1 and loss only")
    if args.jsd_loss and args.bce_loss:
        raise ConfigError("--jsd-loss and --bce-loss are two losses: leave one out")
    if args.connect and args.rewire:
        raise ConfigError("--connect keeps what the network computes, --rewire makes another one: leave one out")
    _check_on_device(args)


def _check_on_device(args: argparse.Namespace) -> None:
    """Refuse options of the loader that does the work, or does not."""
    defaults = vars(build_parser().parse_args([]))
    names = _NOT_ON_DEVICE if args.on_device else _ON_DEVICE
    given = [_option(name) for name in names if getattr(args, name) != defaults[name]]
    if given and args.on_device:
        known = ", ".join(map(_option, _ON_DEVICE))
        raise ConfigError(
            f"--on-device does not do {', '.join(given)}: leave it out. What it does: --hflip, --vflip, {known}, mixup "
            "and cutmix"
        )
    if given:
        raise ConfigError(f"{', '.join(given)} is done on the device only: give --on-device too")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _at_least(args: argparse.Namespace, name: str, least: int) -> None:
    if getattr(args, name) < least:
        raise ConfigError(f"{_option(name)} must be at least {least}, not {getattr(args, name)}")


def mixes(args: argparse.Namespace) -> bool:
    """Tell whether mixup or cutmix is on, so that targets are distributions over the classes."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
