"""Detectors for places without Detectron2: TorchScript and ONNX, compared with the original before they are kept.

Both are traced through Detectron2's `TracingAdapter`. Scripting is not offered: a TopoNet's wiring is Python that
tracing unrolls.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.engine import DefaultPredictor
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.structures import Instances
from torch import Tensor, nn

from ..errors import ConfigError, DataError, unknown_name
from ..files import atomic_json, atomic_path

Format = Literal["torchscript", "onnx"]
SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx"}
TOLERANCE = 1e-4  # of scores; of boxes in units of the image's longer side
MASK_TOLERANCE = 1e-2  # of a pixel's probability


@torch.no_grad()
def export_detector(
    predictor: DefaultPredictor,
    image: np.ndarray,
    path: str | os.PathLike,
    *,
    format: Format = "torchscript",
    opset: int = 17,
) -> dict[str, Any]:
    """Write a detector as TorchScript or ONNX, and a JSON beside it that says what goes in and comes out.

    What is written takes one image, float32 [C, H, W] in 0..255, already resized, of any H and W; it returns the fields
    of Detectron2's `Instances` in alphabetical order and the image's size, boxes at the scale of that image (masks,
    where there are any, as [N, 1, 28, 28] within their boxes). Score threshold and suppression are part of it.

    Args:
        predictor: of a Faster, Mask, Cascade R-CNN or RetinaNet, see `topodet.detectron2.load_detector`.
        image: RGB, [H, W, 3] uint8; the detector must find something in it.
        path: of the file; the JSON is NAME.ts.json or NAME.onnx.json.
        format: "torchscript" (read with torch and torchvision) or "onnx".
        opset: of ONNX, 16 or later, which has RoIAlign as Detectron2 computes it.

    Returns:
        the content of the JSON.

    Raises:
        ConfigError: another format, opset or kind of detector, or a package is missing.
        DataError: nothing is found in the image, or the result finds something else than the original.
        OSError: the file could not be written.
    """
    if format not in SUFFIXES:
        raise ConfigError(unknown_name("format", format, SUFFIXES))
    if format == "onnx" and opset < 16:
        raise ConfigError(f"opset={opset}: ONNX has RoIAlign as Detectron2 computes it from 16 on")
    model = predictor.model
    if not isinstance(model, GeneralizedRCNN | RetinaNet):
        raise ConfigError(f"{type(model).__name__} cannot be exported; known: GeneralizedRCNN, RetinaNet")
    sample = _input(predictor, image)
    # The exporter puts a module back into the mode that it found it in, with all that is in it.
    adapter = TracingAdapter(model, [{"image": sample}], _without_postprocessing).eval()
    found = _instances(adapter, adapter(sample))
    if not len(found):
        raise DataError(
            "the detector finds nothing in the sample image, so that a comparison would say nothing; give another "
            "image or a lower score threshold"
        )
    names = [*sorted(found.get_fields()), "image_size"]
    path = Path(path)
    with atomic_path(path) as temporary:
        if format == "torchscript":
            _write_torchscript(adapter, sample, temporary)
            run = _torchscript(temporary, sample.device)
        else:
            _write_onnx(adapter, sample, temporary, names, opset)
            run = _onnx(temporary)
        # A trace can hold on to what was only true of its own image: another size finds that out.
        smaller = F.interpolate(sample[None], scale_factor=0.8, mode="bilinear")[0]
        differences = [
            _compare(_instances(adapter, adapter(x)), _instances(adapter, run(x))) for x in (sample, smaller)
        ]
    cfg = predictor.cfg
    content = {
        "file": path.name,
        "format": format,
        "opset": opset if format == "onnx" else None,
        "input": {
            "name": "image",
            "dtype": "float32",
            "layout": "CHW, 0..255, any size",
            "channel_order": cfg.INPUT.FORMAT,
            "short_side": cfg.INPUT.MIN_SIZE_TEST,
            "long_side_at_most": cfg.INPUT.MAX_SIZE_TEST,
        },
        "outputs": names,
        "boxes": "left, top, right, bottom in pixels of the input",
        "classes": list(predictor.metadata.get("thing_classes", ())),
        "compared": {
            "boxes": len(found),
            "score": max(score for score, _ in differences),
            "box": max(box for _, box in differences),
        },
    }
    atomic_json(path.with_name(f"{path.name}.json"), content)
    return content


def _without_postprocessing(model: nn.Module, inputs: list[dict[str, Tensor]]) -> list[dict[str, Instances]]:
    if isinstance(model, GeneralizedRCNN):
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]
    return model(inputs)  # resized to the size that it is given: none


def _instances(adapter: TracingAdapter, outputs: Sequence[Tensor]) -> Instances:
    return adapter.outputs_schema(outputs)[0]["instances"]


def _input(predictor: DefaultPredictor, image: np.ndarray) -> Tensor:
    """Return what the predictor would show its model."""
    if predictor.cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    image = predictor.aug.get_transform(image).apply_image(image)
    return torch.as_tensor(image.astype("float32").transpose(2, 0, 1), device=predictor.model.device)


def _write_torchscript(adapter: nn.Module, sample: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what may not generalise: it is compared below
        traced = torch.jit.trace(adapter, (sample,), check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    # A copy, so that the detector keeps its gradients: whoever loads the file needs none.
    copy = torch.jit.load(buffer)
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
    torch.jit.save(copy, str(path))


def _write_onnx(adapter: nn.Module, sample: Tensor, path: Path, names: Sequence[str], opset: int) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                adapter,
                (sample,),
                str(path),
                input_names=["image"],
                output_names=list(names),
                dynamic_axes={"image": {1: "height", 2: "width"}, **{name: {0: "found"} for name in names[:-1]}},
                opset_version=opset,
                dynamo=False,  # the other exporter knows neither suppression nor RoIAlign of torchvision
            )
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"ONNX with opset {opset} cannot be written by torch {torch.__version__}: {error}") from error


def _torchscript(path: Path, device: torch.device) -> Callable[[Tensor], Sequence[Tensor]]:
    return torch.jit.load(str(path), map_location=device)


def _onnx(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("the ONNX file is compared by running it: pip install onnxruntime") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(a) for a in session.run(None, {"image": image.cpu().numpy()})]


def _compare(ours: Instances, theirs: Instances) -> tuple[float, float]:
    """Return the largest difference of scores and of boxes, the latter in units of the image's longer side.

    Raises:
        DataError: another number of boxes, or differences beyond the tolerance.
    """
    ours, theirs = ours.to("cpu"), theirs.to("cpu")
    if len(ours) != len(theirs):
        raise DataError(f"the exported detector finds {len(theirs)} boxes where the original finds {len(ours)}")
    score = box = 0.0
    side = float(max(ours.image_size))
    left = torch.ones(len(ours), dtype=torch.bool)
    for k in range(len(ours)):
        # Not by position: equal scores may come in another order.
        scores = (theirs.scores - ours.scores[k]).abs()
        boxes = (theirs.pred_boxes.tensor - ours.pred_boxes.tensor[k]).abs().amax(dim=1) / side
        cost = torch.maximum(scores, boxes)
        cost[~left | (theirs.pred_classes != ours.pred_classes[k])] = torch.inf
        match = int(cost.argmin())
        if not cost[match] <= TOLERANCE:
            raise DataError(
                f"the exported detector does not find box {k} of {len(ours)} as the original does "
                f"(difference {cost[match]:.2g}, at most {TOLERANCE:g} is allowed); nearly equal scores, as an "
                "untrained detector has them, can fall either way"
            )
        if ours.has("pred_masks") and (theirs.pred_masks[match] - ours.pred_masks[k]).abs().max() > MASK_TOLERANCE:
            raise DataError(f"the exported detector gives box {k} of {len(ours)} another mask than the original does")
        left[match] = False
        score, box = max(score, float(scores[match])), max(box, float(boxes[match]))
    return score, box
