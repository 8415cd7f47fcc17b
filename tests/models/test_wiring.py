import copy

import pytest
import timm
import torch
from hypothesis import given

from tests.models.helpers import NAMES, create, image
from tests.strategies import topologies
from topodet import connectivity
from topodet.errors import ConfigError, WeightsError
from topodet.models import TopoNet, TopoStage, Wiring, connect
from topodet.topology import Topology, complete, residual


@given(topologies(max_nodes=5))
def test_a_stage_computes_equation_1(topology):
    """Against a reading of Eq. 1 that uses neither slices nor the aggregation."""
    stage = TopoStage(3, 4, topology).double().eval()
    torch.nn.init.normal_(stage.wiring.alpha)
    image = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    alpha = dict(zip(topology.edges, stage.wiring.alpha))
    x = {0: stage.nodes[0](image)}
    for i in range(1, topology.num_nodes):
        x[i] = stage.nodes[i](sum(alpha[j, i] * x[j] for j in range(i) if (j, i) in alpha))
    torch.testing.assert_close(stage(image), x[topology.num_nodes - 1])


def test_gradients_in_float64():
    stage = TopoStage(2, 3, complete(4)).double().eval()  # batch statistics have no place in a gradcheck
    torch.nn.init.normal_(stage.wiring.alpha)
    image = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)

    def run(image, alpha):
        return torch.func.functional_call(stage, {"wiring.alpha": alpha}, (image,))

    assert torch.autograd.gradcheck(run, (image, stage.wiring.alpha))


def test_checkpointing_gives_the_same_gradients():
    stage = TopoStage(3, 4, residual(7, 2)).train()
    image = torch.randn(2, 3, 8, 8)
    gradients = []
    for stage.grad_checkpointing in (False, True):
        stage.zero_grad()
        stage(image).square().sum().backward()
        gradients.append([p.grad.clone() for p in stage.parameters()])
    for plain, recomputed in zip(*gradients):
        assert torch.equal(plain, recomputed)


def test_fixed_weights_are_no_parameters():
    fixed = Wiring(complete(4), "fixed")
    assert not list(fixed.parameters())
    assert not fixed.learned
    assert set(fixed.state_dict()) == set(Wiring(complete(4)).state_dict()) == {"alpha", "edges"}
    with pytest.raises(ConfigError, match="unknown edge_weights 'learnt'. Did you mean 'learned'"):
        Wiring(complete(4), "learnt")


@pytest.mark.parametrize("strict", [True, False])
def test_another_topology_is_refused_whatever_strict_says(strict):
    model = TopoStage(3, 4, residual(8, 2))
    with pytest.raises(WeightsError, match="file 28 edges, model 13 edges; 15 edge.s. only in the file, e.g. .0, 2."):
        model.load_state_dict(TopoStage(3, 4, complete(8)).state_dict(), strict=strict)
    same_size = Topology(4, [(0, 1), (0, 2), (1, 3), (2, 3)]), Topology(4, [(0, 1), (1, 2), (1, 3), (2, 3)])
    with pytest.raises(
        WeightsError, match=r"1 edge\(s\) only in the file, e.g. \(1, 2\); 1 edge\(s\) only in the model"
    ):
        Wiring(same_size[0]).load_state_dict(Wiring(same_size[1]).state_dict(), strict=strict)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["to_empty", "assign"])
def test_a_network_without_values_is_loaded(name, way):
    model = create(name).eval()
    with torch.device("meta"):
        empty = create(name).eval()
    if way == "to_empty":
        empty.to_empty(device="cpu")
        for tensor in empty.state_dict(keep_vars=True).values():
            tensor.data.fill_(9)
        for wiring in connectivity.wirings(empty).values():
            wiring.order.fill_(0)
    empty.load_state_dict(copy.deepcopy(model.state_dict()), assign=way == "assign")
    x = image()
    torch.testing.assert_close(empty(x), model(x), rtol=0, atol=0)
    empty.train()(x).sum().backward()
    model.train()(x).sum().backward()
    for ours, expected in zip(empty.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    for key, tensor in empty.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])


@pytest.mark.parametrize("assign", [False, True])
def test_a_connected_network_without_values_takes_the_original(assign):
    original = timm.create_model("convnext_atto", depths=(1, 2, 2, 1), num_classes=5).eval()
    with torch.device("meta"):
        empty = connect(timm.create_model("convnext_atto", depths=(1, 2, 2, 1), num_classes=5)).eval()
    if not assign:
        empty.to_empty(device="cpu")
        for wiring in connectivity.wirings(empty).values():
            wiring.edges.fill_(9)
    empty.load_state_dict(original.state_dict(), assign=assign)
    x = image()
    torch.testing.assert_close(empty(x), original(x))


def test_parameters_are_reset_after_to_empty():
    """As FSDP and others do it: each module that has parameters sets them itself; transformers sets buffers apart."""
    with torch.device("meta"):
        model = TopoNet(nodes=(3, 4), width=4, num_classes=3)
    model.to_empty(device="cpu")
    expected = TopoNet(nodes=(3, 4), width=4, num_classes=3)
    for wiring, other in zip(connectivity.wirings(model).values(), connectivity.wirings(expected).values()):
        for buffer in (wiring.edges, wiring.order):
            buffer.fill_(9)
        wiring.init_non_persistent_buffers()
        assert torch.equal(wiring.order, other.order)
        wiring.order.fill_(9)
        wiring.reset_parameters()
        for tensor in ("alpha", "edges", "order"):
            assert torch.equal(getattr(wiring, tensor), getattr(other, tensor))
