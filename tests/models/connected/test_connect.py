import copy
import pickle

import pytest
import timm
import torch
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from tests.models.connected.helpers import (
    NETWORKS,
    assert_same,
    create,
    image,
    run,
    scatter,
)
from topodet import connectivity
from topodet.errors import ConfigError, WeightsError
from topodet.models import Residual, Wiring, connectable, disconnect
from topodet.models.connected import RunPlan, connect
from topodet.topology import complete


@pytest.mark.parametrize("name", NETWORKS)
def test_a_connected_network_computes_what_the_original_does(name):
    original = create(name)
    connected, x = connect(original), image(name)
    wirings = connectivity.wirings(connected)
    assert [wiring.topology.num_edges for wiring in wirings.values()] == NETWORKS[name][1]
    assert all(wiring.topology == complete(wiring.topology.num_nodes) for wiring in wirings.values())
    added = [f"{key}.{part}" for key in wirings for part in ("alpha", "edges")]
    assert [key for key in connected.state_dict() if key not in added] == list(original.state_dict())
    for train in (False, True):
        outputs = []
        for model in (connected, original):
            torch.manual_seed(1)  # drop path
            with torch.no_grad():
                outputs.append(model.train(train)(x))
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    found = connected.state_dict()
    for key, tensor in original.state_dict().items():  # batch statistics
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)
    # Gradients are added up in another order: in float64 it does not matter.
    ours = run(connected.double(), x.double())
    assert_same(ours, run(original.double(), x.double()))
    for key in wirings:
        assert ours[1][f"{key}.alpha"].count_nonzero() > 0  # not all of them: drop path takes nodes out


@pytest.mark.parametrize(
    ("name", "stage", "before"), [("convnext_atto", "stages.2.blocks", 0), ("mobilenetv2_050", "blocks.2", 1)]
)
def test_a_run_computes_equation_1(name, stage, before):
    """Against a reading that knows of a block only what it adds; `before` blocks change the width first."""
    original = create(name).double().eval()
    chain = scatter(connect(original)).get_submodule(stage)
    first, blocks = original.get_submodule(stage)[:before], original.get_submodule(stage)[before:]
    [wiring] = connectivity.wirings(chain).values()
    alpha = dict(zip(wiring.topology.edges, wiring.alpha))
    width = {"convnext_atto": 160, "mobilenetv2_050": 16}[name]
    x = torch.randn(2, width, 8, 8, dtype=torch.float64)
    residuals = [first(x)]
    for i, block in enumerate(blocks, 1):
        stream = sum(alpha[j, i] * residual for j, residual in enumerate(residuals))
        residuals.append(block(stream) - stream)
    output = sum(alpha[j, len(residuals)] * residual for j, residual in enumerate(residuals))
    torch.testing.assert_close(chain(x), output)


def test_blocks_with_two_branches_are_two_nodes():
    original = create("vit_tiny_patch16_224", depth=1).double().eval()
    chain = scatter(connect(original)).blocks
    [block], a = original.blocks, dict(zip(complete(4).edges, chain[0].wiring.alpha))
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    attention = block.ls1(block.attn(block.norm1(a[0, 1] * x)))
    mlp = block.ls2(block.mlp(block.norm2(a[0, 2] * x + a[1, 2] * attention)))
    torch.testing.assert_close(chain(x), a[0, 3] * x + a[1, 3] * attention + a[2, 3] * mlp)


def test_checkpoints_of_the_original_load_strictly():
    original = create("mobilenetv2_050")
    connected = scatter(connect(create("mobilenetv2_050")))
    weights = original.state_dict()
    connected.load_state_dict(weights)
    x = image("mobilenetv2_050")
    torch.testing.assert_close(connected.eval()(x), original.eval()(x), rtol=1e-5, atol=1e-5)
    scatter(connected)
    again = connect(original)
    again.load_state_dict(connected.state_dict())
    assert torch.equal(again.eval()(x), connected(x))

    key, first = "blocks.1.1.conv_pw.weight", "blocks.1.1.wiring"
    with pytest.raises(RuntimeError, match=f"Missing key.*{key}"):
        connected.load_state_dict({name: tensor for name, tensor in weights.items() if name != key})
    with pytest.raises(RuntimeError, match="Unexpected key.*another"):
        connected.load_state_dict({**weights, "another": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=f"Missing key.*{first}.alpha"):
        connected.load_state_dict({**weights, f"{first}.edges": torch.tensor(complete(3).edges)})
    with pytest.raises(WeightsError, match=f"{first}.edges: the file has a different topology"):
        connected.load_state_dict({**weights, f"{first}.edges": torch.tensor(complete(4).edges)})


@pytest.mark.parametrize("nodes", ["residuals", "blocks"])
def test_inplace_changes_the_network_itself(nodes):
    original, x = create("regnetz_005"), image("regnetz_005")
    expected, parameters = original.eval()(x), set(map(id, original.parameters()))
    twin = connect(original, nodes=nodes, sample=x)
    assert not connectivity.wirings(original)
    with pytest.raises(ConfigError, match="nothing to connect"):
        connect(
            original, nodes=nodes, sample=x, leave_out=[name for name, _ in original.named_children()], inplace=True
        )
    assert not connectivity.wirings(original)
    connected = connect(original, nodes=nodes, sample=x, inplace=True)
    assert connected is original
    assert repr(connected) == repr(twin)
    torch.testing.assert_close(connected(x), expected, rtol=1e-5, atol=1e-5)
    added = {id(wiring.alpha) for wiring in connectivity.wirings(connected).values()}
    assert set(map(id, connected.parameters())) == parameters | added


@pytest.mark.parametrize("name", ["mobilenetv2_050", "regnetz_005", "vit_tiny_patch16_224"])
def test_disconnect_gives_back_the_original(name):
    original = create(name)
    connected = connect(original)
    plain = disconnect(connected)
    assert repr(plain) == repr(original)
    assert b"topodet" not in pickle.dumps(plain)
    assert list(plain.state_dict()) == list(original.state_dict())
    x = image(name)
    assert_same(run(plain.train(), x), run(original.train(), x), rtol=0, atol=0)
    next(iter(connectivity.wirings(connected).values())).alpha.data[1] += 0.25
    with pytest.raises(ConfigError, match=r"wiring.alpha differs from its initial value by up to 0.25"):
        disconnect(connected)
    with pytest.raises(ConfigError, match="is not connected"):
        disconnect(plain)


@pytest.mark.parametrize("name", ["mobilenetv2_050", "convnext_atto", "vit_tiny_patch16_224", "regnetz_005"])
def test_features(name):
    original, x = create(name).eval(), image(name)
    extractor = timm.create_model(name, features_only=True, **NETWORKS[name][0]).eval()
    for ours, theirs in zip(connect(extractor)(x), extractor(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    connected = scatter(connect(original))
    last, all_features = connected.forward_intermediates(x)
    torch.testing.assert_close(last, connected.forward_features(x))
    early = connected.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early[0], all_features[1])
    connected.prune_intermediate_layers([1])
    pruned = connected.forward_intermediates(x, indices=[1], intermediates_only=True)
    torch.testing.assert_close(pruned[0], all_features[1])


def test_features_inside_a_block():
    kwargs = {"features_only": True, "feature_location": "expansion"}
    extractor = timm.create_model("mobilenetv2_050", **kwargs).eval()
    x = image("mobilenetv2_050")
    for ours, theirs in zip(connect(extractor)(x), extractor(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("edge_weights", ["learned", "fixed"])
def test_a_cut_run_keeps_the_edges_of_its_blocks_only(edge_weights):
    connected = scatter(connect(create("vit_tiny_patch16_224"), edge_weights=edge_weights)).eval()
    [whole] = connectivity.wirings(connected).values()
    x = image("vit_tiny_patch16_224")
    short = copy.deepcopy(connected)
    short.blocks = connected.blocks[:2]
    [cut] = connectivity.wirings(short).values()
    assert (cut.topology, cut.learned) == (complete(6), edge_weights == "learned")
    alpha = dict(zip(whole.topology.edges, whole.alpha.tolist()))
    assert cut.alpha.tolist() == [alpha[edge] for edge in complete(6).edges]
    assert whole.topology == complete(8)
    expected = connected.forward_intermediates(x, indices=[1], intermediates_only=True, norm=False)
    torch.testing.assert_close(short.forward_intermediates(x, indices=[1], intermediates_only=True), expected)
    assert short.blocks[1] is connected.blocks[1]
    assert next(short.blocks.parameters()) is next(connected.blocks.parameters())

    original = create("vit_tiny_patch16_224")
    short = connect(original)
    short.prune_intermediate_layers([1])
    original.prune_intermediate_layers([1])
    assert repr(disconnect(short)) == repr(original)


def test_connectivity_sees_the_edges():
    model = connect(create("mobilenetv2_050"))
    edges = sum(NETWORKS["mobilenetv2_050"][1])
    assert connectivity.penalty(model, "uniform").item() == edges
    assert connectivity.sparsity(model)["below_0.01"] == 0
    groups = {group["name"]: group["params"] for group in connectivity.param_groups(model, weight_decay=1e-4)}
    assert sum(p.numel() for p in groups["alpha"]) == edges
    fixed = connect(create("mobilenetv2_050"), edge_weights="fixed")
    assert not any(wiring.learned for wiring in connectivity.wirings(fixed).values())


@pytest.mark.parametrize("name", ["mobilenetv2_050", "convnext_atto", "vit_tiny_patch16_224", "regnetz_005"])
def test_checkpointing_gives_the_same_gradients(name):
    model, x = scatter(connect(create(name))).train(), image(name)
    plain = run(model, x)
    model.set_grad_checkpointing()
    assert_same(run(model, x), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mobilenetv2_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_autocast(name):
    """ConvNeXt's layer scale makes float32 of what a branch computes in bfloat16."""
    original, x = create(name).eval(), image(name)
    connected = connect(original)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = connected(x), original(x)
    assert ours.dtype == theirs.dtype
    exact = original(x)
    error, expected_error = (ours - exact).abs().max(), (theirs - exact).abs().max()
    assert error < 2 * expected_error


def test_copies_and_pickles():
    model, x = scatter(connect(create("regnetz_005"))), image("regnetz_005")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(run(twin, x), run(model, x), rtol=0, atol=0)
        nn.init.zeros_(next(twin.parameters()))  # no longer the model's
        assert next(model.parameters()).abs().sum() > 0


def test_compiled_and_exported():
    model, x = scatter(connect(create("vit_tiny_patch16_224", depth=2))).eval(), image("vit_tiny_patch16_224")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = run(model, x)
    torch.manual_seed(1)
    model.zero_grad()
    output = compiled(x)
    output.square().mean().backward()
    assert_same((output, {name: p.grad for name, p in model.named_parameters()}), expected)
    exported = torch.export.export(model, (x,), strict=False).module()  # as later versions of torch do by default
    torch.testing.assert_close(exported(x), expected[0])


def test_activation_after_the_addition_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"layer1.0 \(BasicBlock\) and 7 more: an activation follows the addition"):
        connect(timm.create_model("resnet18"))
    with torch.device("meta"):
        with pytest.raises(ConfigError, match=r"s1.b1 \(Bottleneck\).*ReLU follows.*interval 2 to 1"):
            connect(timm.create_model("regnetx_002"))
        with pytest.raises(ConfigError, match=r"s1.b1 \(PreBottleneck\).*shortcut carries the normalized"):
            connect(timm.create_model("regnetv_040"))
        with pytest.raises(ConfigError, match="no residual block that topodet knows. Known .*convnext.ConvNeXtBlock"):
            connect(timm.create_model("vgg11"))


def test_what_stays_as_it_is_is_named():
    model = create("mobilenetv2_050")
    found = connectable(model, leave_out=["blocks.5"])
    runs = [run for run in found.values() if isinstance(run, RunPlan)]
    assert {name for run in runs for name in run.links} | {name for name in found if "wiring" not in name} == {
        name for name, m in model.named_modules() if hasattr(m, "has_skip")
    }
    assert str(found["blocks.2.1.wiring"]) == "residuals: 2 blocks from blocks.2.1 to blocks.2.2, 6 edges"
    assert "no identity shortcut" in found["blocks.2.0"]
    assert found["blocks.5.1"] == "it is in leave_out"
    connected = connect(model, leave_out=["blocks.5"])
    assert [name[:8] for name in connectivity.wirings(connected)] == [f"blocks.{k}" for k in (1, 2, 3, 4)]
    with pytest.raises(ConfigError, match="unknown module in leave_out 'blocks.55'. Did you mean 'blocks.5"):
        connect(model, leave_out=["blocks.55"])
    with pytest.raises(ConfigError, match="blocks.1.1 is already connected"):
        connect(connected)


def test_hooks_see_the_stream():
    """Of a connected block they get what the original's would: the sum that it reads and the one that it hands on."""
    original, x = create("mobilenetv2_050").eval(), image("mobilenetv2_050")
    seen = []
    original.blocks[2][1].register_forward_hook(lambda block, inputs, output: seen.append((inputs[0], output)))
    for model in (original, connect(original)):
        model(x)
    for ours, theirs in zip(*seen):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_blocks_in_unclear_places_stay_as_they_are():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = ConvNeXtBlock(8)
            shared = ConvNeXtBlock(8)
            self.rest = nn.Sequential(shared, shared)

    reasons = connectable(Owner())
    assert "its order is not known" in reasons["first"]
    assert "more than one place" in reasons["rest.0"]


class Doubling(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x + self.conv(x)


def double(block, x):
    return block.conv(x)


def test_own_blocks_and_modules_that_occur_twice():
    relu = nn.ReLU()
    original = nn.Sequential(Doubling(4), Doubling(4), relu, Doubling(4), relu)
    with pytest.raises(ConfigError, match="no residual block that topodet knows"):
        connect(original)
    connected = connect(original, blocks={Doubling: Residual((double,))})
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(connected(x), original(x))
    assert list(connectivity.wirings(connected)) == ["0.wiring", "3.wiring"]
    assert isinstance(connected[0].wiring, Wiring)
    assert len(connected) == 5
    with pytest.raises(ConfigError, match="only be cut at their end"):
        connected[1:]
    assert repr(disconnect(connected)) == repr(original)


def test_a_stream_that_changes_between_blocks_is_an_error():
    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(InvertedResidual(8, 8) for _ in range(2))

        def forward(self, x):
            for block in self.blocks:
                x = block(x) + 1
            return x

    with pytest.raises(ConfigError, match="changes its stream between blocks.*leave_out"):
        connect(Restless())(torch.randn(1, 8, 4, 4))
