import copy
import io
import warnings
import weakref

import pytest
import timm
import torch
import torch.nn.utils.prune
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from tests.strategies import topologies
from topodet import connectivity
from topodet.connectivity import wirings
from topodet.errors import ConfigError
from topodet.models import FusedStage, Stem, TopoNet, TopoStage, fuse_for_inference
from topodet.models.calibrate import calibrate_batchnorm
from topodet.ops import use_kernel
from topodet.topology import Topology, complete

FOLDED = {
    "BatchNorm2d": nn.BatchNorm2d,
    "not affine": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "SyncBatchNorm": nn.SyncBatchNorm,
    "torchvision's frozen": FrozenBatchNorm2d,
    "timm's with activation": BatchNormAct2d,
    "timm's frozen": FrozenBatchNormAct2d,
}
KEPT = {
    "GroupNorm": lambda channels: nn.GroupNorm(2, channels),
    "without statistics": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
    "InstanceNorm": lambda channels: nn.InstanceNorm2d(channels, affine=True),
}
NORMS = {**FOLDED, **KEPT}


@torch.no_grad()
def shake(model, zeros=0.0):
    """Give a model what training would: statistics, scales and edge weights, a share of these exactly 0."""
    for module in model.modules():
        for name in ("weight", "bias", "running_mean"):
            if "Norm" in type(module).__name__ and getattr(module, name, None) is not None:
                getattr(module, name).normal_(mean=float(name == "weight"), std=0.5)
        if getattr(module, "running_var", None) is not None:
            module.running_var.uniform_(0.5, 2)
    for wiring in wirings(model).values():
        wiring.alpha.normal_().mul_(torch.rand_like(wiring.alpha) >= zeros)
    return model.eval()


def fuse(model):
    """Fuse where it does not matter whether the input still reaches the output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fuse_for_inference(model)


def make_stage(topology, *, in_chs=2, out_chs=4, zeros=0.0, dtype=torch.float64, **kwargs):
    return shake(TopoStage(in_chs, out_chs, topology, **kwargs), zeros).to(dtype)


def with_edges(num_nodes, edges):
    """A stage over the complete graph in which all but some edges, as {(source, target): alpha}, have weight 0."""
    stage = make_stage(complete(num_nodes))
    alpha = [edges.get(edge, 0.0) for edge in stage.wiring.topology.edges]
    stage.wiring.alpha.data = torch.tensor(alpha, dtype=torch.float64)
    return stage


def assert_close(found, expected, tolerance=1e-5):
    """Within a share of the largest number, and of the same type and shape."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@given(
    topology=topologies(max_nodes=8),
    norm=st.sampled_from(sorted(NORMS)),
    zeros=st.sampled_from([0.0, 0.5, 0.8]),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    seed=st.integers(0, 10**6),
)
def test_any_stage_computes_what_it_did(topology, norm, zeros, size, seed):
    torch.manual_seed(seed)
    stage = make_stage(topology, zeros=zeros, norm_layer=NORMS[norm])
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    expected = stage(x)
    for name in ("fused", "torch", "plain"):
        with use_kernel(name), torch.inference_mode():
            assert_close(fuse(stage)(x), expected, tolerance=1e-10)


@pytest.mark.parametrize("name", timm.list_models("toponet*"))
def test_every_network(name):
    # Up to 74 nodes in a row amplify what float32 rounds, in the original as much as here.
    model = shake(timm.create_model(name, width=2, num_classes=3)).double()
    x = torch.randn(2, 3, 65, 70, dtype=torch.float64)
    calibrate_batchnorm(model, model, x)  # random ones would let nothing through
    fused = fuse_for_inference(model)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d | TopoStage)]
    with torch.no_grad():
        assert_close(fused(x), model(x), tolerance=1e-10)
    assert fused.topologies == model.topologies
    assert (fused.stage_channels, fused.feature_info) == (model.stage_channels, model.feature_info)


@pytest.mark.parametrize("zeros", [0.0, 0.6])
def test_feature_maps(zeros):
    model = shake(timm.create_model("toponet_nano", features_only=True, out_indices=(0, 2)), zeros)
    x = torch.randn(1, 3, 64, 96)
    fused = fuse(model)
    assert fused.feature_info.channels() == model.feature_info.channels()
    for found, expected in zip(fused(x), model(x), strict=True):
        assert_close(found, expected)
    model = shake(timm.create_model("toponet_nano"), zeros)
    for found, expected in zip(fuse(model).forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
        assert_close(found, expected)


class TestNormalisation:
    @pytest.mark.parametrize("name", FOLDED)
    def test_folded(self, name):
        stage = make_stage(complete(4), norm_layer=FOLDED[name])
        fused = fuse_for_inference(stage)
        x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
        assert_close(fused(x), stage(x), tolerance=1e-12)
        assert not any("norm" in name for name in fused.state_dict())
        assert all(node.conv_pw.bias is not None for node in fused.nodes.values())

    @pytest.mark.parametrize("name", KEPT)
    def test_kept(self, name):
        stage = make_stage(complete(4), norm_layer=KEPT[name])
        fused = fuse_for_inference(stage)
        x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
        assert_close(fused(x), stage(x), tolerance=1e-12)
        assert [type(node.norm) for node in fused.nodes.values()] == [type(node.norm) for node in stage.nodes]

    def test_the_stem(self):
        model = shake(TopoNet(nodes=(2,), width=4, num_classes=2))
        x = torch.randn(1, 3, 33, 32)
        assert_close(fuse_for_inference(model).stem(x), model.stem(x))

    def test_a_model_in_training_is_fused_as_in_evaluation(self):
        stage = with_edges(4, {(0, 2): 1.0, (1, 2): 0.5, (2, 3): 1.0})  # node 1 reads nothing
        expected = stage(x := torch.randn(2, 2, 6, 6, dtype=torch.float64))
        before = copy.deepcopy(stage.state_dict())
        fused = fuse_for_inference(stage.train())
        assert all(torch.equal(tensor, before[name]) for name, tensor in stage.state_dict().items())
        assert stage.training
        assert stage.nodes[0].norm.training
        assert not any(module.training for module in fused.modules())
        assert_close(fused(x), expected)
        assert_close(fused.train()(x), expected)
        assert not any(parameter.requires_grad for parameter in fused.parameters())


class TestEdges:
    def test_what_is_left(self):
        # 0 -> 1 -> 4 -> 5 and 0 -> 4; 2 is read by nobody that counts, 3 reads nothing.
        edges = {(0, 1): 0.5, (1, 4): -1.0, (0, 4): 2.0, (4, 5): 3.0, (0, 2): 1.0, (3, 4): 0.7}
        stage = with_edges(6, edges)
        fused = fuse_for_inference(stage)
        assert list(fused.nodes) == ["0", "1", "4", "5"]
        assert fused.edges == ((0, 1), (0, 4), (1, 4), (4, 5))
        assert "4 nodes and 4 edges of Topology(6 nodes, 15 edges" in repr(fused)
        x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
        assert_close(fused(x), stage(x), tolerance=1e-12)
        # Weights and biases of the four, the weights of four edges, and the offset of node 4's sum.
        kept = sum(p.numel() + 4 for i in (0, 1, 4, 5) for p in stage.nodes[i].conv_pw.parameters())
        kept += sum(p.numel() for i in (0, 1, 4, 5) for p in stage.nodes[i].conv_dw.parameters())
        assert sum(tensor.numel() for tensor in fused.state_dict().values()) == kept + 4 + 4

    def test_a_constant_map_has_an_edge(self):
        """Node 1 reads nothing: its readers' convolutions see a map of one number a channel, and zeros around it."""
        stage = with_edges(3, {(1, 2): 1.5})
        x = torch.randn(1, 2, 9, 9, dtype=torch.float64)
        with pytest.warns(UserWarning, match="edges of the stage whose alpha is not 0 do not connect"):
            fused = fuse_for_inference(stage)
        assert list(fused.nodes) == ["2"]
        number = stage.nodes[1].norm(torch.zeros(1, 4, 1, 1, dtype=torch.float64))
        expected = stage.nodes[2](1.5 * number.expand(-1, -1, 5, 5))
        assert_close(fused(x), expected, tolerance=1e-12)
        assert not torch.equal(expected[..., 0, 0], expected[..., 2, 2])

    def test_an_output_that_reads_nothing(self):
        model = shake(TopoNet(nodes=(3, 3), width=4, num_classes=2))
        model.stages[1].wiring.alpha.data[1:] = 0
        with pytest.warns(UserWarning, match=r"edges of stages\.1 whose") as caught:
            fused = fuse_for_inference(model)
        assert len(caught) == 1
        images = torch.randn(2, 3, 32, 32)
        assert_close(fused(images), model(images))
        assert torch.equal(fused(images)[0], fused(images)[1])

    def test_nothing_is_warned_of_otherwise(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fuse_for_inference(with_edges(4, {(0, 3): 1.0}))

    def test_fixed_weights(self):
        fused = fuse_for_inference(make_stage(complete(4), edge_weights="fixed"))
        assert len(fused.edges) == 6

    def test_a_feature_goes_with_its_last_reader(self):
        fused = fuse_for_inference(with_edges(5, {(0, 1): 1.0, (1, 2): 1.0, (0, 3): 1.0, (2, 3): 1.0, (3, 4): 1.0}))
        alive, features = [], {}
        for name, node in fused.nodes.items():
            node.register_forward_hook(
                lambda module, args, output, name=name: features.update({name: weakref.ref(output)})
            )
            node.conv_dw.register_forward_pre_hook(
                lambda *_: alive.append([n for n, feature in features.items() if feature() is not None])
            )
        with torch.no_grad():
            fused(torch.randn(1, 2, 6, 6, dtype=torch.float64))
        assert alive == [[], ["0"], ["0"], [], []]


def test_the_original_is_left_alone():
    model = shake(TopoNet(nodes=(3, 4), width=4, num_classes=2), zeros=0.3).train()
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    for tensor in fused.state_dict().values():
        tensor.fill_(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_wherever_it_sits():
    """Under wrappers, in two places at once, and in what is no module."""
    model = nn.ModuleDict({"a": nn.Sequential(shake(TopoNet(nodes=(3,), width=4, num_classes=0)))})
    model["b"] = model["a"][0].stages[0]
    model.readers = {"stage": model["b"]}
    fused = fuse_for_inference(model)
    assert isinstance(fused["b"], FusedStage)
    assert fused["b"] is fused["a"][0].stages[0] is fused.readers["stage"]
    assert isinstance(fused["a"][0].stem, Stem)
    x = torch.randn(1, 3, 16, 16)
    assert_close(fused["a"](x), model["a"](x))


def test_twice_is_once():
    model = shake(TopoNet(nodes=(4, 4), width=4, num_classes=2), zeros=0.4)
    once = fuse(model)
    twice = fuse_for_inference(once)
    assert twice is not once
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(once(x), twice(x))
    assert once.state_dict().keys() == twice.state_dict().keys()


def test_its_state_dict_is_its_own():
    model = shake(TopoNet(nodes=(3, 4), width=4, num_classes=2), zeros=0.3)
    fused, other = fuse(model), fuse(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.mul_(2)
    other.load_state_dict(fused.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(x), fused(x))
    with pytest.raises(RuntimeError, match=r"Missing key.*running_mean"):
        model.load_state_dict(fused.state_dict())
    buffer = io.BytesIO()
    torch.save(fused, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), fused(x))


@pytest.mark.parametrize("model", [nn.Identity(), timm.create_model("resnet10t"), Stem(3, 4)])
def test_a_model_without_stages(model):
    with pytest.raises(ConfigError, match=rf"{type(model).__name__} contains no TopoStage.* give a TopoNet"):
        fuse_for_inference(model)


def test_a_stage_of_another_kind_is_not_replaced():
    class Doubled(TopoStage):
        def forward(self, x):
            return 2 * super().forward(x)

    stages = nn.Sequential(Doubled(2, 4, complete(3)), TopoStage(4, 8, complete(3)))
    fused = fuse_for_inference(shake(stages))
    assert [type(stage) for stage in fused] == [Doubled, FusedStage]
    x = torch.randn(1, 2, 12, 12)
    assert_close(fused(x), stages(x))


@pytest.fixture(scope="module")
def pruned():
    """A network with every kind of node: sums, single inputs, constants added to sums and alone."""
    torch.manual_seed(0)
    graph = Topology(5, [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (0, 4)])
    model = shake(TopoNet(nodes=(5, 5), width=4, num_classes=3, topology=graph))
    for stage, gone in zip(model.stages, ([(0, 1), (0, 4)], [(0, 2), (1, 2), (1, 3)])):
        alpha = stage.wiring.alpha.data
        for edge in gone:
            alpha[graph.edges.index(edge)] = 0
    fused = fuse_for_inference(model)
    kinds = {
        (min(len(sources), 2), node.offset is None)
        for stage in fused.stages
        for node, sources in zip(stage.nodes.values(), stage.graph.sources)
    }
    assert kinds >= {(2, True), (2, False), (1, False), (0, False)}
    return model, fused


class TestTools:
    def test_compile(self, pruned):
        model, fused = pruned
        torch.compiler.reset()
        x = torch.randn(2, 3, 40, 32)
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert_close(compiled(x), model(x))

    def test_trace(self, pruned):
        model, fused = pruned
        with torch.no_grad():
            traced = torch.jit.trace(fused, torch.randn(1, 3, 32, 32))
            assert "topodet::" not in str(traced.inlined_graph)
            x = torch.randn(2, 3, 45, 34)  # sizes are not in the trace
            assert_close(traced(x), model(x))

    def test_export(self, pruned):
        model, fused = pruned
        x = torch.randn(2, 3, 32, 40)
        sizes = {0: torch.export.Dim("batch", max=8)}
        program = torch.export.export(fused, (x,), dynamic_shapes=(sizes,), strict=False)
        assert "topodet" not in str(program.graph)
        assert_close(program.module()(x[:1]), model(x[:1]))

    def test_channels_last(self, pruned):
        model, fused = pruned
        fused = copy.deepcopy(fused).to(memory_format=torch.channels_last)
        x = torch.randn(2, 3, 32, 40)
        with torch.no_grad():
            assert_close(fused(x.to(memory_format=torch.channels_last)), model(x))

    @pytest.mark.parametrize("how", ["autocast", "cast before", "cast after"])
    def test_bfloat16(self, pruned, how):
        model, fused = pruned
        x = torch.randn(2, 3, 32, 40)
        expected = model(x)
        if how == "cast before":
            fused = fuse(copy.deepcopy(model).bfloat16())
        elif how == "cast after":
            fused = copy.deepcopy(fused).bfloat16()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            maps = list(fused.stage_features(x if how == "autocast" else x.bfloat16()))
            found = fused.forward_head(maps[-1])
        assert {m.dtype for m in [*maps, found]} == {torch.bfloat16}
        assert_close(found.float(), expected.detach(), tolerance=0.05)

    def test_the_inputs_gradient(self, pruned):
        model, fused = pruned
        found, expected = (
            torch.autograd.grad(m(x).square().sum(), x)[0]
            for m in (fused, model)
            for x in [torch.ones(1, 3, 32, 32, requires_grad=True)]
        )
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda conv: torch.nn.utils.prune.l1_unstructured(conv, "weight", amount=0.5),
            r"torch.nn.utils.prune.remove\(",
        ),
        (torch.nn.utils.weight_norm, r"torch.nn.utils.remove_weight_norm\("),
        (torch.nn.utils.spectral_norm, r"torch.nn.utils.remove_spectral_norm\("),
    ],
)
@pytest.mark.parametrize("use", [fuse_for_inference, lambda model: connectivity.prune(model, threshold=0.0)])
def test_weights_that_are_computed_at_each_call_are_named(change, message, use):
    model = TopoNet(nodes=(3, 3), width=4, num_classes=2)
    change(model.stages[1].nodes[0].conv_pw)
    model(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ConfigError, match=rf"stages.1.nodes.0.conv_pw .*{message}"):
        use(model)


def test_parametrized_weights_can_be_copied_and_not_be_fused():
    model = TopoNet(nodes=(3, 3), width=4, num_classes=2).eval()
    torch.nn.utils.parametrizations.weight_norm(model.stages[1].nodes[0].conv_pw)
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(connectivity.prune(model, threshold=0.0)(x), model(x))
    with pytest.raises(ConfigError, match=r"stages.1.nodes.0.conv_pw is parametrized.*remove_parametrizations"):
        fuse_for_inference(model)
