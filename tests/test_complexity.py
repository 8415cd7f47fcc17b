import pytest
import timm
import torch
from timm.layers import CondConv2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from topodet.complexity import multiply_adds, multiply_adds_by_layer, parameters


def test_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4), nn.Flatten()
    )
    model.append(nn.Linear(8 * 8 * 4, 5))
    # 16x8 pixels: 27 products for each of 8*16*8 outputs, 18 for 8*8*4, then a matrix product.
    assert multiply_adds(model, (3, 16, 8)) == 27 * 8 * 16 * 8 + 18 * 8 * 8 * 4 + 8 * 8 * 4 * 5
    assert next(model.parameters()).device == torch.device("cpu")


# The counts that timm's and torchvision's own tables print for these.
@pytest.mark.parametrize(
    ("name", "size", "products"), [("resnet50", 25_557_032, 4.09e9), ("mobilenetv2_100", 3_504_872, 0.30e9)]
)
def test_known_networks(name, size, products):
    model = timm.create_model(name)
    assert parameters(model) == (size, 0)
    assert multiply_adds(model) == pytest.approx(products, rel=0.01)


# Attention in windows, in whole maps and in tokens, convolutions with mixed, standardized and grouped weights.
@pytest.mark.parametrize(
    ("name", "size", "kwargs"),
    [
        ("swin_tiny_patch4_window7_224", 64, {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2)}),
        ("maxvit_tiny_rw_224", 64, {"img_size": 64}),
        ("mobilevit_xxs", 64, {}),
        ("vit_tiny_patch16_224", 32, {"img_size": 32, "depth": 2}),
        ("tf_efficientnet_cc_b0_4e", 64, {}),
        ("nf_resnet26", 64, {}),
        ("resnetblur18", 64, {}),
        ("regnetx_002", 64, {}),
        ("convnext_atto", 64, {}),
        ("mobilenetv3_small_050", 64, {}),
        ("poolformer_s12", 64, {}),
        ("toponet_nano", 64, {}),
    ],
)
def test_every_element_that_a_layer_returns_counts(name, size, kwargs):
    model = timm.create_model(name, num_classes=7, **kwargs).eval()
    found = multiply_adds(model, (3, size, size))
    expected = 0

    def count(module, _, output):
        nonlocal expected
        if isinstance(module, nn.Linear):
            products = module.in_features
        else:
            products = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        expected += output.numel() * products

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | CondConv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    assert found == expected


# Their attention calls the weights of its layers without the layers.
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("swinv2_tiny_window8_256", {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2)}),
        ("beit_base_patch16_224", {"img_size": 64, "depth": 2}),
    ],
)
def test_products_of_layers_that_are_not_called_count_as_torch_counts_them(name, kwargs):
    model = timm.create_model(name, num_classes=7, **kwargs).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    # Of queries, keys and values: bmm, or one call for both of their products.
    layers = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)
    flops = counter.get_flop_counts()["Global"]
    assert 2 * multiply_adds(model, (3, 64, 64)) == sum(flops.get(layer, 0) for layer in layers)
    # They are known by the module that computed them.
    by_layer = multiply_adds_by_layer(model, (3, 64, 64))
    assert any(layer.endswith(".attn") for layer in by_layer)
    assert by_layer.total() == multiply_adds(model, (3, 64, 64))
