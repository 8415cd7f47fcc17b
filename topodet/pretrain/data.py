"""The datasets and loaders of a run, made by timm, and the check of the data before anything slow starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import (
    AugMixDataset,
    FastCollateMixup,
    ImageDataset,
    Mixup,
    create_dataset,
    create_loader,
    resolve_data_config,
)
from timm.data.loader import PrefetchLoader, adapt_to_chs
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset
from torchvision.datasets import DatasetFolder

from topodet.datasets.images import load_rgb
from topodet.errors import ConfigError, DataError, unknown_name
from topodet.pretrain.arrays import ArrayDataset, in_memory
from topodet.pretrain.class_map import read_class_map
from topodet.pretrain.folder import FolderReader
from topodet.pretrain.group import Group
from topodet.pretrain.loader import Loader
from topodet.pretrain.on_device import Augmentation, DeviceLoader
from topodet.pretrain.options import AugmentationOptions, DataOptions, Options
from topodet.pretrain.unreadable import SkipUnreadable

ARRAYS = "npz"
_TYPES = ("torch", "hfds", "hfids", "tfds", "wds")
_STREAMED = ("hfids", "tfds", "wds")
_SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))


@dataclass(frozen=True)
class Datasets:
    """The images of a run: `val` is None without validation, `class_names` if unknown."""

    train: Dataset
    val: Dataset | None
    num_classes: int
    class_names: list[str] | None

    @property
    def counts(self) -> dict[str, int | None]:
        """The numbers of train_images, val_images and classes; None for streamed images."""
        val_images = 0 if self.val is None else _count(self.val)
        return {"train_images": _count(self.train), "val_images": val_images, "classes": self.num_classes}


def open_datasets(options: Options, group: Group, channels: int) -> Datasets:
    """Open and check the datasets of the options, and wrap them in `SkipUnreadable`.

    Raises:
        DataError: a missing folder, no images, only one class, or splits with different classes.
        ConfigError: an unknown kind of dataset, or a number of classes that differs from the data's.
    """
    kind = _kind(options.data.dataset)
    if kind in _STREAMED and options.data.on_bad_image == "stop":
        raise ConfigError(
            f"--on-bad-image stop needs an indexed dataset; {options.data.dataset!r} is streamed: leave it out"
        )
    if options.data.dataset_download and not group.primary:
        group.wait()
    train = _open(options, kind, options.data.train_split, is_training=True, channels=channels)
    val = (
        _open(options, kind, options.data.val_split, is_training=False, channels=channels)
        if options.data.val_split
        else None
    )
    if options.data.dataset_download and group.primary:
        group.wait()

    classes = _class_indices(train)
    where = options.data.data_dir or options.data.dataset
    if val is not None:
        _same_classes(classes, _class_indices(val), options.data)
    num_classes = _num_classes(classes, options.model.num_classes, where)
    for dataset in (train, val):
        if isinstance(dataset, ArrayDataset):
            dataset.check_classes(num_classes, f"--num-classes {num_classes}" if not classes else "the train split")
    names = sorted(classes, key=classes.get) if classes and len(classes) == num_classes else None
    return Datasets(
        train=_guard(train, options.data.on_bad_image, count_substitutes=True),
        val=None if val is None else _guard(val, options.data.on_bad_image, count_substitutes=False),
        num_classes=num_classes,
        class_names=names,
    )


def _kind(dataset: str) -> str:
    """Return the part of a dataset's name before the slash, '' for an image folder."""
    if dataset in ("", "folder"):
        return ""
    if dataset == ARRAYS:
        return ARRAYS
    kind = dataset.split("/")[0].lower()
    if kind not in _TYPES or "/" not in dataset:
        raise ConfigError(
            f"--dataset {dataset!r}: {unknown_name('kind of dataset', kind, _TYPES)}, as TYPE/NAME, or {ARRAYS!r}"
        )
    return kind


def _open(options: Options, kind: str, split: str, is_training: bool, channels: int) -> Dataset:
    mode = options.data.input_img_mode or ("RGB" if channels == 3 else "L")
    root = str(_split_path(options.data, kind, split)) if kind in ("", ARRAYS) else options.data.data_dir
    dataset = ArrayDataset(root, mode) if kind == ARRAYS else _open_timm(options, kind, root, split, is_training, mode)
    if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
        raise DataError(f"split {split!r} of {options.data.dataset or root!r} has no images")
    return dataset


def _open_timm(options: Options, kind: str, root: str | None, split: str, is_training: bool, mode: str) -> Dataset:
    try:
        if options.data.dataset in ("", "folder") and Path(root).is_dir():
            return ImageDataset(root, reader=FolderReader(root, options.data.class_map), input_img_mode=mode)
        dataset = create_dataset(
            options.data.dataset,
            root=root,
            split=split,
            search_split=bool(kind),
            is_training=is_training,
            class_map=read_class_map(options.data.class_map, root) if options.data.class_map else None,
            download=options.data.dataset_download,
            batch_size=options.optimizer.batch_size
            if is_training
            else options.optimizer.validation_batch_size or options.optimizer.batch_size,
            num_samples=options.data.train_num_samples if is_training else options.data.val_num_samples,
            seed=options.run.seed,
            input_img_mode=mode,
            input_key=options.data.input_key,
            target_key=options.data.target_key,
            trust_remote_code=options.data.dataset_trust_remote_code,
        )
        if isinstance(dataset, DatasetFolder):
            dataset.loader = load_rgb
        return dataset
    except ImportError as error:
        raise ConfigError(
            f"--dataset {options.data.dataset!r} needs a package that is not installed: {error.name}"
        ) from error
    except (AssertionError, RuntimeError, ValueError, OSError) as error:
        # timm and torchvision raise these for no images, missing downloads and unknown names.
        raise DataError(f"cannot open split {split!r} of {options.data.dataset or root!r}: {error}") from error


def _split_path(options: DataOptions, kind: str, split: str) -> Path:
    """Return where `split` is: DIR/SPLIT or DIR/SPLIT.npz, or there under another common name of that split."""
    suffix = f".{ARRAYS}" if kind else ""
    part = "" if kind else "/CLASS/IMAGE"
    layout = f"expected DIR/train{suffix}{part} and DIR/validation{suffix}{part}"
    if not options.data_dir:
        raise ConfigError(f"no dataset given: give --data-dir DIR; {layout}")
    root = Path(options.data_dir)
    if not root.exists():
        raise DataError(f"--data-dir {str(root)!r} does not exist; {layout}")
    if root.is_file() and not kind:
        return root
    names = next((group for group in _SYNONYMS if split in group), ())
    for name in (split, *names):
        if (root / f"{name}{suffix}").exists():
            return root / f"{name}{suffix}"
    what = "file" if kind else "folder"
    option = "--train-split" if split == options.train_split else "--val-split"
    instead = "" if option == "--train-split" else ", or '' to train without validation"
    raise DataError(
        f"--data-dir {str(root)!r} has no {what} {split + suffix!r}; {layout}. Name the {what} with {option}{instead}"
    )


def _class_indices(dataset: Dataset) -> dict[str, int]:
    """Return class name -> index, empty if the dataset does not define it."""
    reader = getattr(dataset, "reader", dataset)
    indices = getattr(reader, "class_to_idx", None)
    return dict(indices) if isinstance(indices, Mapping) else {}


def _same_classes(train: Mapping[str, int], val: Mapping[str, int], options: DataOptions) -> None:
    if not train or not val or train == val:
        return
    only_train = sorted(set(train) - set(val))
    only_val = sorted(set(val) - set(train))
    sides = [
        f"{len(names)} only in {split!r} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for names, split in ((only_train, options.train_split), (only_val, options.val_split))
        if names
    ]
    raise DataError(
        f"the splits of {options.data_dir or options.dataset!r} differ in their classes: {' and '.join(sides)}. "
        "Give both the same class folders, or assign the class indices with --class-map"
    )


def _num_classes(classes: Mapping[str, int], given: int | None, where: str) -> int:
    if not classes:
        if given is None:
            raise ConfigError(f"{where!r} does not define its number of classes: give --num-classes")
        return given
    found = max(classes.values()) + 1
    if found < 2:
        name = next(iter(classes))
        what = f"one class, {name!r}" if name else "only images outside class folders"
        raise DataError(f"{where!r} has {what}; a classifier needs two or more classes, as DIR/train/CLASS/IMAGE")
    if given not in (None, found):
        raise ConfigError(
            f"--num-classes {given}, but {where!r} has {found} classes: leave the option out, or check the data"
        )
    return found


def _guard(dataset: Dataset, on_bad_image: str, count_substitutes: bool) -> Dataset:
    if isinstance(dataset, IterableDataset):
        return dataset
    return SkipUnreadable(dataset, on_bad_image, count_substitutes)


def _count(dataset: Dataset) -> int | None:
    return None if isinstance(dataset, IterableDataset) else len(dataset)


def preprocessing(options: Options, model: nn.Module, channels: int) -> dict[str, Any]:
    """Return timm's data config for a network and the options, with a mean and standard deviation for each channel.

    timm's own config of an architecture always has three values; a network with one channel gets their mean.
    """
    found = resolve_data_config({**options.flat(), "in_chans": channels}, model=model)
    return {**found, **{key: adapt_to_chs(found[key], channels) for key in ("mean", "std")}}


class TimmLoader(Loader):
    """A timm loader with the number of batches to use."""

    def __init__(self, loader: DataLoader | PrefetchLoader, dataset: Dataset, batch_size: int, batches: int) -> None:
        self.loader = loader
        self.dataset = dataset
        self.batch_size = batch_size
        self.batches = batches
        self.count = _count(dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of `epoch`."""
        for part in (self.dataset, self.loader.sampler):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def set_mixup(self, enabled: bool) -> None:
        """Switch the mixing in the loader's collate function."""
        self.loader.mixup_enabled = enabled

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # range comes first, otherwise zip would fetch one batch too many.
        for _, batch in zip(range(self.batches), self.loader):
            yield batch

    def bad_images(self, group: Group) -> int:
        """Return how many images of this epoch could not be read, over all processes.

        An image may go to several processes, because the sampler gives all of them the same number, but counts once.
        """
        if not isinstance(self.dataset, SkipUnreadable):
            return 0
        return int(group.sum(self.dataset.bad_images().int().to(group.device)).count_nonzero())


def train_loader(options: Options, dataset: Dataset, num_classes: int, data_config: Mapping, group: Group) -> Loader:
    """Return the loader of training batches: images [B, C, H, W] and classes [B], or class shares [B, classes].

    In each update, any number of processes reads the same images as one process with the total batch size.

    Raises:
        DataError: there are fewer images than one update needs.
        ConfigError: --on-device for images that it does not support.
    """
    if options.data.on_device:
        kinds = {
            "crop_padding": options.augmentation.crop_padding,
            "hflip": options.augmentation.hflip,
            "vflip": options.augmentation.vflip,
            "cutout": options.augmentation.cutout,
        }
        varied = Augmentation() if options.augmentation.no_aug else Augmentation(**kinds)
        loader = _on_device(
            options, dataset, data_config, group, batch_size=options.optimizer.batch_size, augmentation=varied
        )
        loader.batches = _whole_updates(loader.batches, dataset, options, group)
        return loader
    guarded = dataset
    collate = None
    if options.augmentation.mixes and not options.data.no_prefetcher:
        collate = FastCollateMixup(**mixup_arguments(options.augmentation, num_classes))
    if options.augmentation.aug_splits:
        dataset = AugMixDataset(dataset, num_splits=options.augmentation.aug_splits)
    loader = create_loader(
        dataset,
        input_size=data_config["input_size"],
        batch_size=options.optimizer.batch_size,
        is_training=True,
        no_aug=options.augmentation.no_aug,
        re_prob=options.augmentation.reprob,
        re_mode=options.augmentation.remode,
        re_count=options.augmentation.recount,
        re_split=options.augmentation.resplit,
        train_crop_mode=options.augmentation.train_crop_mode,
        scale=options.augmentation.scale,
        ratio=options.augmentation.ratio,
        hflip=options.augmentation.hflip,
        vflip=options.augmentation.vflip,
        color_jitter=options.augmentation.color_jitter,
        color_jitter_prob=options.augmentation.color_jitter_prob,
        grayscale_prob=options.augmentation.grayscale_prob or 0.0,
        gaussian_blur_prob=options.augmentation.gaussian_blur_prob or 0.0,
        auto_augment=options.augmentation.aa,
        num_aug_repeats=options.augmentation.aug_repeats,
        num_aug_splits=options.augmentation.aug_splits,
        interpolation=data_config["interpolation"]
        if options.augmentation.no_aug
        else options.augmentation.train_interpolation,
        collate_fn=collate,
        **_common(options, data_config, group),
    )
    batches = len(loader)
    if isinstance(loader.sampler, DistributedSampler):
        loader.sampler.seed = options.run.seed
        # The sampler pads the last round of processes with repeated images; an update made of them would exist only
        # for some numbers of processes.
        batches = len(guarded) // (options.optimizer.batch_size * group.world_size)
    return TimmLoader(loader, guarded, options.optimizer.batch_size, _whole_updates(batches, guarded, options, group))


def _whole_updates(batches: int, dataset: Dataset, options: Options, group: Group) -> int:
    """Return the number of batches per epoch, without those that do not fill a whole update."""
    batches -= batches % options.optimizer.grad_accum_steps
    if batches == 0:
        update = options.optimizer.batch_size * options.optimizer.grad_accum_steps * group.world_size
        raise DataError(f"an update needs {update} images, but there are {len(dataset)}: give a smaller --batch-size")
    return batches


def _on_device(
    options: Options,
    dataset: Dataset,
    data_config: Mapping,
    group: Group,
    *,
    batch_size: int,
    augmentation: Augmentation | None,
) -> DeviceLoader:
    images, labels = _stored(options, dataset, data_config)
    return DeviceLoader(
        images,
        labels,
        batch_size=batch_size,
        mean=data_config["mean"],
        std=data_config["std"],
        augmentation=augmentation,
        seed=options.run.seed,
        group=group,
    )


def _stored(options: Options, dataset: Dataset, data_config: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and classes for --on-device, whose size must be the input size of the network."""
    stored = in_memory(dataset.dataset) if isinstance(dataset, SkipUnreadable) else None
    if stored is None:
        raise ConfigError(
            f"--on-device needs a dataset that is in memory, such as npz, torch/cifar10 or torch/cifar100; "
            f"{options.data.dataset or 'an image folder'!r} reads images one by one: leave the option out"
        )
    height, width, channels = stored[0].shape[1:]
    wanted = tuple(data_config["input_size"])
    if wanted != (channels, height, width):
        raise ConfigError(
            f"--on-device does not resize: the images are {channels}x{height}x{width}, the network needs "
            f"{'x'.join(map(str, wanted))}: give --input-size {channels} {height} {width}, or leave --on-device out"
        )
    return stored


def val_loader(options: Options, dataset: Dataset, data_config: Mapping, group: Group) -> Loader:
    """Return the loader of validation batches, in the dataset's order; process r of n reads images r, r + n, ...

    Raises:
        ConfigError: --on-device for images that it does not support.
    """
    batch_size = options.optimizer.validation_batch_size or options.optimizer.batch_size
    if options.data.on_device:
        if data_config["crop_pct"] != 1:
            raise ConfigError(
                f"--on-device validates on whole images, not on a crop of {data_config['crop_pct']}: give "
                "--crop-pct 1, or leave --on-device out"
            )
        return _on_device(options, dataset, data_config, group, batch_size=batch_size, augmentation=None)
    loader = create_loader(
        dataset,
        input_size=data_config["input_size"],
        batch_size=batch_size,
        is_training=False,
        interpolation=data_config["interpolation"],
        crop_pct=data_config["crop_pct"],
        **_common(options, data_config, group),
    )
    return TimmLoader(loader, dataset, batch_size, len(loader))


def _common(options: Options, data_config: Mapping, group: Group) -> dict:
    return {
        "mean": data_config["mean"],
        "std": data_config["std"],
        "num_workers": options.data.workers,
        "distributed": True,
        "pin_memory": options.data.pin_mem and group.device.type == "cuda",
        "device": group.device,
        "img_dtype": torch.float32,
        "use_prefetcher": not options.data.no_prefetcher,
        # New loader processes each epoch, so that their random numbers depend only on the epoch's seed.
        "persistent_workers": False,
        "worker_seeding": options.data.worker_seeding,
    }


def mixup_arguments(options: AugmentationOptions, num_classes: int) -> dict:
    """Return the arguments of timm's mixup and cutmix."""
    return {
        "mixup_alpha": options.mixup,
        "cutmix_alpha": options.cutmix,
        "cutmix_minmax": options.cutmix_minmax,
        "prob": options.mixup_prob,
        "switch_prob": options.mixup_switch_prob,
        "mode": options.mixup_mode,
        "label_smoothing": options.smoothing,
        "num_classes": num_classes,
    }


def batch_mixup(options: Options, num_classes: int) -> Mixup | None:
    """Return timm's mixup for whole batches, if the loader does not already apply it."""
    whole = options.data.no_prefetcher or options.data.on_device
    return Mixup(**mixup_arguments(options.augmentation, num_classes)) if options.augmentation.mixes and whole else None
