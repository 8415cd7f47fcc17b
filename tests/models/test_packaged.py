"""The weights in the package: timm's `pretrained=True`, by the published file itself."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from topodet import models, weights
from topodet.errors import ConfigError, WeightsError
from topodet.models import packaged


@pytest.mark.parametrize("arch", models.PACKAGED)
def test_timm_loads_the_published_file(arch):
    tensors = load_file(packaged.packaged_weights(arch))
    model = timm.create_model(arch, pretrained=True).eval()
    assert model.num_classes == models.PACKAGED[arch].num_classes
    own = model.state_dict()
    assert own.keys() == tensors.keys()
    assert all(torch.equal(own[name], tensors[name]) for name in tensors)
    card = weights.read(packaged.packaged_weights(arch)).card
    for key in ("mean", "std", "input_size"):
        assert list(model.pretrained_cfg[key]) == card[key], key
    assert card["num_classes"] == model.num_classes


def test_other_classifiers_channels_and_features():
    x = torch.rand(1, 3, 64, 64)
    whole = timm.create_model("toponet_nano", pretrained=True).eval()
    other = timm.create_model("toponet_nano", pretrained=True, num_classes=7).eval()
    assert torch.equal(whole.forward_features(x), other.forward_features(x))
    assert other(x).shape == (1, 7)
    features = timm.create_model("toponet_nano", pretrained=True, features_only=True).eval()
    assert torch.equal(features(x)[-1], whole.forward_features(x))
    gray = timm.create_model("toponet_nano", pretrained=True, in_chans=1)
    assert torch.equal(gray.stem.conv.weight, whole.stem.conv.weight.sum(1, keepdim=True))  # as timm adapts it


def test_a_file_that_was_changed_is_refused(tmp_path, monkeypatch):
    path = packaged.packaged_weights("toponet_nano")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    with pytest.raises(WeightsError, match="is missing: reinstall topodet"):
        packaged.packaged_weights("toponet_nano")
    (tmp_path / path.name).write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged or was changed"):
        timm.create_model("toponet_nano", pretrained=True)


def test_a_network_without_weights():
    with pytest.raises(ConfigError, match="no weights of 'toponet50', only of toponet_nano"):
        packaged.packaged_weights("toponet50")
    with pytest.raises(RuntimeError, match="No pretrained weights exist for toponet50"):
        timm.create_model("toponet50", pretrained=True)
