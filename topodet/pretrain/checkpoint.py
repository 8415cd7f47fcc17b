"""A trained classifier and its validation images, from its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from torch import nn

from topodet import weights
from topodet.errors import ConfigError, WeightsError
from topodet.pretrain import build, data
from topodet.pretrain.command_line import parse_over
from topodet.pretrain.group import join


@contextmanager
def open_checkpoint(checkpoint: str | os.PathLike, argv: Sequence[str] = ()) -> Iterator[tuple[nn.Module, data.Loader]]:
    """Yield the network of a checkpoint of `topodet.pretrain`, in evaluation mode, and its validation batches.

    The averaged weights (EMA) are used if there are any. Graphs (pruned or not), network and image size come from
    the file; where the data is and how it is loaded do not.

    Args:
        checkpoint: e.g. RUN/model_best.pth.tar.
        argv: options of `topodet pretrain`, at least ["--data-dir", "DIR"]; they override those of the file.

    Raises:
        WeightsError: the file is damaged or unsafe, or has no classifier, like a published backbone.
        ConfigError, DataError: unknown options, images that are missing or have other classes, or more than one
            process, each of which would read only a part of the images.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: start this as one process, without torchrun")
    file = weights.read(checkpoint)
    if not isinstance(file.checkpoint.get("args"), dict):
        raise WeightsError(
            f"{file.path} is not a checkpoint of a pretraining run (a published backbone has no classifier, so "
            "its accuracy cannot be measured): give RUN/model_best.pth.tar"
        )
    options = parse_over(file.checkpoint["args"], argv, str(file.path))
    weights.check_network(file.path, options.model.model, options.model.model_kwargs, file.state_dict)
    if not options.data.val_split:
        raise ConfigError("there is no validation split to evaluate on: give --val-split NAME")
    if not (options.data.data_dir or options.data.dataset):
        raise ConfigError(
            "the data is not taken from the checkpoint, which may come from an untrusted source: name the images it "
            "was validated on with --data-dir DIR (and --dataset, --val-split as in training)"
        )
    # The training images are not used and need not exist.
    options = replace(options, data=replace(options.data, train_split=options.data.val_split))
    channels = options.model.channels
    with join(options.device.device) as group:
        datasets = data.open_datasets(options, group, channels)
        make = partial(build.create_network, options, datasets.num_classes, channels, file.state_dict)
        weights.check_size(file, make)
        model = build.create_model(options, datasets.num_classes, channels, group, file.state_dict)
        weights.load(model, file, head=True, quiet=True)
        data_config = data.preprocessing(options, model, channels)
        yield model.eval(), data.val_loader(options, datasets.val, data_config, group)
