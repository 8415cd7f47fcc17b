import json

import pytest
import timm
import torch
from timm.models import save_for_hf

from tests.weights.helpers import checkpoint
from topodet import weights
from topodet.errors import WeightsError
from topodet.models import TopoNet
from topodet.weights import hub


@pytest.mark.parametrize(
    "changed", [{}, {"topology": "residual", "width": 4, "edge_weights": "fixed"}, {"output_stride": 8}]
)
def test_timm_reads_back_what_would_be_uploaded(tmp_path, changed):
    """The hub's own folder, written by timm and opened by timm from disk."""
    model = timm.create_model("toponet_nano", num_classes=5, **changed).eval()
    path = checkpoint(tmp_path / "c.pth.tar", model, args={"model_kwargs": changed})
    files = weights.publish(path, tmp_path / "out")
    rebuilt, arguments = hub.timm_model(weights.read(files.pth))
    assert bool(arguments) == bool(changed)
    save_for_hf(rebuilt, str(tmp_path / "hub"), model_args=arguments, safe_serialization=True)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["architecture"] == "toponet_nano"
    assert config["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(image), model.forward_head(model.forward_features(image), pre_logits=True))


def test_unregistered_networks_are_named(tmp_path):
    path = checkpoint(tmp_path / "c.pth.tar", TopoNet(nodes=(3, 3), width=2), arch="mine")
    files = weights.publish(path, tmp_path)
    with pytest.raises(WeightsError, match="architecture 'mine' is not registered in timm"):
        hub.timm_model(weights.read(files.pth))
