"""`connect(nodes="blocks")` and "auto": runs that are found by following a network, and that start as chains."""

import copy
import math
import pickle
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.models.connected.helpers import assert_same, run
from topodet import connectivity
from topodet.errors import ConfigError, WeightsError
from topodet.models import connectable, disconnect, fuse_for_inference
from topodet.models.connected import RunPlan, connect
from topodet.topology import complete

RESNET = {"layers": (3, 1, 2, 4), "channels": (64, 12, 16, 16), "num_classes": 5}


class Block(nn.Module):
    """Something nonlinear that keeps the shape of [..., 4]; with `inplace` it overwrites what it reads."""

    def __init__(self, inplace=False):
        super().__init__()
        self.linear, self.inplace = nn.Linear(4, 4), inplace

    def forward(self, x):
        if self.inplace:
            x.sigmoid_()
        return torch.tanh(self.linear(x)) + 0.5


class Positioned(Block):
    """Takes more than its stream, which comes second, and returns more."""

    def forward(self, size, x, *, shift):
        return super().forward(x) * size[0] + shift, size


class Line(nn.Module):
    """Calls its blocks by name, one after the other."""

    def __init__(self, block=Block, middle=None):
        super().__init__()
        self.a, self.b, self.c = block(), block(), block()
        self.middle = middle or nn.Identity()

    def forward(self, x):
        x = self.a(x)
        x = self.middle(self.b(x))
        return self.c(x)


class Loop(nn.Module):
    def __init__(self, block=Positioned, depth=3):
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x):
        size = (2.0,)
        for k in range(len(self.blocks)):
            x, size = self.blocks[k](size, x, shift=x.mean())
        return x


def series(*blocks):
    return nn.Sequential(*(block or Block() for block in blocks))


NETWORKS = {
    "by name": (Line, 3, ["a", "b", "c"]),
    "loop with further arguments and results": (Loop, 3, ["blocks.0", "blocks.1", "blocks.2"]),
    "blocks that overwrite their input": (lambda: series(Block(True), Block(True), Block(True)), 3, ["0", "1", "2"]),
    "stages of blocks": (lambda: series(series(None, None), series(None)), 3, ["0.0", "0.1", "1.0"]),
    "blocks that are series of layers": (
        lambda: series(*(series(None, nn.Tanh()) for _ in range(3))),
        3,
        ["0", "1", "2"],
    ),
    "plain layers": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 2, ["0", "1"]),
}


def scatter(model):
    for wiring in connectivity.wirings(model).values():
        wiring.alpha.data.add_(0.3 * torch.randn_like(wiring.alpha))
    return model


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4), (2, 3, 3, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_starts_as_the_chain_and_computes_equation_1(name, shape):
    make, count, names = NETWORKS[name]
    original = make().double().eval()
    x = torch.randn(*shape, dtype=torch.float64)
    model = connect(original, nodes="blocks", sample=x.clone())
    [(key, wiring)] = connectivity.wirings(model).items()
    assert (key, wiring.topology) == (f"{names[0]}.wiring", complete(count + 1))
    assert wiring.alpha.tolist() == [float(i - j == 1) for j, i in wiring.topology.edges]
    assert [k for k in model.state_dict() if ".wiring." not in k] == list(original.state_dict())

    given = x.clone().requires_grad_()
    output = model(given * 1)
    assert torch.equal(output, original(x.clone()))
    output.square().sum().backward()
    assert bool((wiring.alpha.grad != 0).all())  # of the edges at 0 too

    alpha, features = dict(zip(wiring.topology.edges, scatter(model).get_submodule(key).alpha)), [x]
    for i, block in enumerate(map(original.get_submodule, names), 1):
        stream = sum(alpha[j, i] * feature for j, feature in enumerate(features))
        if isinstance(block, Positioned):
            features.append(block((2.0,), stream, shift=(stream if i > 1 else x).mean())[0])
        else:
            features.append(block(stream))
    torch.testing.assert_close(model(x.clone()), features[-1])


def test_resnets_connect_and_go_through_what_pytorch_offers():
    original, x = timm.create_model("resnet18", **RESNET), torch.randn(2, 3, 64, 64)
    model = connect(original, nodes="auto")
    edges = {name: wiring.topology.num_edges for name, wiring in connectivity.wirings(model).items()}
    # The third stage has one block that keeps the shape; the fourth three, as its first one halves the resolution.
    assert edges == {"layer1.0.wiring": 6, "layer4.1.wiring": 6}
    assert torch.equal(model.eval()(x), original.eval()(x))
    assert_same(run(copy.deepcopy(model).train(), x), run(copy.deepcopy(original).train(), x), rtol=1e-4, atol=1e-5)

    expected = run(scatter(model), x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(run(twin, x), expected, rtol=0, atol=0)
    twin.set_grad_checkpointing()
    model.train()
    plain = run(copy.deepcopy(model), x)
    assert_same(run(twin.train(), x), plain, rtol=0, atol=0)
    model.eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected[0])
    exported = torch.export.export(model, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), expected[0])
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x) - expected[0]).norm() / expected[0].norm() < 0.05

    again = connect(original, nodes="blocks")
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model(x))
    again.load_state_dict(original.state_dict())
    assert torch.equal(again(x), original(x))
    plain = disconnect(again)
    assert repr(plain) == repr(original)
    assert b"topodet" not in pickle.dumps(plain)
    with pytest.raises(ConfigError, match=r"layer1.0.wiring.alpha differs from its initial value"):
        disconnect(model)
    with pytest.raises(WeightsError, match="layer1.0.wiring.edges: the file has a different topology"):
        again.load_state_dict({**original.state_dict(), "layer1.0.wiring.edges": torch.tensor([[0, 1]])})


def test_passes_do_not_know_of_each_other():
    """Two passes side by side, and blocks recomputed in pairs from the middle of a run."""
    model = scatter(connect(series(None, None, None, None), nodes="blocks", sample=torch.randn(2, 4)))
    xs = torch.randn(2, 3, 4)
    expected = [run(model, x) for x in xs]
    a, b = xs
    for block in model:
        a, b = block(a), block(b)
    torch.testing.assert_close(torch.stack([a, b]), torch.stack([output for output, _ in expected]))

    def in_pairs(x):
        for k in (0, 2):
            x = checkpoint(lambda x, k=k: model[k + 1](model[k](x)), x, use_reentrant=False)
        return x

    model.zero_grad()
    torch.stack([in_pairs(x) for x in xs]).square().sum(0).mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert_same(
        (expected[0][0], gradients), (expected[0][0], {n: expected[0][1][n] + expected[1][1][n] for n in gradients})
    )


def test_no_pass_outlives_its_output():
    """What a tensor carries makes no circle with what autograd keeps."""
    import gc
    import weakref

    model = connect(series(None, None, None), nodes="blocks", sample=torch.randn(2, 4))
    kept = []
    model[0].linear.register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output)))
    gc.disable()
    try:
        model(torch.randn(2, 4))  # with gradients recorded, and never asked for
        assert kept[0]() is None
    finally:
        gc.enable()


def test_pruning_and_damage():
    original = timm.create_model("resnet18", **RESNET).double().eval()
    model, x = scatter(connect(original, nodes="blocks")), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    options = {"keep": 0.6, "per": "node", "on_disconnected": "repair"}
    plans = connectivity.plan_pruning(model, **options)
    pruned = connectivity.prune(model, **options)
    with connectivity.masked(model, plans):
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-9, atol=1e-9)
    name, _ = connectivity.wirings(model)
    connectivity.prune_to_edges_(model, {name: [(0, 2), (2, 3)]})
    assert not [key for key in model.state_dict() if key.startswith("layer1.0.conv")]
    model.get_submodule(name).alpha.data.fill_(1)
    y = original.maxpool(original.act1(original.bn1(original.conv1(x))))
    torch.testing.assert_close(model.layer1(y), original.layer1[2](original.layer1[1](y)))

    model = connect(original, nodes="blocks")
    with connectivity.without_node(model, "layer1.0.wiring", 3):  # the last block, whose output is the stage's
        assert not model.layer1(y).any()
    rows = connectivity.remove_nodes(model, lambda model: model(x).sum().item(), progress=False).rows
    assert [row["node"] for row in rows] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_penalty_is_the_distance_from_the_chain():
    model = connect(series(None, None, None), nodes="blocks", sample=torch.randn(2, 4))
    assert connectivity.penalty(model, "uniform") == connectivity.penalty(model, "adaptive") == 0
    model[0].wiring.alpha.data = torch.tensor([0.5, 0.25, 1.0, 0.0, -0.5, 2.0])  # of 01, 02 12, 03 13 23
    torch.testing.assert_close(connectivity.penalty(model, "uniform").item(), 0.5 + 0.25 + 0.5 + 1.0)
    expected = 0.25 * math.log(2) + 1.5 * math.log(3)
    torch.testing.assert_close(connectivity.penalty(model, "adaptive").item(), expected, rtol=1e-6, atol=0)
    connectivity.prune_to_edges_(model, {"0.wiring": [(0, 2), (2, 3)]})  # edges keep the numbers they had
    torch.testing.assert_close(connectivity.penalty(model, "uniform").item(), 0.25 + 1.0)


def test_fusing_drops_what_is_zero():
    original, x = series(None, None, None).eval(), torch.randn(2, 4)
    model = connect(original, nodes="blocks", sample=x)
    fused = fuse_for_inference(model)
    assert fused[0].wiring.edges.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert torch.equal(fused(x), original(x))
    model[0].wiring.alpha.data = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])  # nobody reads the first block
    assert [key for key, _ in fuse_for_inference(model)[0].named_parameters()] == ["wiring.alpha"]
    model[0].wiring.alpha.data = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])  # which computes a constant now
    fused = fuse_for_inference(model)
    assert fused[0].wiring.complete
    assert torch.equal(fused(x), model(x))


def test_a_cut_run_hands_on_what_the_next_block_would_read():
    model = scatter(connect(series(None, None, None), nodes="blocks", sample=torch.randn(2, 4)))
    seen, x = [], torch.randn(2, 4)
    model[2].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    model(x)
    short = model[:2]
    torch.testing.assert_close(short(x), seen[0])
    assert short[0].wiring.topology == complete(4)
    assert model[0].wiring.topology == complete(4)


def test_auto_takes_residuals_where_they_are_exact():
    found = connectable(timm.create_model("regnetz_005"), nodes="auto")
    assert {run.form for run in found.values() if isinstance(run, RunPlan)} == {"residuals"}

    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = timm.create_model("regnetz_005").s2

        def forward(self, x):
            x = self.blocks.b2(self.blocks.b1(x))
            return self.blocks.b4(self.blocks.b3(x * 2))

    model = Restless()
    found = connectable(model, nodes="auto", sample=torch.randn(1, 16, 16, 16))
    assert [str(run) for run in found.values() if isinstance(run, RunPlan)] == [
        "blocks: 2 blocks from blocks.b3 to blocks.b4, 3 edges"
    ]


def test_tracing_copies_buffers_and_no_parameters(monkeypatch):
    copied = []
    clone = nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(id(self)) or clone(self, memo))

    class Counting(Block):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = nn.Sequential(Counting(), Counting())
    connected = connect(model, nodes="auto", sample=torch.randn(2, 4))
    assert sorted(copied) == sorted(map(id, model.parameters()))  # once, for the result
    assert not {id(p) for p in connected.parameters()} & {id(p) for p in model.parameters()}
    assert [block.calls.item() for network in (model, connected) for block in network] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (series(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 4)), "no block that keeps this shape|no two blocks"),
        (Line(middle=nn.Dropout(0.1)), None),
        (nn.Sequential(*[Block()] * 3), "it is called 3 times"),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), "no two blocks in series keep the shape"),
        (
            nn.Sequential(torch.jit.script(nn.Linear(4, 4)), Block()),
            "has its own way to be copied|no block that keeps",
        ),
    ],
)
def test_what_cannot_be_a_node(model, message):
    sample = torch.randn(2, 4)
    if message is None:  # dropout stands between the second and the third block
        found = connectable(model, nodes="blocks", sample=sample)
        assert [list(run.links) for run in found.values() if isinstance(run, RunPlan)] == [["a", "b"]]
    else:
        with pytest.raises(ConfigError, match=f"nothing to connect in .*({message})"):
            connect(model, nodes="blocks", sample=sample)


class AddsInPlace(nn.Module):
    """Two layers and a shortcut, with everything in place: the last layer's output is the block's, written into."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        out = self.conv2(self.conv1(x).relu_())
        out += x
        return out.relu_()


def test_a_block_that_adds_in_place_is_one_node():
    model = nn.Sequential(*(AddsInPlace() for _ in range(3)))
    sample = torch.randn(2, 4, 5, 5)
    connected = connect(model, nodes="blocks", sample=sample)
    assert {name: wiring.topology for name, wiring in connectivity.wirings(connected).items()} == {
        "0.wiring": complete(4)
    }
    torch.testing.assert_close(connected(sample), model(sample))


class Stateful(Block):
    """Counts its calls and computes with the count; drops entries as it trains."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return nn.functional.dropout(super().forward(x), 0.4, self.training) / self.calls


def test_blocks_with_state_and_dropout_are_called_once_a_pass():
    original, x = series(Stateful(), Stateful(), Stateful()), torch.randn(2, 4)
    model = connect(original, nodes="blocks", sample=torch.randn(2, 4))
    assert [block.calls.item() for block in (*model, *original)] == [0] * 6  # the sample is passed through copies
    for train in (True, False):
        for _ in range(2):
            outputs = []
            for network in (model, original):
                torch.manual_seed(0)
                outputs.append(network.train(train)(x))
            assert torch.equal(*outputs)
    assert [block.calls.item() for block in model] == [4] * 3


def test_drop_path_draws_what_it_did():
    original, x = timm.create_model("resnet18", drop_path_rate=0.5, **RESNET), torch.randn(4, 3, 64, 64)
    outputs = []
    for network in (connect(original, nodes="blocks"), original):
        torch.manual_seed(0)
        outputs.append(network.train()(x))
    torch.testing.assert_close(*outputs)


def test_a_block_that_is_called_twice_is_left_out():
    class Twice(Line):
        def forward(self, x):
            return self.c(self.b(self.a(self.a(x))))

    found = connectable(Twice(), nodes="blocks", sample=torch.randn(2, 4))
    assert [list(run.links) for run in found.values() if isinstance(run, RunPlan)] == [["b", "c"]]
    assert "it is called 2 times" in str(found["a"])


def test_an_input_that_is_read_after_a_block_overwrote_it_is_refused():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Block(True), Block(True)

        def forward(self, x):
            x = torch.tanh(x)
            return self.b(self.a(x)) + x  # of which sigmoid is left

    with pytest.raises(ConfigError, match="computes something else.*its output is another one"):
        connect(Reads(), nodes="blocks", sample=torch.randn(2, 4))


class Results(NamedTuple):
    stream: torch.Tensor
    size: int


@pytest.mark.parametrize("kind", [Results, lambda x, size: (x, size), lambda x, size: [x, size]])
def test_results_keep_their_type(kind):
    class Many(Block):
        def forward(self, x):
            return kind(super().forward(x), 3)

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Many(), Many()])

        def forward(self, x):
            for block in self.blocks:
                result = block(x)
                x = result.stream if kind is Results else result[0]
            return x, result

    model, x = Reads().eval(), torch.randn(2, 4)
    (ours, result), (theirs, original) = connect(model, nodes="blocks", sample=x).eval()(x), model(x)
    assert torch.equal(ours, theirs)
    assert type(result) is type(original)


def test_an_error_of_the_connected_network_is_told():
    class Strict(Line):
        def forward(self, x):
            if type(self.a) is not Block:
                raise TypeError("another class")
            return super().forward(x)

    with pytest.raises(ConfigError, match="On the sample it raises TypeError: another class"):
        connect(Strict(), nodes="blocks", sample=torch.randn(2, 4))


def test_bad_input_is_named():
    model = series(None, None)
    with pytest.raises(ConfigError, match=r"cannot be traced on the sample \[2, 5\]: RuntimeError.*sample=torch"):
        connect(model, nodes="blocks", sample=torch.randn(2, 5))
    with pytest.raises(ConfigError, match="unknown nodes 'block'. Did you mean 'blocks'"):
        connect(model, nodes="block")
    with pytest.raises(ConfigError, match="nothing to connect.*it is in leave_out"):
        connect(model, nodes="blocks", sample=torch.randn(2, 4), leave_out=["0"])

    class Padding(nn.Conv1d):  # keeps even lengths only
        def forward(self, x):
            return super().forward(x[..., : x.shape[-1] // 2 * 2])

    padded = connect(nn.Sequential(*(Padding(2, 2, 1) for _ in range(2))), nodes="blocks", sample=torch.randn(1, 2, 6))
    with pytest.raises(ConfigError, match=r"a connected run returns \[1, 2, 6\] for \[1, 2, 7\]"):
        padded(torch.randn(1, 2, 7))
    with pytest.raises(ConfigError, match="was not called on the output of the block before it"):
        padded[1](torch.randn(1, 2, 6))
    looped = connect(Loop(), nodes="blocks", sample=torch.randn(2, 4))
    with pytest.raises(ConfigError, match="expects its stream in argument 1.*has 0 positional arguments and.*x"):
        looped.blocks[0](size=(1.0,), x=torch.randn(2, 4), shift=0)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (3, "sample is of type int, but must be a tensor"),
        ({"x": torch.zeros(2, 4)}, "sample is of type dict, but must be a tensor"),
        (torch.full((2, 4), math.nan), "returns no finite number for the sample"),
        (torch.zeros(0, 4), "returns no finite number for the sample"),
    ],
)
@pytest.mark.parametrize("nodes", ["auto", "blocks"])
def test_samples_that_show_nothing_are_refused(sample, message, nodes):
    with pytest.raises(ConfigError, match=message):
        connect(nn.Sequential(Block(), Block()), nodes=nodes, sample=sample)


def test_networks_that_cannot_be_connected_are_refused():
    model, x = nn.Sequential(Block(), Block()), torch.randn(2, 4)
    for other in (torch.jit.trace(model, x), torch.jit.script(nn.Sequential(nn.Linear(4, 4))), [model], Block):
        with pytest.raises(ConfigError, match="only an nn.Module can be connected, before torch.jit"):
            connect(other, nodes="auto", sample=x)
    for block in model:
        nn.utils.weight_norm(block.linear)
    model(x)
    with pytest.raises(ConfigError, match=r"Sequential cannot be copied: .*torch\.nn\.utils\.parametrizations"):
        connect(model, nodes="auto", sample=x)
    parts = nn.Sequential(torch.jit.script(nn.Linear(4, 4)), Block(), Block())
    assert [str(run) for run in connectable(parts, nodes="auto", sample=x).values() if isinstance(run, RunPlan)] == [
        "blocks: 2 blocks from 1 to 2, 3 edges"
    ]


def test_outputs_in_objects_are_compared():
    @dataclass
    class Output:
        maps: list

    class Reads(nn.Module):
        def __init__(self, overwrites):
            super().__init__()
            self.a, self.b = Block(overwrites), Block(overwrites)

        def forward(self, x):
            x = torch.tanh(x)
            return Output([self.b(self.a(x)) + x])

    x = torch.randn(2, 4)
    connect(Reads(False), nodes="blocks", sample=x)
    with pytest.raises(ConfigError, match="its output is another one"):
        connect(Reads(True), nodes="blocks", sample=x)


def test_lazy_modules_are_refused():
    model, x = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(4)), torch.randn(2, 4)
    with pytest.raises(ConfigError, match=r"0\.weight of a lazy module has no shape yet: call Sequential once before"):
        connect(model, nodes="blocks", sample=x)
    expected = model(x)
    assert torch.equal(connect(model, nodes="blocks", sample=x)(x), expected)


def test_in_inference_mode():
    model = nn.Sequential(Block(), Block())
    with torch.inference_mode():
        x = torch.randn(2, 4)
        connected = connect(model, nodes="auto", sample=x)
        assert torch.equal(connected(x), model(x))
    connected(torch.randn(2, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in connected.parameters())
