"""Detectors as TorchScript and ONNX files, in the same format for both frameworks; each is compared with its original.

Both are traced. Scripting is not supported: a TopoNet's wiring is Python code that tracing unrolls.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError, DataError, unknown_name
from .files import atomic_json, atomic_path

Format = Literal["torchscript", "onnx"]
SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx"}
TOLERANCE = 1e-4  # for scores, and for boxes in units of the image's longer side
MASK_TOLERANCE = 1e-2  # for a pixel's probability

Network = Callable[[Tensor], Sequence[Tensor]]


def check_format(format: Format, opset: int) -> None:
    """Refuse invalid formats and opsets.

    Raises:
        ConfigError: another format, or an opset that lacks operators of detectors.
    """
    if format not in SUFFIXES:
        raise ConfigError(unknown_name("format", format, SUFFIXES))
    if format == "onnx" and opset < 16:
        raise ConfigError(f"opset={opset} must be at least 16, the first with the RoIAlign that detectors use")


@torch.no_grad()
def write(
    network: nn.Module,
    original: Network,
    sample: Tensor,
    path: str | os.PathLike,
    *,
    format: Format,
    opset: int,
    input: Mapping[str, Any],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Write a detector, and a JSON file that describes inputs and outputs.

    The file gets its final name only after its detections match the original's, on the sample and on a smaller copy.

    Args:
        network: in inference mode; maps an image, float32 [C, H, W] in 0..255, to boxes [N, 4], labels [N], masks [N,
            1, h, w] within their boxes (if it has masks), scores [N] and the image's size [2], in traceable operators.
        original: the detector itself, with the same interface.
        sample: an image in this format.
        path: path of the file; the JSON is NAME.ts.json or NAME.onnx.json.
        format: "torchscript" or "onnx".
        opset: ONNX opset.
        input: description of the image in the JSON, in addition to its type.
        classes: names by label.

    Returns:
        the content of the JSON.

    Raises:
        ConfigError: a missing package, or an operator that this version of torch cannot export.
        DataError: no detections in the sample, or different ones from the exported model.
        OSError: the file could not be written.
    """
    check_format(format, opset)
    found = original(sample)
    names = ["boxes", "labels", *(["masks"] if len(found) == 5 else []), "scores", "image_size"]
    if not len(found[0]):
        raise DataError(
            "the detector finds nothing in the sample image, so there is nothing to compare; give another image or a "
            "lower score threshold"
        )
    path = Path(path)
    with atomic_path(path) as temporary:
        if format == "torchscript":
            _write_torchscript(network, sample, temporary)
            run: Network = torch.jit.load(str(temporary), map_location=sample.device)
        else:
            _write_onnx(network, sample, temporary, names, opset)
            run = _onnx(temporary)
        # A trace can contain constants that are only valid for its own image; another size reveals them.
        smaller = F.interpolate(sample[None], scale_factor=0.8, mode="bilinear")[0]
        differences = [
            compare(dict(zip(names, original(image))), dict(zip(names, run(image)))) for image in (sample, smaller)
        ]
    content = {
        "file": path.name,
        "format": format,
        "opset": opset if format == "onnx" else None,
        "input": {"name": "image", "dtype": "float32", "layout": "CHW, 0..255, any size", **input},
        "outputs": names,
        "boxes": "left, top, right, bottom in pixels of the input",
        "classes": list(classes),
        "compared": {
            "boxes": len(found[0]),
            "score": max(score for score, _ in differences),
            "box": max(box for _, box in differences),
        },
    }
    atomic_json(path.with_name(f"{path.name}.json"), content)
    return content


def compare(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the largest difference of scores and of boxes, the latter in units of the image's longer side.

    Args:
        ours: the original's detections: "boxes", "labels", "scores", "image_size" and, if any, "masks".
        theirs: the exported model's detections.

    Raises:
        DataError: another number of boxes, or differences beyond the tolerance.
    """
    ours, theirs = ({name: value.cpu() for name, value in found.items()} for found in (ours, theirs))
    count = len(ours["scores"])
    if count != len(theirs["scores"]):
        raise DataError(f"the exported detector finds {len(theirs['scores'])} boxes where the original finds {count}")
    score = box = 0.0
    side = float(ours["image_size"].max())
    left = torch.ones(count, dtype=torch.bool)
    for k in range(count):
        # Not by position: equal scores may come in another order.
        scores = (theirs["scores"] - ours["scores"][k]).abs()
        boxes = (theirs["boxes"] - ours["boxes"][k]).abs().amax(dim=1) / side
        cost = torch.maximum(scores, boxes)
        cost[~left | (theirs["labels"] != ours["labels"][k])] = torch.inf
        match = int(cost.argmin())
        if not cost[match] <= TOLERANCE:
            raise DataError(
                f"the exported detector does not find box {k} of {count} as the original does "
                f"(difference {cost[match]:.2g}, at most {TOLERANCE:g} is allowed); nearly equal scores, as from an "
                "untrained detector, may change their order"
            )
        if "masks" in ours and not (theirs["masks"][match] - ours["masks"][k]).abs().max() <= MASK_TOLERANCE:
            raise DataError(f"the exported detector gives box {k} of {count} a different mask than the original")
        left[match] = False
        score, box = max(score, float(scores[match])), max(box, float(boxes[match]))
    return score, box


def _write_torchscript(network: nn.Module, sample: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about code that may not generalize; the result is compared
        traced = torch.jit.trace(network, (sample,), check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    # A copy without gradients; the detector itself keeps them.
    copy = torch.jit.load(buffer)
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
    torch.jit.save(copy, str(path))


def _write_onnx(network: nn.Module, sample: Tensor, path: Path, names: Sequence[str], opset: int) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (sample,),
                str(path),
                input_names=["image"],
                output_names=list(names),
                dynamic_axes={"image": {1: "height", 2: "width"}, **{name: {0: "found"} for name in names[:-1]}},
                opset_version=opset,
                dynamo=False,  # the other exporter does not support torchvision's nms and roi_align
            )
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"ONNX with opset {opset} cannot be written by torch {torch.__version__}: {error}") from error


def _onnx(path: Path) -> Network:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("onnxruntime is needed to check the ONNX file: pip install onnxruntime") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(a) for a in session.run(None, {"image": image.cpu().numpy()})]
