import pytest
import timm
import torch
from torch import nn

import topodet  # noqa: F401 - registers the networks
from topodet import connectivity
from topodet.complexity import multiply_adds, parameters
from topodet.errors import ConfigError
from topodet.models import disconnect
from topodet.topology import complete

MULTIPLES = (2, 4, 6)
FORMS = ("", "_connected")


@pytest.mark.parametrize(
    ("name", "size", "products"),
    [("x1", 3.504872, 0.3008), ("x2", 6.353848, 0.6070), ("x4", 12.0518, 1.2196), ("x6", 17.749752, 1.8321)],
)
def test_complexity(name, size, products):
    multiple = int(name[1:])
    # Blocks with an identity shortcut: the first of a stage has one only where it repeats the channels.
    repeated = [multiple * depth - 1 for depth in (1, 2, 3, 4, 3, 3, 1)]
    edges = sum((m + 2) * (m + 1) // 2 for m in repeated if m)
    with torch.device("meta"):
        model = timm.create_model(f"mobilenetv2_{name}_connected")
        plain = timm.create_model(f"mobilenetv2_{name}" if multiple > 1 else "mobilenetv2_100")
    assert parameters(model) == (round(size * 1e6), edges)
    assert [w.topology for w in connectivity.wirings(model).values()] == [complete(m + 2) for m in repeated if m]
    assert parameters(plain) == (round(size * 1e6), 0)
    assert round(multiply_adds(plain) / 1e9, 4) == products


def test_they_are_timms_network_deeper():
    image = torch.randn(2, 3, 64, 64)
    theirs = timm.create_model("mobilenetv2_100", depth_multiplier=2.0).eval()
    plain, connected = (timm.create_model(f"mobilenetv2_x2{form}").eval() for form in FORMS)
    for model in (plain, connected):
        model.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(model(image), theirs(image), rtol=1e-4, atol=1e-5)
    assert repr(disconnect(connected)) == repr(plain)


def test_arguments():
    depths = (1, 2, 1, 3, 1, 1, 1)
    model = timm.create_model(
        "mobilenetv2_x1_connected", depths=depths, edge_weights="fixed", num_classes=7, in_chans=1, drop_path_rate=0.1
    )
    assert [len(stage) for stage in model.blocks] == list(depths)
    assert [w.topology for w in connectivity.wirings(model).values()] == [complete(3), complete(4)]
    assert not any(w.learned for w in connectivity.wirings(model).values())
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    for wrong in ((1, 2, 3), (1, 2, 3, 4, 3, 3, 0)):
        with pytest.raises(ConfigError, match=r"depths must give the blocks of MobileNetV2's 7 stages, got \(1, 2, 3"):
            timm.create_model("mobilenetv2_x2", depths=wrong)


@pytest.mark.parametrize("form", FORMS)
def test_feature_maps(form):
    model = timm.create_model(f"mobilenetv2_x2{form}").eval()
    for wiring in connectivity.wirings(model).values():
        nn.init.normal_(wiring.alpha, mean=1, std=0.3)
    reader = timm.create_model(f"mobilenetv2_x2{form}", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    missing, unexpected = reader.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert {key.partition(".")[0] for key in unexpected} == {"conv_head", "bn2", "classifier"}
    image = torch.randn(1, 3, 64, 96)
    maps = reader(image)
    assert [x.shape[1] for x in maps] == reader.feature_info.channels() == [24, 32, 96, 320]
    assert [64 // x.shape[2] for x in maps] == reader.feature_info.reduction() == [4, 8, 16, 32]
    for x, y in zip(maps, model.forward_intermediates(image, indices=[1, 2, 3, 4], intermediates_only=True)):
        assert torch.equal(x, y)
    assert "num_classes" not in reader.pretrained_cfg
