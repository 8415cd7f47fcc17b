import copy
import io
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import library, nn

from tests.strategies import topologies
from topodet.connectivity import penalize
from topodet.errors import ConfigError
from topodet.models import TopoNet, TopoStage, aggregation, scratch
from topodet.models.aggregation import kernel, use_kernel, weighted_sum
from topodet.topology import complete

KERNELS = ("blocked", "fused", "torch", "plain")  # those of a CPU


def make_stage(topology, *, in_chs=2, out_chs=3, dtype=torch.float64, **kwargs):
    stage = TopoStage(in_chs, out_chs, topology, **kwargs).to(dtype)
    if stage.wiring.learned:
        nn.init.normal_(stage.wiring.alpha)
    return stage


def edge_by_edge(stage, x):
    """Eq. 1 as it stands, with autograd's own gradients."""
    alpha = dict(zip(stage.wiring.topology.edges, stage.wiring.alpha.unbind()))
    x = {0: stage.nodes[0](x)}
    for i in range(1, len(stage.nodes)):
        terms = [alpha[j, i].to(x[j].dtype) * x[j] for j in range(i) if (j, i) in alpha]
        x[i] = stage.nodes[i](sum(terms[1:], terms[0]))
    return x[len(stage.nodes) - 1]


def gradients(stage, run, x):
    """Return the output, and the gradients of the input and of all parameters."""
    stage.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.mul(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in stage.parameters() if p.grad is not None)]


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
    for name in KERNELS:
        found = torch.ops.topodet.add_up(terms, weights) if name == "fused" else weighted_sum(terms, weights)
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


@pytest.mark.parametrize("what", ["alpha", "nodes", "all but alpha"])
def test_frozen_parts(what):
    stage = make_stage(complete(5))
    for name, parameter in stage.named_parameters():
        is_alpha = name == "wiring.alpha"
        frozen = {"alpha": is_alpha, "nodes": "nodes.2" in name, "all but alpha": not is_alpha}[what]
        parameter.requires_grad_(not frozen)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(gradients(stage, stage, x), gradients(stage, lambda x: edge_by_edge(stage, x), x))


@pytest.mark.parametrize("name", ["fused", "blocked"])
def test_fixed_weights_keep_no_features(name):
    """What a stage with fixed weights holds for the backward pass does not grow with its edges, nor with its sums."""

    def kept(edge_weights):
        sizes = {}
        stage = make_stage(complete(12), edge_weights=edge_weights)

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), use_kernel(name):
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
    stage = make_stage(complete(4)).eval()
    with torch.no_grad():
        sums = stage.wiring.sums(torch.zeros(1))
        for j in range(3):
            sums.put(j, torch.zeros(1))
            sums.read(j + 1)
    assert sums.views == [{}] * 4


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_large_features_of_evaluation_lie_in_memory_that_is_used_again(format, monkeypatch):
    monkeypatch.setattr(aggregation, "_LARGE", 1)
    scratch.release()
    stage = make_stage(complete(5)).eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64).contiguous(memory_format=format)
    expected = [edge_by_edge(stage, x), edge_by_edge(stage, 2 * x)]
    places = []
    for node in stage.nodes:
        node.register_forward_hook(lambda module, inputs, output: places.append(output.data_ptr()))
    with torch.no_grad():
        found = [stage(x), stage(2 * x)]
    torch.testing.assert_close(found, expected)
    assert set(places[1:4]) == set(places[6:9]) == set(scratch._free)
    stage(x)
    assert not set(places[10:]) & set(scratch._free)  # they stay for the backward pass


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
        penalize(optimizer, stage, "adaptive", 0.01)
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


class TestChoice:
    def test_by_circumstance(self):
        x = torch.zeros(1)
        assert kernel(x) == kernel(x.double()) == "blocked"
        assert kernel(nn.Parameter(x)) == "blocked"
        assert kernel(x.bfloat16()) == "fused"
        with torch.autocast("cpu"):
            assert kernel(x) == "fused"
        assert kernel(x.to("meta")) == "torch"
        assert torch.vmap(lambda x: x + (kernel(x) == "plain"))(x) == 1
        with torch.autograd.forward_ad.dual_level():
            assert kernel(x) == "plain"

    @pytest.mark.parametrize(
        ("forced", "found", "dtype"),
        [
            ("blocked", "plain", torch.float32),
            ("blocked", "torch", torch.bfloat16),
            ("fused", "fused", torch.float32),
            ("torch", "torch", torch.float32),
            ("plain", "plain", torch.bfloat16),
        ],
    )
    def test_under_a_compiler(self, forced, found, dtype):
        def chosen(x):
            return x + (kernel(x) == found)

        torch.compiler.reset()
        with use_kernel(forced):
            assert torch.compile(chosen, backend="eager", fullgraph=True)(torch.zeros(1, dtype=dtype)) == 1

    def test_products_of_lower_precision_are_not_used(self):
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            assert kernel(torch.zeros(1)) == "fused"
            assert kernel(torch.zeros(1, dtype=torch.float64)) == "blocked"
        finally:
            torch.set_float32_matmul_precision(before)

    @pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch 2.9 has precisions by device")
    def test_precisions_by_device(self):
        """torch then refuses to name one precision of all devices."""
        own = torch.backends.mkldnn.matmul
        before, stage, x = own.fp32_precision, make_stage(complete(9)).float(), torch.randn(2, 2, 8, 8)
        expected = stage(x)
        torch.compiler.reset()
        try:
            own.fp32_precision = "bf16"
            assert kernel(x) == "fused"
            torch.testing.assert_close(stage(x), expected, rtol=0.05, atol=0.05)
            compiled = torch.compile(stage, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), expected, rtol=0.05, atol=0.05)
        finally:
            own.fp32_precision = before
        assert kernel(x) == "blocked"

    def test_by_name(self):
        with use_kernel("plain"):
            assert kernel(torch.zeros(1)) == "plain"
            with use_kernel("fused"):
                assert kernel(torch.zeros(1)) == "fused"
                with torch.autograd.forward_ad.dual_level():
                    assert kernel(torch.zeros(1)) == "plain"
        assert kernel(torch.zeros(1)) == "blocked"
        with pytest.raises(ConfigError, match="unknown kernel 'fuse'. Did you mean 'fused'"), use_kernel("fuse"):
            pass

    def test_tracing_records_ordinary_operators(self):
        stage = make_stage(complete(4)).eval()
        x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
        with torch.no_grad():
            traced = torch.jit.trace(stage, x)
            assert "topodet::" not in str(traced.inlined_graph)
            torch.testing.assert_close(traced(x), stage(x))

    @pytest.mark.parametrize("gradients", [True, False])
    def test_export_records_ordinary_operators(self, gradients):
        stage = make_stage(complete(4)).eval()
        x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
        with nullcontext() if gradients else torch.no_grad():
            program = torch.export.export(stage, (x,), strict=False)
        assert "topodet" not in str(program.graph)
        torch.testing.assert_close(program.module()(x), stage(x))

    def test_functional_transforms(self):
        stage = make_stage(complete(4)).eval()
        x = torch.randn(1, 2, 6, 6, dtype=torch.float64)

        def loss(alpha):
            return torch.func.functional_call(stage, {"wiring.alpha": alpha}, (x,)).square().sum()

        alpha = stage.wiring.alpha.detach()
        loss(stage.wiring.alpha).backward()
        torch.testing.assert_close(torch.func.grad(loss)(alpha), stage.wiring.alpha.grad)
        _, slope = torch.func.jvp(loss, (alpha,), (torch.ones_like(alpha),))
        torch.testing.assert_close(slope, stage.wiring.alpha.grad.sum())


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
