import copy
import csv
import functools

import pytest
import timm
import torch
from torch import nn

from tests.connectivity.helpers import reference, shake, strengths
from topodet import connectivity
from topodet.connectivity import masked, plan_pruning, prune, remove_edges, remove_nodes, without_node
from topodet.errors import ConfigError
from topodet.models import TopoNet
from topodet.models.connected import connect
from topodet.topology import Topology


@pytest.fixture
def model():
    return shake(TopoNet(nodes=(4, 5), width=2, num_classes=2, topology={"name": "residual", "interval": 2}))


@pytest.fixture
def x():
    return torch.randn(2, 3, 24, 20, dtype=torch.float64)


@torch.no_grad()
def mean(x, model):
    """A score that any change of the network shows in."""
    return model(x).mean().item()


def without(stage, x, removed):
    """Eq. 1 where the output of one node is 0."""
    alpha = dict(zip(stage.wiring.topology.edges, stage.wiring.alpha))
    features = []
    for i, sources in enumerate(stage.topology.predecessors):
        feature = stage.nodes[i](sum(alpha[j, i] * features[j] for j in sources) if i else x)
        features.append(feature * (i != removed))
    return features[-1]


@torch.no_grad()
def test_each_node_is_taken_out_in_turn(model, x):
    damage = remove_nodes(model, functools.partial(mean, x), progress=False)
    assert damage.whole == {"score": mean(x, model)}
    assert [(row["wiring"], row["node"]) for row in damage.rows] == [
        *(("stages.0.wiring", node) for node in range(4)),
        *(("stages.1.wiring", node) for node in range(5)),
    ]
    for row in damage.rows:
        place, features = int(row["wiring"].split(".")[1]), model.stem(x)
        for k, stage in enumerate(model.stages):
            features = without(stage, features, row["node"] if k == place else None)
        assert row["score"] == pytest.approx(model.head(features).mean().item(), rel=1e-9, abs=1e-12)
        graph = model.topologies[place]
        degrees = (graph.in_degree[row["node"]], graph.out_degree[row["node"]])
        assert (row["in_degree"], row["out_degree"]) == degrees
    assert len({row["score"] for row in damage.rows}) == 9


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:threshold=")
@pytest.mark.parametrize("per", ["network", "stage", "node"])
def test_weak_edges_go_more_and_more(model, x, per):
    thresholds = (0.05, 0.3, 0.6)
    damage = remove_edges(
        model, functools.partial(mean, x), thresholds=thresholds, per=per, on_disconnected="repair", progress=False
    )
    total = sum(graph.num_edges for graph in model.topologies)
    for threshold, row in zip(thresholds, damage.rows, strict=True):
        small = prune(model, threshold=threshold, per=per, on_disconnected="repair")
        assert row["score"] == pytest.approx(mean(x, small), rel=1e-9)
        assert row["edges"] == sum(graph.num_edges for graph in small.topologies)
        assert row["nodes"] == sum(graph.num_nodes for graph in small.topologies)
        assert row["removed"] == 1 - row["edges"] / total
        size = [value for stage in model.stages for value in strengths(stage.wiring, per).values()]
        assert (row["threshold"], row["weak"]) == (threshold, sum(value < threshold for value in size))


@torch.no_grad()
def test_a_graph_that_fell_apart_is_measured_without_edges(model, x):
    model.stages[1].wiring.alpha.mul_(1e-6)
    (row,) = remove_edges(model, functools.partial(mean, x), keep=[0.2], progress=False).rows
    assert row["disconnected"] >= 1
    features = model.stages[0](model.stem(x))
    last = model.stages[1].nodes[-1]
    expected = last(torch.zeros_like(model.stages[1](features)))
    assert row["score"] == pytest.approx(model.head(expected).mean().item(), rel=1e-9)
    with pytest.raises(ConfigError, match=r"keep=0.2 per network: .*stages.1.wiring"):
        remove_edges(model, functools.partial(mean, x), keep=[0.2], on_disconnected="error", progress=False)


def test_shares_by_default(model):
    damage = remove_edges(model, lambda model: 0, progress=False)
    assert [row["keep"] for row in damage.rows] == list(connectivity.SHARES)


def test_the_model_is_what_it_was_whatever_happens(model):
    model.train()
    model.stem.eval()
    before = copy.deepcopy(model.state_dict())
    calls = []

    def evaluate(model):
        assert not model.training
        calls.append({name: wiring.alpha.clone() for name, wiring in connectivity.wirings(model).items()})
        model.train()
        if len(calls) == 7:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        remove_nodes(model, evaluate, progress=False)
    assert len(calls) == 7
    assert (calls[6]["stages.1.wiring"] == 0).any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.training, model.stem.training, model.head.training) == (True, False, True)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_hook_of_an_output_node_goes_too(model, x):
    whole = mean(x, model)

    def fail():
        with without_node(model, "stages.1.wiring", 4):
            assert not model.forward_features(x).any()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert mean(x, model) == whole


def test_scores_by_name_are_written_row_by_row(model, tmp_path):
    path = tmp_path / "nodes.csv"
    seen = []

    def evaluate(model):
        seen.append(len(path.read_text().splitlines()) if path.exists() else 0)
        return {"top1": 50 - len(seen), "loss": torch.tensor(0.5)}

    damage = remove_nodes(model, evaluate, csv=path, progress=False)
    # A line for the names, one for the whole network, and those of the nodes before.
    assert seen == [0, 0, *range(3, 3 + 8)]
    rows = list(csv.DictReader(path.open()))
    assert rows[0] == {"wiring": "", "node": "", "in_degree": "", "out_degree": "", "top1": "49.0", "loss": "0.5"}
    assert [float(row["top1"]) for row in rows[1:]] == [row["top1"] for row in damage.rows]
    assert list(rows[0]) == ["wiring", "node", "in_degree", "out_degree", "top1", "loss"]


def test_a_bar_shows_how_far_it_is(model, capsys):
    remove_edges(model, lambda model: 0, keep=[0.5, 0.2])
    err = capsys.readouterr().err
    assert "removing edges" in err
    assert "2/2" in err


@torch.no_grad()
def test_a_connected_network():
    """Its nodes are branches of blocks; the output node of a run only sums."""
    model = connect(timm.create_model("convnext_atto", num_classes=3, depths=(2, 1, 1, 1), dims=(8, 8, 8, 8))).eval()
    for stage in model.stages:
        stage.blocks[0].gamma.fill_(1.0)
    x = torch.randn(1, 3, 64, 64)
    damage = remove_nodes(model, functools.partial(mean, x), progress=False)
    graphs = [wiring.topology for wiring in connectivity.wirings(model).values()]
    assert len(damage.rows) == sum(graph.num_nodes - 1 for graph in graphs)
    # The first branch of the first run gone is a block that passes on what it reads.
    plain = timm.create_model("convnext_atto", num_classes=3, depths=(2, 1, 1, 1), dims=(8, 8, 8, 8)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "wiring" not in k})
    plain.stages[0].blocks[0] = nn.Identity()
    assert damage.rows[1]["score"] == pytest.approx(mean(x, plain), abs=1e-6)
    with pytest.raises(ConfigError, match="node 3 of stages.0.blocks.0.wiring is its output, which only sums"):  # noqa: SIM117
        with without_node(model, "stages.0.blocks.0.wiring", 3):
            pass


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (lambda model: None, "must return a number or a dict of numbers, but returned None"),
        (lambda model: {"AP": "high"}, "but returned {'AP': 'high'}"),
        (lambda model: {}, "but returned {}"),
        (lambda model: {"node": 1}, "evaluate must not name a score node"),
    ],
)
def test_what_evaluate_returns_is_checked_at_once(model, evaluate, message):
    calls = []
    with pytest.raises(ConfigError, match=message):
        remove_nodes(model, lambda model: calls.append(1) or evaluate(model), progress=False)
    assert calls == [1]


def test_wrong_requests_are_named(model):
    names = iter([{"a": 1}, {"b": 1}])
    with pytest.raises(ConfigError, match=r"evaluate returned \['b'\] after \['a'\]"):
        remove_nodes(model, lambda model: next(names), progress=False)
    with pytest.raises(ConfigError, match="Linear has no wiring with nodes to remove"):
        remove_nodes(nn.Linear(2, 2), lambda model: 0)
    with pytest.raises(ConfigError, match="accepts thresholds or keep, not both"):
        remove_edges(model, lambda model: 0, thresholds=[0.1], keep=[0.5])
    with pytest.raises(ConfigError, match="keep=1.5 is out of range"):
        remove_edges(model, pytest.fail, keep=[0.5, 1.5])
    for wiring, node in (("stages.7.wiring", 0), ("stages.1.wiring", 5), ("stages.1.wiring", -1)):
        with pytest.raises(ConfigError, match=rf"no node {node} in a wiring '{wiring}'; TopoNet has stages.0.wiring"):  # noqa: SIM117
            with without_node(model, wiring, node):
                pass


@torch.no_grad()
def test_a_mask_by_hand():
    """The masked network against Eq. 1 over the edges that stay."""
    model = shake(TopoNet(nodes=(4,), width=2, topology=Topology(4, [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)])))
    stage = model.stages[0]
    stage.wiring.alpha.copy_(torch.tensor([1.0, 0.1, -2.0, 0.5, 3.0]))
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    expected = reference(stage, x, {0: [], 1: [0], 2: [1], 3: [1, 2]})
    with masked(model, plan_pruning(model, threshold=0.3)):
        torch.testing.assert_close(stage(x), expected)
