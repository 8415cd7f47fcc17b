import gc
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.models.test_aggregation import edge_by_edge, gradients, make_stage
from tests.strategies import topologies
from topodet import connectivity
from topodet.models import ResNetCifar, fuse_for_inference, rewire, scratch
from topodet.models.aggregation import use_kernel
from topodet.models.blocks import Blocks, divide, pays
from topodet.topology import Topology, complete


def in_blocks(topology, forward, backward, **kwargs):
    """A stage that is read in these blocks, whether they pay or not; each begins at a place of a list."""
    stage = make_stage(topology, **kwargs)

    def blocks(places):
        bounds = sorted({0, *(place % topology.num_nodes for place in places), topology.num_nodes})
        return tuple(range(*bound) for bound in pairwise(bounds) for _ in range(*bound))

    places = divide(topology.predecessors).places
    stage.wiring.graph.blocks = Blocks(forward=blocks(forward), backward=blocks(backward), places=places)
    return stage


def moved_forward(blocks):
    """How many features are read and written: by the products of blocks, and by each node within its block."""
    moved = 0
    for block in dict.fromkeys(blocks):
        if block.start and len(block) > 1:
            moved += block.start + len(block) + sum(1 + (i - block.start) + 1 for i in block[1:])
        else:
            moved += sum(i + 1 for i in block)
    return moved


def moved_backward(blocks):
    """Of gradients, by the products of blocks and those of each node; and what the gradients of the weights read."""
    nodes, moved = len(blocks), 0
    for block in dict.fromkeys(blocks):
        if block.stop < nodes:
            moved += (nodes - block.stop) + len(block)
            moved += len(block)  # each adds what it reads within the block
        sources = [j for j in block if j < nodes - 1]
        moved += sum((block.stop - 1 - j) + 1 for j in sources)
        if sources:
            moved += len(sources) + (nodes - block.start - 1)
    return moved


def image(*shape, **kwargs):
    return torch.randn(shape, dtype=torch.float64, **kwargs)


@given(topologies(max_nodes=16))
def test_consecutive_blocks(topology):
    blocks = divide(topology.predecessors)
    for of in (blocks.forward, blocks.backward):
        assert all(i in block for i, block in enumerate(of))
        assert [i for block in dict.fromkeys(of) for i in block] == list(range(topology.num_nodes))
    matrix = torch.zeros(topology.num_nodes**2, dtype=torch.bool)
    matrix[blocks.places] = True
    assert torch.equal(matrix.view(topology.num_nodes, -1), torch.from_numpy(topology.adjacency()).bool())


@pytest.mark.parametrize("nodes", [2, 5, 9, 12])
def test_no_other_division_moves_less(nodes):
    """Of all 2^(N-1) divisions."""
    blocks = divide(complete(nodes).predecessors)
    divisions = []
    for cuts in product([False, True], repeat=nodes - 1):
        bounds = [0, *(k + 1 for k, cut in enumerate(cuts) if cut), nodes]
        divisions.append([range(*bound) for bound in pairwise(bounds) for _ in range(*bound)])
    assert moved_forward(blocks.forward) == min(map(moved_forward, divisions))
    assert moved_backward(blocks.backward) == min(map(moved_backward, divisions))


def test_blocks_are_for_many_edges():
    assert not pays(complete(7).predecessors)
    assert pays(complete(8).predecessors)
    assert not pays(tuple((i - 1,) if i else () for i in range(40)))  # a chain
    assert pays(
        Topology(30, [(j, i) for i in range(30) for j in range(i) if j == i - 1 or (i + j) % 3 == 0]).predecessors
    )


@given(
    topology=topologies(max_nodes=10),
    forward=st.lists(st.integers(0, 9), max_size=4),
    backward=st.lists(st.integers(0, 9), max_size=4),
    seed=st.integers(0, 10**6),
    layout=st.booleans(),
    train=st.booleans(),
)
def test_every_division_is_eq_1_with_autograds_gradients(topology, forward, backward, seed, layout, train):
    torch.manual_seed(seed)
    stage = in_blocks(topology, forward, backward).train(train)
    x = image(2, 2, 6, 5)
    if layout:
        x, stage = x.to(memory_format=torch.channels_last), stage.to(memory_format=torch.channels_last)
    expected = gradients(stage, lambda x: edge_by_edge(stage, x), x)
    torch.testing.assert_close(gradients(stage, stage, x), expected)
    with torch.inference_mode():
        y = stage(x)
    torch.testing.assert_close(y, expected[0])
    assert not layout or y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("frozen", ["", "alpha", "nodes.0.", "nodes.5.", "nodes."])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_and_recomputed_parts(frozen, checkpointing):
    torch.manual_seed(0)
    stage = make_stage(complete(12))
    for name, parameter in stage.named_parameters():
        parameter.requires_grad_(not frozen or frozen not in name)
    x = image(2, 2, 6, 6)
    expected = gradients(stage, lambda x: edge_by_edge(stage, x), x)
    stage.grad_checkpointing = checkpointing
    torch.testing.assert_close(gradients(stage, stage, x), expected)


def test_gradients_as_wide_as_features_in_float32():
    """Of long rows, which are multiplied piece by piece."""
    torch.manual_seed(0)
    stage = make_stage(complete(9), out_chs=8).eval()
    x = image(1, 2, 50, 30)
    expected = gradients(stage, lambda x: edge_by_edge(stage, x), x)
    found = gradients(stage.float(), stage, x.float())
    for one, exact in zip(found, expected):
        assert one.dtype == torch.float32
        assert (one - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_in_float64(order, frozen):
    torch.manual_seed(0)
    stage = in_blocks(complete(7), [2, 4], [3, 5], in_chs=1, out_chs=1).eval()

    def run(image, alpha):
        return torch.func.functional_call(stage, {"wiring.alpha": alpha.detach() if frozen else alpha}, (image,))

    check = torch.autograd.gradcheck if order == "first" else torch.autograd.gradgradcheck
    inputs = image(1, 1, 3, 3, requires_grad=True), stage.wiring.alpha
    assert check((lambda image: run(image, inputs[1])) if frozen else run, inputs[:1] if frozen else inputs)


def test_passes_know_nothing_of_each_other():
    """Two outputs of one module, some of it in parts, and evaluation in between."""
    torch.manual_seed(0)
    stage = make_stage(complete(12))
    middle = []
    stage.nodes[7].register_forward_hook(lambda module, inputs, output: middle.append(output))
    first, second = (image(*shape, requires_grad=True) for shape in ((2, 2, 6, 6), (1, 2, 9, 4)))
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


def test_a_node_that_is_cut_off():
    torch.manual_seed(0)
    stage = make_stage(complete(12))
    for i in (4, 7):
        stage.nodes[i].register_forward_hook(lambda module, inputs, output: output.detach())
    x = image(2, 2, 6, 6)
    torch.testing.assert_close(gradients(stage, stage, x), gradients(stage, lambda x: edge_by_edge(stage, x), x))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_chain_whose_first_node_reads_something_else(checkpointing):
    """Stages of a rewired network begin with a projection, which all nodes but the first read."""
    torch.manual_seed(0)
    model = rewire(ResNetCifar(depth=44, num_classes=3)).double()
    for wiring in connectivity.wirings(model).values():
        nn.init.normal_(wiring.alpha, mean=0.5)
        assert wiring.graph.blocks is not None
    found = {}
    for name in ("plain", "blocked"):
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing and name == "blocked")
        with use_kernel(name):
            model(torch.ones(2, 3, 8, 8).double().cumsum(3)).square().sum().backward()
        found[name] = {key: p.grad.clone() for key, p in model.named_parameters()}
    torch.testing.assert_close(found["blocked"], found["plain"])


def test_fused_for_inference():
    torch.manual_seed(0)
    stage = make_stage(complete(12)).eval()
    with torch.no_grad():
        stage.wiring.alpha[5::7] = 0
    fused, x = fuse_for_inference(stage), image(2, 2, 6, 6)
    assert fused.graph.blocks is not None
    torch.testing.assert_close(fused(x), stage(x))


def test_the_same_bits_each_time():
    torch.manual_seed(0)
    stage = make_stage(complete(16), dtype=torch.float32)
    x = torch.randn(2, 2, 16, 16)
    for one, other in zip(gradients(stage, stage, x), gradients(stage, stage, x)):
        assert torch.equal(one, other)


def test_memory_is_free_after_a_backward_pass_and_what_it_held_matters_to_nobody():
    torch.manual_seed(0)
    scratch.release()
    stage = make_stage(complete(12))
    x = image(2, 2, 6, 6)
    loss = stage(x).sum()
    loss.backward()
    gc.collect()
    held = list(scratch._free.values())  # although there still is a loss
    feature = 2 * 3 * 3 * 3 * 8
    sizes = sorted(memory.nbytes // feature for memory in held)
    assert sizes[-2:] == [11, 12]  # the features and the gradients
    assert sum(sizes[:-2]) == 11  # the sums
    for memory in held:
        memory.view(np.float64)[:] = np.nan
    del memory, held
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly(check_nan=True):
        found = gradients(stage, stage, x)
    torch.testing.assert_close(found, gradients(stage, lambda x: edge_by_edge(stage, x), x))
