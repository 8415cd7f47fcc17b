import copy
import io
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import library, nn

from tests.stages import edge_by_edge, gradients, make_stage
from tests.strategies import topologies
from topodet import connectivity
from topodet.models import ResNetCifar, TopoNet, rewire
from topodet.ops import use_kernel
from topodet.ops.weighted_sum import weighted_sum
from topodet.topology import Topology, complete

KERNELS = ("fused", "torch", "plain")  # those of a CPU


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_weighted_sum_against_a_stack(terms, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(terms, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(terms, generator=generator, dtype=torch.float64)
    expected = torch.einsum("k,kbchw->bchw", weights, features)
    torch.testing.assert_close(weighted_sum(list(features), weights), expected)


@pytest.mark.parametrize("name", KERNELS)
@given(topology=topologies(max_nodes=14), seed=st.integers(0, 10**6), layout=st.booleans(), train=st.booleans())
def test_every_kernel_is_eq_1_with_autograds_gradients(name, topology, seed, layout, train):
    torch.manual_seed(seed)
    stage = make_stage(topology).train(train)
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    if layout:
        x, stage = x.to(memory_format=torch.channels_last), stage.to(memory_format=torch.channels_last)
    with use_kernel(name):
        found = gradients(stage, stage, x)
    torch.testing.assert_close(found, gradients(stage, lambda x: edge_by_edge(stage, x), x))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("order", ["first", "second"])
def test_gradients_in_float64(name, order):
    stage = make_stage(complete(4)).eval()  # batch statistics have no place in a gradcheck
    image = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)

    def run(image, alpha):
        return torch.func.functional_call(stage, {"wiring.alpha": alpha}, (image,))

    check = torch.autograd.gradcheck if order == "first" else torch.autograd.gradgradcheck
    with use_kernel(name):
        assert check(run, (image, stage.wiring.alpha))


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, False),
        *((dtype, autocast) for dtype in (torch.bfloat16, torch.float16) for autocast in (False, True)),
    ],
)
def test_reduced_precision_is_accumulated_in_float32(dtype, autocast):
    """The sum of many terms is as near to the exact one as its last rounding allows."""
    terms = [torch.randn(1, 4, 3, 3).to(dtype) for _ in range(64)]
    weights = torch.randn(64, dtype=torch.float32 if autocast else dtype)
    exact = sum(t.double() * w.double() for t, w in zip(terms, weights))
    for found in (torch.ops.topodet.add_up(terms, weights), weighted_sum(terms, weights)):
        assert found.dtype == dtype
        tolerance = 64 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=64 * tolerance * 1e-2)


def test_autocast_keeps_the_features_type_and_the_weights_gradient():
    found = {}
    for name in KERNELS:
        torch.manual_seed(0)
        stage = make_stage(complete(5), in_chs=4, out_chs=8, dtype=torch.float32)
        with use_kernel(name), torch.autocast("cpu", torch.bfloat16):
            y = stage(torch.randn(2, 4, 8, 8))
        y.float().square().mean().backward()
        assert stage.wiring.alpha.grad.dtype == torch.float32
        found[name] = [y.dtype, y.detach(), stage.wiring.alpha.grad]
    assert found["fused"][0] == found["plain"][0]
    torch.testing.assert_close(found["fused"][1:], found["plain"][1:], rtol=0.05, atol=0.05)
    torch.testing.assert_close(found["fused"][1:], found["torch"][1:], rtol=0.05, atol=0.05)


def test_pruned_edges_are_passed_over_and_still_get_their_gradient():
    stage = make_stage(complete(6))
    with torch.no_grad():
        stage.wiring.alpha[::2] = 0
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    found = gradients(stage, stage, x)
    torch.testing.assert_close(found, gradients(stage, lambda x: edge_by_edge(stage, x), x))
    poisoned = torch.full((1, 1, 2, 2), torch.nan)  # what is not read cannot spoil the sum
    total = torch.ops.topodet.add_up([poisoned, torch.ones(1, 1, 2, 2)], torch.tensor([0.0, 2.0]))
    assert torch.equal(total, torch.full((1, 1, 2, 2), 2.0))
    assert torch.equal(torch.ops.topodet.add_up([poisoned], torch.zeros(1)), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("frozen", ["", "alpha", "nodes.0.", "nodes.5.", "nodes."])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_and_recomputed_parts(frozen, checkpointing):
    torch.manual_seed(0)
    stage = make_stage(complete(7))
    for name, parameter in stage.named_parameters():
        parameter.requires_grad_(not frozen or frozen not in name)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    expected = gradients(stage, lambda x: edge_by_edge(stage, x), x)
    stage.grad_checkpointing = checkpointing
    torch.testing.assert_close(gradients(stage, stage, x), expected)


def test_fixed_weights_keep_no_features():
    """What a stage with fixed weights holds for the backward pass does not grow with its edges."""

    def kept(edge_weights):
        sizes = {}
        stage = make_stage(complete(12), edge_weights=edge_weights)

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), use_kernel("fused"):
            y = stage(torch.randn(2, 2, 16, 16, dtype=torch.float64))
        assert y.requires_grad
        return sum(sizes.values())

    feature = 2 * 3 * 8 * 8 * 8
    assert kept("learned") - kept("fixed") >= 11 * feature
    assert kept("learned") - kept("fixed") <= 12 * feature


def test_two_backward_passes_and_part_of_one():
    stage = make_stage(complete(5))
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    loss = stage(x).square().sum()
    first = torch.autograd.grad(loss, [x, stage.wiring.alpha], retain_graph=True)
    (alone,) = torch.autograd.grad(loss, [stage.nodes[3].conv_pw.weight], retain_graph=True)
    again = torch.autograd.grad(loss, [x, stage.wiring.alpha, stage.nodes[3].conv_pw.weight])
    assert all(torch.equal(a, b) for a, b in zip([*first, alone], again))


def test_passes_know_nothing_of_each_other():
    """Two outputs of one module, some of it in parts, and evaluation in between."""
    torch.manual_seed(0)
    stage = make_stage(complete(9))
    middle = []
    stage.nodes[7].register_forward_hook(lambda module, inputs, output: middle.append(output))
    first, second = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2, 6, 6), (1, 2, 9, 4))
    )
    what = [stage.wiring.alpha, stage.nodes[4].conv_pw.weight]

    def results(run):
        middle.clear()
        losses = [run(first).square().sum(), run(second).square().sum()]
        with torch.no_grad():
            run(first)
        found = []
        for _ in range(2):
            found += torch.autograd.grad(losses[0], [first, *what], retain_graph=True)
            found += torch.autograd.grad(middle[1].sum(), [second, what[1]], retain_graph=True)
            found += torch.autograd.grad(losses[1], what[1], retain_graph=True)
            found += torch.autograd.grad(losses[1] + middle[1].square().sum(), [second, *what], retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found[: len(found) // 2], found[len(found) // 2 :]))
        return found

    torch.testing.assert_close(results(stage), results(lambda x: edge_by_edge(stage, x)))


def test_a_node_that_is_cut_off_gets_no_gradient():
    stage = make_stage(complete(5))
    stage.nodes[2].register_forward_hook(lambda module, inputs, output: output.detach())
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(gradients(stage, stage, x), gradients(stage, lambda x: edge_by_edge(stage, x), x))


def test_the_sizes_may_change_and_a_batch_may_be_one_image():
    stage = make_stage(complete(5)).eval()
    for shape in ((2, 2, 8, 8), (1, 2, 5, 9), (3, 2, 2, 2), (1, 2, 1, 1)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(gradients(stage, stage, x), gradients(stage, lambda x: edge_by_edge(stage, x), x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    stage = make_stage(complete(6)).eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    expected = edge_by_edge(stage, x)
    with mode():
        y = stage(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(stage(x), expected)  # and with them again, on the same module


def test_a_feature_goes_with_its_last_reader():
    """Of a chain without gradients two features live at a time, not all."""
    stage, alive = make_stage(Topology(8, [(i, i + 1) for i in range(7)])).eval(), []

    def count(module, inputs, output):
        alive.append(weakref.ref(output))
        assert sum(feature() is not None for feature in alive) <= 2

    for node in stage.nodes:
        node.register_forward_hook(count)
    with torch.no_grad():
        stage(torch.randn(2, 2, 6, 6, dtype=torch.float64))
    assert len(alive) == 8


def test_nothing_is_written_into_what_others_read():
    stage = make_stage(complete(5))
    seen = []
    for node in stage.nodes:
        node.register_forward_hook(lambda module, inputs, output: seen.append((output, output.detach().clone())))
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    before = x.clone()
    stage(x).sum().backward()
    assert torch.equal(x, before)
    assert all(torch.equal(output, copied) for output, copied in seen)


@pytest.mark.parametrize("name", KERNELS)
def test_gradient_checkpointing(name):
    stage = make_stage(complete(6))
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    found = []
    with use_kernel(name):
        for stage.grad_checkpointing in (False, True):
            found.append(gradients(stage, stage, x))
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_chain_whose_first_node_reads_something_else(checkpointing):
    """Stages of a rewired network begin with a projection, which all nodes but the first read."""
    torch.manual_seed(0)
    model = rewire(ResNetCifar(depth=20, num_classes=3)).double()
    for wiring in connectivity.wirings(model).values():
        nn.init.normal_(wiring.alpha, mean=0.5)
    found = {}
    for name in ("plain", "fused"):
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing and name == "fused")
        with use_kernel(name):
            model(torch.ones(2, 3, 8, 8).double().cumsum(3)).square().sum().backward()
        found[name] = {key: p.grad.clone() for key, p in model.named_parameters()}
    torch.testing.assert_close(found["fused"], found["plain"])


def test_the_same_bits_each_time():
    stage = make_stage(complete(6), dtype=torch.float32)
    x = torch.randn(2, 2, 6, 6)
    first, second = (gradients(stage, stage, x) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_amp_scaling_and_the_penalty():
    """A scaled loss gives scaled gradients; what the optimiser sees is the same."""
    steps = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        stage = make_stage(complete(5), dtype=torch.float32)
        optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
        connectivity.penalize(optimizer, stage, "adaptive", 0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(stage(torch.randn(2, 2, 6, 6)).square().mean()).backward()
        scaler.step(optimizer)
        steps.append(stage.wiring.alpha.detach().clone())
    torch.testing.assert_close(*steps)


def test_copies_and_pickles_of_a_stage():
    stage = make_stage(complete(4)).eval()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    stage(x).sum().backward()
    buffer = io.BytesIO()
    torch.save(stage, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(stage), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), stage(x))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("frozen", [False, True])
def test_compiled_gradients(name, frozen):
    """Without inductor, whose loops need a C++ compiler: the graphs are what may lose a gradient."""
    stage = make_stage(complete(4))
    stage.wiring.alpha.requires_grad_(not frozen)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    with use_kernel(name):
        torch.compiler.reset()
        compiled = torch.compile(stage, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(gradients(stage, compiled, x), gradients(stage, stage, x))


def test_operators_keep_to_their_contract():
    terms = [torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last) for _ in range(3)]
    weights = torch.tensor([0.5, 0.0, -1.0])
    tests = ("test_schema", "test_faketensor")
    library.opcheck(torch.ops.topodet.add_up.default, (terms, weights), test_utils=tests)
    library.opcheck(torch.ops.topodet.add_up_and_dot.default, (terms, weights, terms[1]), test_utils=tests)


def test_a_whole_network_of_bfloat16():
    model = TopoNet(nodes=(4, 4), width=4, num_classes=3).bfloat16()
    model(torch.randn(2, 3, 32, 32).bfloat16()).float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
