"""The Triton kernel on a CPU, under Triton's interpreter; `test_triton.py` runs this file.

The interpreter is chosen when Triton is imported, hence a process of its own: TRITON_INTERPRET=1 python -m pytest FILE
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.stages import edge_by_edge, gradients, make_stage
from tests.strategies import topologies
from topodet.ops import dispatch, weighted_sum
from topodet.ops.triton import MAX_TERMS, SUM, add_up, add_up_and_dot, check
from topodet.topology import complete

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stands_in():
    """Make what a GPU would run the CPU's kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setitem(weighted_sum._ADD_UP, "fused", weighted_sum._add_up_on_gpu)
        patch.setitem(weighted_sum._ADD_UP_AND_DOT, "fused", weighted_sum._add_up_and_dot_on_gpu)
        with dispatch.use_kernel("fused"):
            yield
    assert dispatch._tried == {(CPU, torch.float64): True}  # and nothing was made of torch's operators


def laid_out(x, layout):
    """Return the values of `x`, [B, C, H, W], in memory as asked for."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "part":
        return torch.cat([x, x], dim=3)[..., : x.shape[3]]
    if layout == "odd address":
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    if layout == "one value":
        return x.flatten()[0].expand(x.shape)
    return x


LAYOUTS = st.sampled_from(["contiguous", "channels_last", "part", "odd address", "one value"])


@st.composite
def sums(draw):
    """Terms of one shape, weights with zeros among them, and a feature."""
    number = draw(st.one_of(st.integers(1, 9), st.sampled_from([MAX_TERMS, MAX_TERMS + 1, 2 * MAX_TERMS + 3])))
    shape = draw(st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 16]), st.integers(1, 7), st.integers(1, 7)))
    dtype = draw(st.sampled_from(DTYPES))
    layouts = [draw(LAYOUTS)] * (number + 1) if draw(st.booleans()) else [draw(LAYOUTS) for _ in range(number + 1)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    *terms, feature = (laid_out(torch.randn(shape, generator=generator).to(dtype), layout) for layout in layouts)
    weights = torch.randn(number, generator=generator).to(draw(st.sampled_from([torch.float32, dtype])))
    weights[torch.rand(number, generator=generator) < draw(st.sampled_from([0, 0.3, 1]))] = 0
    return terms, weights, feature


def compare(found, addends, rounding):
    """Against the exact sum of `addends`, float64, to which float32 may come that near before its last rounding."""
    scale = sum(addend.abs() for addend in addends)
    bound = 32 * torch.finfo(torch.float32).eps * scale + rounding * sum(addends).abs() + 1e-7  # float16's smallest
    assert ((found.double() - sum(addends)).abs() <= bound).all()


@given(sums())
def test_sums_and_products_against_float64(case):
    terms, weights, feature = case
    before = [term.clone() for term in terms]
    exact = [term.double() * weight.double() for term, weight in zip(terms, weights)]
    dtype = feature.dtype
    total, products = add_up_and_dot(terms, weights, feature)
    for found in (add_up(terms, weights), total):
        assert (found.dtype, found.stride()) == (dtype, torch.empty_like(terms[0]).stride())
        compare(found, exact, torch.finfo(dtype).eps)
    assert products.dtype == torch.promote_types(dtype, torch.float32)
    for product, term in zip(products, terms):
        compare(product, (term.double() * feature.double()).flatten().unbind(), 0)
    assert all(torch.equal(term, copied) for term, copied in zip(terms, before))


@pytest.mark.parametrize("size", [1, 15, 16, SUM["BLOCK"] - 1, SUM["BLOCK"], 3 * SUM["BLOCK"] + 1])
def test_nothing_is_written_beyond_the_end(size, monkeypatch):
    """Where the last block is part of one, what lies behind the tensor stays what it was."""
    room = torch.full((size + SUM["BLOCK"],), 7.0)
    monkeypatch.setattr(torch, "empty_like", lambda x, **kwargs: room[:size])
    terms = [torch.arange(size).float(), torch.ones(size)]
    total, products = add_up_and_dot(terms, torch.tensor([1.0, 2.0]), terms[1])
    assert torch.equal(total, terms[0] + 2)
    torch.testing.assert_close(products, torch.tensor([size * (size - 1) / 2, size]))
    assert (room[size:] == 7).all()


def test_a_term_of_weight_0_spoils_nothing():
    nan, ones = torch.full((3, 5), torch.nan), torch.ones(3, 5)
    weights = torch.tensor([0.0, 2.0])
    total, products = add_up_and_dot([nan, ones], weights, ones)
    assert torch.equal(add_up([nan, ones], weights), 2 * ones)
    assert torch.equal(total, 2 * ones)
    assert products[0].isnan()
    assert products[1] == 15
    assert torch.equal(add_up([nan], weights[:1]), torch.zeros(3, 5))
    assert add_up([ones], torch.tensor([torch.nan])).isnan().all()  # and neither does it hide a weight that is none


def test_no_elements():
    total, products = add_up_and_dot([torch.ones(0, 3)] * 2, torch.ones(2), torch.ones(0, 3))
    assert total.shape == (0, 3)
    assert torch.equal(products, torch.zeros(2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_check_before_first_use(dtype, monkeypatch):
    check(CPU, dtype)
    name = "topodet.ops.triton.add_up_and_dot"
    for error, what in (((1, 0), "sum"), ((0, 1), "products")):
        monkeypatch.setattr(name, lambda *args, error=error: [x + e for x, e in zip(add_up_and_dot(*args), error)])
        with pytest.raises(RuntimeError, match=f"wrong {what}"):
            check(CPU, dtype)


@given(topology=topologies(max_nodes=6), seed=st.integers(0, 10**6), layout=st.booleans())
def test_a_stage_is_eq_1_with_autograds_gradients(stands_in, topology, seed, layout):
    torch.manual_seed(seed)
    stage = make_stage(topology)
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    if layout:
        x, stage = x.to(memory_format=torch.channels_last), stage.to(memory_format=torch.channels_last)
    torch.testing.assert_close(gradients(stage, stage, x), gradients(stage, lambda x: edge_by_edge(stage, x), x))


def test_gradients_in_float64(stands_in):
    stage = make_stage(complete(4)).eval()
    image = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(image, alpha):
        return torch.func.functional_call(stage, {"wiring.alpha": alpha}, (image,))

    assert torch.autograd.gradcheck(run, (image, stage.wiring.alpha))


def test_more_nodes_than_one_launch_takes(stands_in):
    stage = make_stage(complete(MAX_TERMS + 4))
    with torch.no_grad():
        stage.wiring.alpha.div_(MAX_TERMS)[::3] = 0
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(gradients(stage, stage, x), gradients(stage, lambda x: edge_by_edge(stage, x), x))
