import pytest
import timm
import torch

from tests.models.connected.helpers import NETWORKS, assert_same, randomize, run, scatter
from topodet import connectivity
from topodet.errors import ConfigError
from topodet.models import TimmTrunk, rewire

# Whose feature maps timm itself can take, and what makes them small.
PYRAMIDS = {
    **{
        name: NETWORKS[name][0]
        for name in ("mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small_050", "regnetz_005")
    },
    **{name: NETWORKS[name][0] for name in ("convnext_atto", "resnetv2_18", "cs3darknet_focus_s")},
    "swin_tiny_patch4_window7_224": {**NETWORKS["swin_tiny_patch4_window7_224"][0], "depths": (1, 2, 1, 1)},
}
PYRAMIDS["swin_tiny_patch4_window7_224"]["num_heads"] = (1, 2, 4, 8)


def trunk(name, **kwargs):
    model = TimmTrunk(name, options=PYRAMIDS.get(name), **kwargs)
    randomize(model)
    return scatter(model)


def image(height=64, width=96):
    return torch.randn(2, 3, height, width)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_maps_are_those_of_timms_feature_extractor(name):
    """At two sizes, with the edge weights at 1 and without edges."""
    ours = trunk(name, wiring="none").eval()
    theirs = timm.create_model(name, features_only=True, **ours.options).eval()
    pyramid = [k for k, stride in enumerate(theirs.feature_info.reduction()) if stride >= 4]
    # Timm renames what it takes apart, and keeps the order.
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.network.state_dict().values(), strict=True)))
    connected = TimmTrunk(name, options=PYRAMIDS[name]).eval()
    connected.network.load_state_dict(ours.network.state_dict())
    for x in (image(), image(96, 64)):
        expected = [theirs(x)[k] for k in pyramid]
        if name.startswith("swin"):
            expected = [m.permute(0, 3, 1, 2) for m in expected]
        for model in (ours, connected):
            for found, m, channels, stride in zip(
                model.stage_features(x), expected, model.stage_channels, model.stage_strides, strict=True
            ):
                assert found.shape == (2, channels, x.shape[2] // stride, x.shape[3] // stride)
                torch.testing.assert_close(found, m, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_frozen_parts_are_what_computes_a_map(name):
    """The parameters with a gradient of the k-th map are those of the stem and the first k stages, edges among them."""
    model = trunk(name)
    stem = {id(p) for module in model.frozen_modules(0) for p in module.parameters()}
    assert stem
    for k, feature in enumerate(model.stage_features(image()), 1):
        model.zero_grad()
        feature.square().mean().backward(retain_graph=True)
        moved = {id(p) for p in model.parameters() if p.grad is not None}
        frozen = {id(p) for module in model.frozen_modules(k) for p in module.parameters()}
        assert moved == frozen
        assert stem < frozen
    assert frozen == {id(p) for p in model.parameters()}
    assert model.frozen_modules(-1) == []


@pytest.mark.parametrize(
    ("name", "stem", "stage"),
    [
        ("mobilenetv2_050", ["conv_stem", "bn1", "blocks.0"], ["conv_stem", "bn1", "blocks.0", "blocks.1"]),
        ("convnext_atto", ["stem"], ["stem", "stages.0"]),
        ("regnetz_005", ["stem"], ["stem", "s1"]),
    ],
)
def test_the_stem_is_what_comes_before_stride_4(name, stem, stage):
    model = trunk(name)
    assert model.frozen_names(0) == stem
    assert model.frozen_names(1) == stage
    with pytest.raises(ConfigError, match="frozen_stages=5, but this network has 4 stages"):
        model.frozen_modules(5)


@pytest.mark.parametrize("name", ["mobilenetv2_050", "convnext_atto", "resnetv2_18"])
@pytest.mark.parametrize("num_stages", [2, 4])
def test_what_nobody_reads_is_cut_off(name, num_stages):
    model = trunk(name, num_stages=num_stages)
    features = list(model.stage_features(image()))
    assert len(features) == len(model.stage_channels) == num_stages
    sum(m.square().mean() for m in features).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    whole = set(scatter(TimmTrunk(name, options=PYRAMIDS[name])).network.state_dict())
    left = {key for key in whole if model.ignores(key)}
    assert left == whole - set(model.network.state_dict())
    assert bool(left) == (num_stages < 4)
    [classifier] = {f"{timm.create_model(name).pretrained_cfg['classifier']}.weight"}
    assert model.ignores(classifier)


def test_a_rewired_resnet():
    model = TimmTrunk("resnet18", rewire=True).eval()
    original = timm.create_model("resnet18").eval()
    whole = rewire(original)
    model.network.load_state_dict({k: v for k, v in original.state_dict().items() if not model.ignores(k)})
    x = image()
    expected = whole.forward_intermediates(x, intermediates_only=True)[1:]
    for found, m in zip(model.stage_features(x), expected, strict=True):
        torch.testing.assert_close(found, m)
    assert [graph.topology.num_nodes for graph in connectivity.wirings(model).values()] == [6] * 4


def test_checkpointing_gives_the_same_gradients():
    model, x = trunk("mobilenetv2_050").train(), image()

    def total(x):
        return sum(m.square().mean() for m in model.stage_features(x))

    model.forward = total
    plain = run(model, x)
    model.set_grad_checkpointing()
    assert_same(run(model, x), plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mobilenetv2_10"}, "unknown model 'mobilenetv2_10'. Did you mean 'mobilenetv2_1"),
        ({"name": "vit_tiny_patch16_224", "options": {"depth": 1}}, "vit_tiny_.* at 16, .* needs them at 4, 8, 16, 32"),
        ({"name": "resnet18"}, "ReLU|activation follows the addition"),
        ({"name": "mobilenetv2_050", "rewire": True}, "nothing to rewire"),
        ({"name": "mobilenetv2_050", "wiring": "learnd"}, "unknown wiring 'learnd'. Did you mean 'learned'"),
        (
            {"name": "resnet18", "wiring": "none", "rewire": True},
            "rewire=True adds edges, but wiring='none' allows none",
        ),
        ({"name": "mobilenetv2_050", "options": {"depth": 3}}, "mobilenetv2_050 cannot be created .*depth"),
    ],
)
def test_refuses_what_is_no_backbone(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TimmTrunk(**arguments)


def test_tensors_that_no_module_holds_cannot_be_frozen():
    model = TimmTrunk("hiera_tiny_224", wiring="none")
    assert model.frozen_modules(-1) == []
    with pytest.raises(ConfigError, match=r"frozen_stages=1, but hiera_tiny_224 has tensors .*\(pos_embed\)"):
        model.frozen_modules(1)


def test_wirings():
    assert not connectivity.wirings(TimmTrunk("mobilenetv2_050", wiring="none"))
    fixed, learned = (connectivity.wirings(TimmTrunk("mobilenetv2_050", wiring=w)) for w in ("fixed", "learned"))
    assert list(fixed) == list(learned) == [f"network.blocks.{k}.1.wiring" for k in (1, 2, 3, 4, 5)]
    assert not any(wiring.learned for wiring in fixed.values())
    assert all(wiring.learned for wiring in learned.values())
