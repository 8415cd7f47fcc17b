"""Multiply-adds, activations and parameters of a detector, counted by fvcore as in Detectron2."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import transforms
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis
from torch import Tensor, nn

from .. import costs
from ..costs import TASKS, Analysis, Counts, TraceCounter, synthetic_images
from ..errors import ConfigError
from .config import load_config
from .inference import load_detector

CONFIGS = (".yaml", ".yml", ".py")


def analyze(
    source: str | os.PathLike,
    opts: Sequence[str] = (),
    *,
    tasks: Sequence[str] = TASKS,
    size: tuple[int, int] = (800, 1333),
    inputs: Sequence[str | os.PathLike | np.ndarray] = (),
    num_inputs: int = 1,
    depth: int = 4,
) -> Analysis:
    """Analyze the structure and cost of a detector. A config needs neither a dataset nor weights.

    Args:
        source: .yaml or LazyConfig .py of a detector, or a published detector's file in any form of `weights.fetch`.
        opts: overrides; KEY VALUE pairs for a .yaml or a published detector's config, KEY=VALUE for a LazyConfig.
        tasks: any of "flop" (fvcore's word for a multiply-add), "activation", "parameter" and "structure".
        size: height and width of noise images; for `inputs`, the short side and the maximum of the long side.
        inputs: images instead of noise, as paths or RGB [H, W, 3] uint8.
        num_inputs: number of noise images.
        depth: depth of the modules in the tables.

    Returns:
        the counts; `.text()` has the tables.

    Raises:
        ConfigError: a missing config, or one of another kind; numbers that are not positive.
        DataError: an image that cannot be read.
        WeightsError: as `load_detector` for a published file.
    """
    pictures = costs.check_request(tasks, size=size, inputs=inputs, num_inputs=num_inputs, depth=depth)
    is_config = Path(source).suffix in CONFIGS
    if is_config:
        model, input_format = build_detector(source, opts)
    else:
        made = load_detector(source, device="cpu", opts=opts)
        model, input_format = made.model, made.cfg.INPUT.FORMAT
    images = [prepare(p, short_side=size[0], long_side=size[1], input_format=input_format) for p in pictures]
    return costs.analyze(
        model,
        bottom_up(model),
        images or synthetic_images(num_inputs, *size),
        partial(counters, model),
        tasks=tasks,
        depth=depth,
        calibrate=(lambda image: model([{"image": image}])) if is_config else None,
    )


def build_detector(config: str | os.PathLike, opts: Sequence[str] = ()) -> tuple[nn.Module, str]:
    """Build a detector from a .yaml or a LazyConfig on the CPU, without a dataset or MODEL.WEIGHTS.

    Args:
        config: config of the detector.
        opts: KEY VALUE pairs for a .yaml, KEY=VALUE for a LazyConfig.

    Returns:
        the detector in inference mode, and its channel order.

    Raises:
        ConfigError: a missing config, or one of another kind.
    """
    path = Path(config)
    if path.suffix not in CONFIGS:
        raise ConfigError(f"{path} is not a .yaml or a LazyConfig .py")
    if path.suffix != ".py":
        cfg = load_config(path, opts)
        cfg.MODEL.DEVICE = "cpu"
        return build_model(cfg).eval(), cfg.INPUT.FORMAT
    if not path.is_file():
        raise ConfigError(f"no config file at {path} (working folder {Path.cwd()}); check --config")
    wrong = [option for option in opts if "=" not in option]
    if wrong:
        raise ConfigError(f"{wrong[0]}: options of a LazyConfig are KEY=VALUE")
    try:
        content = LazyConfig.apply_overrides(LazyConfig.load(str(path)), list(opts))
    except Exception as error:  # a config is Python code and can raise anything
        raise ConfigError(f"{path} is not a LazyConfig of a detector: {type(error).__name__}: {error}") from error
    if "model" not in content:
        raise ConfigError(f"{path} has no `model`: it is not a LazyConfig of a detector")
    model = instantiate(content.model).cpu().eval()
    return model, getattr(model, "input_format", "BGR")


def bottom_up(model: nn.Module) -> nn.Module:
    """Return a detector's network below the FPN, or its whole backbone if it has none."""
    return getattr(model.backbone, "bottom_up", model.backbone)


def prepare(image: np.ndarray, *, short_side: int, long_side: int, input_format: str) -> Tensor:
    """Return an RGB image [H, W, 3] uint8 as a detector's input, float32 [3, h, w], resized as Detectron2 does."""
    resize = transforms.ResizeShortestEdge([short_side, short_side], long_side)
    image = resize.get_transform(image).apply_image(image)
    image = image[:, :, ::-1] if input_format == "BGR" else image
    return torch.as_tensor(image.astype("float32").transpose(2, 0, 1))


def count(model: nn.Module, images: Sequence[Tensor], *, depth: int = 4) -> Counts:
    """Count the cost of images for a detector.

    The number of proposals and detections, and so the cost of the heads, depends on image and weights.

    Args:
        model: a detector, for inference.
        images: at least one, float32 [3, H, W].
        depth: depth of the modules in the table.
    """
    return costs.count(model, bottom_up(model), images, partial(counters, model), depth=depth)


def counters(model: nn.Module, image: Tensor) -> tuple[TraceCounter, TraceCounter]:
    """Return fvcore's counters of multiply-adds and activations for an image, float32 [3, H, W]."""
    wrapper = TracingAdapter(model, [{"image": image}], allow_non_tensor=True)
    return (
        FlopCountAnalysis(model, [{"image": image}]),
        ActivationCountAnalysis(wrapper, wrapper.flattened_inputs),
    )
