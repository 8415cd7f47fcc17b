"""Fill a framework's template from a dataset, a backbone and its weights."""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import timm
from torch import nn

from .. import weights
from ..datasets.coco import check_coco, load_annotations
from ..errors import ConfigError, DataError, unknown_name
from ..files import atomic_write
from ..models import ARCHITECTURES, PACKAGED, TimmTrunk, Trunk, architecture_arguments, build_blocks, packaged_weights
from .schedule import Schedule, make_schedule

# Name of the template, and suffix of the config.
FRAMEWORKS = {"mmdet": "mmdet.py.template", "detectron2": "detectron2.yaml.template"}
_SUFFIX = {"mmdet": ".py", "detectron2": ".yaml"}
# Instead of a weights file: those that timm publishes, those in the package, and random ones.
_TIMM, _PACKAGED, _RANDOM = "timm", "topodet", "none"
_COCO_SHORT_SIDE, _COCO_LONG_SIDE = 800, 1333
# A backbone with few channels is for small images and CPUs, so its detector gets a small neck and small heads.
_SMALL_BACKBONE = 256


@dataclass(frozen=True)
class _Data:
    train: Path
    val: Path
    images: Path
    val_images: Path
    classes: list[str]
    num_images: int  # images with a box; both frameworks skip the others
    short_side: int  # median over the images


@dataclass(frozen=True)
class _Backbone:
    name: str
    channels: list[int]
    normalizes: bool  # has batch normalization
    weights: str  # path, URL, hf-hub:USER/REPO, "timm", "topodet" or ""
    card: Mapping[str, Any]


def new_config(
    framework: str,
    *,
    train: str | os.PathLike,
    val: str | os.PathLike,
    images: str | os.PathLike,
    val_images: str | os.PathLike | None = None,
    backbone: str = "",
    weights_file: str = "",
    batch: int = 8,
    epochs: int | None = None,
    short_side: int | None = None,
    output: str | os.PathLike | None = None,
    allow: Collection[str] = (),
) -> tuple[Path, Schedule]:
    """Check a dataset and write a config that trains a Faster R-CNN with FPN on it.

    Args:
        framework: "mmdet" or "detectron2".
        train: annotations in COCO format.
        val: annotations for evaluation, with the same categories.
        images: folder that the file names in `train` are relative to.
        val_images: likewise for `val`; `images` by default.
        backbone: a TopoNet (`topodet list`), or a timm network, whose residual blocks are connected; by default that of
            the weights file, or toponet_nano.
        weights_file: path, URL or hf-hub:USER/REPO of a published backbone; "timm" for timm's weights; "topodet" for
            those in the package; "none" for random ones, with which nothing is frozen. By default those in the package
            if it has any for this backbone, otherwise random ones.
        batch: images per step.
        epochs: number of epochs; by default twelve, or enough for 1000 iterations.
        short_side: pixels to which images are resized; by default the median of the dataset, at most 800.
        output: the file; by default BACKBONE_FOLDER.py (.yaml) in the working folder, by the folder of `train`.
        allow: kinds of problem in the data that are not errors, see `check_coco`.

    Returns:
        the file, and the schedule in it.

    Raises:
        ConfigError: an unknown framework, an invalid name or number, or a file that already exists.
        DataError: problems found by `check_coco`, or two files with different categories.
        WeightsError: weights that are damaged, unsafe or of another network.
    """
    if framework not in FRAMEWORKS:
        raise ConfigError(unknown_name("framework", framework, FRAMEWORKS))
    data = _read_data(Path(train), Path(val), Path(images), Path(val_images or images), allow)
    made = _backbone(backbone, weights_file)
    schedule = make_schedule(data.num_images, batch=batch, epochs=epochs)
    short_side = short_side or min(_COCO_SHORT_SIDE, max(32, 32 * round(data.short_side / 32)))
    if output is None:
        output = re.sub(r"\W+", "_", f"{made.name}_{data.train.parent.name}") + _SUFFIX[framework]
    path = Path(output)
    if path.suffix != _SUFFIX[framework]:
        raise ConfigError(f"--output {path}: a config of {framework} must end in {_SUFFIX[framework]}")
    if path.exists():
        raise ConfigError(f"{path} already exists and may contain your changes; remove it or give another --output")
    fill = {"mmdet": _for_mmdet, "detectron2": _for_detectron2}[framework]
    values = _common(data, made, schedule, short_side) | fill(data, made, schedule, path.stem)
    template = resources.files(__package__).joinpath(FRAMEWORKS[framework]).read_text(encoding="utf-8")
    return atomic_write(path, Template(template).substitute(values)), schedule


def _read_data(train: Path, val: Path, images: Path, val_images: Path, allow: Collection[str]) -> _Data:
    contents = []
    for path, folder in ((train, images), (val, val_images)):
        report = check_coco(path, folder, allow=allow)
        print(report.text(), file=sys.stderr)
        report.raise_if_bad()
        contents.append(load_annotations(path))
    categories = [[(c["id"], c["name"]) for c in content["categories"]] for content in contents]
    if categories[0] != categories[1]:
        raise DataError(
            f"{train} and {val} have different categories, {categories[0]} and {categories[1]}: give both the same "
            "list, in the same order"
        )
    content = contents[0]
    learned = {row["image_id"] for row in content["annotations"] if not row["iscrowd"]}
    short_sides = [min(row["width"], row["height"]) for row in content["images"] if row["id"] in learned]
    if not short_sides:
        raise DataError(f"{train}: no image has a box to train on")
    return _Data(
        train.resolve(),
        val.resolve(),
        images.resolve(),
        val_images.resolve(),
        [name for _, name in categories[0]],
        len(short_sides),
        int(statistics.median(short_sides)),
    )


def _backbone(name: str, source: str) -> _Backbone:
    file = weights.read(source) if source not in ("", _TIMM, _PACKAGED, _RANDOM) else None
    name = name or (file.card.get("architecture") if file else None) or "toponet_nano"
    if source == _PACKAGED or (not source and name in PACKAGED):
        source, file = _PACKAGED, weights.read(packaged_weights(name))
    elif source == _RANDOM:
        source = ""
    if name in ARCHITECTURES:
        if source == _TIMM:
            raise ConfigError(f"--weights {_TIMM}: timm publishes no weights of {name}; give a file, or omit it")
        trunk: Trunk | TimmTrunk = Trunk(*build_blocks(**architecture_arguments(name)))
    else:
        trunk = TimmTrunk(name)
    if file is not None:
        weights.load(trunk, file, quiet=True)
        card = weights.backbone_card(file.card)
    else:
        known = timm.get_pretrained_cfg(name) if source == _TIMM else None
        card = {"mean": known.mean, "std": known.std} if known else {}
    normalizes = any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
    # Absolute, because training may start in another folder.
    local = file is not None and source != _PACKAGED and "://" not in source and not source.startswith("hf-hub:")
    return _Backbone(name, list(trunk.stage_channels), normalizes, str(file.path.resolve()) if local else source, card)


def _common(data: _Data, made: _Backbone, schedule: Schedule, short_side: int) -> dict[str, Any]:
    fpn = 256 if made.channels[-1] > _SMALL_BACKBONE else 64
    mean, std = made.card.get("mean") or (0.485, 0.456, 0.406), made.card.get("std") or (0.229, 0.224, 0.225)
    choices = "" if made.weights else "; none: it starts from random weights"
    if made.weights == _PACKAGED:
        choices = "; here the weights in the package"
    return {
        "backbone": made.name,
        "num_images": data.num_images,
        "num_classes": len(data.classes),
        "fpn_channels": fpn,
        "fc_dim": 4 * fpn,
        "mean": [round(255 * value, 3) for value in mean],
        "std": [round(255 * value, 3) for value in std],
        "pretrained_comment": choices,
        "short_side": short_side,
        "long_side": round(short_side * _COCO_LONG_SIDE / _COCO_SHORT_SIDE),
        "batch": schedule.batch,
        "epochs": schedule.epochs,
        "epoch_iterations": schedule.epoch_iterations,
        "warmup": schedule.warmup,
        "base_rate": _base_rate(made),
    }


def _base_rate(made: _Backbone) -> float:
    return 0.02 if made.normalizes else 0.0001


def _for_mmdet(data: _Data, made: _Backbone, schedule: Schedule, name: str) -> dict[str, Any]:
    root = Path(os.path.commonpath([data.train.parent, data.val.parent, data.images, data.val_images]))
    rate = schedule.rate(_base_rate(made))
    kind, key = ("TopoNet", "arch") if made.name in ARCHITECTURES else ("ConnectedTimm", "name")
    return {
        "root": json.dumps(f"{root}/"),
        "classes": f"({', '.join(map(json.dumps, data.classes))},)",
        "train": json.dumps(str(data.train.relative_to(root))),
        "val": json.dumps(str(data.val.relative_to(root))),
        "images": json.dumps(f"{data.images.relative_to(root)}/"),
        "val_images": json.dumps(f"{data.val_images.relative_to(root)}/"),
        "backbone_arguments": f'type="{kind}",\n        {key}="{made.name}"',
        "bgr_to_rgb": made.card.get("channel_order", "RGB") == "RGB",
        "frozen_stages": 1 if made.weights else -1,
        "norm_eval": bool(made.weights),
        "pretrained": made.weights in (_TIMM, _PACKAGED) or (json.dumps(made.weights) if made.weights else None),
        "stage_channels": made.channels,
        "eval_epochs": schedule.eval_epochs,
        "log_iterations": max(1, min(50, schedule.epoch_iterations // 2)),
        "steps": list(schedule.steps),
        "optimizer": f'dict(type="SGD", lr={rate}, momentum=0.9, weight_decay=0.0001)'
        if made.normalizes
        else f'dict(type="AdamW", lr={rate}, weight_decay=0.05)',
    }


def _for_detectron2(data: _Data, made: _Backbone, schedule: Schedule, name: str) -> dict[str, Any]:
    own = made.name in ARCHITECTURES
    return {
        "name": name,
        "train_path": data.train,
        "val_path": data.val,
        "images_path": data.images,
        "val_images_path": data.val_images,
        "builder": "build_toponet_fpn_backbone" if own else "build_connected_timm_fpn_backbone",
        "node": "TOPONET" if own else "CONNECTED_TIMM",
        "arch_key": "ARCH" if own else "NAME",
        "freeze_at": 2 if made.weights else 0,
        "norm": "FrozenBN" if made.weights else "BN",
        "pretrained": json.dumps(made.weights),
        "order": made.card.get("channel_order", "RGB"),
        "class_names": ", ".join(map(json.dumps, data.classes)),
        "optimizer": "SGD" if made.normalizes else "AdamW",
        "rate": schedule.rate(_base_rate(made)),
        "weight_decay": 0.0001 if made.normalizes else 0.05,
        "max_iter": schedule.iterations,
        "steps": str(schedule.steps),
        "eval_period": schedule.eval_epochs * schedule.epoch_iterations,
    }
