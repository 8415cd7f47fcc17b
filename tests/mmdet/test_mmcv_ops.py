"""mmcv's operators from torchvision, against a plain reading of what they compute and against compiled ones."""

import importlib
import importlib.util
import itertools
import math
import sys

import mmcv.ops
import numpy as np
import pytest
import torch
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

from topodet import mmcv_ops
from topodet.commands import install_mmcv_ops
from topodet.errors import ConfigError


def reference_nms(boxes, scores, threshold, offset=0):
    """Return the kept indices in float32 arithmetic, one pair of boxes after another."""
    boxes, threshold, offset = boxes.numpy(), np.float32(threshold), np.float32(offset)
    areas = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
    kept = []
    for i in np.argsort(-scores.numpy(), kind="stable"):
        for k in kept:
            low, high = np.maximum(boxes[i, :2], boxes[k, :2]), np.minimum(boxes[i, 2:], boxes[k, 2:])
            width, height = np.maximum(high - low + offset, 0)
            shared = width * height
            if shared / (areas[i] + areas[k] - shared) > threshold:
                break
        else:
            kept.append(i)
    return torch.tensor(np.array(kept, dtype=np.int64))


def reference_roi_align(maps, rois, size, scale, ratio, aligned):
    """Return the averages in double precision, sample by sample; differentiable."""
    maps = maps.double()
    height, width = maps.shape[-2:]
    out = []
    for index, *box in rois.tolist():
        x1, y1, x2, y2 = (scale * v - (0.5 if aligned else 0) for v in box)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        ny, nx = (ratio, ratio) if ratio > 0 else (math.ceil(h / size), math.ceil(w / size))
        for row, column in itertools.product(range(size), range(size)):
            total = maps.new_zeros(maps.shape[1])
            for a, b in itertools.product(range(ny), range(nx)):
                y, x = y1 + (row + (a + 0.5) / ny) * h / size, x1 + (column + (b + 0.5) / nx) * w / size
                if -1 <= y <= height and -1 <= x <= width:
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    for yy, xx in itertools.product((math.floor(y), math.ceil(y)), (math.floor(x), math.ceil(x))):
                        share = (1 - abs(y - yy) if yy != y else 1) * (1 - abs(x - xx) if xx != x else 1)
                        once = (2 if math.floor(y) == math.ceil(y) else 1) * (2 if math.floor(x) == math.ceil(x) else 1)
                        total = total + maps[int(index), :, yy, xx] * share / once
            out.append(total / max(ny * nx, 1))
    return torch.stack(out).reshape(len(rois), size, size, -1).permute(0, 3, 1, 2) if out else None


def compiled():
    """Return mmcv's compiled operators, or skip."""
    module = importlib.import_module("mmcv._ext")
    if module.__file__.endswith(".py"):  # compiling takes half an hour; the same values are tested against loops above
        pytest.skip("this mmcv has no compiled operators to compare with")
    return module


def random_boxes(count, generator):
    corner = 60 * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 1 + 40 * torch.rand(count, 2, generator=generator)], dim=1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("count", [0, 1, 80])
def test_nms(count, threshold, offset, generator):
    boxes = random_boxes(count, generator).round()  # whole coordinates: IoUs that are equal to a threshold, and ties
    scores = torch.randint(20, (count,), generator=generator) / 20
    kept = mmcv_ops.nms(boxes, scores, threshold, offset)
    assert kept.dtype == torch.int64
    assert torch.equal(kept, reference_nms(boxes, scores, threshold, offset))


def test_nms_at_the_threshold_itself():
    """Three tenths as float32 are more than 0.3, and no more than mmcv's threshold of 0.3."""
    boxes = torch.tensor([[0.0, 0, 10, 1], [7, 0, 10, 1]])
    for threshold, kept in ((0.29, [0]), (0.3, [0, 1])):
        assert mmcv_ops.nms(boxes, torch.tensor([0.9, 0.8]), threshold, 0).tolist() == kept


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_and_its_gradient(ratio, aligned, generator):
    maps = torch.randn(2, 3, 11, 13, generator=generator, requires_grad=True)
    rois = torch.cat([torch.tensor([[0.0], [1], [1], [0]]), random_boxes(4, generator)], dim=1)
    rois[0, 1:] = torch.tensor([-9.0, -5, 30, 40])  # over the border
    rois[1, 1:] = torch.tensor([20.0, 20, 20, 20])  # of no size
    expected = reference_roi_align(maps, rois, 3, 0.125, ratio, aligned)
    gradient = torch.randn(expected.shape, generator=generator)
    (expected_gradient,) = torch.autograd.grad(expected, maps, gradient.double())

    output, unused, by_maps = torch.zeros(expected.shape), torch.zeros(0), torch.zeros(maps.shape)
    options = {"aligned_height": 3, "aligned_width": 3, "spatial_scale": 0.125, "sampling_ratio": ratio}
    options |= {"pool_mode": 1, "aligned": aligned}
    mmcv_ops.roi_align_forward(maps.detach(), rois, output, unused, unused, **options)
    mmcv_ops.roi_align_backward(gradient, rois, unused, unused, by_maps, **options)
    torch.testing.assert_close(output, expected.float())
    torch.testing.assert_close(by_maps, expected_gradient.float())


def test_focal_loss_and_its_gradient(generator):
    scores = torch.randn(7, 4, generator=generator, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 4, 1])  # 4 is none of the classes
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    expected = py_sigmoid_focal_loss(scores, one_hot, gamma=1.5, alpha=0.3, reduction="none")
    (expected_gradient,) = torch.autograd.grad(expected.sum(), scores)
    output, gradient = torch.zeros(7, 4), torch.zeros(7, 4)
    arguments = (scores.detach(), target, torch.zeros(0))
    mmcv_ops.sigmoid_focal_loss_forward(*arguments, output, gamma=1.5, alpha=0.3)
    mmcv_ops.sigmoid_focal_loss_backward(*arguments, gradient, gamma=1.5, alpha=0.3)
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(gradient, expected_gradient)
    with pytest.raises(NotImplementedError, match="class weights"):
        mmcv_ops.sigmoid_focal_loss_forward(scores, target, torch.ones(4), output, gamma=2, alpha=0.25)


def test_deformable_attention_and_its_gradients(generator):
    """Against mmcv's own, in torch, which it has for CPUs."""
    shapes = torch.tensor([[6, 5], [3, 2]])
    inputs = [torch.randn(2, 36, 3, 4), torch.rand(2, 7, 3, 2, 5, 2) * 1.4 - 0.2, torch.rand(2, 7, 3, 2, 5)]
    for tensor in inputs:
        tensor.requires_grad_()
    value, locations, weights = inputs
    own = importlib.import_module("mmcv.ops.multi_scale_deform_attn").multi_scale_deformable_attn_pytorch
    expected = own(value, shapes, locations, weights)
    gradient = torch.randn(expected.shape, generator=generator)
    arguments = (value.detach(), shapes, torch.tensor([0, 30]), locations.detach(), weights.detach())
    output = mmcv_ops.ms_deform_attn_forward(*arguments, im2col_step=64)
    found = [torch.zeros_like(tensor) for tensor in inputs]
    mmcv_ops.ms_deform_attn_backward(*arguments, gradient, *found, im2col_step=64)
    torch.testing.assert_close(output, expected.detach())
    for one, other in zip(found, torch.autograd.grad(expected, inputs, gradient)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("count", [0, 40])
def test_roi_align_is_that_of_the_compiled_mmcv(count, ratio, aligned, generator, monkeypatch):
    rois = torch.cat([torch.randint(2, (count, 1), generator=generator), random_boxes(count, generator) * 5], dim=1)
    maps = torch.randn(2, 4, 40, 56, generator=generator)
    gradient = torch.randn(count, 4, 7, 7, generator=generator).transpose(2, 3)  # not contiguous

    def run(module):
        monkeypatch.setattr(importlib.import_module("mmcv.ops.roi_align"), "ext_module", module)
        leaf = maps.clone().requires_grad_()
        out = mmcv.ops.RoIAlign(7, 0.125, ratio, aligned=aligned)(leaf, rois)
        return out.detach(), *torch.autograd.grad(out, leaf, gradient)

    for ours, theirs in zip(run(mmcv_ops), run(compiled())):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"split_thr": 10}, {"max_num": 5}, {"score_threshold": 0.5}, {"offset": 1}])
@pytest.mark.parametrize("count", [1, 200])  # of no boxes, mmcv's own batched_nms fails before it comes to operators
def test_batched_nms_is_that_of_the_compiled_mmcv(count, options, generator, monkeypatch):
    boxes = random_boxes(count, generator)
    scores = torch.rand(count, generator=generator)
    classes = torch.randint(3, (count,), generator=generator)

    def run(module):
        monkeypatch.setattr(importlib.import_module("mmcv.ops.nms"), "ext_module", module)
        return mmcv.ops.batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5, **options})

    for ours, theirs in zip(run(mmcv_ops), run(compiled())):
        assert torch.equal(ours, theirs)


def test_what_is_not_there_says_its_name():
    operator = mmcv_ops.missing_operator("deform_conv_forward")
    with pytest.raises(NotImplementedError, match="deform_conv_forward: topodet install-mmcv-ops provides"):
        operator(1, two=2)
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        mmcv_ops.roi_align_forward(*[torch.zeros(0)] * 5, 7, 7, 1.0, 0, 0, True)
    with pytest.raises(AttributeError):
        mmcv_ops.missing_operator("__path__")


@pytest.fixture
def mmcv_folder(tmp_path, monkeypatch):
    """An importable package `mmcv` that is not compiled."""
    folder = tmp_path / "mmcv"
    (folder / "ops").mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mmcv")
    return folder


def test_the_file_is_written_once_and_loads(mmcv_folder):
    assert "wrote" in install_mmcv_ops.install()
    assert "already exists" in install_mmcv_ops.install()
    spec = importlib.util.spec_from_file_location("written", mmcv_folder / "_ext.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.warns(UserWarning, match="no compiled operators"):
        spec.loader.exec_module(module)
    assert module.nms is mmcv_ops.nms
    with pytest.raises(NotImplementedError, match="softnms"):
        module.softnms()


def test_compiled_operators_and_files_of_others_stay(mmcv_folder):
    (mmcv_folder / "_ext.py").write_text("mine = 1\n")
    with pytest.raises(ConfigError, match="remove it first"):
        install_mmcv_ops.install()
    assert (mmcv_folder / "_ext.py").read_text() == "mine = 1\n"
    (mmcv_folder / "_ext.cpython-311-x86_64-linux-gnu.so").touch()
    assert "nothing to do" in install_mmcv_ops.install()


def test_no_mmcv(mmcv_folder):
    (mmcv_folder / "ops").rmdir()
    with pytest.raises(ConfigError, match="no folder ops"):
        install_mmcv_ops.install()
