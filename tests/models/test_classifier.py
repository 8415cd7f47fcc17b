"""What timm asks of a network, for every kind that is registered."""

import pytest
import timm
import torch
from timm.models import save_for_hf

from tests.models.helpers import NAMES, NETWORKS, create, image
from topodet.errors import ConfigError
from topodet.models import TopoNet, TopoNetFeatures, fuse_for_inference


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 4])
def test_channels_of_the_image(name, channels, tmp_path):
    """Timm asks a network how many it takes; a folder of the hub gives them back."""
    model = create(name, in_chans=channels).eval()
    assert model.in_chans == channels
    assert timm.create_model(name, in_chans=channels, features_only=True).in_chans == channels
    save_for_hf(model, str(tmp_path), model_args={**NETWORKS[name], "in_chans": channels})
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = image(32, channels)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_device_and_dtype(name):
    empty = create(name, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in empty.parameters()} == {("meta", torch.bfloat16)}
    assert {b.device.type for b in empty.buffers()} == {"meta"}
    empty.reset_classifier(0)
    empty.reset_classifier(3)
    classifier = empty.get_classifier()
    assert (classifier.weight.device.type, classifier.weight.dtype) == ("meta", torch.bfloat16)
    made, cast = create(name, dtype=torch.float64).eval(), create(name).double().eval()
    made.load_state_dict(cast.state_dict())
    assert [p.dtype for p in made.state_dict().values()] == [p.dtype for p in cast.state_dict().values()]
    x = image(dtype=torch.float64)
    torch.testing.assert_close(made(x), cast(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["fx", "getter", "hook", "list", "dict"])
def test_extractors_of_timm(name, kind):
    torch.manual_seed(1)
    model = timm.create_model(name, **NETWORKS[name]).double().eval()
    torch.manual_seed(1)
    outputs = tuple(range(len(model.feature_info)))
    reader = timm.create_model(name, **NETWORKS[name], features_only=True, feature_cls=kind, out_indices=outputs)
    x = image(dtype=torch.float64)
    maps = reader.double().eval()(x)
    maps = list(maps.values()) if kind == "dict" else maps
    for y, expected in zip(maps, model.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(y, expected)
    assert [y.shape[1] for y in maps] == reader.feature_info.channels()
    assert [64 // y.shape[2] for y in maps] == reader.feature_info.reduction()


@pytest.mark.parametrize("name", [name for name in NAMES if "mobile" not in name])  # those are timm's
@pytest.mark.parametrize("prune_head", [True, False])
def test_what_pruning_leaves_can_be_trained(name, prune_head):
    model = create(name).eval()
    x = image()
    expected = model.forward_intermediates(x, intermediates_only=True)[1]
    assert model.prune_intermediate_layers([1], prune_head=prune_head) == [1]
    assert model.num_features == model.head_hidden_size == expected.shape[1]
    torch.testing.assert_close(model(x), expected)
    model.reset_classifier(7, "avg")
    weight, bias = model.get_classifier().weight, model.get_classifier().bias
    torch.testing.assert_close(model(x), expected.mean((2, 3)) @ weight.T + bias)


def test_pruning_nothing_keeps_the_classifier():
    model, x = create("toponet_nano").eval(), image()
    expected = model(x)
    model.prune_intermediate_layers([0, 3], prune_head=False)
    assert torch.equal(model(x), expected)


OF_CIFAR = [(1, [1, 1, 1]), (2, [1, 2, 2]), (4, [1, 2, 4]), (32, [1, 2, 4])]
STRIDES = {
    "toponet_nano": [(8, [4, 8, 8, 8]), (16, [4, 8, 16, 16]), (32, [4, 8, 16, 32])],
    "resnet20_cifar": OF_CIFAR,
    "resnet20_cifar_connected": OF_CIFAR,
}


@pytest.mark.parametrize("size", [64, 51])
@pytest.mark.parametrize(
    ("name", "output_stride", "strides"), [(name, *row) for name, rows in STRIDES.items() for row in rows]
)
def test_output_stride(name, output_stride, strides, size):
    """A dilated network computes, at the places that the network itself keeps, what that does."""
    model, dilated = create(name).double().eval(), create(name, output_stride=output_stride).double().eval()
    dilated.load_state_dict(model.state_dict())
    assert {key: p.shape for key, p in dilated.state_dict().items()} == {
        key: p.shape for key, p in model.state_dict().items()
    }
    assert [info["reduction"] for info in dilated.feature_info] == strides
    x = image(size, dtype=torch.float64)
    maps = dilated.forward_intermediates(x, intermediates_only=True)
    own = model.forward_intermediates(x, intermediates_only=True)
    for info, stride, y, expected in zip(model.feature_info, strides, maps, own, strict=True):
        assert y.shape[2:] == (-(-size // stride),) * 2
        step = info["reduction"] // stride
        torch.testing.assert_close(y[..., ::step, ::step], expected)


def test_output_stride_of_what_is_made_of_a_network():
    reader = create("toponet_nano", features_only=True, output_stride=8, out_indices=(1, 3)).double().eval()
    assert reader.feature_info.reduction() == [8, 8]
    assert reader.stage_strides == (4, 8, 8, 8)
    fused, x = fuse_for_inference(reader), image(50, dtype=torch.float64)
    assert fused.stage_strides == reader.stage_strides
    for y, expected in zip(fused(x), reader(x), strict=True):
        torch.testing.assert_close(y, expected)
    with torch.no_grad():
        reader.stages[3].wiring.alpha.zero_()  # what is left of the stage is a constant map, of the size it would have
    with pytest.warns(UserWarning, match="does not depend on the image"):
        fused = fuse_for_inference(reader)
    torch.testing.assert_close(fused(x)[-1], reader(x)[-1])


@pytest.mark.parametrize(("name", "remedy"), [("toponet_nano", "8, 16 or 32"), ("resnet20_cifar", "1, 2 or 4")])
def test_another_output_stride_is_refused(name, remedy):
    with pytest.raises(ConfigError, match=f"output_stride=3: use {remedy}"):
        create(name, output_stride=3)


@pytest.mark.parametrize("name", ["resnet20_cifar", "resnet20_cifar_connected", "mobilenetv2_x2"])
@pytest.mark.parametrize("indices", [(2, 0), (1, 1), (-1, 0)])
def test_an_order_that_timm_does_not_keep_is_refused(name, indices):
    with pytest.raises(ConfigError, match=r"out_indices=.* must be ascending, each stage once"):
        timm.create_model(name, features_only=True, out_indices=indices)


def test_maps_come_in_the_order_asked():
    model = TopoNet(nodes=(3, 2, 4), width=4).eval()
    reader, x = TopoNetFeatures(model, out_indices=(2, 0, -2)), image()
    expected = model.forward_intermediates(x, intermediates_only=True)
    for y, k in zip(reader(x), (2, 0, 1), strict=True):
        assert torch.equal(y, expected[k])
    assert reader.feature_info.channels() == [y.shape[1] for y in reader(x)] == [32, 8, 16]
