import pytest
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.modeling.backbone import Backbone
from torch import nn

from tests.detection import published
from tests.detectron2.helpers import small_config
from topodet import weights
from topodet.connectivity import wirings
from topodet.detectron2 import TopoNet
from topodet.errors import ConfigError, WeightsError

CHANNELS = {"res2": 32, "res3": 64, "res4": 128, "res5": 256}


def image(height=65, width=70):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_shapes():
    backbone = TopoNet("toponet_nano")
    assert isinstance(backbone, Backbone)
    assert {name: shape.channels for name, shape in backbone.output_shape().items()} == CHANNELS
    features = backbone(image())
    assert list(features) == list(CHANNELS)
    for name, x in features.items():
        stride = backbone.output_shape()[name].stride
        assert x.shape == (1, CHANNELS[name], -(-65 // stride), -(-70 // stride))
    assert [shape.stride for shape in backbone.output_shape().values()] == [4, 8, 16, 32]
    assert backbone.size_divisibility == 0


def test_the_paper_network():
    with torch.device("meta"):
        shapes = TopoNet("toponet50").output_shape()
    assert [shape.channels for shape in shapes.values()] == [128, 256, 512, 1024]


def test_unread_stages_are_not_built():
    backbone = TopoNet("toponet_nano", out_features=["res2", "res4"])
    assert len(backbone.stages) == 3
    assert list(backbone(image())) == list(backbone.output_shape()) == ["res2", "res4"]


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN", "GN"])
def test_norms(norm):
    width = 32 if norm == "GN" else None  # groups of 32
    backbone = TopoNet("toponet_nano", norm=norm, width=width)
    kinds = {type(module).__name__ for module in backbone.modules() if "Norm" in type(module).__name__}
    assert kinds == {
        {"FrozenBN": "FrozenBatchNorm2d", "BN": "BatchNorm2d", "SyncBN": "SyncBatchNorm"}.get(norm, "GroupNorm")
    }


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze(freeze_at):
    backbone = TopoNet("toponet_nano", norm="BN", freeze_at=freeze_at)
    parts = [backbone.stem, *backbone.stages]
    for k, part in enumerate(parts):
        frozen = k < freeze_at
        assert {p.requires_grad for p in part.parameters()} <= {not frozen}
        kinds = {type(m) for m in part.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)}
        assert kinds == {FrozenBatchNorm2d if frozen else nn.BatchNorm2d}
    assert [w.learned for w in wirings(backbone).values()] == [k >= freeze_at - 1 for k in range(4)]
    if freeze_at < 5:
        sum(x.square().mean() for x in backbone(image()).values()).backward()
        assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())


def test_freezing_keeps_what_was_loaded(nano):
    free = TopoNet("toponet_nano", norm="BN", pretrained=nano.pth).eval()
    frozen = TopoNet("toponet_nano", norm="BN", pretrained=nano.pth, freeze_at=5).train()
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    for ours, theirs in zip(free(image()).values(), frozen(image()).values()):
        torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_pretrained_equals_the_file_in_every_tensor(norm, nano):
    backbone = TopoNet("toponet_nano", norm=norm, pretrained=nano.pth)
    file = weights.read(nano.pth)
    own = backbone.state_dict()
    assert {name for name in file.state_dict if not weights.is_update_counter(name)} <= set(own)
    for name, tensor in own.items():
        assert torch.equal(tensor, file.state_dict[name]), name
    assert backbone.card["architecture"] == "toponet_nano"


def test_the_weights_in_the_package():
    backbone = TopoNet("toponet_nano", norm="BN", pretrained=True)
    plain = timm.create_model("toponet_nano", pretrained=True, features_only=True).state_dict()
    assert backbone.state_dict().keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in backbone.state_dict().items())
    with pytest.raises(ConfigError, match="no weights of 'toponet_small'"):
        TopoNet("toponet_small", pretrained=True)


def test_one_file_gives_the_same_features_in_three_frameworks(nano):
    mmdet = pytest.importorskip("topodet.mmdet")
    x = image(64, 96)
    theirs = mmdet.TopoNet("toponet_nano", pretrained=nano.pth)
    theirs.init_weights()
    plain = timm.create_model("toponet_nano", features_only=True).eval()
    weights.load(plain, nano.pth, quiet=True)
    for norm in ("FrozenBN", "BN"):
        ours = TopoNet("toponet_nano", norm=norm, pretrained=nano.pth).eval()
        with torch.no_grad():
            for a, b, c in zip(ours(x).values(), theirs.eval()(x), plain(x)):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_timm_network(nano):
    x = image(64, 64).double()
    plain = timm.create_model("toponet_nano", features_only=True).eval()
    weights.load(plain, nano.pth, quiet=True)
    ours = TopoNet("toponet_nano", norm="BN", pretrained=nano.pth).eval().double()
    sum(x.square().mean() for x in plain.double()(x)).backward()
    sum(x.square().mean() for x in ours(x).values()).backward()
    for (name, a), b in zip(plain.named_parameters(), ours.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_activation_checkpointing_changes_nothing(nano):
    grads = []
    for use in (False, True):
        backbone = TopoNet("toponet_nano", pretrained=nano.pth, use_act_checkpoint=use).train()
        sum(x.square().mean() for x in backbone(image()).values()).backward()
        grads.append([p.grad for p in backbone.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arch": "toponet_nan"}, "unknown arch 'toponet_nan'. Did you mean 'toponet_nano'"),
        (
            {"out_features": ["res2", "res6"]},
            "unknown feature in out_features (MODEL.TOPONET.OUT_FEATURES) 'res6'. Did you mean 'res",
        ),
        ({"out_features": []}, "out_features=[] (MODEL.TOPONET.OUT_FEATURES) must list"),
        ({"out_features": ["res2", "res2"]}, "each once"),
        ({"norm": "FrozenBatch"}, "unknown norm 'FrozenBatch'. Did you mean 'FrozenBN'"),
        ({"freeze_at": 6}, "freeze_at=6 (MODEL.BACKBONE.FREEZE_AT), but toponet_nano was built with 4 stages"),
        ({"freeze_at": -1}, "freeze_at=-1"),
    ],
)
def test_refused_arguments(arguments, words):
    with pytest.raises(ConfigError) as error:
        TopoNet(**{"arch": "toponet_nano", **arguments})
    assert words in str(error.value)


@pytest.mark.parametrize("builder", ["build_toponet_fpn_backbone", "build_retinanet_toponet_fpn_backbone"])
def test_builders(builder):
    features = ["res3", "res4", "res5"] if "retinanet" in builder else ["res2", "res3", "res4", "res5"]
    changes = {"MODEL__BACKBONE__NAME": builder, "MODEL__FPN__IN_FEATURES": features}
    fpn = BACKBONE_REGISTRY.get(builder)(small_config(**changes), type("Shape", (), {"channels": 3}))
    assert fpn.size_divisibility == 32
    names = [f"p{k}" for k in ((3, 4, 5, 6, 7) if "retinanet" in builder else (2, 3, 4, 5, 6))]
    assert list(fpn.output_shape()) == names
    assert {name: tuple(x.shape[1:]) for name, x in fpn(torch.zeros(1, 3, 64, 128)).items()} == {
        name: (32, -(-64 // 2 ** int(name[1])), -(-128 // 2 ** int(name[1]))) for name in names
    }


def test_the_config_reaches_the_network():
    config = small_config(
        MODEL__TOPONET__NODES=[3, 4, 3, 3],
        MODEL__TOPONET__WIDTH=8,
        MODEL__TOPONET__TOPOLOGY__NAME="random",
        MODEL__TOPONET__EDGE_WEIGHTS="fixed",
        MODEL__TOPONET__SEED=5,
        MODEL__TOPONET__NORM="BN",
        MODEL__TOPONET__USE_ACT_CHECKPOINT=True,
        MODEL__BACKBONE__FREEZE_AT=2,
    )
    config.MODEL.TOPONET.TOPOLOGY.P = 0.5
    backbone = build_model(config).backbone.bottom_up
    direct = TopoNet(
        "toponet_nano", nodes=[3, 4, 3, 3], width=8, topology={"name": "random", "p": 0.5}, edge_weights="fixed", seed=5
    )
    assert backbone.topologies == direct.topologies
    assert backbone.stage_channels == (16, 32, 64, 128)
    assert not any(wiring.learned for wiring in wirings(backbone).values())
    assert all(stage.grad_checkpointing for stage in backbone.stages)
    assert [isinstance(stage.nodes[0].norm, FrozenBatchNorm2d) for stage in backbone.stages] == [
        True,
        False,
        False,
        False,
    ]


def test_random_weights_are_said_once(nano, log):
    backbone = TopoNet("toponet_nano", freeze_at=2).train()
    for _ in range(2):
        backbone(image())
    assert [record.levelname for record in log.records] == ["WARNING"]
    assert "RANDOM weights; do not freeze layers or statistics then" in log.text
    assert "MODEL.BACKBONE.FREEZE_AT 0 MODEL.TOPONET.NORM BN" in log.text
    log.clear()
    TopoNet("toponet_nano", pretrained=nano.pth).train()(image())
    TopoNet("toponet_nano").eval()(image())
    assert "RANDOM" not in log.text


def test_files_of_other_networks_are_refused(nano, tmp_path):
    first = r"\(toponet_nano\) does not fit TopoNet: the file is toponet_nano, the config asks for "
    with pytest.raises(WeightsError, match=rf"{first}toponet_small; missing in the file: "):
        TopoNet("toponet_small", pretrained=nano.pth)
    paper = {"nodes": [4, 5, 6, 4], "width": 16, "topology": "residual"}  # every tensor but the edges as in the file
    with pytest.raises(
        WeightsError, match=rf"{first}toponet50; stages.0.wiring.edges: the file has a different topology"
    ):
        TopoNet("toponet50", **paper, pretrained=nano.pth)
    other = published(tmp_path, "toponet_nano", topology={"name": "residual", "interval": 2})
    with pytest.raises(WeightsError, match="a different topology than the model"):
        TopoNet("toponet_nano", pretrained=other.pth)
    damaged = tmp_path / nano.pth.name
    damaged.write_bytes(nano.pth.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="damaged or was changed"):
        TopoNet("toponet_nano", pretrained=damaged)
    with pytest.raises(WeightsError, match="no weights file at"):
        TopoNet("toponet_nano", pretrained="missing.pth")
