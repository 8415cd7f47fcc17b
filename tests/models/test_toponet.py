import subprocess
import sys
import textwrap

import numpy as np
import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import topodet  # noqa: F401 - registers the networks
from topodet.complexity import multiply_adds, parameters
from topodet.errors import ConfigError, TopologyError
from topodet.models import ARCHITECTURES, TopoNet
from topodet.topology import Topology, complete, residual

NAMES = timm.list_models("toponet*")
SMALL = ("toponet_nano", "toponet_small")


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def test_every_named_network_is_registered():
    assert set(ARCHITECTURES) == set(NAMES)
    assert {f"toponet50_{end}" for end in ("complete", "residual2", "random40", "er", "ba", "ws")} <= set(NAMES)


def test_complexity_of_the_papers_network():
    model = on_meta("toponet50")
    assert parameters(model) == (23_745_640, 697)
    assert multiply_adds(model) == 3_931_535_872
    assert model.stage_channels == (128, 256, 512, 1024)
    assert model.stage_strides == (4, 8, 16, 32)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALL])
def test_rows_of_table_4_differ_in_their_edges_only(name):
    model = on_meta(name)
    learned = name == "toponet50"
    assert sum(p.numel() for p in model.parameters()) == 23_745_640 + (697 if learned else 0)
    assert [topology.num_nodes for topology in model.topologies] == [14, 20, 26, 14]
    assert multiply_adds(model) == 3_931_535_872


@pytest.mark.parametrize("name", SMALL)
def test_documented_size_of_the_small_networks(name):
    size, products = {"toponet_nano": (417_805, 7_473_664), "toponet_small": (2_800_783, 36_504_576)}[name]
    assert sum(parameters(on_meta(name))) == size
    assert multiply_adds(on_meta(name), (3, 64, 64)) == products


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    # Nodes and edges as they are, a few channels wide.
    model = timm.create_model(name, width=2, num_classes=3)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_arguments_of_timm():
    model = timm.create_model("toponet_nano", num_classes=7, in_chans=1, drop_rate=0.5)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    assert model.get_classifier().out_features == 7
    features = model.forward_features(torch.randn(2, 1, 64, 64))
    assert features.shape == (2, model.num_features, 2, 2)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(4)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 4)
    model.reset_classifier(0)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 256)
    assert timm.create_model("toponet_nano", num_classes=0)(torch.randn(1, 3, 64, 64)).shape == (1, 256)


def test_pretrained_cfg():
    model = timm.create_model("toponet50")
    assert model.pretrained_cfg["architecture"] == "toponet50"
    assert resolve_data_config({}, model=model)["input_size"] == (3, 224, 224)
    assert model.default_cfg["mean"] == (0.485, 0.456, 0.406)
    for key in ("first_conv", "classifier"):
        assert f"{model.default_cfg[key]}.weight" in model.state_dict()
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("toponet50", pretrained=True)


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1,), (0, 2), (-1,)])
def test_feature_maps(indices):
    model = timm.create_model("toponet_nano").eval()
    reader = timm.create_model("toponet_nano", features_only=True, out_indices=indices).eval()
    reader.load_state_dict(model.state_dict())  # a classifier's checkpoint is not refused
    image = torch.randn(1, 3, 96, 64)
    maps = reader(image)
    final, intermediates = model.forward_intermediates(image, indices=list(indices))
    assert torch.equal(final, model.forward_features(image))
    for k, x, y, channels, stride in zip(
        reader.out_indices, maps, intermediates, reader.feature_info.channels(), reader.feature_info.reduction()
    ):
        assert torch.equal(x, y)
        assert (channels, stride) == (model.stage_channels[k], model.stage_strides[k])
        assert x.shape == (1, channels, 96 // stride, 64 // stride)
    assert len(reader.stages) == max(reader.out_indices) + 1
    stopped = model.forward_intermediates(image, indices=[0], stop_early=True, intermediates_only=True)
    assert [x.shape[1] for x in stopped] == [32]


def test_odd_sizes_round_up_as_convolutions_do():
    reader = timm.create_model("toponet_nano", features_only=True).eval()
    assert [tuple(x.shape[-2:]) for x in reader(torch.randn(1, 3, 75, 50))] == [(19, 13), (10, 7), (5, 4), (3, 2)]


def test_prune_intermediate_layers():
    model = timm.create_model("toponet_nano")
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert len(model.stages) == 2
    assert [x.shape[1] for x in model.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True)] == [
        32,
        64,
    ]


def test_edge_weights_are_spared_from_decay():
    model = timm.create_model("toponet_nano")
    assert model.no_weight_decay() == {f"stages.{k}.wiring.alpha" for k in range(4)}
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert not decayed & {id(stage.wiring.alpha) for stage in model.stages}


def test_layer_decay_knows_every_parameter():
    model = timm.create_model("toponet_nano")
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4, layer_decay=0.7)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 10


def test_gradient_checkpointing_changes_nothing():
    model = timm.create_model("toponet_nano", num_classes=3)
    image = torch.randn(2, 3, 64, 64)
    model(image).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(image).square().sum().backward()
    for before, parameter in zip(plain, model.parameters()):
        torch.testing.assert_close(before, parameter.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_its_type_between_nodes(dtype):
    model = timm.create_model("toponet_nano", num_classes=3).eval()
    image = torch.randn(2, 3, 64, 64)
    exact = model.forward_intermediates(image, intermediates_only=True)
    with torch.autocast("cpu", dtype=dtype):
        maps = model.forward_intermediates(image, intermediates_only=True)
        loss = model.train()(image).float().square().sum()
    assert {x.dtype for x in maps} == {dtype}
    loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in model.parameters())
    for rounded, x in zip(maps, exact):
        assert (rounded - x).norm() / x.norm() < 0.05


def test_channels_last_runs_through():
    model = timm.create_model("toponet_nano").eval().to(memory_format=torch.channels_last)
    image = torch.randn(2, 3, 64, 64)
    maps = model.forward_intermediates(image.to(memory_format=torch.channels_last), intermediates_only=True)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
    plain = model.to(memory_format=torch.contiguous_format).forward_intermediates(image, intermediates_only=True)
    for x, y in zip(maps, plain):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


@pytest.fixture
def tiny():
    model = TopoNet(nodes=(3, 4), width=4, num_classes=3, topology="residual").eval()
    for stage in model.stages:
        nn.init.normal_(stage.wiring.alpha)
    return model


def test_compile_gives_the_same_step(tiny):
    image = torch.randn(2, 3, 32, 32)
    tiny.train()
    compiled = torch.compile(tiny, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(tiny(image).sum(), list(tiny.parameters()))
    torch.testing.assert_close(torch.autograd.grad(compiled(image).sum(), list(tiny.parameters())), expected)


def test_export_and_onnx(tiny, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the test extra")
    image = torch.randn(2, 3, 32, 32)
    sizes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(tiny, (image,), dynamic_shapes=sizes)
    other = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(other), tiny(other))
    path = tmp_path / "tiny.onnx"
    torch.onnx.export(tiny, (image,), path, dynamo=True, dynamic_shapes=sizes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    np.testing.assert_allclose(logits, tiny(other).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_trace_gives_the_same_output(tiny):
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.jit.trace(tiny, image)(image), tiny(image))


def test_a_topology_for_each_stage():
    own = Topology(3, [(0, 1), (1, 2)])
    model = TopoNet(nodes=(3, 5), width=2, topology=[own, {"name": "residual", "interval": 2}])
    assert model.topologies == (own, residual(5, 2))


def test_random_graphs_differ_between_stages_and_seeds():
    def graphs(seed):
        return TopoNet(nodes=(12, 12), width=1, topology={"name": "random", "p": 0.5}, seed=seed).topologies

    assert graphs(0) == graphs(0)
    assert graphs(0)[0] != graphs(0)[1]
    assert graphs(0) != graphs(7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"nodes": (1, 3)}, TopologyError, "at least 2 nodes"),
        ({"nodes": 14}, ConfigError, "nodes must list the nodes of each stage"),
        ({"width": 0}, ConfigError, "must be positive, got width=0"),
        ({"nodes": (3, 3), "topology": ["complete"]}, ConfigError, "1 topologies for 2 stages"),
        ({"nodes": (3,), "topology": complete(4)}, TopologyError, "has 4 nodes, but the stage has 3"),
        ({"topology": "completed"}, TopologyError, "Did you mean 'complete'"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        TopoNet(**arguments)


@pytest.mark.slow
def test_registration_does_not_depend_on_the_order_of_imports():
    script = """
        import os, sys
        import torchvision  # of which neither depends on the order

        for names in ("topodet, timm", "timm, topodet"):
            assert not {"topodet", "timm"} & sys.modules.keys()
            pid = os.fork()
            if pid == 0:
                exec(f"import {names}; timm.create_model('toponet_nano')")
                sys.exit()
            assert os.waitpid(pid, 0)[1] == 0, names
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


@pytest.mark.parametrize("name", ["toponet_nano", "resnet20_cifar"])
def test_a_classifier_without_pooling_is_refused(name):
    for make in (
        lambda: timm.create_model(name, global_pool="", num_classes=5),
        lambda: timm.create_model(name, num_classes=0, global_pool="").reset_classifier(5),
        lambda: timm.create_model(name, num_classes=5).reset_classifier(5, ""),
    ):
        with pytest.raises(ConfigError, match=r"global_pool='' with 5 classes: .*global_pool='avg', or num_classes=0"):
            make()
    with pytest.raises(ConfigError, match=r"unknown global_pool 'avrg'. Did you mean 'avg'"):
        timm.create_model(name, global_pool="avrg", num_classes=5)
    model = timm.create_model(name, num_classes=0, global_pool="").eval()
    assert model(torch.zeros(1, 3, 32, 32)).ndim == 4


def test_torchvision_extracts_features():
    model = timm.create_model("toponet_nano", num_classes=5).eval()
    extractor = create_feature_extractor(model, {"stages.1": "middle", "stages.3": "last"})
    x = torch.randn(2, 3, 64, 64)
    found = extractor(x)
    maps = model.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(found["middle"], maps[1])
    torch.testing.assert_close(found["last"], maps[3])
