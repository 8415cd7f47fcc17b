"""Export detectors for use without Detectron2: TorchScript and ONNX, traced through Detectron2's `TracingAdapter`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from detectron2.engine import DefaultPredictor
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.structures import Instances
from torch import Tensor, nn

from .. import exported
from ..errors import ConfigError
from ..exported import Format
from .inference import class_names


def export_detector(
    detector: DefaultPredictor,
    image: np.ndarray,
    path: str | os.PathLike,
    *,
    format: Format = "torchscript",
    opset: int = 17,
) -> dict[str, Any]:
    """Write a detector as TorchScript or ONNX, and a JSON file that describes inputs and outputs.

    The exported model takes one image, float32 [C, H, W] in 0..255, already resized, of any H and W. It returns boxes
    [N, 4] at the scale of that image, labels [N], masks [N, 1, 28, 28] within their boxes (if the detector has masks),
    scores [N] and the image's size [2]. It includes score threshold and suppression. The file gets its final name only
    after its detections match the detector's, on the image and on a smaller one.

    Args:
        detector: a Faster, Mask, Cascade R-CNN or RetinaNet, see `load_detector`.
        image: RGB, [H, W, 3] uint8; the detector must find something in it.
        path: path of the file; the JSON is NAME.ts.json or NAME.onnx.json.
        format: "torchscript" (read with torch and torchvision) or "onnx".
        opset: ONNX opset, 16 or later, which has RoIAlign as detectors compute it.

    Returns:
        the content of the JSON.

    Raises:
        ConfigError: another format, opset or kind of detector, or a package is missing.
        DataError: no detections in the image, or different ones from the exported model.
        OSError: the file could not be written.
    """
    exported.check_format(format, opset)
    model = detector.model
    if not isinstance(model, GeneralizedRCNN | RetinaNet):
        raise ConfigError(f"{type(model).__name__} cannot be exported; known: GeneralizedRCNN, RetinaNet")
    sample = _input(detector, image)
    # Fields come in alphabetical order: boxes, classes, masks, scores. The exporter restores the adapter's mode, and
    # sets it for all modules within: eval().
    adapter = TracingAdapter(model, [{"image": sample}], _without_postprocessing).eval()
    cfg = detector.cfg
    return exported.write(
        adapter,
        adapter,
        sample,
        path,
        format=format,
        opset=opset,
        input={
            "channel_order": cfg.INPUT.FORMAT,
            "short_side": cfg.INPUT.MIN_SIZE_TEST,
            "long_side_at_most": cfg.INPUT.MAX_SIZE_TEST,
        },
        classes=class_names(detector),
    )


def _without_postprocessing(model: nn.Module, inputs: list[dict[str, Tensor]]) -> list[dict[str, Instances]]:
    if isinstance(model, GeneralizedRCNN):
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]
    return model(inputs)  # postprocessing has no effect: the output size is the input size


def _input(detector: DefaultPredictor, image: np.ndarray) -> Tensor:
    """Return an image as the predictor would pass it to its model."""
    if detector.cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    image = detector.aug.get_transform(image).apply_image(image)
    return torch.as_tensor(image.astype("float32").transpose(2, 0, 1), device=detector.model.device)
