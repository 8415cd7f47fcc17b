"""Multiply-adds, activations and parameters of a detector, counted by MMEngine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.analysis import ActivationAnalyzer, FlopAnalyzer
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from .. import costs
from ..costs import TASKS, Analysis, TraceCounter, synthetic_images
from .inference import load_detector, read_config

# Elementwise operators and selections, which Detectron2 does not count either.
_IGNORED = (
    "aten::add",
    "aten::add_",
    "aten::clamp",
    "aten::constant_pad_nd",
    "aten::div",
    "aten::exp",
    "aten::log2",
    "aten::max_pool2d",
    "aten::mul",
    "aten::mul_",
    "aten::neg",
    "aten::repeat",
    "aten::repeat_interleave",
    "aten::rsub",
    "aten::sigmoid",
    "aten::softmax",
    "aten::sort",
    "aten::sqrt",
    "aten::sub",
    "prim::PythonOp.NMSop",
)


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

    Unlike MMDetection's get_flops.py, which counts all heads on all proposals, this counts the operations of inference.

    Args:
        source: .py config of a detector, or a published detector's file in any form of `weights.fetch`.
        opts: KEY=VALUE overrides of the config.
        tasks: any of "flop" (MMEngine's word for a multiply-add), "activation", "parameter" and "structure".
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
    is_config = Path(source).suffix == ".py"
    model = build_detector(source, opts) if is_config else load_detector(source, device="cpu", opts=opts)
    images = [prepare(picture, short_side=size[0], long_side=size[1]) for picture in pictures]
    return costs.analyze(
        model,
        model.backbone,
        images or synthetic_images(num_inputs, *size),
        partial(counters, model),
        tasks=tasks,
        depth=depth,
        calibrate=_Inference(model) if is_config else None,
    )


def build_detector(config: str | os.PathLike, opts: Sequence[str] = ()) -> nn.Module:
    """Build a detector from a .py config on the CPU with random weights, for inference.

    Args:
        config: config of the detector; it is run.
        opts: KEY=VALUE overrides of the config.

    Raises:
        ConfigError: a missing config, or one of another kind.
    """
    content = read_config(config, opts)
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(content.model).eval()


def prepare(image: np.ndarray, *, short_side: int, long_side: int) -> Tensor:
    """Return an RGB image [H, W, 3] uint8 as from MMDetection's pipelines: BGR, resized, float32 [3, h, w]."""
    resized = mmcv.imrescale(image[:, :, ::-1], (long_side, short_side))
    return torch.from_numpy(resized.astype("float32").transpose(2, 0, 1).copy())


def counters(model: nn.Module, image: Tensor) -> tuple[TraceCounter, TraceCounter]:
    """Return MMEngine's counters of multiply-adds and activations for an image, float32 [3, H, W]."""
    wrapper = _Inference(model)
    multiply_adds = FlopAnalyzer(wrapper, (image,)).set_op_handle(**dict.fromkeys(_IGNORED))
    return multiply_adds, ActivationAnalyzer(wrapper, (image,))


class _Inference(nn.Module):
    """A detector's inference from an image, float32 [3, H, W], to its detections and the outputs of all its layers.

    Tracing removes operations that no output depends on, which are all of them if MMDetection finds nothing and returns
    empty tensors. Therefore the layers' outputs are returned too.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> list[Tensor]:
        size = tuple(map(int, image.shape[-2:]))
        sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)})
        data = self.model.data_preprocessor({"inputs": [image], "data_samples": [sample]}, False)
        kept: list[Tensor] = []
        layers = [module for module in self.model.modules() if not any(module.children())]
        hooks = [layer.register_forward_hook(lambda *call: kept.append(call[2])) for layer in layers]
        try:
            [found] = self.model(**data, mode="predict")
        finally:
            for hook in hooks:
                hook.remove()
        return [*found.pred_instances.values(), *kept]
