import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import DropPath, freeze_batch_norm_2d
from torch import nn

from tests.models.connected.resnets import NETWORKS, create, image, randomize
from topodet import connectivity
from topodet.errors import ConfigError
from topodet.models import Residual, disconnect, rewirable, rewire
from topodet.models.connected import connect
from topodet.topology import complete


def gradients(run, model, x):
    model.zero_grad()
    torch.manual_seed(1)  # drop path
    run(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


class LinearAtLast(nn.Module):
    """An activation that does nothing the last of so many times; some blocks use theirs inside as well."""

    def __init__(self, activation, calls):
        super().__init__()
        self.activation, self.calls = activation, calls

    def forward(self, x):
        self.calls -= 1
        return self.activation(x) if self.calls else x


def residuals(block, activation, shortcut):
    """What a block adds, branch by branch: the block itself without its last activation, less its shortcut."""
    if type(block).__name__ in ("BasicBlock", "SEResNetBlock") and hasattr(block, "bn2"):  # a node each convolution
        attention = getattr(block, "se", None) or getattr(block, "se_module", None) or nn.Identity()
        inner = F.relu if type(block).__name__ == "SEResNetBlock" else nn.Identity()
        return [
            lambda x: block.bn1(block.conv1(x)),
            lambda x: attention(inner(block.bn2(block.conv2(F.relu(x))))),
        ]

    def whole(x):
        calls = []
        twin = copy.deepcopy(block)
        hook = getattr(twin, activation).register_forward_hook(lambda *_: calls.append(1))
        twin(x)
        hook.remove()
        setattr(twin, activation, LinearAtLast(getattr(twin, activation), len(calls)))
        return twin(x) - (x if getattr(twin, shortcut) is None else getattr(twin, shortcut)(x))

    return [whole]


def equation_1(blocks, x, alpha, activation, shortcut):
    """The sums of a run, written down; returns what it hands on."""
    functions = [f for block in blocks for f in residuals(block, activation, shortcut)]
    # The node's own activation; each branch of a block but its first has it already.
    firsts = {sum(len(residuals(b, activation, shortcut)) for b in blocks[:k]) + 1 for k in range(len(blocks))}
    activate = getattr(blocks[0], activation)
    projection = getattr(blocks[0], shortcut)
    r = [x if projection is None else projection(x), functions[0](alpha[0, 1] * x)]
    for i, f in enumerate(functions[1:], 2):
        s = sum(alpha[j, i] * r[j] for j in range(i))
        r.append(f(activate(s) if i in firsts else s))
    return activate(sum(alpha[j, len(r)] * r[j] for j in range(len(r))))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rewired_network_computes_equation_1(name):
    _, nodes, activation, shortcut = NETWORKS[name]
    original = create(name).double().eval()
    model = randomize(rewire(original))
    assert not any(isinstance(reason, str) for reason in rewirable(original).values())
    wirings = connectivity.wirings(model)
    assert [wiring.topology for wiring in wirings.values()] == [complete(m + 2) for m in nodes]
    added = [f"{key}.{part}" for key in wirings for part in ("alpha", "edges")]
    assert [key for key in model.state_dict() if key not in added] == list(original.state_dict())

    passages = []
    names = [key.rpartition(".wiring")[0].rpartition(".")[0] for key in wirings]
    chains = [model.get_submodule(name) for name in names]
    original.load_state_dict({key: tensor for key, tensor in model.state_dict().items() if key not in added})
    for chain in chains:
        chain.register_forward_hook(lambda chain, inputs, output: passages.append((chain, inputs[0], output)))
    with torch.no_grad():
        model(image().double())
        assert [chain for chain, *_ in passages] == chains
        for name, wiring, (_, x, output) in zip(names, wirings.values(), passages):
            blocks = list(original.get_submodule(name).children())
            alpha = dict(zip(wiring.topology.edges, wiring.alpha))
            torch.testing.assert_close(output, equation_1(blocks, x, alpha, activation, shortcut))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_networks_of_torchvision(name):
    theirs = rewire(timm.create_model(name, num_classes=5)).eval()
    ours = rewire(getattr(torchvision.models, name)(num_classes=5)).eval()
    ours.load_state_dict(randomize(theirs).state_dict())  # the names are the same
    x = image()
    torch.testing.assert_close(ours(x), theirs(x))
    assert [w.topology.num_edges for w in connectivity.wirings(ours).values()] == {
        "resnet18": [15, 15, 15, 15],
        "resnet50": [10, 15, 28, 10],
    }[name]


def test_weights_of_the_original_load_strictly_and_connectivity_sees_the_edges():
    original, model = create("resnet50"), randomize(rewire(create("resnet50")))
    model.load_state_dict(original.state_dict())
    again = rewire(original)
    x = image()
    assert torch.equal(model.eval()(x), again.eval()(x))
    assert connectivity.penalty(model, "uniform").item() == 6 + 3 + 6 + 3
    assert not any(w.learned for w in connectivity.wirings(rewire(original, edge_weights="fixed")).values())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnety_002"])
def test_checkpointing_gives_the_same_gradients(name):
    model, x = randomize(rewire(create(name, drop_path_rate=0.3))).train(), image()
    expected = gradients(model, model, x)
    assert all(g.isfinite().all() for g in expected.values())
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(model, model, x), expected)


def test_compiled_exported_copied_and_pickled():
    model, x = randomize(rewire(nn.Sequential(*create("resnet50").layer3))), torch.randn(2, 48, 8, 8)
    expected = gradients(model, model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, model, x), expected)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(gradients(twin, twin, x), expected)
    model.eval()
    exported = torch.export.export(model, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnety_002"])
def test_feature_maps_are_what_the_next_stage_reads(name):
    model, x = randomize(rewire(create(name))).eval(), image()
    reader = rewire(timm.create_model(name, features_only=True, **NETWORKS[name][0])).eval()
    names = {key: value for key, value in model.state_dict().items() if key in reader.state_dict()}
    reader.load_state_dict(names)
    last, intermediates = model.forward_intermediates(x)
    for ours, theirs, channels in zip(reader(x), intermediates, reader.feature_info.channels(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.shape[1] == channels
        assert ours.min() >= 0
    assert torch.equal(last, model.forward_features(x))


def test_frozen_normalisation_and_autocast():
    model, x = randomize(rewire(create("resnet50"))).eval(), image()
    exact, expected = model.forward_features(x), model(x)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.forward_features(x)
    assert features.dtype == torch.bfloat16
    assert (features - exact).norm() / exact.norm() < 0.05
    frozen = freeze_batch_norm_2d(model).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    torch.testing.assert_close(frozen(x), expected)


def test_drop_path_takes_out_nodes():
    model = rewire(create("resnet18", drop_path_rate=0.5, channels=(64, 8, 8, 8))).train()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 1 - 1e-9
    x = torch.randn(2, 64, 16, 16)
    first, second = model.layer1.children()
    assert first.drop_path is None
    assert second.drop_path is not None
    r1 = first.bn1(first.conv1(x))
    r2 = first.bn2(first.conv2(F.relu(x + r1)))
    torch.testing.assert_close(model.layer1(x), F.relu(x + r1 + r2))  # both nodes of the second block are gone


class Activated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(x + self.conv(x))


def added(block, x):
    return block.conv(x)


def test_own_blocks():
    original, x = nn.Sequential(Activated(4), Activated(4)), torch.rand(2, 4, 5, 5)
    model = randomize(rewire(original, blocks={Activated: Residual((added,), activation="act")}))
    a = dict(zip(complete(4).edges, model[0].wiring.alpha))
    r1 = original[0].conv(a[0, 1] * x)
    r2 = original[1].conv(F.relu(a[0, 2] * x + a[1, 2] * r1))
    torch.testing.assert_close(model(x), F.relu(a[0, 3] * x + a[1, 3] * r1 + a[2, 3] * r2))


def test_a_cut_run_keeps_the_edges_of_its_blocks_only():
    model = randomize(rewire(create("resnet18"))).eval()
    x, chain = torch.randn(2, 64, 16, 16), model.layer1
    [wiring], [cut] = connectivity.wirings(chain).values(), connectivity.wirings(chain[:1]).values()
    assert (wiring.topology, cut.topology) == (complete(6), complete(4))
    torch.testing.assert_close(chain[:1](x), next(iter(chain))(x))
    assert list(connectivity.wirings(chain[:0])) == []


def test_what_cannot_be_rewired_is_named():
    model = timm.create_model("resnetblur18")
    reasons = rewirable(model, leave_out=["layer4"])
    assert [name for name, reason in reasons.items() if isinstance(reason, str)] == [
        "layer2.0",
        "layer3.0",
        "layer4.0",
        "layer4.1",
    ]
    assert "anti-aliasing shrinks" in reasons["layer2.0"]
    assert reasons["layer4.1"] == "it is in leave_out"
    x = image()
    left = rewire(model, leave_out=["layer1", "layer3", "layer4"])
    assert list(connectivity.wirings(left)) == ["layer2.1.wiring"]
    assert left(x).shape == (2, 1000)
    with pytest.raises(ConfigError, match=r"layer2.1 is already connected$"):
        rewire(left)
    with pytest.raises(ConfigError, match=r"layer2.1 is rewired: with any edge weights"):
        disconnect(left)
    with torch.device("meta"):
        with pytest.raises(ConfigError, match=r"nothing to rewire in ConvNeXt.*Try connect\(model\)"):
            rewire(timm.create_model("convnext_atto"))
        with pytest.raises(ConfigError, match=r"stages.0.0 \(.*Block\).*topodet.models.connect connects it as it is"):
            rewire(timm.create_model("regnetz_b16"))
        with pytest.raises(ConfigError, match=r"Known in timm.models: .*torchvision.models.resnet.BasicBlock"):
            rewire(timm.create_model("vgg11"))


@pytest.mark.parametrize("name", [*NETWORKS, "tresnet_m", "cspresnet50"])
def test_connect_refuses_and_names_rewire(name):
    with torch.device("meta"):
        model = timm.create_model(name)
        with pytest.raises(ConfigError, match=r"follows the addition.*topodet\.models\.rewire"):
            connect(model)
        assert connectivity.wirings(rewire(model))


def test_only_what_is_left_to_try_is_advised():
    block = timm.create_model("resnet18", num_classes=2).layer2[0]  # of stride 2
    with pytest.raises(ConfigError, match=r"follows the addition.*nodes='auto' or 'blocks'"):
        connect(nn.Sequential(block))
    with pytest.raises(ConfigError, match="follows the addition") as raised:
        connect(nn.Sequential(nn.Sequential(block)), nodes="auto", sample=torch.randn(1, 64, 8, 8))
    assert "nodes='auto'" not in str(raised.value)
