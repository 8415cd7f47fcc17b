import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.models.connected.helpers import NETWORKS
from tests.models.connected.resnets import NETWORKS as RESNETS
from tests.strategies import topologies
from topodet import connectivity
from topodet.errors import ConfigError
from topodet.models import TopoNet, TopoStage
from topodet.models.connected import connect, rewire
from topodet.ops import WeightedSums
from topodet.related.nn_mass.cells import nn_mass_of_cells
from topodet.related.nn_mass.networks import nn_mass


def on_meta(create, name, **kwargs):
    with torch.device("meta"):
        return create(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "mass"),
    [("resnet18", 3392), ("resnet50", 9006.9333333), ("resnet152", 30852.2666667), ("mobilenetv2_100", 1287)],
)
def test_values_of_the_authors_code(name, mass):
    assert nn_mass(on_meta(timm.create_model, name)).mass == pytest.approx(mass, abs=1e-6)
    theirs = "mobilenet_v2" if name == "mobilenetv2_100" else name
    assert nn_mass(on_meta(torchvision.models.get_model, theirs)).mass == pytest.approx(mass, abs=1e-6)


def test_formulas_of_additive_blocks():
    found = {cell.name: cell for cell in nn_mass(on_meta(timm.create_model, "resnet50")).cells}
    for name, (width_in, width) in {"layer1.0": (64, 64), "layer1.1": (256, 64), "layer3.0": (512, 256)}.items():
        expected = (width_in + 2 * width) * width_in / (2 * width_in + width)
        assert found[name].mass == pytest.approx(expected)
    found = {cell.name: cell for cell in nn_mass(on_meta(timm.create_model, "mobilenetv2_100")).cells}
    assert found["blocks.1.0"].mass == 0  # it has no identity
    assert found["blocks.1.1"].mass == pytest.approx((24 + 2 * 144) * 24 / (2 * 24 + 144))


@pytest.mark.parametrize("create", [timm.create_model, torchvision.models.get_model])
def test_densenets_have_the_greatest_mass_of_their_layers(create):
    found = nn_mass(on_meta(create, "densenet121"))
    assert found.densities == (1.0,) * 4
    # Growth 32 over 6, 12, 24 and 16 layers: what each block returns.
    assert [cell.channels for cell in found.cells] == [256, 512, 1024, 1024]


@given(topologies(), st.data())
def test_a_stage_by_its_adjacency_matrix(topology, data):
    stage = TopoStage(2, 5, topology)
    removed = data.draw(st.lists(st.integers(0, topology.num_edges - 1), max_size=4))
    alpha = torch.full((topology.num_edges,), 0.5)
    alpha[removed] = 0
    stage.wiring.alpha.data.copy_(alpha)
    n = topology.num_nodes
    adjacency = topology.adjacency(alpha.numpy()) != 0
    in_degree = adjacency.sum(axis=1)
    skips = sum(in_degree[i] - adjacency[i, i - 1] for i in range(1, n))
    (cell,) = nn_mass(stage).cells
    assert cell.channels == 5 * n
    assert cell.density == pytest.approx(skips / ((n - 1) * (n - 2) / 2) if n > 2 else 0)


def test_a_complete_stage_is_a_densenet_cell_that_reads_all_and_a_chain_has_none():
    complete = nn_mass(TopoNet(nodes=(4, 6), width=3, num_classes=2))
    assert [cell.name for cell in complete.cells] == ["stages.0", "stages.1"]
    assert complete.mass == nn_mass_of_cells([(6, 4, 10**6), (12, 6, 10**6)]).mass
    chain = TopoNet(nodes=(4,), width=3, num_classes=2, topology={"edges": [[0, 1], [1, 2], [2, 3]]})
    assert nn_mass(chain).mass == 0


def test_toponet50():
    """Nodes times channels of complete stages; of the residual ones the share of the edges that skip a node."""
    channels = [14 * 128, 20 * 256, 26 * 512, 14 * 1024]
    assert nn_mass(timm.create_model("toponet50")).mass == sum(channels)
    found = nn_mass(timm.create_model("toponet50_residual2"))
    # Table 4's numbers of edges; N - 1 of them lead to the next node.
    for cell, n, edges, count in zip(found.cells, (14, 20, 26, 14), (34, 64, 103, 34), channels):
        assert cell.mass == pytest.approx(count * (edges - (n - 1)) / ((n - 1) * (n - 2) / 2))


def networks():
    """Connected and rewired networks: what makes them, and the images they take."""
    cases = [(connect, name, small) for name, (small, _) in NETWORKS.items()]
    cases += [(rewire, name, RESNETS[name][0]) for name in ("resnet18", "resnet50", "test_byobnet", "res2net50_26w_4s")]
    cases += [(rewire, name, {}) for name in ("resnet10t", "regnetx_002")]
    # Convolutions whose weights are mixed of several: their tensor has another shape.
    cases += [(connect, "tf_efficientnet_cc_b0_4e", {})]
    return [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in cases]


@pytest.mark.parametrize(("make", "name", "small"), networks())
def test_a_run_is_as_wide_as_what_its_nodes_compute(make, name, small, monkeypatch):
    """A run has one node more than branches, each as wide as the residuals that its output sums."""
    model = make(timm.create_model(name, num_classes=5, **small)).eval()
    made, put = {}, WeightedSums.put

    def record(sums, node, feature, *readers, **kwargs):
        made.setdefault(sums.graph, {})[node] = feature
        put(sums, node, feature, *readers, **kwargs)

    monkeypatch.setattr(WeightedSums, "put", record)
    size = small.get("img_size", model.pretrained_cfg["input_size"][-1])
    model(torch.zeros(1, 3, size, size))
    cells = [cell for cell in nn_mass(model).cells if cell.density == 1]
    assert len(cells) == len(made)
    for cell, (graph, features) in zip(cells, made.items()):
        nodes = len(graph.sources)
        residuals = [feature for source, feature in features.items() if source]
        assert cell.channels % (nodes - 1) == 0
        width = cell.channels // (nodes - 1)
        for residual in residuals:
            assert width in residual.shape[1:]  # tokens have theirs last
            assert residual[0].numel() % width == 0
        assert cell.possible == width * (nodes - 1) * (nodes - 2) // 2


def test_a_run_that_was_pruned_is_as_wide_as_before():
    model = rewire(timm.create_model("resnet10t", num_classes=2))
    # Node 1 changes the width, and nothing reads the projection any more.
    connectivity.prune_to_edges_(model, {"layer2.0.wiring": [(0, 1), (1, 3)]})
    widths = {cell.name: cell.channels for cell in nn_mass(model).cells}
    assert widths == {"layer1.0": 3 * 64, "layer2.0": 2 * 128, "layer3.0": 3 * 256, "layer4.0": 3 * 512}


def test_a_connected_network_that_is_cut_counts_what_is_left():
    whole = connect(timm.create_model("convnext_atto", num_classes=2))
    blocks = whole.stages[2].blocks
    (cell,) = nn_mass(blocks).cells
    (part,) = nn_mass(blocks[:2]).cells
    assert (cell.channels, part.channels) == (7 * 160, 3 * 160)
    assert part.possible == (1 + 2) * 160
    assert part.density == cell.density == 1


def test_unconnected_blocks_count_beside_connected_ones():
    model = timm.create_model("mobilenetv2_050", num_classes=2)
    connected = nn_mass(connect(model, leave_out=["blocks.5"]))
    plain = nn_mass(model)
    assert [c for c in connected.cells if c.name.startswith("blocks.5")] == [
        c for c in plain.cells if c.name.startswith("blocks.5")
    ]
    names = [cell.name for cell in connected.cells]
    assert names == sorted(names)


def test_a_network_without_cells_is_named():
    with pytest.raises(ConfigError, match=r"Sequential has no cell that nn_mass supports: DenseCell, TopoStage"):
        nn_mass(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
