"""Pruning of networks that `connect` and `rewire` made: against the same network with the edges at 0."""

import copy
from contextlib import nullcontext

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from tests.models.connected import helpers, resnets
from topodet import connectivity
from topodet.connectivity import masked, plan_pruning, prune
from topodet.errors import ConfigError
from topodet.models import Residual, create_timm_network, disconnect, rewire
from topodet.models.connected import connect
from topodet.models.timm_trunk import TimmTrunk

# Additive streams of one and two branches a block, and rewired ones with and without a projection.
NETWORKS = {
    "mobilenetv2_050": connect,
    "convnext_atto": connect,
    "vit_tiny_patch16_224": connect,
    "beit_base_patch16_224": connect,
    "swinv2_tiny_window8_256": connect,
    "poolformer_s12": connect,
    "resnet18": rewire,
    "resnet50": rewire,
    "legacy_seresnet18": rewire,
    "resnet20_cifar_connected": None,
}


def create(name):
    """Return the connected network, in float64, and an image for it."""
    kind = NETWORKS[name]
    if kind is None:
        model, x = resnets.randomize(timm.create_model(name, num_classes=5)), torch.randn(2, 3, 16, 16)
    elif kind is rewire:
        model, x = rewire(resnets.create(name)), resnets.image()
    else:
        model, x = connect(helpers.create(name, drop_path_rate=0)), helpers.image(name)
    for wiring in connectivity.wirings(model).values():
        nn.init.normal_(wiring.alpha, mean=0.4, std=0.5)
    return model.double(), x.double()


def gradients(model, x):
    model.zero_grad()
    torch.manual_seed(1)  # dropout before the classifier
    output = model(x)
    output.square().mean().backward()
    return output.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:keep=0.2 per node:UserWarning")
@pytest.mark.parametrize("keep", [0.5, 0.2])
@pytest.mark.parametrize("name", NETWORKS)
def test_computes_what_the_masked_network_does(name, keep):
    model, x = create(name)
    options = {"keep": keep, "per": "node", "on_disconnected": "repair"}
    cuts = plan_pruning(model, **options)
    pruned = prune(model, **options)
    assert sum(wiring.topology.num_edges for wiring in connectivity.wirings(pruned).values()) == sum(
        len(part.edges) for part in cuts.values()
    )
    assert list(connectivity.wirings(pruned)) == list(cuts)
    # Names stay: what is left is a part of what was there, and only its edges are fewer.
    before = model.state_dict()
    for key, tensor in pruned.state_dict().items():
        if not key.endswith((".alpha", ".edges")):
            assert torch.equal(tensor, before[key])
    for train in (False, True):
        model.train(train)
        pruned.train(train)
        with masked(model, cuts):
            expected, slopes = gradients(model, x)
        found, ours = gradients(pruned, x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert all(gradient is not None for gradient in ours.values())  # DDP would wait for the others
        for key, gradient in ours.items():
            if not key.endswith("alpha"):
                torch.testing.assert_close(gradient, slopes[key], rtol=1e-6, atol=1e-9)
            else:
                part = cuts[key.removesuffix(".alpha")]
                torch.testing.assert_close(gradient, slopes[key][part.kept()], rtol=1e-6, atol=1e-9)
        # What is gone would not have learned anything either.
        for key in set(slopes) - set(ours):
            assert slopes[key] is None or not slopes[key].any()


@settings(max_examples=60)
@given(
    blocks=st.lists(st.sampled_from([BasicBlock, Bottleneck]), min_size=1, max_size=4),
    projects=st.booleans(),
    keep=st.floats(0.05, 1),
    again=st.floats(0.3, 1),
    checkpointing=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_run_of_blocks_that_activate(blocks, projects, keep, again, checkpointing, seed):
    """Each activation has parameters of its own here, so that one too many, or that of another block, shows."""
    torch.manual_seed(seed)
    chain = rewire(nn.Sequential(*(_block(kind, projects and k == 0) for k, kind in enumerate(blocks))))
    resnets.randomize(chain.double())
    for module in chain.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -1, 1)
    chain.grad_checkpointing = checkpointing
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    for share in (keep, again):  # what was pruned can be pruned once more
        options = {"keep": share, "on_disconnected": "repair"}
        with pytest.warns() if any(part.disconnected for part in _cuts(chain, options)) else nullcontext():
            cuts, pruned = plan_pruning(chain, **options), prune(chain, **options)
        with masked(chain, cuts):
            expected, slopes = gradients(chain, x)
        found, ours = gradients(pruned, x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for key, gradient in ours.items():
            if not key.endswith("alpha"):
                torch.testing.assert_close(gradient, slopes[key], rtol=1e-6, atol=1e-9)
        chain = pruned


def _block(kind, projects):
    planes = 8 // kind.expansion
    shortcut = nn.Sequential(nn.Conv2d(8, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8)) if projects else None
    return kind(8, planes, stride=2 if projects else 1, downsample=shortcut, act_layer=_PReLU)


class _PReLU(nn.PReLU):
    def __init__(self, inplace=False):
        super().__init__()


def _cuts(chain, options):
    return plan_pruning(chain, **{**options, "on_disconnected": "allow"}).values()


def test_what_goes_and_what_stays():
    """Two BasicBlocks after a projection: nodes 1 to 4, of which 2 and 3 go, and with them half of each block."""
    chain = rewire(nn.Sequential(_block(BasicBlock, True), _block(BasicBlock, False)))
    connectivity.prune_to_edges_(chain, {"0.wiring": [(0, 1), (0, 4), (1, 5), (4, 5)]})
    assert {name.rpartition(".")[0] for name in chain.state_dict()} == {
        *("0.conv1", "0.bn1", "0.downsample.0", "0.downsample.1", "0.wiring"),
        *("1.act1", "1.conv2", "1.bn2", "1.act2"),
    }
    assert chain[0].wiring.edges.tolist() == [[0, 1], [0, 4], [1, 5], [4, 5]]  # under their own numbers
    assert chain[0].wiring.topology.edges == ((0, 1), (0, 2), (1, 3), (2, 3))
    # Without the edge (0, 4) nobody reads the projection.
    connectivity.prune_to_edges_(chain, {"0.wiring": [(0, 1), (1, 3)]})
    assert {name.rpartition(".")[0] for name in chain.state_dict()} == {"0.conv1", "0.bn1", "0.wiring", "1.act2"}
    assert len(chain) == 2  # the network finds as many blocks as it expects


def test_features_and_checkpointing():
    """Feature maps at the ends of runs are those of the masked network."""
    for name in ("mobilenetv2_050", "resnet18"):
        model, x = create(name)
        pruned, cuts = prune(model.eval(), keep=0.5, per="node"), plan_pruning(model, keep=0.5, per="node")
        with masked(model, cuts), torch.no_grad():
            expected = model.forward_intermediates(x, intermediates_only=True)
        with torch.no_grad():
            for ours, theirs in zip(pruned.forward_intermediates(x, intermediates_only=True), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        pruned.train()
        plain = gradients(copy.deepcopy(pruned), x)
        pruned.set_grad_checkpointing()
        again = gradients(pruned, x)
        assert torch.equal(again[0], plain[0])
        assert all(torch.equal(again[1][key], gradient) for key, gradient in plain[1].items())


def test_is_compiled_copied_and_saved():
    model, x = create("resnet18")
    pruned = prune(model.float().eval(), keep=0.3, per="node")
    x = x.float()
    expected = pruned(x)
    assert torch.equal(copy.deepcopy(pruned)(x), expected)
    exported = torch.export.export(pruned, (x,)).module()
    torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-5)
    other = prune(model, keep=0.3, per="node")
    other.load_state_dict(pruned.state_dict())
    with pytest.raises(ConfigError, match="was pruned: blocks of the original are missing"):
        disconnect(prune(connect(helpers.create("mobilenetv2_050")), keep=1.0, per="node").apply(_drop_an_edge))


def _drop_an_edge(module):
    wirings = connectivity.wirings(module)
    if "blocks.1.1.wiring" in wirings:
        connectivity.prune_to_edges_(module, {"blocks.1.1.wiring": [(0, 2)]})


def test_a_pruned_run_is_not_cut_and_not_filled_from_the_original():
    original = helpers.create("vit_tiny_patch16_224")
    model = connect(original)
    [name] = connectivity.wirings(model)
    edges = list(model.get_submodule(name).topology.edges)
    connectivity.prune_to_edges_(model, {name: edges[:1] + edges[2:]})  # all nodes stay
    assert not any(key.endswith("attn.qkv.weight") and key not in model.state_dict() for key in original.state_dict())
    with pytest.raises(ConfigError, match="was pruned and can no longer be cut"):
        model.blocks[:2]
    with pytest.raises(RuntimeError, match=r"Missing key.*wiring.alpha"):
        model.load_state_dict(original.state_dict())


def test_own_blocks_must_tell_their_parts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x + self.first(x)
            return x + self.second(x)

    def residual(**parts):
        return {Twice: Residual((lambda b, x: b.first(x), lambda b, x: b.second(x)), **parts)}

    edges = {"0.wiring": [(0, 1), (1, 5), (0, 5)]}  # the second branch of the first block, and the second block, go
    model = nn.Sequential(Twice(), Twice())
    silent = connect(model, blocks=residual())
    with pytest.raises(ConfigError, match=r"block 0 \(Twice\) would lose some of its branches"):
        connectivity.prune_to_edges_(silent, edges)
    assert len(silent.state_dict()) == 10  # it is as it was
    telling = connect(model, blocks=residual(parts=("first", "second")))
    connectivity.prune_to_edges_(telling, edges)
    assert [key for key, _ in telling.named_parameters()] == ["0.first.weight", "0.first.bias", "0.wiring.alpha"]
    x = torch.randn(3, 4)
    torch.testing.assert_close(telling(x), x + model[0].first(x))


def test_edges_are_an_argument_of_the_network():
    edges = {"blocks.2.1.wiring": [[0, 2], [2, 3]]}
    model = create_timm_network("mobilenetv2_050", edges=edges)
    assert not list(model.blocks[2][1].parameters())[1:]  # its edges alone
    trunk = TimmTrunk("mobilenetv2_050", edges=list(edges.items()))
    assert trunk.network.blocks[2][1].wiring.edges.tolist() == edges["blocks.2.1.wiring"]
    for wrong, message in (
        ({"blocks.9.wiring": []}, "unknown run in edges 'blocks.9.wiring'"),
        ({"blocks.2.1.wiring": [(0, 7)]}, r"edges of blocks.2.1.wiring: edge \(0, 7\) is not on a path"),
        (
            {"blocks.2.1.wiring": [(0, 1), (0, 3)]},
            r"edges of blocks.2.1.wiring: edge \(0, 1\) is not on a path .*\(node 3\)",
        ),
        ({"blocks.2.1.wiring": [(0, 2)]}, r"edges of blocks.2.1.wiring: edge \(0, 2\) is not on a path"),
        ({"blocks.2.1.wiring": []}, "edges of blocks.2.1.wiring: there are no edges on"),
    ):
        with pytest.raises(ConfigError, match=message):
            create_timm_network("mobilenetv2_050", edges=wrong)
