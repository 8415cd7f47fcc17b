import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2
from torch import nn

from topodet import connectivity
from topodet.complexity import multiply_adds, parameters
from topodet.errors import ConfigError
from topodet.models import ResNetCifar, disconnect, rewire
from topodet.topology import complete

# Table 1: depth -> parameters and multiply-adds in millions of the original.
TABLE_1 = {
    20: (278_324, 40.82),
    32: (472_756, 69.13),
    44: (667_188, 97.44),
    56: (861_620, 125.75),
    110: (1_736_564, 253.16),
}
BOTH = ["resnet20_cifar", "resnet20_cifar_connected"]


def create(name, **kwargs):
    return randomise(timm.create_model(name, **kwargs))


def randomise(model):
    """Edge weights and normalisations that are all their own."""
    for wiring in connectivity.wirings(model).values():
        nn.init.normal_(wiring.alpha, mean=1, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("depth", TABLE_1)
def test_complexity_is_that_of_table_1(depth):
    size, products = TABLE_1[depth]
    with torch.device("meta"):
        plain, connected = (timm.create_model(f"resnet{depth}_cifar{form}") for form in ("", "_connected"))
    assert parameters(plain) == (size, 0)
    nodes = {20: 6, 32: 10, 44: 14, 56: 18, 110: 36}[depth]  # that compute; and an input and an output
    assert parameters(connected) == (size, 3 * (nodes + 2) * (nodes + 1) // 2)
    assert [w.topology for w in connectivity.wirings(connected).values()] == [complete(nodes + 2)] * 3
    for model in (plain, connected):
        assert round(multiply_adds(model, (3, 32, 32)) / 1e6, 2) == products


def normalised(x, conv, bn):
    x = F.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding)
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


def test_the_original_is_he_s_network():
    model, image = create("resnet20_cifar").double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = F.relu(normalised(image, model.conv1, model.bn1))
    for stage in (model.layer1, model.layer2, model.layer3):
        for block in stage:
            shortcut = x if block.downsample is None else normalised(x, *block.downsample)
            x = F.relu(normalised(x, block.conv1, block.bn1))
            x = F.relu(normalised(x, block.conv2, block.bn2) + shortcut)
    torch.testing.assert_close(model(image), F.linear(x.mean((2, 3)), model.head.fc.weight, model.head.fc.bias))


def test_the_connected_form_computes_equation_1_over_all_convolutions():
    model = create("resnet20_cifar_connected").double().eval()
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = F.relu(normalised(image, model.conv1, model.bn1))
    for stage, features in zip((model.layer1, model.layer2, model.layer3), model.stage_features(image)):
        blocks = list(stage.children())
        wiring = blocks[0].wiring
        alpha = dict(zip(wiring.topology.edges, wiring.alpha))
        layers = [layer for b in blocks for layer in ((b.conv1, b.bn1), (b.conv2, b.bn2))]
        first = normalised(F.relu(alpha[0, 1] * x), *layers[0])
        r = [x if blocks[0].downsample is None else normalised(x, *blocks[0].downsample), first]
        for i, layer in enumerate(layers[1:], 2):
            r.append(normalised(F.relu(sum(alpha[j, i] * r[j] for j in range(i))), *layer))
        x = F.relu(sum(alpha[j, len(r)] * r[j] for j in range(len(r))))
        torch.testing.assert_close(features, x)
    torch.testing.assert_close(model(image), F.linear(x.mean((2, 3)), model.head.fc.weight, model.head.fc.bias))


def test_weights_of_the_original_load_with_all_edges_1():
    plain, connected = (create(name) for name in BOTH)
    connected.load_state_dict(plain.state_dict())
    assert all((w.alpha == 1).all() for w in connectivity.wirings(connected).values())
    added = {f"layer{k}.0.wiring.{part}" for k in (1, 2, 3) for part in ("alpha", "edges")}
    missing, unexpected = plain.load_state_dict(connected.state_dict(), strict=False)
    assert (missing, set(unexpected)) == ([], added)
    with pytest.raises(ConfigError, match=r"layer1.0 is rewired: with any edge weights"):
        disconnect(connected)


@pytest.mark.parametrize("name", BOTH)
def test_every_parameter_gets_a_gradient(name):
    model = create(name).train()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_connectivity_sees_the_edges():
    model = timm.create_model("resnet20_cifar_connected")
    assert connectivity.penalty(model, "uniform").item() == 84
    groups = {group["name"]: group for group in connectivity.param_groups(model, weight_decay=5e-4)}
    assert sum(p.numel() for p in groups["alpha"]["params"]) == 84
    assert groups["alpha"]["weight_decay"] == 0
    fixed = timm.create_model("resnet20_cifar_connected", edge_weights="fixed")
    assert parameters(fixed) == (278_324, 0)


@pytest.mark.parametrize("name", BOTH)
def test_arguments_of_timm(name):
    model = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.5)
    image = torch.randn(2, 1, 32, 32)
    assert model(image).shape == (2, 7)
    assert model.get_classifier().out_features == 7
    features = model.forward_features(image)
    assert features.shape == (2, model.num_features, 8, 8)
    assert model.forward_head(features, pre_logits=True).shape == (2, 64)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))  # dropout
    model.reset_classifier(4)
    assert model(image).shape == (2, 4)
    assert timm.create_model(name, num_classes=0)(torch.randn(1, 3, 32, 32)).shape == (1, 64)
    assert timm.create_model(name).num_classes == 100
    without_batches = timm.create_model(name, norm_layer="groupnorm1")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in without_batches.modules())
    config = resolve_data_config({}, model=model)
    assert (config["input_size"], config["mean"]) == ((3, 32, 32), (0.5071, 0.4865, 0.4409))
    for key in ("first_conv", "classifier"):
        assert f"{model.default_cfg[key]}.weight" in model.state_dict()
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4, layer_decay=0.7)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert len({group["lr_scale"] for group in optimizer.param_groups}) == 3 * 3 + 2


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("indices", [(0, 1, 2), (1,), (0, -1)])
def test_feature_maps(name, indices):
    model, image = create(name).eval(), torch.randn(1, 3, 32, 48)
    reader = timm.create_model(name, features_only=True, out_indices=indices).eval()
    _, unexpected = reader.load_state_dict(model.state_dict(), strict=False)
    assert all(key.startswith(("head.", "layer3.")) for key in unexpected)
    final, intermediates = model.forward_intermediates(image, indices=list(indices))
    assert torch.equal(final, model.forward_features(image))
    described = zip(reader.feature_info.channels(), reader.feature_info.reduction())
    for x, y, (channels, stride) in zip(reader(image), intermediates, described, strict=True):
        assert torch.equal(x, y)
        assert x.shape == (1, channels, 32 // stride, 48 // stride)
        assert x.min() == 0
    model.prune_intermediate_layers([1])
    pruned = model.forward_intermediates(image, intermediates_only=True)
    assert [x.shape[1] for x in pruned] == [16, 32]
    assert not any(key.startswith(("layer3", "head.fc")) for key in model.state_dict())


@pytest.mark.parametrize("form", [nn.Identity(), rewire])
def test_checkpointing_and_compilation_give_the_same_step(form):
    model, image = randomise(form(ResNetCifar(depth=8))).train(), torch.randn(2, 3, 32, 32)

    def gradients(run):
        model.zero_grad()
        run(image).square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    expected = gradients(model)
    torch.testing.assert_close(gradients(torch.compile(model, fullgraph=True, backend="aot_eager")), expected)
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(model), expected)


def test_a_depth_that_is_none_is_refused():
    assert parameters(ResNetCifar(depth=8, num_classes=10))[0] > 0
    for depth in (2, 21):
        with pytest.raises(ConfigError, match=rf"6n \+ 2 layers: 8, 14, 20 and so on, got depth={depth}"):
            ResNetCifar(depth=depth)
