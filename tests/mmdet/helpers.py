"""Shipped configs cut down to a COCO set of a few small images, and runs with them."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.config import utils as mmengine_config_utils
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner
from torch.optim import Optimizer
from yapf.yapflib import yapf_api

import topodet.mmdet  # noqa: F401 - registers
from tests.detection import SIZE
from topodet import connectivity
from topodet.mmdet import TopoNet

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "mmdet"
SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.py"))
NANO = "faster-rcnn_toponet-nano_fpn_digits"
AUGMENTATIONS = ("RandomChoice", "CachedMosaic")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

# A run formats its config five times, and reads a hundred YAML files for each `_base_` of MMDetection: both take longer
# than a step of training.
yapf_api.FormatCode = lambda text, **options: (text, False)
mmengine_config_utils.load = cache(mmengine_config_utils.load)


def data_options(root: Path) -> dict:
    """Return the overrides that point a config at `write_coco`'s set, in batches of two read by the process itself."""
    options = {"val_evaluator.ann_file": f"{root}/all.json", "test_evaluator.ann_file": f"{root}/all.json"}
    for loader in LOADERS:
        options |= {
            f"{loader}.batch_size": 2,
            f"{loader}.num_workers": 0,
            f"{loader}.persistent_workers": False,
            f"{loader}.dataset.serialize_data": False,  # which collects all garbage of the process, for each dataset
            f"{loader}.dataset.data_root": f"{root}/",
            f"{loader}.dataset.ann_file": "all.json",
            f"{loader}.dataset.data_prefix.img": "images/",
        }
    return options


@cache
def load(name: str) -> Config:
    """Return a shipped config, to be copied before a change."""
    return Config.fromfile(CONFIGS / f"{name}.py")


def small_config(name: str, root: Path, work_dir: Path, options: dict | None = None) -> Config:
    """Return a shipped config that reads `write_coco`'s set at its own size; the model stays as it is."""
    config = copy.deepcopy(load(name))
    config.merge_from_dict(
        {
            **data_options(root),
            "work_dir": str(work_dir),
            "default_hooks.logger.interval": 1,
            # Loggers, message hubs and visualizers live as long as the process and are found by name.
            "experiment_name": str(work_dir).replace("/", "_"),
            "visualizer.name": str(work_dir).replace("/", "_"),
            **(options or {}),
        }
    )
    if any(step["type"] in AUGMENTATIONS for step in config.train_dataloader.dataset.pipeline):
        # MMDetection's own, at 640 to 1333 pixels.
        config.train_dataloader.dataset.pipeline = copy.deepcopy(load(NANO).train_dataloader.dataset.pipeline)
    for loader in LOADERS:
        for step in config[loader].dataset.pipeline:
            if step["type"] == "Resize":
                step["scale"] = SIZE
    return config


def narrow(config: Config, backbone: str = "") -> Config:
    """Make a shipped detector small, in place, and return it: few nodes, channels and proposals, and two classes.

    Args:
        config: of the detector.
        backbone: published file of toponet_nano, which takes the place of a smaller network.
    """
    values = {"fc_out_channels": 32, "num_classes": 2, "num_convs": 1, "stacked_convs": 1, "nms_pre": 100}
    channels = ("in_channels", "out_channels", "feat_channels", "conv_out_channels")

    def change(part: object) -> None:
        if isinstance(part, list):
            for item in part:
                change(item)
        elif isinstance(part, dict):
            part.update({key: value for key, value in values.items() if key in part})
            part.update({key: 32 for key in channels if isinstance(part.get(key), int)})
            for item in part.values():
                change(item)

    change(config.model)
    config.model.backbone.arch = "toponet_nano"
    config.model.backbone.pretrained = backbone or None
    config.model.backbone.nodes = None if backbone else [2, 3, 2, 2]
    config.model.neck.in_channels = [32, 64, 128, 256]
    for stage in ("rpn", "rpn_proposal"):
        for settings in (config.model.get("test_cfg"), config.model.get("train_cfg")):
            if settings and stage in settings and "max_per_img" in settings[stage]:
                settings[stage].max_per_img = 50
    return config


def build_scheduler(described: dict, optimizer: Optimizer, epoch_length: int) -> _ParamScheduler:
    """Build a scheduler of a config as MMEngine's runner does, with epochs turned into iterations."""
    options = dict(described)
    made, by_epoch = PARAM_SCHEDULERS.get(options.pop("type")), options.pop("by_epoch")
    options.pop("convert_to_iter_based", None)
    if by_epoch:
        return made.build_iter_from_epoch(optimizer, epoch_length=epoch_length, **options)
    return made(optimizer, by_epoch=False, **options)


def train(config: Config, *hooks: Hook) -> Runner:
    runner = Runner.from_cfg(config)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


class Task(BaseModel):
    """A backbone with a loss, and the penalty in the loss where `kind` is given."""

    def __init__(self, kind=None, weight=0.0, **backbone):
        super().__init__()
        self.backbone = TopoNet("toponet_nano", **{"out_indices": (0, 1), **backbone})
        self.kind = kind
        self.weight = weight

    def forward(self, inputs, mode="loss"):
        loss = sum(m.float().square().mean() for m in self.backbone(inputs))
        if self.kind:
            loss = loss + self.weight * connectivity.penalty(self, self.kind)
        return {"loss": loss}


def visualizer(**options: str) -> dict:
    """Return the config of a visualizer with TensorBoard, a new one: MMEngine writes into what it is given."""
    return {
        "type": "Visualizer",
        "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        **options,
    }


def build(arch="toponet_nano", **options):
    # As from a config file: its dicts are MMEngine's own kind.
    return MODELS.build(ConfigDict(type="TopoNet", arch=arch, **options))
