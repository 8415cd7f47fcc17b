import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.test_aggregation import edge_by_edge, gradients, make_stage
from tests.strategies import topologies
from topodet.models.aggregation import use_kernel
from topodet.models.blocks import divide
from topodet.topology import complete


@given(topologies(max_nodes=16), st.integers(1, 6))
def test_every_edge_is_read_once(topology, size):
    blocks = divide(topology.predecessors, size)
    if blocks is None:
        return
    assert [j for members in blocks.blocks for j in members] == list(range(topology.num_nodes))
    assert max(map(len, blocks.blocks)) <= size
    alone = [(j, i) for i, row in enumerate(blocks.sources) for j in row]
    products = {(k, b) for b, row in enumerate(blocks.reads) for k in row}
    assert products == {(k, b) for k, row in enumerate(blocks.read_by) for b in row}
    assert all(k < b for k, b in products)
    by_product = [(j, i) for j, i in topology.edges if (blocks.block_of[j], blocks.block_of[i]) in products]
    assert sorted(alone + by_product) == sorted(topology.edges)
    # The orders that the weights are handed out in.
    assert [topology.edges[e] for e in blocks.by_target] == alone
    assert [topology.edges[e] for e in blocks.by_source] == [
        (j, i) for j, row in enumerate(blocks.readers) for i in row
    ]
    matrix = torch.zeros(topology.num_nodes**2, dtype=torch.bool)
    matrix[blocks.places] = True
    assert torch.equal(matrix.view(topology.num_nodes, -1), torch.from_numpy(topology.adjacency()).bool())


def test_products_are_for_many_edges():
    assert divide(complete(10).predecessors) is None  # two blocks
    assert divide(complete(11).predecessors) is not None
    assert divide(tuple((i - 1,) if i else () for i in range(40))) is None  # a chain
    dense = divide(complete(26).predecessors)
    assert sum(map(len, dense.sources)) < 26 * 25 // 2 / 6


def test_a_network_of_blocks_in_any_memory_format_and_precision():
    torch.manual_seed(0)
    stage = make_stage(complete(14))
    for dtype in (torch.float64, torch.float32):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            stage = stage.to(dtype).to(memory_format=memory_format)
            x = torch.randn(2, 2, 6, 10, dtype=dtype).to(memory_format=memory_format)
            expected = gradients(stage, lambda x: edge_by_edge(stage, x), x)  # noqa: B023
            # Batch statistics of few numbers amplify what float32 rounds.
            tolerance = {} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
            torch.testing.assert_close(gradients(stage, stage, x), expected, **tolerance)
            stage.eval()
            with torch.inference_mode():
                assert stage(x).is_contiguous(memory_format=memory_format)
                torch.testing.assert_close(stage(x), edge_by_edge(stage, x), **tolerance)
            stage.train()


@pytest.mark.parametrize("order", ["first", "second"])
def test_gradients_in_float64(order):
    """Of 12 nodes, whose edges are read in both ways."""
    torch.manual_seed(0)
    stage = make_stage(complete(12), in_chs=1, out_chs=1).eval()
    image = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(image, alpha):
        return torch.func.functional_call(stage, {"wiring.alpha": alpha}, (image,))

    check = torch.autograd.gradcheck if order == "first" else torch.autograd.gradgradcheck
    assert check(run, (image, stage.wiring.alpha))


@pytest.mark.parametrize("frozen", ["alpha", "input", "both"])
def test_frozen_parts(frozen):
    torch.manual_seed(0)
    stage = make_stage(complete(12))
    if frozen != "input":
        stage.wiring.alpha.requires_grad_(False)
    if frozen != "alpha":
        stage.nodes[0].requires_grad_(False)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    found = {}
    for name in ("blocked", "plain"):
        stage.zero_grad()
        with use_kernel(name):
            stage(x).square().sum().backward()
        found[name] = {key: p.grad.clone() for key, p in stage.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found["blocked"], found["plain"])


@pytest.mark.parametrize("edge_weights", ["learned", "fixed"])
def test_recomputed_nodes(edge_weights):
    torch.manual_seed(0)
    stage = make_stage(complete(12), edge_weights=edge_weights)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    expected = gradients(stage, stage, x)
    stage.grad_checkpointing = True
    torch.testing.assert_close(gradients(stage, stage, x), expected)


def test_deterministic():
    torch.manual_seed(0)
    stage = make_stage(complete(16), dtype=torch.float32)
    x = torch.randn(2, 2, 16, 16)
    for one, other in zip(gradients(stage, stage, x), gradients(stage, stage, x)):
        assert torch.equal(one, other)
