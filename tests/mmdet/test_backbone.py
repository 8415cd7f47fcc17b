import re

import pytest
import timm
import torch
from mmdet.registry import MODELS
from torch import nn

import topodet.mmdet  # noqa: F401 - registers
from tests.mmdet.helpers import build
from topodet.errors import ConfigError, TopologyError, WeightsError
from topodet.models import Wiring
from topodet.topology import Topology


def test_maps_by_stage_at_strides_4_to_32():
    model = build()
    maps = model(torch.randn(2, 3, 70, 97))
    assert isinstance(maps, tuple)
    assert [tuple(m.shape) for m in maps] == [(2, 32, 18, 25), (2, 64, 9, 13), (2, 128, 5, 7), (2, 256, 3, 4)]
    assert model.out_channels == (32, 64, 128, 256)


def test_the_papers_network_by_default():
    model = MODELS.build({"type": "TopoNet"})
    assert model.out_channels == (128, 256, 512, 1024)
    assert [t.num_nodes for t in model.topologies] == [14, 20, 26, 14]


def test_same_names_and_same_numbers_as_timm(nano):
    model = build(pretrained=str(nano.pth))
    model.init_weights()
    features = timm.create_model("toponet_nano", features_only=True)
    assert list(model.state_dict()) == list(features.state_dict())
    features.load_state_dict(torch.load(nano.pth, weights_only=True)["state_dict"])
    x = torch.randn(2, 3, 64, 96)
    for ours, theirs in zip(model.eval()(x), features.eval()(x)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_explicit_hyper_parameters_replace_the_archs():
    graph = Topology(3, [(0, 1), (1, 2)])
    model = build(
        nodes=(3, 4),
        width=8,
        topology=[graph, {"name": "residual", "interval": 2}],
        edge_weights="fixed",
        in_channels=1,
        out_indices=(0, 1),
    )
    assert model.topologies[0] == graph
    assert model.topologies[1].num_nodes == 4
    assert [m.shape[1] for m in model(torch.randn(1, 1, 32, 32))] == [16, 32]
    assert not any(name.endswith("alpha") for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"arch": "toponet51"}, ConfigError, "unknown arch 'toponet51'. Did you mean 'toponet50'"),
        ({"topology": "residal"}, TopologyError, "residual"),
        ({"out_indices": (0, 4)}, ConfigError, r"out_indices=\(0, 4\) .* stages 0..3"),
        ({"out_indices": (2, 1)}, ConfigError, "ascending"),
        ({"out_indices": ()}, ConfigError, "out_indices"),
        ({"frozen_stages": 5}, ConfigError, "frozen_stages=5, but this network has 4 stages"),
        ({"frozen_stages": 3, "out_indices": (0, 1)}, ConfigError, "has 2 stages"),
        ({"pretrained": "a.pth", "init_cfg": {"type": "Kaiming"}}, ConfigError, "both pretrained='a.pth' and init_cfg"),
        ({"pretrained": 3}, ConfigError, "pretrained=3: give a path"),
        ({"init_cfg": "a.pth"}, ConfigError, "init_cfg='a.pth': give a dict with a type"),
        ({"init_cfg": {"checkpoint": "a.pth"}}, ConfigError, "give a dict with a type"),
        ({"init_cfg": ["Pretrained"]}, ConfigError, "give a dict with a type"),
        ({"init_cfg": {"type": "Pretrained"}}, ConfigError, "checkpoint=None and prefix=None: give the path"),
        ({"init_cfg": {"type": "Pretrained", "checkpoint": "a", "prefix": 1}}, ConfigError, "the prefix as text"),
        ({"init_cfg": {"type": "Pretrained", "checkpoint": "a", "prefx": "b"}}, ConfigError, "Did you mean 'prefix'"),
    ],
)
def test_refuses_what_makes_no_backbone(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


def test_stages_that_nobody_reads_are_not_built(nano):
    model = build(out_indices=(0, 2), pretrained=str(nano.pth))
    assert len(model.stages) == 3
    assert [m.shape[1] for m in model(torch.randn(1, 3, 64, 64))] == [32, 128]
    model.init_weights()  # the file has all four
    assert model.card["name"] == "toponet_nano"


@pytest.mark.parametrize("frozen", [-1, 0, 1, 2, 3, 4])
def test_freezing_and_gradients(frozen):
    model = build(frozen_stages=frozen, norm_eval=False)
    model.eval()
    model.train()
    parts = {"stem": 0, "stages.0": 1, "stages.1": 2, "stages.2": 3, "stages.3": 4}
    if frozen < 4:
        sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
    for prefix, place in parts.items():
        expected = place > frozen
        module = model.get_submodule(prefix)
        assert all(m.training == expected for m in module.modules())
        for name, parameter in module.named_parameters():
            assert parameter.requires_grad == expected, name
            # Nothing that is trained stays without gradient, which DDP would wait for.
            assert (parameter.grad is not None) == expected, name
    assert [w.learned for w in model.modules() if isinstance(w, Wiring)] == [k > frozen for k in (1, 2, 3, 4)]


def test_frozen_statistics_do_not_move():
    model = build(frozen_stages=1, norm_eval=False)
    before = {name: value.clone() for name, value in model.named_buffers() if name.endswith("running_mean")}
    model.train()(torch.randn(2, 3, 64, 64))
    moved = {name for name, value in model.named_buffers() if name in before and not torch.equal(value, before[name])}
    assert moved == {name for name in before if not name.startswith(("stem.", "stages.0."))}


def test_norm_eval_keeps_statistics_and_trains_scales():
    model = build(norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 4 + 5 + 6 + 4
    assert not any(m.training for m in norms)
    assert all(m.weight.requires_grad for m in norms)
    assert model.training
    assert not any(
        m.weight.requires_grad
        for m in build(norm_cfg={"type": "BN", "requires_grad": False}).modules()
        if isinstance(m, nn.BatchNorm2d)
    )


@pytest.mark.parametrize(
    ("norm_cfg", "kind"),
    [({"type": "GN", "num_groups": 4}, nn.GroupNorm), ({"type": "SyncBN"}, nn.SyncBatchNorm)],
)
def test_other_normalisation(norm_cfg, kind):
    model = build(norm_cfg=norm_cfg)
    assert isinstance(model.stem.norm, kind)
    assert all(isinstance(node.norm, kind) for stage in model.stages for node in stage.nodes)
    # The names do not depend on the kind, so that files of the same kind fit.
    assert "stages.3.nodes.3.norm.weight" in model.state_dict()
    model.eval()(torch.randn(1, 3, 64, 64))


def test_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    plain, saving = build(norm_eval=False), build(norm_eval=False, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, saving):
        sum(m.square().mean() for m in model.train()(x)).backward()
    for one, two in zip(plain.parameters(), saving.parameters()):
        torch.testing.assert_close(one.grad, two.grad)


def test_pretrained_is_loaded_by_init_weights_and_says_so(nano, log):
    model = build(pretrained=nano.pth.as_uri())
    state = torch.load(nano.pth, weights_only=True)["state_dict"]
    assert not torch.equal(model.stem.conv.weight, state["stem.conv.weight"])
    model.init_weights()
    assert f"topodet: {len(state)}/{len(state)} tensors loaded from file://" in log()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert model.card["architecture"] == "toponet_nano"


def test_the_weights_in_the_package():
    model = build(pretrained=True)
    model.init_weights()
    plain = timm.create_model("toponet_nano", pretrained=True, features_only=True)
    assert_equal_tensors(model, plain)
    assert model.card["num_classes"] == 200
    with pytest.raises(ConfigError, match="no weights of 'toponet_small'"):
        build("toponet_small", pretrained=True)


def assert_equal_tensors(one, other):
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_init_cfg_of_a_file_is_as_strict(nano):
    model = build(init_cfg={"type": "Pretrained", "checkpoint": str(nano.safetensors)})
    model.init_weights()
    assert model.card["architecture"] == "toponet_nano"
    with pytest.raises(WeightsError, match="does not fit"):
        build("toponet_small", init_cfg={"type": "Pretrained", "checkpoint": str(nano.pth)}).init_weights()


def test_init_cfg_of_mmengine_works_as_elsewhere():
    model = build(init_cfg=[{"type": "Constant", "layer": "Conv2d", "val": 0.25}])
    model.init_weights()
    assert all((m.weight == 0.25).all() for m in model.modules() if isinstance(m, nn.Conv2d))
    assert all((w.alpha == 1).all() for w in model.modules() if isinstance(w, Wiring))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"arch": "toponet_small"},
            "toponet_nano.*does not fit TopoNet: the file is toponet_nano, the config asks for toponet_small; missing",
        ),
        ({"topology": {"name": "residual", "interval": 2}}, "the file has a different topology than the model"),
        ({"norm_cfg": {"type": "GN", "num_groups": 4}}, "unknown to the model: .*running_mean"),
        ({"in_channels": 1}, r"stem.conv.weight is \[16, 3, 7, 7\] in the file and \[16, 1, 7, 7\] in the model"),
    ],
)
def test_a_file_of_another_network_is_refused(nano, options, message):
    model = build(**{"arch": "toponet_nano", **options}, pretrained=str(nano.pth))
    with pytest.raises(WeightsError, match=message):
        model.init_weights()


def test_a_changed_or_missing_file_is_refused(nano, tmp_path):
    changed = tmp_path / nano.pth.name
    changed.write_bytes(nano.pth.read_bytes() + b"0")
    with pytest.raises(WeightsError, match=f"its name says SHA-256 {changed.stem[-8:]}"):
        build(pretrained=str(changed)).init_weights()
    with pytest.raises(WeightsError, match=re.escape(f"no weights file at {tmp_path}/none.pth")):
        build(pretrained=f"{tmp_path}/none.pth").init_weights()


def test_random_weights_are_announced(log):
    build(frozen_stages=1).init_weights()
    assert "WARNING - TopoNet (toponet_nano) starts from RANDOM weights" in log()
    assert "model.backbone.frozen_stages=-1 model.backbone.norm_eval=False" in log()
