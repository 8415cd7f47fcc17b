import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.models.connected.helpers import NETWORKS
from tests.strategies import topologies
from topodet.errors import ConfigError
from topodet.models import TopoNet, TopoStage
from topodet.models.connected import connect
from topodet.models.connected.sequential import ConnectedSequential
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


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stream_of_connected_blocks_is_as_wide_as_what_they_read(name):
    """A run has one node more than branches, each as wide as the tensors that its blocks get."""
    small, edges = NETWORKS[name]
    model = connect(timm.create_model(name, num_classes=5, **small)).eval()
    streams = []
    for module in model.modules():
        for key in module.links if isinstance(module, ConnectedSequential) else ():
            wiring = getattr(module._modules[key], "wiring", None)
            if wiring is not None:
                wiring.sums = lambda like, wiring=wiring: streams.append(like) or type(wiring).sums(wiring, like)
    size = model.pretrained_cfg["input_size"][-1]
    with torch.no_grad():
        model(torch.zeros(1, 3, small.get("img_size", size), small.get("img_size", size)))
    runs = [cell for cell in nn_mass(model).cells if cell.density == 1]
    assert len(runs) == len(streams) == len(edges)
    for cell, stream, count in zip(runs, streams, edges):
        nodes = next(n for n in range(3, 50) if n * (n - 1) // 2 == count)
        assert cell.channels % (nodes - 1) == 0
        width = cell.channels // (nodes - 1)
        assert width in stream.shape[1:]
        assert stream[0].numel() % width == 0
        assert cell.possible == width * (nodes - 1) * (nodes - 2) // 2


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
    with pytest.raises(ConfigError, match=r"Sequential has no cell that nn_mass knows: DenseCell, TopoStage"):
        nn_mass(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
