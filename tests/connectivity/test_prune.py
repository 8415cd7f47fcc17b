import copy
import warnings

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.connectivity.helpers import left, reference, shake, strengths
from tests.strategies import topologies
from topodet import connectivity, weights
from topodet.connectivity import freeze, masked, plan_pruning, prune
from topodet.errors import ConfigError
from topodet.models import TopoNet, TopoStage, fuse_for_inference
from topodet.models.wiring import Wiring
from topodet.topology import Topology, complete

NORMS = {"batch": nn.BatchNorm2d, "group": lambda channels: nn.GroupNorm(2, channels)}


def gradients(module, output):
    output.square().sum().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@given(
    topology=topologies(max_nodes=8),
    norm=st.sampled_from(sorted(NORMS)),
    per=st.sampled_from(["network", "stage", "node"]),
    threshold=st.floats(0, 1),
    training=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_stage_computes_what_the_masked_one_does(topology, norm, per, threshold, training, seed):
    torch.manual_seed(seed)
    stage = shake(TopoStage(2, 4, topology, norm_layer=NORMS[norm])).train(training)
    kept = [edge for edge, strength in strengths(stage.wiring, per).items() if strength >= threshold]
    sources = left(topology, kept)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    options = {"threshold": threshold, "per": per}
    if topology.num_nodes - 1 not in sources or not sources[topology.num_nodes - 1]:
        with pytest.raises(ConfigError, match="the input no longer reaches the output in 1 of 1 graphs"):
            prune(stage, **options)
        return
    slow = copy.deepcopy(stage)
    expected = reference(slow, x, sources)
    before = copy.deepcopy(stage.state_dict())
    pruned = prune(stage, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.state_dict().items())
    assert len(pruned.nodes) == len(sources)
    assert pruned.topology.num_edges == sum(map(len, sources.values()))
    found = pruned(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    cuts = plan_pruning(stage, **options)
    with masked(stage, cuts):
        torch.testing.assert_close(stage(x), expected, rtol=1e-9, atol=1e-9)
    assert cuts["wiring"].nodes == len(sources)
    # What is left gets the gradients that it had.
    ours, theirs = gradients(pruned, found), gradients(slow, expected)
    for place, node in enumerate(sorted(sources)):
        for name in ("conv_dw.weight", "conv_pw.weight", "norm.weight", "norm.bias"):
            torch.testing.assert_close(
                ours[f"nodes.{place}.{name}"], theirs[f"nodes.{node}.{name}"], rtol=1e-7, atol=1e-8
            )
    places = [topology.edges.index((j, i)) for i in sorted(sources) for j in sources[i]]
    torch.testing.assert_close(ours["wiring.alpha"], theirs["wiring.alpha"][places], rtol=1e-7, atol=1e-8)


@given(st.floats(0.01, 1), st.sampled_from(["network", "stage", "node"]), st.integers(0, 10**6))
def test_keep_is_the_share_that_is_left(keep, per, seed):
    """By the fewest of the strongest edges: every number of them is tried."""
    torch.manual_seed(seed)
    model = shake(TopoNet(nodes=(4, 6), width=2, num_classes=2))
    scores = {
        (k, edge): value for k, stage in enumerate(model.stages) for edge, value in strengths(stage.wiring, per).items()
    }
    ranked = sorted(scores, key=scores.get, reverse=True)
    for count in range(len(ranked) + 1):
        found = {}
        for k, stage in enumerate(model.stages):
            sources = left(stage.topology, [edge for place, edge in ranked[:count] if place == k])
            whole = sources.get(stage.topology.num_nodes - 1) and 0 in sources
            found[f"stages.{k}.wiring"] = sorted((j, i) for i in sources for j in sources[i]) if whole else []
        if sum(map(len, found.values())) >= keep * len(ranked):
            break
    cuts = plan_pruning(model, keep=keep, per=per, on_disconnected="allow")
    assert {name: sorted(part.edges) for name, part in cuts.items()} == found
    assert sum(part.weak for part in cuts.values()) == len(ranked) - count


@pytest.mark.parametrize("edges", [7, 10, 25, 30, 49])
def test_a_share_of_the_edges_is_an_exact_number(edges):
    model = nn.ModuleList(Wiring(complete(2)) for _ in range(edges))  # each edge is a path of its own
    for count in range(1, edges + 1):
        plans = plan_pruning(model, keep=count / edges, on_disconnected="allow")
        assert sum(len(plan.edges) for plan in plans.values()) == count


@pytest.mark.parametrize("threshold", [0.001, 0.01, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("per", ["network", "stage", "node"])
def test_an_edge_at_the_threshold_is_not_below_it(per, threshold):
    stage = TopoStage(2, 4, complete(4))
    stage.wiring.alpha.data.fill_(threshold)
    stage.wiring.alpha.data[[0, 2, 5]] = 1.0  # the first one of each node
    assert connectivity.sparsity(stage, (threshold,)) == {f"below_{threshold:g}": 0}
    (plan,) = plan_pruning(stage, threshold=threshold, per=per).values()
    assert (plan.weak, len(plan.edges)) == (0, 6)


def test_a_factor_on_all_inputs_of_a_node_matters_to_absolute_thresholds_only():
    """Why there is per="node": behind batch normalisation the factor changes nothing that the network computes."""
    model = shake(TopoNet(nodes=(5, 5), width=2, num_classes=3)).train()
    other = copy.deepcopy(model)
    other.stages[0].wiring.alpha.data[other.topologies[0].incoming[3]] *= 1e3
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-4)  # but for the epsilon in the root
    options = {"threshold": 0.3, "on_disconnected": "allow"}
    assert plan_pruning(model, per="node", **options) == plan_pruning(other, per="node", **options)
    assert plan_pruning(model, **options) != plan_pruning(other, **options)


@given(topologies(max_nodes=8), st.integers(0, 10**6))
def test_a_graph_that_fell_apart_is_repaired(topology, seed):
    torch.manual_seed(seed)
    stage = shake(TopoStage(2, 4, topology))
    with pytest.warns(UserWarning, match="the input no longer reaches the output in 1 of 1 graphs; kept anyway"):
        pruned = prune(stage, threshold=1e6, on_disconnected="repair")
    assert pruned.topology.num_edges == pruned.topology.num_nodes - 1  # a path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = plan_pruning(stage, threshold=1e6, on_disconnected="repair")["wiring"]
    assert part.edges == part.repaired
    assert part.weak == topology.num_edges
    # Nothing weaker than it needs to be: any threshold above the path's weakest edge tears the graph.
    size = strengths(stage.wiring, "network")
    weakest = min(size[edge] for edge in part.edges)
    assert plan_pruning(stage, threshold=weakest)["wiring"].edges
    assert not plan_pruning(stage, threshold=weakest * (1 + 1e-6), on_disconnected="allow")["wiring"].edges


@pytest.mark.parametrize("features", [False, True])
def test_the_network_in_float32(features):
    model = timm.create_model("toponet_nano", features_only=features)
    model = shake(model).float()
    for wiring in connectivity.wirings(model).values():
        wiring.alpha.data[0] = 5.0
    x = torch.randn(2, 3, 64, 96)
    pruned = prune(model, keep=0.5, per="node")
    assert type(pruned) is type(model)
    with torch.no_grad(), masked(model, plan_pruning(model, keep=0.5, per="node")):
        expected, found = model(x), pruned(x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * b.abs().max().item())
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(fuse_for_inference(pruned)(x)[0], found[0], rtol=1e-4, atol=1e-4)


def test_a_pruned_network_is_published_and_rebuilt(tmp_path):
    model = shake(timm.create_model("toponet_nano", num_classes=5)).float()
    pruned = prune(model, threshold=0.4, per="node")
    assert pruned.topologies != model.topologies
    content = {"arch": "toponet_nano", "state_dict": pruned.state_dict(), "args": {}, "data_config": {}}
    torch.save(content, tmp_path / "pruned.pth.tar")
    files = weights.publish(tmp_path / "pruned.pth.tar", tmp_path)
    back = weights.build(files.pth, num_classes=5)
    assert back.topologies == pruned.topologies
    back.head.load_state_dict(pruned.head.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(back.eval()(x), pruned(x))
    nodes = [graph.num_nodes for graph in pruned.topologies]
    weights.load(TopoNet(nodes=nodes, width=16, topology=pruned.topologies), files.safetensors, quiet=True)


def test_what_the_copy_keeps():
    model = TopoNet(nodes=(4, 4), width=2, num_classes=2, edge_weights="fixed")
    with torch.no_grad():
        for wiring in connectivity.wirings(model).values():
            wiring.alpha[1] = 1e-3
    pruned = prune(model.train(), threshold=0.01)
    assert not any(name.endswith("alpha") for name, _ in pruned.named_parameters())
    assert all(module.training for module in pruned.modules())
    model = TopoNet(nodes=(4, 4), width=2, num_classes=2).to(memory_format=torch.channels_last)
    model.set_grad_checkpointing()
    freeze(model)
    pruned = prune(model, threshold=0)
    assert not any(wiring.learned for wiring in connectivity.wirings(pruned).values())
    assert pruned.stages[0].grad_checkpointing
    assert pruned.topologies == model.topologies
    pruned(torch.randn(2, 3, 16, 16)).sum().backward()
    assert pruned.stages[0].wiring.alpha.grad is None
    with pytest.raises(ConfigError, match="edge weights are all frozen"):
        connectivity.penalty(pruned, "adaptive")


def test_masking_ends_with_what_was_there():
    model = shake(TopoNet(nodes=(4, 4), width=2, num_classes=2)).float()
    before = copy.deepcopy(model.state_dict())

    def interrupted():
        with masked(model, plan_pruning(model, keep=0.1, on_disconnected="allow")):
            assert (model.stages[1].wiring.alpha == 0).any()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either threshold or keep, got threshold=None, keep=None"),
        ({"threshold": 0.1, "keep": 0.5}, "give either threshold or keep"),
        ({"threshold": -0.1}, r"threshold=-0.1 is out of range: it is compared with \|alpha\|"),
        ({"threshold": float("nan")}, "threshold=nan is out of range"),
        ({"threshold": float("inf")}, "threshold=inf is out of range"),
        ({"threshold": 1.5, "per": "node"}, "threshold=1.5 is out of range: per='node'.*at most 1"),
        ({"keep": 0}, r"keep=0 is out of range: .*\(0, 1\]"),
        ({"keep": 1.01}, "keep=1.01 is out of range"),
        ({"keep": "0.5"}, "keep='0.5' is not a number"),
        ({"threshold": True}, "threshold=True is not a number"),
        ({"keep": 0.5, "per": "nodes"}, "unknown per 'nodes'. Did you mean 'node'"),
        ({"keep": 0.5, "on_disconnected": "ignore"}, "unknown on_disconnected 'ignore'"),
        ({"keep": 0.5, "on_disconnected": "allow"}, "a graph without edges is not a network"),
        (
            {"threshold": 2},
            r"threshold=2 per network: .* in 1 of 2 graphs \(stages.1.wiring: its strongest path is 0 -> 2, "
            r"weakest edge 0.5\). Give a smaller threshold",
        ),
    ],
)
def test_wrong_requests_are_named(options, message):
    model = TopoNet(nodes=(3, 3), width=2, num_classes=2)
    with torch.no_grad():
        model.stages[0].wiring.alpha.fill_(2)
        model.stages[1].wiring.alpha.copy_(torch.tensor([0.5, -0.5, 0.25]))
    with pytest.raises(ConfigError, match=message):
        prune(model, **options)


def test_a_model_without_edges_or_with_broken_ones_is_named():
    with pytest.raises(ConfigError, match="Linear has no wiring with edges to remove"):
        plan_pruning(nn.Linear(2, 2), keep=0.5)
    with pytest.raises(ConfigError, match="Linear has no edge weights to freeze"):
        freeze(nn.Linear(2, 2))
    stage = TopoStage(2, 2, complete(3))
    stage.wiring.alpha.data[1] = float("nan")
    with pytest.raises(ConfigError, match=r"wiring.alpha has 1 value\(s\) that are NaN or infinite"):
        prune(stage, keep=0.5)


def test_what_goes_with_a_node():
    """Node 2 loses its input, so that its strong edge goes as well, which a mask of |alpha| alone would keep."""
    stage = shake(TopoStage(2, 4, Topology(4, [(0, 1), (0, 2), (1, 3), (2, 3)])))
    stage.wiring.alpha.data = torch.tensor([1.0, 0.01, 1.0, 1.0], dtype=torch.float64)  # (0,1) (0,2) (1,3) (2,3)
    part = plan_pruning(stage, threshold=0.1)["wiring"]
    assert (part.edges, part.weak, part.nodes) == (((0, 1), (1, 3)), 1, 3)
    assert part.kept().tolist() == [True, False, True, False]
