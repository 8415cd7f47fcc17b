import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

from tests.mmdet.helpers import NANO, load
from topodet import weights
from topodet.errors import WeightsError
from topodet.mmdet import TopoNet
from topodet.models import FusedStage, fuse_for_inference


def backbone(nano, **options):
    model = TopoNet("toponet_nano", pretrained=str(nano.pth), **options)
    model.init_weights()
    return model


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
@pytest.mark.parametrize("options", [{}, {"frozen_stages": 1, "norm_eval": False}, {"out_indices": (1, 2)}])
def test_a_backbone(norm, options, nano):
    model = backbone(nano, norm_cfg={"type": norm, "requires_grad": True}, **options)
    fused = fuse_for_inference(model)
    assert fused.out_channels == model.out_channels
    x = torch.randn(1, 3, 70, 97)
    with torch.no_grad():
        for found, expected in zip(fused(x), model.eval()(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not any("norm" in name for name in fused.state_dict())
    fused.train()  # sees to its frozen stages
    assert isinstance(fused, TopoNet)


def test_a_detector(nano):
    register_all_modules()
    config = copy.deepcopy(load(NANO).model)
    config.backbone.pretrained = str(nano.pth)
    model = MODELS.build(config).eval()
    model.backbone.init_weights()
    fused = fuse_for_inference(model)
    assert all(isinstance(stage, FusedStage) for stage in fused.backbone.stages)
    image = {"inputs": [torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)], "data_samples": None}
    with torch.no_grad():
        x = model.data_preprocessor(image)["inputs"]
        # The scores of every place; which boxes are left of them hangs on ties.
        found, expected = (m.rpn_head(m.extract_feat(x)) for m in (fused, model))
    for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_weights_are_loaded_before(nano):
    fused = fuse_for_inference(backbone(nano))
    with pytest.raises(WeightsError):
        weights.load(fused, nano.pth, quiet=True)
