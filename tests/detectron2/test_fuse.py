import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.detectron2.helpers import small_config
from topodet import weights
from topodet.detectron2 import TopoNet
from topodet.errors import WeightsError
from topodet.models import FusedStage, fuse_for_inference


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm | FrozenBatchNorm2d)]


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN", "naiveSyncBN"])
@pytest.mark.parametrize("options", [{}, {"freeze_at": 2}, {"out_features": ["res2", "res4"]}])
def test_a_backbone(norm, options, nano):
    backbone = TopoNet("toponet_nano", norm=norm, pretrained=nano.pth, **options)
    fused = fuse_for_inference(backbone)
    assert batch_norms(backbone)
    assert not batch_norms(fused)
    assert fused.output_shape() == backbone.output_shape()
    x = torch.randn(1, 3, 65, 70)
    with torch.no_grad():
        found, expected = fused(x), backbone.eval()(x)
    assert list(found) == list(expected)
    for name, features in expected.items():
        torch.testing.assert_close(found[name], features, rtol=1e-5, atol=1e-5)


def test_other_norms_stay():
    backbone = TopoNet("toponet_nano", width=32, norm="GN").eval()
    x = torch.randn(1, 3, 64, 64)
    fused = fuse_for_inference(backbone)
    assert any(isinstance(module, nn.GroupNorm) for module in fused.modules())
    for found, expected in zip(fused(x).values(), backbone(x).values()):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_detector(nano):
    model = build_model(small_config(MODEL__TOPONET__PRETRAINED=str(nano.pth))).eval()
    fused = fuse_for_inference(model)
    assert all(isinstance(stage, FusedStage) for stage in fused.backbone.bottom_up.stages)
    image = {"image": torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)}
    with torch.no_grad():
        maps = [m.backbone(m.preprocess_image([image]).tensor) for m in (fused, model)]
        # The scores of every place; which boxes are left of them hangs on ties.
        found, expected = (m.proposal_generator.rpn_head(list(x.values())) for m, x in zip((fused, model), maps))
        assert "instances" in fused([image])[0]
    for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_weights_are_loaded_before(nano):
    fused = fuse_for_inference(TopoNet("toponet_nano", pretrained=nano.pth))
    with pytest.raises(WeightsError):
        weights.load(fused, nano.pth, quiet=True)
    with pytest.raises(WeightsError, match="the checkpoint fills"):
        fused.load_state_dict(weights.read(nano.pth).state_dict, strict=False)
    fused.load_state_dict(fused.state_dict())
