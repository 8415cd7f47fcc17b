"""A COCO set of a few small images, configs cut down to it, and weights files to start from."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from PIL import Image

from topodet import connectivity, weights
from topodet.mmdet import TopoNet

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "mmdet"
SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.py"))
NANO = "faster-rcnn_toponet-nano_fpn_digits"
SIZE = (96, 64)  # width, height
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def write_coco(root: Path, classes: tuple[str, ...] = ("person", "bicycle"), count: int = 2) -> Path:
    """Write `count` JPEGs with two boxes each, `all.json` and `images/`; return the folder."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for k in range(count):
        pixels = rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        for place, (x, y, w, h) in enumerate(((4, 6, 40, 48), (50, 10, 36, 36))):
            pixels[y : y + h, x : x + w] = (40, 200 - 100 * place, 90)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": k,
                    "category_id": place + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        Image.fromarray(pixels).save(root / "images" / f"{k}.jpg")
        images.append({"id": k, "file_name": f"{k}.jpg", "width": SIZE[0], "height": SIZE[1]})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "all.json").write_text(json.dumps(content))
    return root


def data_options(root: Path) -> dict:
    """Return the overrides that point a config at `write_coco`'s set, in batches of two read by the process itself."""
    options = {"val_evaluator.ann_file": f"{root}/all.json", "test_evaluator.ann_file": f"{root}/all.json"}
    for loader in LOADERS:
        options |= {
            f"{loader}.batch_size": 2,
            f"{loader}.num_workers": 0,
            f"{loader}.persistent_workers": False,
            f"{loader}.dataset.data_root": f"{root}/",
            f"{loader}.dataset.ann_file": "all.json",
            f"{loader}.dataset.data_prefix.img": "images/",
        }
    return options


@cache
def load(name: str) -> Config:
    """Return a shipped config, to be copied before a change."""
    # Beautifying what is written into the log takes longer than a step of training.
    return Config.fromfile(CONFIGS / f"{name}.py", format_python_code=False)


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
    for loader in LOADERS:
        for step in config[loader].dataset.pipeline:
            if step["type"] == "Resize":
                step["scale"] = SIZE
    return config


def train(config: Config, *hooks: Hook) -> Runner:
    runner = Runner.from_cfg(config)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


def published(folder: Path, arch: str, **kwargs: object) -> weights.PublishedFiles:
    """Publish a network that knows random weights and the statistics they give, as if it had been trained."""
    torch.manual_seed(1234)  # not the seed of the tests, whose networks would start from the same numbers
    model = timm.create_model(arch, num_classes=3, **kwargs).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the average over all that it sees
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
        for name, alpha in model.named_parameters():
            if name.endswith("alpha"):
                alpha.uniform_(-0.5, 1)
    content = {"arch": arch, "state_dict": model.state_dict(), "args": {}, "data_config": IMAGENET}
    torch.save(content, folder / "last.pth.tar")
    return weights.publish(folder / "last.pth.tar", folder)


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
