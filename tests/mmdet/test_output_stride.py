"""A backbone that is dilated where it would stride further, as its file was trained or as the config says."""

import copy

import pytest
import torch
from mmdet.registry import MODELS

from tests.mmdet.helpers import NANO, build, load, narrow
from topodet import weights
from topodet.errors import ConfigError
from topodet.mmdet import check_detector, load_detector, publish_detector

STRIDES = [4, 8, 16, 16]


def detector_config(dilated, strides):
    config = narrow(copy.deepcopy(load(NANO)), str(dilated.pth))
    config.model.backbone.arch = "pretrained"
    config.model.rpn_head.anchor_generator.strides = [*strides, 64]
    config.model.roi_head.bbox_roi_extractor.featmap_strides = strides
    return config


def test_the_file_gives_the_network(dilated):
    model = build("pretrained", pretrained=str(dilated.pth))
    model.init_weights()
    assert model.stage_strides == (4, 8, 16, 16)
    x = torch.randn(1, 3, 64, 96)
    expected = weights.build(dilated.pth).eval()
    same = build("toponet_nano", output_stride=16, pretrained=str(dilated.pth))
    same.init_weights()
    with torch.no_grad():
        for ours, named, theirs in zip(
            model.eval()(x), same.eval()(x), expected.forward_intermediates(x, intermediates_only=True), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
            torch.testing.assert_close(named, theirs, rtol=0, atol=1e-6)
    assert build("pretrained", pretrained=str(dilated.pth), output_stride=32).stage_strides == (4, 8, 16, 32)


def test_anchors_must_have_its_strides(dilated):
    with pytest.raises(
        ConfigError, match=r"strides \[4, 8, 16, 16\], but RPNHead places its anchors with \[4, 8, 16, 32\]"
    ):
        check_detector(MODELS.build(detector_config(dilated, [4, 8, 16, 32]).model))
    check_detector(MODELS.build(detector_config(dilated, STRIDES).model))


def test_a_published_detector_keeps_it(dilated, tmp_path):
    config = detector_config(dilated, STRIDES)
    config.dump(tmp_path / "config.py")
    model = MODELS.build(config.model)
    model.init_weights()
    meta = {"dataset_meta": {"classes": ["a", "b"]}, "topodet_card": model.backbone.card}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, tmp_path / "epoch_1.pth")
    path = publish_detector(tmp_path / "epoch_1.pth", tmp_path / "config.py", tmp_path)
    assert load_detector(path, device="cpu").backbone.stage_strides == (4, 8, 16, 16)
