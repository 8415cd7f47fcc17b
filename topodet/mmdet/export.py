"""Export detectors for use without MMDetection: TorchScript and ONNX.

MMDetection's own inference cannot be traced: it branches on the content of an image, and mmcv's operators exist only in
mmcv. `TracedRCNN` and `TracedRetinaNet` do the same computation with torch's and torchvision's operators; the exported
file is compared with the detector itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models import (
    BBoxHead,
    CascadeRoIHead,
    RetinaHead,
    RPNHead,
    SingleStageDetector,
    StandardRoIHead,
    TwoStageDetector,
)
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import DeltaXYWHBBoxCoder, delta2bbox
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import get_test_pipeline_cfg
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms, roi_align

from .. import exported
from ..errors import ConfigError
from ..exported import Format
from .inference import class_names

Size = tuple[Any, Any]  # height and width: integers, or tensors while tracing


def export_detector(
    detector: nn.Module,
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
    traced = traceable(detector)
    prepared = detector.test_pipeline({"img": np.ascontiguousarray(image[:, :, ::-1]), "img_id": 0})
    sample = prepared["inputs"].to(next(detector.parameters()).device, torch.float32)
    if detector.data_preprocessor._channel_conversion:
        sample = sample[[2, 1, 0]]
    # From the Resize step: images are resized to the short side, unless the long side would exceed its limit.
    sizes = [
        step["scale"] for step in get_test_pipeline_cfg(detector.cfg) if step["type"] == "Resize" and "scale" in step
    ]
    short, long = sorted(sizes[0]) if sizes else (None, None)
    return exported.write(
        traced,
        partial(_original, detector),
        sample,
        path,
        format=format,
        opset=opset,
        input={
            "channel_order": "RGB" if detector.data_preprocessor._channel_conversion else "BGR",
            "short_side": short,
            "long_side_at_most": long,
        },
        classes=class_names(detector),
    )


def traceable(detector: nn.Module) -> Traced:
    """Return a detector's inference in traceable operators; it shares the detector's parameters.

    Raises:
        ConfigError: a detector with an unsupported part; names the part.
    """
    if isinstance(detector, TwoStageDetector):
        return TracedRCNN(detector).eval()
    if isinstance(detector, SingleStageDetector):
        return TracedRetinaNet(detector).eval()
    raise _unknown(detector, "a two-stage or single-stage detector")


class Traced(nn.Module):
    """Base class of traced detectors."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Normalize an image, pad it to the right and below, and return the neck's feature maps."""
        preprocessor = self.detector.data_preprocessor
        if preprocessor._enable_normalize:
            image = (image - preprocessor.mean) / preprocessor.std
        down, right = (-side % preprocessor.pad_size_divisor for side in image.shape[-2:])
        image = F.pad(image[None], (0, right, 0, down), value=float(preprocessor.pad_value))
        return self.detector.extract_feat(image)


class TracedRetinaNet(Traced):
    """A RetinaNet."""

    def __init__(self, detector: nn.Module):
        super().__init__(detector)
        _check_anchor_head(detector.bbox_head, RetinaHead)
        _check_suppression(detector.test_cfg)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return boxes [N, 4], labels [N], scores [N] and the image's size [2]."""
        head, config = self.detector.bbox_head, self.detector.test_cfg
        boxes, scores, labels = [], [], []
        for logits, deltas, anchors in _levels(head, self.features(image)):
            probabilities = _probabilities(head, logits)
            places, classes = (probabilities > config.get("score_thr", 0)).nonzero().unbind(dim=1)
            best, order = probabilities[places, classes].sort(descending=True)
            order = order[: _most(config)]
            scores.append(best[: _most(config)])
            labels.append(classes[order])
            places = places[order]
            boxes.append(_decode(head.bbox_coder, anchors[places], deltas[places], image.shape[-2:]))
        found = _suppress(torch.cat(boxes), torch.cat(scores), torch.cat(labels), config)
        return *found, _size(image)


class TracedRCNN(Traced):
    """A Faster, Mask or Cascade R-CNN."""

    def __init__(self, detector: nn.Module):
        super().__init__(detector)
        roi_head = detector.roi_head
        if type(roi_head) not in (StandardRoIHead, CascadeRoIHead):
            raise _unknown(roi_head, "StandardRoIHead or CascadeRoIHead")
        self.cascade = isinstance(roi_head, CascadeRoIHead)
        if roi_head.with_shared_head or (self.cascade and roi_head.with_mask):
            raise ConfigError("a RoI head with a shared head, or a cascade with masks, cannot be exported")
        _check_anchor_head(detector.rpn_head, RPNHead)
        for extractor in (*self._extractors(), *([roi_head.mask_roi_extractor] if roi_head.with_mask else [])):
            _check_extractor(extractor)
        for head in self._heads():
            if (
                not isinstance(head, BBoxHead)
                or head.custom_cls_channels
                or not isinstance(head.bbox_coder, DeltaXYWHBBoxCoder)
            ):
                raise _unknown(head, "BBoxHead with softmax and DeltaXYWHBBoxCoder")
        _check_suppression(detector.test_cfg.rpn)
        _check_suppression(detector.test_cfg.rcnn)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return boxes [N, 4], labels [N], masks [N, 1, 28, 28] (of a Mask R-CNN), scores [N], the image's size [2]."""
        features, size = self.features(image), image.shape[-2:]
        config = self.detector.test_cfg.rcnn
        boxes = self._proposals(features, size)
        logits = []
        stages = list(zip(self._extractors(), self._heads()))
        for extractor, head in stages[:-1]:
            scores, deltas = head(_pool(extractor, features, boxes))
            logits.append(scores)
            best = scores[:, :-1].argmax(dim=1)
            if not head.reg_class_agnostic:
                deltas = _of_class(deltas.reshape(-1, head.num_classes, 4), best)
            boxes = _decode(head.bbox_coder, boxes, deltas, size)
        extractor, head = stages[-1]
        scores, deltas = head(_pool(extractor, features, boxes))
        probabilities = (sum([*logits, scores]) / len(stages)).softmax(dim=1)[:, :-1]
        places, labels = (probabilities > config.score_thr).nonzero().unbind(dim=1)
        deltas = deltas[places]
        if not head.reg_class_agnostic:
            deltas = _of_class(deltas.reshape(-1, head.num_classes, 4), labels)
        boxes = _decode(head.bbox_coder, boxes[places], deltas, size)
        boxes, labels, scores = _suppress(boxes, probabilities[places, labels], labels, config)
        masks = self._masks(features, boxes, labels) if self.detector.roi_head.with_mask else ()
        return boxes, labels, *masks, scores, _size(image)

    def _proposals(self, features: Sequence[Tensor], size: Size) -> Tensor:
        head, config = self.detector.rpn_head, self.detector.test_cfg.rpn
        boxes, scores, levels = [], [], []
        for k, (logits, deltas, anchors) in enumerate(_levels(head, features)):
            best, order = _probabilities(head, logits)[:, 0].sort(descending=True)
            order = order[: _most(config)]
            scores.append(best[: _most(config)])
            levels.append(torch.full_like(order, k))
            boxes.append(_decode(head.bbox_coder, anchors[order], deltas[order], size))
        return _suppress(torch.cat(boxes), torch.cat(scores), torch.cat(levels), config)[0]

    def _masks(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> tuple[Tensor]:
        roi_head = self.detector.roi_head
        logits = roi_head.mask_head(_pool(roi_head.mask_roi_extractor, features, boxes))
        return (_masks_of_classes(roi_head.mask_head, logits, labels),)

    def _heads(self) -> Sequence[nn.Module]:
        head = self.detector.roi_head.bbox_head
        return head if self.cascade else [head]

    def _extractors(self) -> Sequence[nn.Module]:
        extractor = self.detector.roi_head.bbox_roi_extractor
        return extractor if self.cascade else [extractor]


def _levels(head: nn.Module, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return an anchor head's outputs for the first image by level: logits [A, K], deltas [A, 4], anchors [A, 4]."""
    logits, deltas = head(features)
    sizes = [scores.shape[-2:] for scores in logits]
    anchors = head.prior_generator.grid_priors(sizes, dtype=logits[0].dtype, device=logits[0].device)
    return [
        (
            scores[0].permute(1, 2, 0).reshape(-1, head.cls_out_channels),
            changes[0].permute(1, 2, 0).reshape(-1, 4),
            places,
        )
        for scores, changes, places in zip(logits, deltas, anchors)
    ]


def _most(config: Mapping[str, Any]) -> int | None:
    """Return how many boxes per level enter suppression; None for all."""
    most = config.get("nms_pre", -1)
    return most if most > 0 else None


def _probabilities(head: nn.Module, logits: Tensor) -> Tensor:
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(dim=1)[:, :-1]


def _decode(coder: nn.Module, boxes: Tensor, deltas: Tensor, size: Size) -> Tensor:
    """Return boxes [N, 4] moved by deltas [N, 4], within the image."""
    moved = delta2bbox(
        boxes, deltas, coder.means, coder.stds, add_ctr_clamp=coder.add_ctr_clamp, ctr_clamp=coder.ctr_clamp
    )
    if not coder.clip_border:
        return moved
    height, width = (torch.as_tensor(side, dtype=moved.dtype, device=moved.device) for side in size)
    return torch.minimum(moved.clamp(min=0), torch.stack([width, height, width, height]))


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return the boxes that suppression within each group keeps, best first, with their groups and scores."""
    smallest = config.get("min_bbox_size", -1)
    if smallest >= 0:
        large = ((boxes[:, 2:] - boxes[:, :2]) > smallest).all(dim=1).nonzero()[:, 0]
        boxes, scores, groups = boxes[large], scores[large], groups[large]
    threshold = config["nms"]["iou_threshold"]
    if config["nms"].get("class_agnostic"):
        kept = nms(boxes, scores, threshold)
    else:
        kept = batched_nms(boxes, scores, groups, threshold)
    kept = kept[: config["max_per_img"]]
    return boxes[kept], groups[kept], scores[kept]


def _pool(extractor: nn.Module, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Return the features of boxes [N, 4], each from the level of its size: [N, C, h, w]."""
    features = features[: extractor.num_inputs]
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    levels = extractor.map_roi_levels(rois, len(features))
    pooled = features[0].new_zeros((rois.shape[0], extractor.out_channels, *extractor.roi_layers[0].output_size))
    for k, (layer, feature) in enumerate(zip(extractor.roi_layers, features)):
        places = (levels == k).nonzero()[:, 0]
        found = roi_align(
            feature, rois[places], layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
        pooled = pooled.index_put((places,), found.to(pooled.dtype))
    return pooled


def _of_class(values: Tensor, labels: Tensor) -> Tensor:
    """Return the value of each row's class, from [N, K, ...] to [N, ...]."""
    return values[torch.arange(labels.shape[0], device=labels.device), labels]


def _masks_of_classes(head: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    masks = logits[:, 0] if head.class_agnostic else _of_class(logits, labels)
    return masks[:, None].sigmoid()


def _size(image: Tensor) -> Tensor:
    return torch.stack([torch.as_tensor(side) for side in image.shape[-2:]])


def _original(detector: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the detections in an image [C, H, W] by MMDetection's own inference."""
    size = tuple(image.shape[-2:])
    if detector.data_preprocessor._channel_conversion:  # the preprocessor converts it again
        image = image[[2, 1, 0]]
    sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)})
    data = detector.data_preprocessor({"inputs": [image], "data_samples": [sample]}, False)
    features = detector.extract_feat(data["inputs"])
    if isinstance(detector, SingleStageDetector):
        [found] = detector.bbox_head.predict(features, data["data_samples"], rescale=False)
        masks = []
    else:
        head = detector.roi_head
        proposals = detector.rpn_head.predict(features, data["data_samples"], rescale=False)
        metas = [sample.metainfo for sample in data["data_samples"]]
        [found] = head.predict_bbox(features, metas, proposals, detector.test_cfg.rcnn, rescale=False)
        masks = []
        if head.with_mask:
            logits = head._mask_forward(features, bbox2roi([found.bboxes]))["mask_preds"]
            masks = [_masks_of_classes(head.mask_head, logits, found.labels)]
    return [found.bboxes, found.labels, *masks, found.scores, torch.tensor(size)]


def _check_anchor_head(head: nn.Module, kind: type[nn.Module]) -> None:
    if not (
        isinstance(head, kind)
        and isinstance(head.bbox_coder, DeltaXYWHBBoxCoder)
        and isinstance(head.prior_generator, AnchorGenerator)
    ):
        raise _unknown(head, f"{kind.__name__} with AnchorGenerator and DeltaXYWHBBoxCoder")


def _check_extractor(extractor: nn.Module) -> None:
    layers = getattr(extractor, "roi_layers", [])
    if type(extractor) is not SingleRoIExtractor or not all(
        type(layer).__name__ == "RoIAlign" and layer.pool_mode == "avg"
        for layer in layers  # mmcv's
    ):
        raise _unknown(extractor, "SingleRoIExtractor with RoIAlign that averages")


def _check_suppression(config: Mapping[str, Any]) -> None:
    known = {"type", "iou_threshold", "class_agnostic", "split_thr"}
    suppression = config["nms"]
    if suppression.get("type", "nms") != "nms" or not set(suppression) <= known:
        raise ConfigError(
            f"a detector with nms={dict(suppression)} in its test_cfg cannot be exported: only type 'nms' with "
            "iou_threshold has an operator in TorchScript and ONNX"
        )


def _unknown(part: nn.Module, known: str) -> ConfigError:
    return ConfigError(f"{type(part).__name__} cannot be exported, because its inference differs; known: {known}")
