"""A trained MMDetection detector and one image."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mmdet.apis import inference_detector, init_detector
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from torch import nn

from .. import weights
from ..errors import ConfigError, WeightsError
from .check import backbones, check_detector
from .hooks import CARD


def build_detector(
    config_file: str | os.PathLike,
    checkpoint: str | os.PathLike,
    *,
    device: str = "cpu",
    opts: Sequence[str] = (),
) -> nn.Module:
    """Build a detector and load its checkpoint, every tensor or an error.

    Args:
        config_file: a .py config, e.g. the one in the training's folder.
        checkpoint: e.g. epoch_12.pth.
        device: "cuda" or "cpu".
        opts: KEY=VALUE each, over the config.

    Returns:
        the detector; `dataset_meta["classes"]` names its classes.

    Raises:
        ConfigError: no such config, an option of another form, a device that is not there.
        WeightsError: a checkpoint that is damaged, unsafe, without class names, or does not fill the model whole.
    """
    path = Path(config_file)
    if not path.is_file():
        raise ConfigError(f"no config file at {path} (working folder {Path.cwd()}); check --config")
    config = Config.fromfile(path)
    config.merge_from_dict(_options(opts))
    file = weights.read_trained(checkpoint)
    backbone = config.model.get("backbone", {})
    if backbone.get("arch") == weights.PRETRAINED:
        network = weights.infer_architecture(weights.extract_backbone(file.state_dict))
        graphs = [{"num_nodes": graph.num_nodes, "edges": graph.edges} for graph in network["topology"]]
        backbone.update(arch="toponet50", nodes=network["nodes"], width=network["width"], topology=graphs)
    elif backbone.get("edges") == weights.PRETRAINED:
        backbone.edges = list(weights.run_edges(file.state_dict).items())
    if "pretrained" in backbone:
        backbone.pretrained = None  # what the training started from
    meta = file.checkpoint.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    classes = _class_names(file, meta)
    with warnings.catch_warnings(record=True):  # of a model without checkpoint: it is loaded below
        model = init_detector(config, device=device)
    weights.load(model, file, head=True)
    for backbone in backbones(model):
        backbone.card = meta.get(CARD) or {}
    check_detector(model)
    model.dataset_meta = {"classes": classes, "palette": model.dataset_meta.get("palette", "random")}
    return model


def predict(model: nn.Module, image: np.ndarray) -> DetDataSample:
    """Return what a detector sees in an RGB image [H, W, 3] uint8, on the CPU."""
    return inference_detector(model, np.ascontiguousarray(image[:, :, ::-1])).cpu()  # its pipelines read BGR


def draw(model: nn.Module, image: np.ndarray, result: DetDataSample, score_threshold: float) -> np.ndarray:
    """Return the RGB image with boxes (and masks, where there are any), class names and scores."""
    visualizer = _visualizer()
    visualizer.dataset_meta = model.dataset_meta
    visualizer.add_datasample("image", image, result, draw_gt=False, pred_score_thr=score_threshold)
    return visualizer.get_image()


@cache
def _visualizer() -> DetLocalVisualizer:
    return DetLocalVisualizer(name="topodet")


def _options(opts: Sequence[str]) -> dict[str, Any]:
    options = {}
    for option in opts:
        key, separator, value = option.partition("=")
        if not separator:
            raise ConfigError(f"--opts {option}: with an MMDetection config an option is KEY=VALUE")
        options[key] = yaml.safe_load(value)
    return options


def _class_names(file: weights.WeightsFile, meta: Mapping[str, Any]) -> list[str]:
    # The spelling of MMDetection 3 is lower case; checkpoints of its early days have upper case.
    data = {str(key).lower(): value for key, value in (meta.get("dataset_meta") or {}).items()}
    if not data.get("classes"):
        raise WeightsError(
            f"{file.path} does not name its classes (meta.dataset_meta): it is no checkpoint of MMDetection's training"
        )
    return [str(name) for name in data["classes"]]
