import copy

import pytest
import timm
import torch

from topodet.models import TopoNet, TopoNetFeatures, TopoStage, fuse_for_inference
from topodet.ops.memory_format import to_fast_format
from topodet.topology import complete

LAST = torch.channels_last
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs a torch with oneDNN")


def network(**options):
    torch.manual_seed(0)
    return TopoNet(nodes=(3, 9), width=4, num_classes=5, **options)


def formats_within(model, x):
    """Run it; return whether the inputs of its convolutions were channels_last."""
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous(memory_format=LAST)))
        for module in model.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return set(seen)


@needs_onednn
@pytest.mark.parametrize("prepare", [lambda model: model, fuse_for_inference], ids=["network", "fused"])
def test_a_network_computes_in_another_format(prepare):
    model, x = prepare(network()), torch.randn(2, 3, 64, 48)
    assert formats_within(model, x) == {True}
    assert formats_within(model.double(), x.double()) == {False}  # not oneDNN's
    with torch.backends.mkldnn.flags(enabled=False):
        assert formats_within(model.float(), x) == {False}


@pytest.mark.parametrize("channels_last", [False, True])
def test_results_have_the_format_of_the_input(channels_last):
    given = LAST if channels_last else torch.contiguous_format
    x = torch.randn(2, 3, 64, 48).contiguous(memory_format=given).requires_grad_()
    features = TopoNetFeatures(network(), out_indices=(0, 1))
    for out in (*features(x), *fuse_for_inference(features)(x)):
        assert out.is_contiguous(memory_format=given)
        assert not out.is_contiguous(memory_format=torch.contiguous_format if channels_last else LAST)
    sum(out.sum() for out in features(x)).backward()
    assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("size", [(64, 48), (32, 32), (50, 33)])
def test_it_is_the_same_result(size):
    """Gradients and running statistics, against the same in float64, where nothing is brought into a format."""
    x, of_logits = torch.randn(3, 3, *size), torch.randn(3, 5)

    def step(dtype):
        model = network().to(dtype)
        model(x.to(dtype)).backward(of_logits.to(dtype))
        return {name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers())

    exact = step(torch.float64)
    for name, actual in step(torch.float32).items():
        scale = exact[name].abs().max().item()
        torch.testing.assert_close(actual.to(exact[name].dtype), exact[name], rtol=0, atol=1e-3 * scale, msg=name)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("given", [torch.contiguous_format, LAST])
def test_gradients_of_a_backbone_below_a_neck(batch, given):
    torch.manual_seed(0)
    features = TopoNetFeatures(TopoNet(nodes=(3, 9, 4), width=4, num_classes=5), out_indices=(0, 1, 2)).eval()
    neck = torch.nn.ModuleList(torch.nn.Conv2d(info["num_chs"], 8, 1) for info in features.feature_info)
    model = torch.nn.ModuleList([features, neck])
    x = torch.randn(batch, 3, 64, 96).contiguous(memory_format=given)
    weights = [torch.randn(batch, 8, 16 // 2**k, 24 // 2**k) for k in range(3)]

    def step(dtype):
        backbone, convs = copy.deepcopy(model).to(dtype)
        image = x.clone().to(dtype).requires_grad_()
        sum((conv(y) * w).sum() for conv, y, w in zip(convs, backbone(image), weights)).backward()
        return [image.grad.double(), *(p.grad.double() for p in backbone.parameters() if p.grad is not None)]

    for actual, expected in zip(step(torch.float32), step(torch.float64)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3 * max(0.1, expected.abs().max().item()))


@pytest.mark.parametrize("given", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("nodes", [2, 4, 9])
@pytest.mark.parametrize(
    "shape", [(1, 8, 8, 8), (1, 3, 28, 20), (2, 8, 7, 5), (1, 64, 14, 14), (3, 2, 2, 2), (1, 1, 6, 6)]
)
def test_gradients_of_a_stage(shape, nodes, train, given):
    """Batches of one image too, whose strides torch may choose: its batch normalisation is wrong at some of them."""
    torch.manual_seed(0)
    model = TopoStage(shape[1], shape[1], complete(nodes)).train(train)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, mean in ((module.weight, 1.0), (module.bias, 0.0), (module.running_mean, 0.0)):
                torch.nn.init.normal_(tensor, mean=mean, std=0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = torch.randn(shape).contiguous(memory_format=given)
    of_features = torch.randn(shape[0], shape[1], -(-shape[2] // 2), -(-shape[3] // 2))

    def step(dtype):
        own = copy.deepcopy(model).to(dtype)
        given = x.clone().to(dtype).requires_grad_()
        y = own(given)
        y.backward(of_features.to(dtype))
        return [y.double(), given.grad.double(), *(p.grad.double() for p in own.parameters())]

    for actual, expected in zip(step(torch.float32), step(torch.float64)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3 * max(0.1, expected.abs().max().item()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nodes", [4, 9])
def test_evaluation_under_autocast(nodes, dtype):
    torch.manual_seed(0)
    model = TopoStage(4, 8, complete(nodes)).eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", dtype):
        expected = model(x).float()
        with torch.no_grad():
            found = model(x).float()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("size", "norm_layer"),
    [(4, torch.nn.BatchNorm2d), (2, torch.nn.BatchNorm2d), (4, torch.nn.InstanceNorm2d)],  # one pixel has all formats
)
def test_a_result_may_be_written_into(size, norm_layer):
    features = TopoNetFeatures(TopoNet(nodes=(3,), width=4, norm_layer=norm_layer), out_indices=(0,)).eval()
    [y] = features(torch.randn(2, 3, 2 * size, 2 * size, requires_grad=True))
    y.mul_(2).sum().backward()


def test_an_image_without_a_batch():
    model = TopoStage(4, 4, complete(3), norm_layer=lambda channels: torch.nn.GroupNorm(2, channels))
    assert model(torch.randn(4, 8, 8)).shape == (4, 4, 4)


@needs_onednn
def test_gradients_are_channels_last_within():
    model, seen = TopoNetFeatures(network(), out_indices=(1,)), []
    model.stages[-1].nodes[-1].norm.register_full_backward_pre_hook(
        lambda module, grads: seen.append(grads[0].stride())
    )
    [y] = model(torch.randn(2, 3, 64, 48))
    y.backward(torch.ones_like(y))
    assert seen == [y.contiguous(memory_format=LAST).stride()]


def test_second_derivatives():
    model = TopoNet(nodes=(3,), width=2, num_classes=2).eval()
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    once, twice = [], []
    for dtype in (torch.float32, torch.float64):
        given = x.to(dtype)
        [gradient] = torch.autograd.grad(model.to(dtype)(given).pow(3).sum(), given, create_graph=True)
        once.append(gradient.double())
        twice.append(torch.autograd.grad(gradient.pow(2).sum(), given)[0].double())
    torch.testing.assert_close(*once, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*twice, rtol=1e-4, atol=1e-4)


def test_of_one_channel_or_one_pixel():
    gray = timm.create_model("toponet_nano", in_chans=1, features_only=True).eval()
    assert [tuple(out.shape[2:]) for out in gray(torch.randn(1, 1, 32, 32))] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    assert all(out.is_contiguous() for out in gray(torch.randn(2, 1, 96, 64)))


def test_what_traces_sees_the_format_that_was_given():
    model, x = network().eval(), torch.randn(1, 3, 32, 32)
    traced = torch.jit.trace(model, x)
    assert not traced.inlined_graph.findAllNodes("aten::contiguous", recurse=True)
    torch.testing.assert_close(traced(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
    vmapped = torch.func.vmap(model)(torch.stack([x, 2 * x]))
    torch.testing.assert_close(vmapped[1], model(2 * x))


def test_elsewhere_nothing_is_copied():
    x = torch.randn(2, 3, 4, 4)
    for other in (x.double(), x.to("meta"), x.contiguous(memory_format=LAST)):
        assert to_fast_format(other) is other
