"""The command line of a pretraining run, made from the fields of `pretrain.options`.

A YAML file (`-c FILE`) sets any of them by name; the command line overrides the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from topodet.errors import ConfigError, WeightsError, did_you_mean
from topodet.options import Pruning, add_pruning
from topodet.parse import read_yaml
from topodet.pretrain.options import GROUPS, Options

_ON_DEVICE = ("crop_padding", "cutout")
_NOT_ON_DEVICE = (
    *("train_crop_mode", "scale", "ratio", "train_interpolation", "interpolation", "input_img_mode"),
    *("color_jitter", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "aa", "aug_repeats", "aug_splits"),
    *("reprob", "no_prefetcher"),
)


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises `ConfigError`, so that all invalid settings are reported the same way."""

    def error(self, message: str) -> None:
        raise ConfigError(message)


class _Keywords(argparse.Action):
    """timm's ParseKwargs. Help and errors of other options do not wait for the import of timm."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        for word in values:
            if word and not ("=" in word and word.partition("=")[0].isidentifier()):
                raise argparse.ArgumentError(self, f"expected KEY=VALUE, got {word!r}")
        from timm.utils import ParseKwargs

        try:
            ParseKwargs.__call__(self, parser, namespace, values, option_string)
        except (TypeError, RecursionError, MemoryError) as error:  # of a literal, such as {[]: 1}
            raise argparse.ArgumentError(
                self, f"cannot read {' '.join(values)[:80]}: {str(error) or 'it is nested too deeply'}"
            ) from error


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each option that has one; an empty value is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", {}) else super()._get_help_string(action)


_TITLES = {
    "edges": "edges of the wiring",
    "schedule": "learning rate schedule",
    "augmentation": "augmentation and loss",
    "average": "moving average of the weights",
    "device": "device and processes",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all options, each with its default."""
    parser = _Parser(
        prog="topodet pretrain",
        description="Train an image classifier, with or without a penalty on the edges of its wiring.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file with values for these options")
    for name, options in GROUPS.items():
        group = parser.add_argument_group(_TITLES.get(name, name))
        if options is Pruning:
            add_pruning(group)
            continue
        types = get_type_hints(options)
        for each in fields(options):
            _add(group, each, types[each.name])
    return parser


def _add(group: argparse._ArgumentGroup, each: Field, kind: Any) -> None:
    """Add the option of a field, made from its type and its metadata."""
    default = each.default if each.default_factory is MISSING else each.default_factory()
    kind = next((part for part in get_args(kind) if part is not NoneType), kind) if _optional(kind) else kind
    arguments = {"default": default, "dest": each.name, **each.metadata}
    names = (*arguments.pop("names"), _option(each.name))
    if kind is bool:
        # Options named --no-... have no opposite: they are off unless given.
        arguments["action"] = "store_true" if each.name.startswith("no_") else argparse.BooleanOptionalAction
    elif get_origin(kind) is Literal:
        arguments["choices"] = get_args(kind)
    elif get_origin(kind) is dict:
        arguments |= {"nargs": "*", "action": _Keywords}
    elif get_origin(kind) is list:
        arguments = {"nargs": "+", **arguments, "type": get_args(kind)[0]}
    elif kind is not str:
        arguments["type"] = kind
    group.add_argument(*names, **arguments)


def _optional(kind: Any) -> bool:
    return NoneType in get_args(kind)


def parse(argv: Sequence[str] | None = None) -> Options:
    """Read the options from `argv` (None: the command line) and its YAML file.

    Raises:
        ConfigError: an unknown option or key, a value of the wrong type, or options that contradict each other.
    """
    parser = build_parser()
    chooser = _Parser(add_help=False, allow_abbrev=False)
    chooser.add_argument("-c", "--config")
    chosen, argv = chooser.parse_known_args(argv)
    tokens = []
    if chosen.config:
        tokens = _config_tokens(Path(chosen.config))
        _parse_known(parser, tokens, where=f"{chosen.config}: ")
    args = _parse_known(parser, [*tokens, *argv])
    args.config = chosen.config
    return _checked(args)


# Options that are taken from a checkpoint: the network and its input. Data, files and devices must come from the user.
_OF_A_CHECKPOINT = (
    *(
        "model",
        "model_kwargs",
        "connect",
        "connect_nodes",
        "rewire",
        "num_classes",
        "gp",
        "img_size",
        "in_chans",
        "input_size",
    ),
    *("crop_pct", "mean", "std", "interpolation", "drop", "drop_path", "batch_size", "validation_batch_size"),
    *("smoothing", "seed"),
)


def parse_over(saved: Mapping[str, object], argv: Sequence[str], place: str = "the checkpoint") -> Options:
    """Read the options from `argv`, as overrides of a checkpoint's network options (its "args").

    Args:
        saved: options of the training run.
        argv: words of the command line.
        place: path of the checkpoint, for the error.

    Raises:
        ConfigError: see `parse`.
        WeightsError: a value of the checkpoint has another type than its option.
    """
    parser = build_parser()
    known = {name: saved[name] for name in _OF_A_CHECKPOINT if saved.get(name) is not None}
    for action in parser._actions:
        value = known.get(action.dest)
        kind = dict if action.dest == "model_kwargs" else action.type or str
        listed = action.nargs is not None and kind is not dict
        parts = value if listed and isinstance(value, list | tuple) else [value]
        fits = all(isinstance(part, (int, float) if kind is float else kind) for part in parts)
        if listed:
            fits &= isinstance(value, list | tuple) and len(value) in (
                (action.nargs,) if action.nargs != "+" else range(1, 99)
            )
        if action.dest in known and not (fits and (action.choices is None or value in action.choices)):
            raise WeightsError(f"{place} is damaged: its {_option(action.dest)} {str(value)[:80]!r} is not valid")
    parser.set_defaults(**known)
    return _checked(_parse_known(parser, argv))


def _checked(args: argparse.Namespace) -> Options:
    options = Options.from_flat(vars(args))
    check(options)
    return options


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
    return f"{did_you_mean(name, known)} --help lists all options."


def _config_tokens(path: Path) -> list[str]:
    """Return the options of a YAML file as command line tokens, so that the parser checks types and choices."""
    values = read_yaml(path, ConfigError)
    if values is None:
        return []
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must contain one 'option: value' per line, but contains a {type(values).__name__}")
    defaults = Options().flat()
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
        return [option, *(f"{key}={_literal(item)}" for key, item in value.items())]
    if isinstance(value, list):
        return [option, *(str(item) for item in value)]
    return [f"{option}={value}"]


def _literal(value: object) -> str:
    """Return a value as ParseKwargs parses it, double-quoted if possible, since a shell command is single-quoted."""
    text = repr(value)
    return text if '"' in text else text.replace("'", '"')


def command_line(values: Mapping[str, object]) -> list[str]:
    """Return the command-line words for these values, without defaults."""
    defaults = Options().flat()
    return option_words({name: value for name, value in values.items() if value != defaults.get(name, value)})


def option_words(values: Mapping[str, object]) -> list[str]:
    """Return the command-line words for these values, as overrides of a YAML file.

    Raises:
        ConfigError: an unknown option.
    """
    defaults = Options().flat()
    words = []
    for name, value in values.items():
        if name not in defaults:
            raise ConfigError(
                f"unknown option {_option(name)!r}.{_nearest(_option(name), list(map(_option, defaults)))}"
            )
        words += _tokens(_option(name), value, defaults[name])
    return words


def check(options: Options) -> None:
    """Refuse values out of range and options that contradict each other.

    Raises:
        ConfigError: names the option, its value and the fix.
    """
    values = options.flat()
    for name in ("batch_size", "grad_accum_steps", "epochs", "log_interval", "val_interval", "checkpoint_hist"):
        _at_least(values, name, 1)
    for name in ("workers", "figure_interval", "warmup_epochs", "cooldown_epochs", "seed"):
        _at_least(values, name, 0)
    for name in ("lr", "lr_base", "validation_batch_size", "img_size", "in_chans", "clip_grad", "model_ema_decay"):
        value = values[name]
        if value is not None and value <= 0:
            raise ConfigError(f"{_option(name)} must be above 0, not {value}")
    for name in ("crop_padding", "cutout", "sparsity_weight", "weight_decay", "alpha_weight_decay", "mixup", "cutmix"):
        _at_least(values, name, 0)
    if not 0 <= options.augmentation.smoothing < 1:
        raise ConfigError(f"--smoothing must be at least 0 and below 1, not {options.augmentation.smoothing}")
    if options.model.num_classes is not None and options.model.num_classes < 2:
        raise ConfigError(f"--num-classes must be at least 2, not {options.model.num_classes}")
    if options.augmentation.aug_splits == 1 or options.augmentation.aug_splits < 0:
        raise ConfigError(f"--aug-splits must be 0 or at least 2, not {options.augmentation.aug_splits}")
    if options.augmentation.jsd_loss and not options.augmentation.aug_splits:
        raise ConfigError("--jsd-loss compares views of an image: give --aug-splits 2 or more")
    if options.augmentation.aug_splits and options.augmentation.mixes:
        raise ConfigError("--aug-splits cannot be combined with --mixup or --cutmix: leave one out")
    if options.augmentation.mixes and options.optimizer.batch_size % 2:
        raise ConfigError(
            f"--mixup and --cutmix pair images: --batch-size must be even, not {options.optimizer.batch_size}"
        )
    if options.model.in_chans and options.model.input_size and options.model.in_chans != options.model.input_size[0]:
        raise ConfigError(
            f"--in-chans {options.model.in_chans} contradicts --input-size {options.model.input_size}: leave one out"
        )
    if options.pruning.threshold is not None and options.pruning.keep is not None:
        raise ConfigError("--threshold cannot be combined with --keep: leave one out")
    if options.pruning.threshold is None and options.pruning.keep is None:
        if options.pruning.per != "network":
            raise ConfigError(f"--per {options.pruning.per} has no effect on its own: give --keep or --threshold too")
        if options.pruning.random_edges is not None:
            raise ConfigError("--random-edges has no effect on its own: give --keep or --threshold too")
    started = options.edges.edges_from or options.model.initial_checkpoint
    if options.edges.shuffle_alpha is not None and not started:
        raise ConfigError("--shuffle-alpha needs trained edge weights: give --edges-from FILE")
    if not options.data.val_split and options.run.eval_metric == "top5":
        raise ConfigError("--eval-metric top5 needs a validation split; training itself only measures top1 and loss")
    if options.augmentation.jsd_loss and options.augmentation.bce_loss:
        raise ConfigError("--jsd-loss cannot be combined with --bce-loss: leave one out")
    if options.edges.connect and options.edges.rewire:
        raise ConfigError("--connect keeps the output of the network, --rewire changes it: leave one out")
    if options.edges.connect_nodes != "residuals" and not options.edges.connect:
        raise ConfigError(f"--connect-nodes {options.edges.connect_nodes} has no effect on its own: give --connect too")
    _check_on_device(options)


def _check_on_device(options: Options) -> None:
    """Refuse options that the chosen loader does not support."""
    values, defaults = options.flat(), Options().flat()
    names = _NOT_ON_DEVICE if options.data.on_device else _ON_DEVICE
    given = [_option(name) for name in names if values[name] != defaults[name]]
    if given and options.data.on_device:
        known = ", ".join(map(_option, _ON_DEVICE))
        raise ConfigError(
            f"--on-device does not support {', '.join(given)}: leave it out. It supports --hflip, --vflip, {known}, "
            "mixup and cutmix"
        )
    if given:
        raise ConfigError(f"{', '.join(given)} can only be used with --on-device: give it too")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _at_least(values: Mapping[str, Any], name: str, least: int) -> None:
    if values[name] < least:
        raise ConfigError(f"{_option(name)} must be at least {least}, not {values[name]}")
