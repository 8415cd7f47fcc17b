"""Every network as a graph of torch.fx, as timm's feature extractors make it of them."""

import pickle

import pytest
import timm
import torch
from timm.models import create_feature_extractor
from torch import fx

from tests.models.helpers import NAMES, create, image, scatter
from topodet.models import connect, fuse_for_inference


def wanted(model):
    return [info["module"] for info in model.feature_info]


@pytest.mark.parametrize("name", NAMES)
def test_extraction_by_torch_fx(name):
    model = create(name).eval()
    x = image()
    expected = model.forward_intermediates(x, intermediates_only=True)
    found = create_feature_extractor(model, wanted(model))(x)
    for module, y in zip(wanted(model), expected, strict=True):
        torch.testing.assert_close(found[module], y)
    with torch.inference_mode():  # the same kernels, in the same order
        graph = fx.symbolic_trace(model)
        assert torch.equal(graph(x), model(x))
        if name.startswith("toponet"):
            fused = fuse_for_inference(model)
            assert torch.equal(fx.symbolic_trace(fused)(x), fused(x))
    graph = pickle.loads(pickle.dumps(graph))
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(graph(last), model(last))


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_of_torch_fx_learns(name):
    model = create(name).double().train()
    x = image(dtype=torch.float64)
    model(x).square().sum().backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    graph = fx.symbolic_trace(model)
    graph(x).square().sum().backward()
    assert dict(graph.named_parameters()).keys() == expected.keys()
    for key, parameter in graph.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key])


def test_a_graph_of_torch_fx_reads_the_edge_weights_it_has():
    """Fixed ones too, and not those of the moment at which it was recorded."""
    model = create("toponet50_ws").eval()
    graph, other = fx.symbolic_trace(model), create("toponet50_ws").eval()
    missing, _ = graph.load_state_dict(other.state_dict(), strict=False)
    assert missing == []
    x = image()
    torch.testing.assert_close(graph(x), other(x))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext_atto", {"depths": (1, 2, 2, 1)}),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 2}),
    ],
)
def test_connected_networks_by_torch_fx(name, options):
    model = scatter(connect(timm.create_model(name, num_classes=5, **options))).eval()
    x = image()
    names = [info["module"] for info in model.feature_info]
    found = create_feature_extractor(model, [*names, "head"])(x)
    torch.testing.assert_close(found["head"], model(x))
    for y, expected in zip(map(found.get, names), model.forward_intermediates(x, norm=False)[1], strict=True):
        if y.ndim == 3:  # tokens, of which the first is that of the class
            y = y[:, 1:].transpose(1, 2).reshape(expected.shape)
        torch.testing.assert_close(y, expected)
