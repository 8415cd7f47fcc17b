import copy
import pickle
import re
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vgg import VGG
from torch import nn

from topodet import complexity
from topodet.errors import ConfigError, WeightsError
from topodet.related.swnet.model import RetargetedConv2d, channel_graph, rebuild_swnet, swnet
from topodet.related.swnet.small_world import small_world

SIZE = 64
RESNET = partial(timm.create_model, "resnet18", layers=(1, 1, 1, 1), channels=(6, 8, 10, 12), num_classes=5)
# What makes a small network, and the channels of its layers.
NETWORKS = {
    "resnet18": (RESNET, (64, 6, 6, 8, 8, 10, 10, 12, 12)),
    "resnet50": (
        partial(timm.create_model, "resnet50", layers=(1, 1, 1, 1), channels=(4, 4, 8, 8), num_classes=5),
        (64, 4, 4, 16, 4, 4, 16, 8, 8, 32, 8, 8, 32),
    ),
    "resnext50_32x4d": (
        partial(
            timm.create_model,
            "resnext50_32x4d",
            layers=(1, 1, 1, 1),
            channels=(8, 8, 8, 8),
            cardinality=2,
            base_width=32,
            num_classes=5,
        ),
        (64, 8, 8, 32, 8, 8, 32, 8, 8, 32, 8, 8, 32),
    ),
    "mobilenetv2_035": (
        partial(timm.create_model, "mobilenetv2_035", num_classes=5),
        # The depthwise convolutions are no layers: expansion and projection take turns, after the first block.
        (16, 8, *[48, 8] * 2, 48, *[16, 96] * 3, *[24, 144] * 4, *[32, 192] * 3, *[56, 336] * 3, 112, 1280),
    ),
    "vgg": (
        partial(VGG, [6, "M", 8, "M", 10, 10, "M", 12, 12], num_classes=5, mlp_ratio=0.01, norm_layer=nn.BatchNorm2d),
        (6, 8, 10, 10, 12, 12),
    ),
    "resnetv2_18": (
        partial(timm.create_model, "resnetv2_18", layers=(1, 1, 1, 1), channels=(8, 16, 24, 32), stem_chs=8),
        (8, 8, 8, 16, 16, 24, 24, 32, 32),
    ),
    "seresnet18": (
        partial(timm.create_model, "seresnet18", layers=(1, 1, 1, 1), channels=(16, 16, 16, 16), num_classes=5),
        (64, 16, 16, 16, 16, 16, 16, 16, 16),
    ),
}

SMALL = ("resnet18", "resnet50", "resnext50_32x4d", "resnetv2_18", "seresnet18")


def create(name):
    return randomize(NETWORKS[name][0]())


def randomize(model):
    """Normalisation far from its start, where it does nothing and some scales are 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def images():
    return torch.randn(2, 3, SIZE, SIZE)


def outputs(model, x):
    found = model(x)
    return found if isinstance(found, list) else [found]


def rewired_layers(model):
    return [module for module in model.modules() if isinstance(module, RetargetedConv2d)]


def edges_of(graph):
    return np.unique(graph.edges, axis=0).tolist()


@st.composite
def plain_networks(draw):
    """Convolutions in series, of any width, stride, groups and size, and the pixels of their images."""
    layers, channels, pixels, image_size = [], 2, 8, 8
    for number in range(draw(st.integers(3, 5))):
        groups = draw(st.sampled_from([1, 1, 2])) if number else 1
        width = 2 * draw(st.integers(1, 3))
        size = draw(st.sampled_from([1, 3]))
        stride = draw(st.sampled_from([1, 2])) if pixels > 2 else 1
        bias = draw(st.booleans())
        conv = nn.Conv2d(channels, width, size, stride, size // 2, groups=groups, bias=bias)
        if 1 < groups == channels == width:  # depthwise
            conv = nn.Conv2d(channels, width, size, stride, size // 2, bias=bias)
        layers += [conv, nn.Tanh()]
        channels, pixels = width, -(-pixels // stride)
    return nn.Sequential(*layers).double(), image_size


def reference(model, retargeted, x):
    """The retargeted network, kernel by kernel."""
    convs = [module for module in model if isinstance(module, nn.Conv2d)]
    graph = channel_graph(retargeted)
    kernels = {}
    for number, layer in enumerate(rewired_layers(retargeted), 1):
        reads, gives = graph.offsets[number - 1], graph.offsets[number]
        for out, place in layer.mask.nonzero().tolist():
            group = out // (layer.out_channels // layer.groups)
            source = group * layer.weight.shape[1] + place
            kernels[reads + source, gives + out] = layer.weight[out, place]
        links = layer.long_range.tolist()
        for (source, out), kernel in zip(links, layer.long_range_weight if links else ()):
            kernels[source, gives + out] = kernel
    assert sorted(map(list, kernels)) == edges_of(graph)
    into = {}
    for (source, target), kernel in kernels.items():
        into.setdefault(target, []).append((source, kernel))
    maps = [torch.tanh(convs[0](x))]
    for number, conv in enumerate(convs[1:], 1):
        channels = []
        for out in range(conv.out_channels):
            total = 0 if conv.bias is None else conv.bias[out]
            for source, kernel in into.get(graph.offsets[number] + out, []):
                layer = int(graph.layers_of(np.array(source)))
                part = maps[layer][:, source - graph.offsets[layer]][:, None]
                ratio = round(part.shape[-1] / maps[number - 1].shape[-1])
                part = F.avg_pool2d(part, ratio)
                total = total + F.conv2d(part, kernel[None, None], None, conv.stride, conv.padding)
            if not torch.is_tensor(total) or total.ndim == 0 or total.shape[0] != len(x):
                shape = F.conv2d(maps[number - 1], conv.weight, None, conv.stride, conv.padding, 1, conv.groups).shape
                total = torch.zeros(len(x), 1, *shape[2:], dtype=x.dtype) + total
            channels.append(total)
        maps.append(torch.tanh(torch.cat(channels, dim=1)))
    return maps[-1]


@settings(max_examples=15)
@given(plain_networks(), st.floats(0, 1), st.integers(0, 100))
def test_a_rewired_network_computes_its_graph(network, p, seed):
    model, size = network
    retargeted = swnet(model, p=p, seed=seed, image_size=size)
    original, graph = channel_graph(model, image_size=size), channel_graph(retargeted)
    assert edges_of(graph) == edges_of(original.retargeted(p, seed=seed))
    kernels = sum(conv.weight.shape[:2].numel() for conv in list(model)[2::2])
    assert graph.num_edges == original.num_edges == kernels
    assert sum(layer.num_kernels for layer in rewired_layers(retargeted)) == kernels
    x = torch.randn(2, 2, size, size, dtype=torch.float64)
    torch.testing.assert_close(retargeted(x), reference(model, retargeted, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_with_p_0_a_network_computes_exactly_what_it_did(name):
    original, x = create(name), images()
    twin = swnet(original, p=0)
    graph = channel_graph(original)
    assert graph.widths == channel_graph(twin).widths == NETWORKS[name][1]
    assert edges_of(graph) == edges_of(channel_graph(twin))
    weights = twin.state_dict()
    for key, tensor in original.state_dict().items():
        assert torch.equal(weights[key], tensor)
    for train in (False, True):
        with torch.no_grad():
            for ours, theirs in zip(outputs(twin.train(train), x), outputs(original.train(train), x), strict=True):
                assert torch.equal(ours, theirs)
    found = small_world(graph.edges, num_nodes=graph.num_nodes, references=1, samples=64)
    assert (found.clustering, found.small_worldness) == (0, 0)


@pytest.mark.parametrize("name", SMALL)
def test_kernels_are_counted(name):
    original = create(name)
    retargeted = swnet(original, p=0.5, seed=1)
    layers = rewired_layers(retargeted)
    kernels = sum(int(layer.mask.sum()) + len(layer.long_range) for layer in layers)
    assert kernels == channel_graph(original).num_edges == channel_graph(retargeted).num_edges
    convs = dict(original.named_modules())
    before = after = 0
    for path, layer in retargeted.named_modules():
        if isinstance(layer, RetargetedConv2d):
            before += convs[path].weight.numel()
            after += (int(layer.mask.sum()) + len(layer.long_range)) * layer.kernel_size[0] * layer.kernel_size[1]
    (theirs, _), (ours, _) = complexity.parameters(original), complexity.parameters(retargeted)
    assert ours - theirs == after - before
    if len({layer.kernel_size for layer in layers}) == 1:
        assert ours == theirs
    pixels = {}
    for path, layer in retargeted.named_modules():
        layer.register_forward_hook(lambda _, args, out, path=path: pixels.update({path: out[0, 0].numel()}))
    with torch.no_grad():
        retargeted.eval()(images())
    moved = 0
    for path, layer in convs.items():
        if isinstance(retargeted.get_submodule(path), RetargetedConv2d):
            ours = retargeted.get_submodule(path)
            number = int(ours.mask.sum()) + len(ours.long_range) - layer.weight.shape[:2].numel()
            moved += number * layer.kernel_size[0] * layer.kernel_size[1] * pixels[path]
    image = (3, SIZE, SIZE)
    assert complexity.multiply_adds(retargeted, image) - complexity.multiply_adds(original, image) == moved


@pytest.mark.parametrize("name", SMALL)
def test_training_leaves_kernels_where_they_are(name):
    model = swnet(create(name), p=0.5, seed=2).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        missing = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert missing == []
        for layer in rewired_layers(model):
            assert not layer.weight.grad[~layer.mask].any()
        optimizer.step()
    absent = 0
    for layer in rewired_layers(model):
        assert not layer.weight[~layer.mask].any()
        absent += int((~layer.mask).sum())
    assert absent > 0
    assert not any(layer.maps.held for layer in rewired_layers(model))


def test_seeds():
    original = create("resnet18")
    before = copy.deepcopy(original.state_dict())
    first, same, other = (swnet(original, p=0.4, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, same[key]) for key, tensor in first.items())
    assert not torch.equal(first["layer3.0.conv1.mask"], other["layer3.0.conv1.mask"])
    assert all(torch.equal(tensor, before[key]) for key, tensor in original.state_dict().items())


def test_new_weights_have_the_scale_of_their_layer():
    original = timm.create_model("resnet18", layers=(1, 1, 1, 1), channels=(16, 24, 32, 48))
    for layer in rewired_layers(swnet(original, p=0.5))[3:]:
        own = original.get_submodule(layer_name(original, layer)).weight
        assert layer.long_range_weight.std().item() == pytest.approx(own.std().item(), rel=0.1)


def layer_name(original, layer):
    """The name of the convolution that a retargeted one was made of, by its number."""
    names = [name for name, m in original.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in name]
    return names[layer.number]


def test_files():
    original = create("resnet18")
    model, x = swnet(original, p=0.5, seed=3).eval(), images()
    weights = model.state_dict()
    again = swnet(create("resnet18"), p=0.5, seed=3).eval()
    again.load_state_dict(weights)
    rebuilt = rebuild_swnet(create("resnet18"), weights).eval()
    for twin in (again, rebuilt, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert twin.state_dict().keys() == weights.keys()
        assert edges_of(channel_graph(twin)) == edges_of(channel_graph(model))
    for other in (swnet(original, p=0.5, seed=4), swnet(original, p=0)):
        for strict in (True, False):
            with pytest.raises(
                WeightsError, match=r"layer\d.0.conv\d.mask: the file has another wiring.*rebuild_swnet"
            ):
                other.load_state_dict(weights, strict=strict)
    with pytest.raises(RuntimeError, match=r"Missing key.*layer1.0.conv1.mask"):
        model.load_state_dict(original.state_dict())
    with pytest.raises(WeightsError, match=r"not of a SWNet of this ResNet: layer1.0.conv1.mask"):
        rebuild_swnet(original, original.state_dict())
    links = "layer4.0.conv2.long_range"
    with pytest.raises(WeightsError, match=rf"{links}: the file has another wiring"):
        model.load_state_dict({**weights, links: weights[links].flip(0)})


def test_features():
    options = {"layers": (1, 1, 1, 1), "channels": (6, 8, 10, 12)}
    original, x = create("resnet18").eval(), images()
    extractor = timm.create_model("resnet18", features_only=True, **options).eval()
    extractor.load_state_dict({key: original.state_dict()[key] for key in extractor.state_dict()})
    expected, maps = extractor(x), swnet(extractor, p=0.4)(x)
    assert [found.shape for found in maps] == [found.shape for found in expected]
    assert not torch.allclose(maps[-1], expected[-1])
    _, inner = swnet(original, p=0.4).forward_intermediates(x)
    for ours, theirs in zip(maps, inner, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_images_of_other_sizes():
    model = swnet(create("resnet18"), p=0.5).eval()
    for height, width in ((65, 95), (224, 160), (33, 70)):
        assert model(torch.randn(1, 3, height, width)).isfinite().all()


def test_compiled_and_exported():
    convs = [nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in ((3, 4, 2), (4, 6, 1), (6, 8, 2), (8, 8, 1), (8, 8, 1))]
    layers = [layer for conv in convs for layer in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))]
    model, x = swnet(nn.Sequential(*layers), p=0.5).train(), images()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for twin in (model, compiled):
        model.zero_grad()
        output = twin(x)
        output.square().sum().backward()
        found.append((output, {key: p.grad for key, p in model.named_parameters()}))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    model.eval()
    exported = torch.export.export(model, (x,), strict=False).module()  # as later versions of torch do by default
    torch.testing.assert_close(exported(x), model(x))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))


def saved_bytes(depth):
    """What the forward pass of a plain network of so many layers keeps for the backward pass."""
    layers = [layer for k in range(depth) for layer in (nn.Conv2d(6 if k else 3, 6, 3, padding=1), nn.Tanh())]
    model, sizes = swnet(nn.Sequential(*layers), p=0.5, image_size=8), {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randn(1, 3, 8, 8))
    assert output.requires_grad
    return sum(sizes.values())


def test_memory_grows_with_the_network_and_not_with_its_square():
    short, long = saved_bytes(15), saved_bytes(30)
    assert long < 2.2 * short


def test_a_pass_in_parts_is_refused():
    model = swnet(create("resnet18"), p=0.5).eval()
    with pytest.raises(ConfigError, match="has not computed: call the network as a whole"):
        model.layer4(torch.randn(1, 10, 4, 4))
    model.train().set_grad_checkpointing()
    with pytest.raises(ConfigError, match="without gradient checkpointing"):
        model(images()).sum().backward()


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        return sum(conv(x) for conv in self.convs)


class Twice(Parallel):
    def forward(self, x):
        return self.convs[1](self.convs[2](self.convs[1](self.convs[0](x))))


def hooked():
    model = timm.create_model("resnet18")
    model.layer2[0].conv1.register_forward_hook(lambda *_: None)
    return model


def chain(*last):
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1), *last)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: timm.create_model("densenet121"),
            r"denselayer2.conv1 reads 96 channels where .*gives 32: maps are conc",
        ),
        (lambda: timm.create_model("vit_tiny_patch16_224"), "it has 1 layers of ordinary convolutions"),
        (lambda: nn.Linear(3, 3), "cannot retarget Linear: it has no convolution"),
        (Parallel, "convs.1 reads the same map as convs.0: they are parallel"),
        (Twice, "convs.1 is called more than once in a pass"),
        (hooked, "layer2.0.conv1 has forward hooks"),
        (lambda: swnet(RESNET(), p=0.1), "ResNet is already retargeted; retarget the original"),
        (
            lambda: chain(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
            r"2 is not a plain Conv2d: Conv2d, padding_mode='circular'",
        ),
        (
            lambda: chain(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 1)),
            r"3 reads a map of \(224, 224\) pixels after",
        ),
        (lambda: chain(nn.AvgPool2d((2, 1)), nn.Conv2d(4, 4, 1)), r"cannot be pooled to the \(56, 112\) of 3"),
        (
            lambda: chain(nn.Linear(7, 7), nn.Conv2d(4, 4, 1)),
            r"does not accept images of \[1, 3, 224, 224\], give another",
        ),
    ],
)
def test_what_cannot_be_rewired_is_refused_with_the_reason(make, message):
    with pytest.raises(ConfigError, match=message):
        swnet(make(), p=0.5)


def test_a_p_that_is_no_probability_is_named():
    with pytest.raises(ConfigError, match=re.escape("p=-0.1 is not a probability")):
        swnet(RESNET(), p=-0.1)
