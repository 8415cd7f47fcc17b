import copy
import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import param_groups_weight_decay
from torch import nn

from tests.strategies import topologies
from topodet import connectivity
from topodet.errors import ConfigError
from topodet.models import TopoNet, Wiring, connect


class Holder(nn.Module):
    """A model of a user's own that merely contains wirings."""

    def __init__(self, *graphs):
        super().__init__()
        self.parts = nn.ModuleList(Wiring(graph) for graph in graphs)
        for part in self.parts:
            nn.init.normal_(part.alpha)


def brute_force(model, kind):
    """Eqs. 6-8 read off the adjacency matrix."""
    total = 0.0
    for part in model.parts:
        matrix = part.topology.adjacency(part.alpha.detach().numpy())
        exists = part.topology.adjacency() > 0
        for i in range(part.topology.num_nodes):
            delta = int(exists[i].sum())
            factor = 1.0 if kind == "uniform" else (math.log(delta) if delta else 0.0)
            total += factor * sum(abs(value) for value in matrix[i])
    return total


@given(st.lists(topologies(), min_size=1, max_size=3), st.sampled_from(["uniform", "adaptive"]))
def test_penalty_against_brute_force(graphs, kind):
    model = Holder(*graphs)
    assert connectivity.penalty(model, kind).item() == pytest.approx(brute_force(model, kind), rel=1e-5, abs=1e-6)


def test_penalty_gradient_is_the_printed_one():
    model = TopoNet(nodes=(4, 3), width=2, num_classes=2)
    connectivity.penalty(model, "adaptive").backward()
    for wiring in connectivity.wirings(model).values():
        degree = wiring.topology.in_degree
        expected = [math.log(degree[i]) for _, i in wiring.topology.edges]  # alpha = 1: the sign is +
        torch.testing.assert_close(wiring.alpha.grad, torch.tensor(expected))


def test_only_input_is_free_under_adaptive():
    model = TopoNet(nodes=(3, 2), width=2, num_classes=2, topology={"name": "residual", "interval": 1})
    chain = connectivity.wirings(model)["stages.1.wiring"]
    connectivity.penalty(model, "adaptive").backward()
    assert chain.alpha.grad.tolist() == [0.0]


def test_wrong_requests_are_named():
    fixed = TopoNet(nodes=(3, 3), width=2, edge_weights="fixed")
    with pytest.raises(ConfigError, match="model without learned edge weights"):
        connectivity.penalty(fixed, "uniform")
    with pytest.raises(ConfigError, match=r"unknown sparsity 'unifrom'. Did you mean 'uniform'"):
        connectivity.penalty(fixed, "unifrom")
    with pytest.raises(ConfigError, match=r"must not be negative, got -1"):
        connectivity.penalize(torch.optim.SGD([torch.zeros(1)]), TopoNet(nodes=(3,), width=2), "uniform", -1)
    assert connectivity.penalty(fixed, "none") == 0


@pytest.mark.parametrize("kind", ["uniform", "adaptive"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scaler", [False, True])
def test_penalize_equals_the_penalty_in_the_loss(kind, accumulate, scaler):
    """The optimiser hook and the equation as it is printed give the same weights after several steps."""
    in_loss = TopoNet(nodes=(4, 3), width=2, num_classes=3).double()
    by_hook = copy.deepcopy(in_loss)
    images = torch.randn(6, 4, 3, 16, 16, dtype=torch.float64)
    trained = []
    for model, hooked in ((in_loss, False), (by_hook, True)):
        optimizer = torch.optim.SGD(connectivity.param_groups(model, 1e-4), lr=0.1, momentum=0.9, nesterov=True)
        scale = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaler)
        if hooked:
            connectivity.penalize(optimizer, model, kind, 0.01)
        for step in range(0, 6, accumulate):
            for image in images[step : step + accumulate]:
                loss = model(image).square().mean()
                if not hooked:
                    loss = loss + 0.01 * connectivity.penalty(model, kind)
                scale.scale(loss / accumulate).backward()
            scale.step(optimizer)
            scale.update()
            optimizer.zero_grad()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*trained, rtol=1e-7, atol=1e-8)
    # The only input of a node has no gradient of the task: normalisation takes its scale out again.
    assert (by_hook.stages[0].wiring.alpha[1:] != 1).all()


def test_penalize_with_no_penalty_changes_nothing():
    model = TopoNet(nodes=(3,), width=2, edge_weights="fixed")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    handle = connectivity.penalize(optimizer, model, "none", 1.0)
    optimizer.step()
    handle.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_penalize_can_be_removed_and_fused_optimisers_agree():
    plain = TopoNet(nodes=(3,), width=2, num_classes=2)
    fused = copy.deepcopy(plain)
    for model, flag in ((plain, False), (fused, True)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=flag)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        handle = connectivity.penalize(optimizer, model, "uniform", 0.5)
        scaler.scale(model(torch.ones(2, 3, 8, 8)).sum()).backward()
        scaler.step(optimizer)
        handle.remove()
        before = model.stages[0].wiring.alpha.detach().clone()
        optimizer.zero_grad()
        optimizer.step()
        assert torch.equal(before, model.stages[0].wiring.alpha)
    torch.testing.assert_close(plain.stages[0].wiring.alpha, fused.stages[0].wiring.alpha)


def test_penalize_adds_once_where_a_class_steps_around_another_one():
    """Detectron2 clips gradients in a class made around the optimiser's; torch runs hooks for both after loading."""

    class Clipping(torch.optim.SGD):
        pass

    def step(self, closure=None):
        return super(Clipping, self).step(closure)

    alphas = []
    for wraps in (False, True):
        torch.manual_seed(0)
        model = TopoNet(nodes=(3,), width=2, num_classes=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if wraps:
            Clipping.step = step
            optimizer.__class__ = Clipping
        connectivity.penalize(optimizer, model, "uniform", 0.5)
        for _ in range(3):
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.zero_grad(set_to_none=False)
            model(torch.ones(2, 3, 8, 8)).sum().backward()
            optimizer.step()
        alphas.append(model.stages[0].wiring.alpha.detach())
    assert Clipping.step.hooked
    torch.testing.assert_close(*alphas)


def test_penalize_has_nothing_to_do_once_every_edge_is_frozen():
    model = TopoNet(nodes=(3,), width=2, num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    connectivity.penalize(optimizer, model, "uniform", 0.5)
    connectivity.freeze(model)
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert (model.stages[0].wiring.alpha == 1).all()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 1, 1)}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}),
        ("beit_base_patch16_224", {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}),
        ("resnet10t", {}),
    ],
)
@pytest.mark.parametrize("holder", [lambda network: network, lambda network: nn.ModuleDict({"backbone": network})])
def test_what_timm_spares_from_weight_decay_is_spared(name, kwargs, holder):
    network = timm.create_model(name, num_classes=3, **kwargs)
    if name.startswith("swin"):
        network = connect(network)
    model = holder(network)
    alphas = {id(wiring.alpha) for wiring in connectivity.wirings(model).values()}
    spared = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    decayed = {
        id(p)
        for group in param_groups_weight_decay(network, 0.05, no_weight_decay_list=spared)
        for p in group["params"]
        if group["weight_decay"]
    }
    ours = {group["name"]: group for group in connectivity.param_groups(model, 0.05, alpha_weight_decay=0.2)}
    assert {id(p) for p in ours["weights"]["params"]} == decayed - alphas
    assert ours["weights"]["weight_decay"] == 0.05
    assert {id(p) for p in ours.get("alpha", {"params": []})["params"]} == alphas
    counted = sum(len(group["params"]) for group in ours.values())
    assert counted == len(list(model.parameters()))


def test_param_groups_hold_every_trainable_parameter_once():
    model = TopoNet(nodes=(3, 4), width=4, num_classes=5)
    model.stem.requires_grad_(False)
    groups = {group["name"]: group for group in connectivity.param_groups(model, 1e-4)}
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "weights": 1e-4,
        "vectors": 0.0,
        "alpha": 0.0,
    }
    assert {id(p) for p in groups["alpha"]["params"]} == {id(stage.wiring.alpha) for stage in model.stages}


def test_sparsity_shares():
    model = TopoNet(nodes=(3, 3), width=2, num_classes=2)
    with torch.no_grad():
        model.stages[0].wiring.alpha.copy_(torch.tensor([0.0005, -0.005, 0.05]))
    assert connectivity.sparsity(model) == pytest.approx(
        {"below_0.001": 1 / 6, "below_0.01": 2 / 6, "below_0.1": 3 / 6}
    )
    assert connectivity.sparsity(nn.Linear(2, 2)) == {}
