"""A backbone that is dilated where it would stride further, as its file was trained or as the config says."""

import pytest
import torch

from tests.detectron2.helpers import CLASSES, write_run
from topodet import weights
from topodet.detectron2 import TopoNet, load_detector, publish_detector
from topodet.errors import ConfigError

FEATURES = ["res2", "res3", "res4"]


def strides(backbone):
    return [shape.stride for shape in backbone.output_shape().values()]


def test_the_file_gives_the_network(dilated):
    model = TopoNet("pretrained", pretrained=dilated.pth, norm="BN").eval()
    assert strides(model) == [4, 8, 16, 16]
    x = torch.randn(1, 3, 64, 96)
    same = TopoNet("toponet_nano", output_stride=16, pretrained=dilated.pth, norm="BN").eval()
    with torch.no_grad():
        expected = weights.build(dilated.pth).eval().forward_intermediates(x, intermediates_only=True)
        for ours, named, theirs in zip(model(x).values(), same(x).values(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
            torch.testing.assert_close(named, theirs, rtol=0, atol=1e-6)
    assert strides(TopoNet("pretrained", pretrained=dilated.pth, output_stride=32)) == [4, 8, 16, 32]


def test_an_fpn_takes_only_strides_that_double(dilated, tmp_path):
    """And a published detector keeps them."""
    arch = {"MODEL__TOPONET__ARCH": "pretrained"}
    with pytest.raises(ConfigError, match=r"strides \[4, 8, 16, 16\].*MODEL.TOPONET.OUTPUT_STRIDE 32"):
        write_run(tmp_path, dilated, **arch)
    levels = {"MODEL__FPN__IN_FEATURES": FEATURES, "MODEL__ROI_HEADS__IN_FEATURES": ["p2", "p3", "p4"]}
    levels |= {"MODEL__RPN__IN_FEATURES": ["p2", "p3", "p4", "p5"]}
    levels["MODEL__ANCHOR_GENERATOR__SIZES"] = [[8], [16], [32], [64]]
    write_run(tmp_path, dilated, **arch, **levels)
    path = publish_detector(tmp_path / "model_final.pth", tmp_path / "config.yaml", tmp_path, classes=CLASSES)
    assert strides(load_detector(path, device="cpu").model.backbone.bottom_up) == [4, 8, 16, 16]
