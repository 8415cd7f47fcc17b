"""The mmcv operators that MMDetection needs, from torchvision, for an mmcv without compiled operators.

mmcv looks for its operators in a compiled module `mmcv._ext`. `topodet install-mmcv-ops` adds a file of that name,
which imports them from here: nms, RoIAlign with average pooling, the sigmoid focal loss and, by torch, multi-scale
deformable attention, each with the same arguments, results and gradients as mmcv's. They are sufficient for R-CNNs,
RetinaNets and DETRs on CPUs and GPUs. Every other operator of mmcv is a function that raises NotImplementedError with
its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision.ops
from torch import Tensor

__all__ = [
    "get_compiler_version",
    "get_compiling_cuda_version",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "nms",
    "roi_align_backward",
    "roi_align_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
]

_AVERAGE = 1  # mmcv's value of pool_mode "avg"; 0 is "max"
_REMEDY = (
    "topodet install-mmcv-ops provides only nms, roi_align, the focal loss and deformable attention; for the others "
    "install an mmcv with compiled operators"
)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that non-maximum suppression keeps, int64, by descending score.

    Boxes of equal score keep their order; in mmcv their order is unspecified.

    Args:
        boxes: [N, 4], x1, y1, x2, y2.
        scores: [N].
        iou_threshold: a box is removed if its IoU with a kept one is larger.
        offset: 0, or 1 if a box's width is x2 - x1 + 1.
    """
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    # mmcv's threshold is a float32: 0.3 is 0.300000012 there, which an IoU of three tenths does not exceed.
    return torchvision.ops.nms(boxes, scores, float(np.float32(iou_threshold)))


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `output` [K, C, aligned_height, aligned_width] with the averages over the cells of K regions.

    Args:
        input: [N, C, H, W].
        rois: [K, 5], the index of an image and x1, y1, x2, y2.
        output: overwritten.
        argmax_y: of the other pool_mode, unused.
        argmax_x: likewise.
        aligned_height: cells of a region.
        aligned_width: likewise.
        spatial_scale: scale from the boxes' coordinates to those of `input`.
        sampling_ratio: samples per cell along each side; 0 or less for about one per pixel.
        pool_mode: 1, averages.
        aligned: pixel centers are at half coordinates.

    Raises:
        NotImplementedError: pool_mode 0, maxima.
    """
    if pool_mode != _AVERAGE:
        raise NotImplementedError(f"roi_align with pool_mode='max': {_REMEDY}")
    size = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `grad_input` [N, C, H, W] with the gradient of `roi_align_forward` at `grad_output` [K, C, h, w]."""
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output,
            rois.to(grad_output.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill `output` [N, C] with the focal loss of every score.

    Args:
        input: scores before the sigmoid, [N, C].
        target: class of each row, int64 [N]; C for none.
        weight: weight of each class; empty in MMDetection.
        output: overwritten.
        gamma: exponent of the focus.
        alpha: weight of a row's own class against 1 - alpha of the others.

    Raises:
        NotImplementedError: `weight` is not empty.
    """
    output.copy_(_sigmoid_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill `grad_input` [N, C] with the derivative of each loss of `sigmoid_focal_loss_forward` by its own score."""
    with torch.enable_grad():
        scores = input.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_sigmoid_focal_loss(scores, target, weight, gamma, alpha).sum(), scores)
    grad_input.copy_(gradient)


def _sigmoid_focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    if weight.numel():
        raise NotImplementedError(f"sigmoid_focal_loss with class weights: {_REMEDY}")
    classes = input.shape[1]
    one_hot = torch.nn.functional.one_hot(target, classes + 1)[:, :classes].to(input.dtype)
    return torchvision.ops.sigmoid_focal_loss(input, one_hot, alpha=alpha, gamma=gamma)


def ms_deform_attn_forward(
    value: Tensor, shapes: Tensor, level_start: Tensor, locations: Tensor, weights: Tensor, im2col_step: int
) -> Tensor:
    """Return multi-scale deformable attention, [N, Q, heads * C], which mmcv calls on GPUs.

    Args:
        value: values of all levels, concatenated, [N, sum of H * W, heads, C].
        shapes: H and W of each level, [levels, 2].
        level_start: start of each level, which also follows from the shapes.
        locations: locations of the samples, in 0..1, [N, Q, heads, levels, points, 2].
        weights: weights of the samples, [N, Q, heads, levels, points].
        im2col_step: option of mmcv's kernel, unused.
    """
    images, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    sampled = []
    sizes = shapes.tolist()
    for level, part in enumerate(value.split([height * width for height, width in sizes], dim=1)):
        maps = part.permute(0, 2, 3, 1).reshape(images * heads, channels, *sizes[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled.append(torch.nn.functional.grid_sample(maps, grid, align_corners=False))
    shares = weights.transpose(1, 2).reshape(images * heads, 1, queries, levels * points)
    summed = (torch.stack(sampled, dim=-2).flatten(-2) * shares).sum(-1)
    return summed.reshape(images, heads * channels, queries).transpose(1, 2).contiguous()


def ms_deform_attn_backward(
    value: Tensor,
    shapes: Tensor,
    level_start: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    im2col_step: int,
) -> None:
    """Fill the three gradients of `ms_deform_attn_forward` at `grad_output`."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        output = ms_deform_attn_forward(inputs[0], shapes, level_start, *inputs[1:], im2col_step)
        found = torch.autograd.grad(output, inputs, grad_output)
    for gradient, given in zip((grad_value, grad_locations, grad_weights), found):
        gradient.copy_(given)


def get_compiler_version() -> str:
    """Return the compiler entry of mmcv's environment report."""
    return "not compiled"


def get_compiling_cuda_version() -> str:
    """Return the CUDA entry of mmcv's environment report."""
    return "not compiled"


def missing_operator(name: str) -> Callable[..., Any]:
    """Return a placeholder for a missing operator: mmcv looks up all operators when it is imported.

    Raises:
        AttributeError: a special name that Python looks up in modules.
    """
    if name.startswith("__"):
        raise AttributeError(name)

    def raise_(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{name}: {_REMEDY}")

    return raise_
