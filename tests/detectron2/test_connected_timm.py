import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.modeling.backbone import Backbone
from detectron2.utils.events import EventStorage
from torch import nn

from tests.detection import published
from tests.detectron2.helpers import metrics, small_config, trainable_config, with_card
from tests.models.connected.helpers import randomize
from topodet import connectivity, weights
from topodet.detectron2 import AlphaLogHook, ConnectedTimm, SparsityHook, TopoNetCheckpointer, Trainer, load_detector
from topodet.detectron2.analyze import bottom_up, count, synthetic_images
from topodet.detectron2.config import backbone_node
from topodet.detectron2.inference import publish_detector
from topodet.errors import ConfigError, WeightsError
from topodet.models.calibrate import calibrate_batchnorm

NAME = "mobilenetv2_050"
CHANNELS = {"res2": 16, "res3": 16, "res4": 48, "res5": 160}
SMALL_CONVNEXT = {"depths": (1, 2, 1, 1), "dims": (8, 16, 24, 32)}
CHECKPOINTERS = [DetectionCheckpointer, TopoNetCheckpointer]


def config(**changes):
    own = {"MODEL__BACKBONE__NAME": "build_connected_timm_fpn_backbone", "MODEL__CONNECTED_TIMM__NAME": NAME}
    return small_config(**{**own, "MODEL__CONNECTED_TIMM__LOG_PERIOD": 0, **changes})


def image(height=65, width=70):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain(backbone_files):
    return backbone_files(NAME)


@pytest.fixture(scope="module")
def connected(backbone_files):
    return backbone_files(NAME, wiring="learned")


def test_shapes():
    backbone = ConnectedTimm(NAME)
    assert isinstance(backbone, Backbone)
    assert {name: shape.channels for name, shape in backbone.output_shape().items()} == CHANNELS
    assert [shape.stride for shape in backbone.output_shape().values()] == [4, 8, 16, 32]
    assert backbone.size_divisibility == 0
    for height, width in ((65, 70), (96, 64)):
        features = backbone(image(height, width))
        assert list(features) == list(CHANNELS)
        for name, x in features.items():
            stride = backbone.output_shape()[name].stride
            assert x.shape == (1, CHANNELS[name], -(-height // stride), -(-width // stride))
    part = ConnectedTimm(NAME, out_features=["res2", "res4"])
    assert list(part(image())) == list(part.output_shape()) == ["res2", "res4"]


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN"])
@pytest.mark.parametrize("kind", ["plain", "connected"])
def test_one_file_gives_the_same_features_in_three_frameworks(kind, norm, plain, connected):
    """Whatever becomes of batch normalisation, some of which activates as well."""
    mmdet = pytest.importorskip("topodet.mmdet")
    file = {"plain": plain, "connected": connected}[kind]
    x = image(64, 96).double()
    ours = ConnectedTimm(NAME, norm=norm, pretrained=file).double().eval()
    theirs = mmdet.ConnectedTimm(NAME, pretrained=str(file))
    theirs.init_weights()
    rebuilt = weights.build(file).double().eval()
    maps = [ours(x).values(), theirs.double().eval()(x), rebuilt.forward_intermediates(x, intermediates_only=True)[1:]]
    for a, b, c in zip(*maps, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def kinds(module):
    names = {type(m).__name__ for m in module.modules() if "Norm" in type(m).__name__}
    return {name.removesuffix("Act2d").removesuffix("Act").removesuffix("2d") for name in names}


def test_norms():
    expected = {"FrozenBN": "FrozenBatchNorm", "BN": "BatchNorm", "SyncBN": "SyncBatchNorm"}
    assert {norm: kinds(ConnectedTimm(NAME, norm=norm)) for norm in expected} == {
        norm: {kind} for norm, kind in expected.items()
    }
    assert kinds(ConnectedTimm("convnext_atto", options=SMALL_CONVNEXT).network.stages) == {"LayerNorm"}  # stays


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze(freeze_at, plain):
    backbone = ConnectedTimm(NAME, norm="BN", freeze_at=freeze_at, pretrained=plain).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    parts = [["conv_stem", "bn1", "blocks.0"], ["blocks.1"], ["blocks.2"], ["blocks.3", "blocks.4"], ["blocks.6"]]
    features = backbone(image())
    if freeze_at < 5:
        sum(x.square().mean() for x in features.values()).backward()
    for place, names in enumerate(parts):
        frozen = place < freeze_at
        for name in names:
            part = backbone.network.get_submodule(name)
            assert kinds(part) <= {"FrozenBatchNorm" if frozen else "BatchNorm"}
            assert all(p.requires_grad != frozen and (p.grad is None) == frozen for p in part.parameters())
            for key, tensor in part.state_dict().items():
                moved = not torch.equal(tensor, before[f"network.{name}.{key}"])
                assert moved == (not frozen and ("running" in key or "tracked" in key)), key


def test_freezing_keeps_what_was_loaded(plain):
    x = image().double()
    free = ConnectedTimm(NAME, norm="BN", pretrained=plain).double().eval()
    frozen = ConnectedTimm(NAME, norm="BN", pretrained=plain, freeze_at=5).double().train()
    for ours, theirs in zip(free(x).values(), frozen(x).values()):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
def test_a_published_file_fills_the_backbone(checkpointer, norm, connected, log):
    model = build_model(config(MODEL__CONNECTED_TIMM__NORM=norm))
    checkpointer(model).load(str(connected))
    file = weights.read(connected).state_dict
    own = model.backbone.bottom_up.network.state_dict()
    for name, tensor in own.items():
        assert torch.equal(tensor, file[name]), name
    assert f"{len(own)}/{len(own)} tensors of the backbone are in the checkpoint" in log.text
    for unread in ("conv_head", "bn2.weight", "num_batches_tracked"):
        assert not any(unread in record.message and "blocks" not in record.message for record in log.records)


@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
def test_a_file_of_the_original_starts_a_connected_backbone(checkpointer, plain):
    model = build_model(config())
    for wiring in connectivity.wirings(model).values():
        nn.init.normal_(wiring.alpha)
    checkpointer(model).load(str(plain))
    assert all((wiring.alpha == 1).all() for wiring in connectivity.wirings(model).values())
    file = weights.read(plain).state_dict
    for name, tensor in model.backbone.bottom_up.network.state_dict().items():
        assert ".wiring." in name or torch.equal(tensor, file[name]), name


@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
def test_other_backbones_stop_the_load(checkpointer, connected, tmp_path):
    model = build_model(config())
    torch.save({"model": timm.create_model("resnet18").state_dict()}, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=rf"fills \d+/\d+ tensors of the backbone {NAME}; missing"):
        checkpointer(model).load(str(tmp_path / "resnet.pth"))
    content = torch.load(connected, weights_only=True)
    content["model"]["blocks.1.1.wiring.alpha"] = torch.ones(6)  # another graph, whose tensors Detectron2 drops
    content["model"]["blocks.1.1.wiring.edges"] = torch.ones(6, 2, dtype=torch.int64)
    torch.save(weights.with_digests(content), tmp_path / "graph.pth")
    with pytest.raises(
        WeightsError, match=r"of a different shape or dtype: network.blocks.1.1.wiring.alpha, network.blocks.1.1.wir"
    ):
        checkpointer(model).load(str(tmp_path / "graph.pth"))


def test_what_only_the_card_tells_stops_the_load(plain, tmp_path):
    options = {"layers": [1, 1, 1, 1]}
    file = published(tmp_path, "resnet18", **options).pth
    with pytest.raises(WeightsError, match="the file has rewire=False, the config asks for rewire=True"):
        ConnectedTimm("resnet18", rewire=True, options=options, pretrained=file)
    rewired = config(MODEL__CONNECTED_TIMM__NAME="resnet18", MODEL__CONNECTED_TIMM__REWIRE=True)
    rewired.MODEL.CONNECTED_TIMM.OPTIONS.LAYERS = options["layers"]
    with pytest.raises(WeightsError, match="the file has rewire=False, the config asks for rewire=True"):
        TopoNetCheckpointer(build_model(rewired)).load(str(file))
    with pytest.raises(ConfigError, match="feeds BGR images, the weights were trained on RGB"):
        TopoNetCheckpointer(build_model(config(INPUT__FORMAT="BGR"))).load(str(plain))


@pytest.mark.parametrize(
    "builder", ["build_connected_timm_fpn_backbone", "build_retinanet_connected_timm_fpn_backbone"]
)
def test_builders(builder):
    features = ["res3", "res4", "res5"] if "retinanet" in builder else ["res2", "res3", "res4", "res5"]
    cfg = config(MODEL__BACKBONE__NAME=builder, MODEL__FPN__IN_FEATURES=features)
    fpn = BACKBONE_REGISTRY.get(builder)(cfg, type("Shape", (), {"channels": 3}))
    assert fpn.size_divisibility == 32
    names = [f"p{k}" for k in ((3, 4, 5, 6, 7) if "retinanet" in builder else (2, 3, 4, 5, 6))]
    assert {name: tuple(x.shape[1:]) for name, x in fpn(torch.zeros(1, 3, 64, 128)).items()} == {
        name: (32, -(-64 // 2 ** int(name[1])), -(-128 // 2 ** int(name[1]))) for name in names
    }


def test_the_config_reaches_the_network():
    cfg = config(
        MODEL__CONNECTED_TIMM__NAME="convnext_atto",
        MODEL__CONNECTED_TIMM__WIRING="fixed",
        MODEL__CONNECTED_TIMM__CONNECT_NODES="blocks",
        MODEL__CONNECTED_TIMM__USE_ACT_CHECKPOINT=True,
        MODEL__BACKBONE__FREEZE_AT=2,
    )
    for key, value in {**SMALL_CONVNEXT, "drop_path_rate": 0.5}.items():
        cfg.MODEL.CONNECTED_TIMM.OPTIONS[key.upper()] = value
    backbone = bottom_up(build_model(cfg))
    assert backbone.stage_channels == SMALL_CONVNEXT["dims"]
    assert not any(wiring.learned for wiring in connectivity.wirings(backbone).values())
    assert {wiring.start for wiring in connectivity.wirings(backbone).values()} == {"chain"}
    assert backbone.network.stages[1].blocks[1].drop_path.drop_prob > 0
    assert backbone.network.stages[1].grad_checkpointing
    assert [p.requires_grad for p in backbone.network.stages.parameters()].count(False) > 0
    assert backbone_node(cfg) is cfg.MODEL.CONNECTED_TIMM
    assert backbone_node(small_config()).ARCH == "toponet_nano"
    assert "CONNECTED_TIMM" not in get_cfg().MODEL


def test_timms_own_weights(tmp_path, log):
    original, x = randomize(timm.create_model(NAME)).eval(), image().double()
    torch.save(original.state_dict(), tmp_path / "timm.pth")  # in the hub's place
    cfg = config(MODEL__CONNECTED_TIMM__PRETRAINED="timm")
    cfg.MODEL.CONNECTED_TIMM.OPTIONS.PRETRAINED_CFG_OVERLAY = CfgNode({"file": str(tmp_path / "timm.pth")})
    backbone = bottom_up(build_model(cfg)).double().eval()
    assert f"loaded from timm's {NAME}.lamb_in1k" in log.text
    expected = original.double().forward_intermediates(x, intermediates_only=True)[1:]
    for ours, theirs in zip(backbone(x).values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    cfg.MODEL.PIXEL_MEAN = [1.0, 2.0, 3.0]
    with pytest.raises(ConfigError, match=r"mean is \[1.0, 2.0, 3.0\], the weights were trained with \[123.675"):
        build_model(cfg)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "mobilenetv2_51"}, "unknown model 'mobilenetv2_51'. Did you mean 'mobilenetv2_"),
        ({"norm": "GN"}, "unknown norm 'GN'"),
        ({"out_features": ["res6"]}, "unknown feature in out_features (MODEL.CONNECTED_TIMM.OUT_FEATURES) 'res6'"),
        ({"freeze_at": 6}, "freeze_at=6 (MODEL.BACKBONE.FREEZE_AT), but mobilenetv2_050 was built with 4 stages"),
    ],
)
def test_refused_arguments(arguments, words):
    with pytest.raises(ConfigError) as error:
        ConnectedTimm(**{"name": NAME, **arguments})
    assert words in str(error.value)


def test_random_weights_are_said_once(plain, log):
    backbone = ConnectedTimm(NAME, freeze_at=2).train()
    for _ in range(2):
        backbone(image())
    assert [record.levelname for record in log.records] == ["WARNING"]
    assert f"ConnectedTimm ({NAME}) starts from RANDOM weights; do not freeze" in log.text
    assert "MODEL.BACKBONE.FREEZE_AT 0 MODEL.CONNECTED_TIMM.NORM BN" in log.text
    log.clear()
    ConnectedTimm(NAME, pretrained=plain).train()(image())
    ConnectedTimm(NAME).eval()(image())
    assert "RANDOM" not in log.text


def test_every_wiring_has_a_histogram_of_its_own(tmp_path):
    model = nn.ModuleDict({"backbone": ConnectedTimm("mobilenetv4_conv_small_050")})
    hook = AlphaLogHook(1, folder=tmp_path)
    hook.trainer = type("Trainer", (), {"model": model, "start_iter": 0})
    with EventStorage() as storage:
        hook.before_train()
        tags = [histogram["tag"] for histogram in storage._histograms]
    names = list(connectivity.wirings(model))
    assert tags == [f"alpha/{name}" for name in names]
    assert len(set(tags)) == len(names) == 2


def test_a_training(coco, connected, tmp_path):
    changes = {
        "MODEL__BACKBONE__NAME": "build_connected_timm_fpn_backbone",
        "MODEL__CONNECTED_TIMM__NAME": NAME,
        "MODEL__CONNECTED_TIMM__PRETRAINED": str(connected),
        "MODEL__CONNECTED_TIMM__SPARSITY": "uniform",
        "MODEL__CONNECTED_TIMM__SPARSITY_WEIGHT": 0.01,
        "MODEL__CONNECTED_TIMM__LOG_PERIOD": 7,
        "SOLVER__OPTIMIZER": "AdamW",
        "SOLVER__BASE_LR": 1e-4,
        "SOLVER__MAX_ITER": 1,
        "DATASETS__TEST": [],
    }
    cfg = trainable_config(coco, tmp_path, **changes)
    trainer = Trainer(cfg)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    trainer.train()
    hooks = {type(hook): hook for hook in trainer._hooks}
    assert (hooks[SparsityHook].kind, hooks[SparsityHook].weight, hooks[AlphaLogHook].interval) == ("uniform", 0.01, 7)
    assert metrics(tmp_path)[-1]["edges/below_0.01"] == connectivity.sparsity(trainer.model)["below_0.01"]
    # And the whole detector as one file.
    (tmp_path / "config.yaml").write_text(cfg.dump())
    path = publish_detector(
        tmp_path / "model_final.pth", tmp_path / "config.yaml", tmp_path / "out", classes=["one", "two"]
    )
    made = load_detector(path, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(made.model.state_dict().values(), trainer.model.state_dict().values()))
    card = weights.read(path).card
    assert card["architecture"] == NAME
    # A stranger's config must not name further files, which timm would unpickle.
    changed = card["config"].replace("OPTIONS: {}", "OPTIONS: {CHECKPOINT_PATH: harmful.pth}")
    assert changed != card["config"]
    with pytest.raises(WeightsError, match=r"is refused: its network .* refer to other files .*CHECKPOINT_PATH"):
        load_detector(with_card(tmp_path, path, config=changed), device="cpu")


def test_unknown_optimizers_are_named():
    cfg = config(SOLVER__OPTIMIZER="Adam")
    with pytest.raises(ConfigError, match=r"unknown SOLVER.OPTIMIZER 'Adam'. Did you mean 'AdamW'"):
        Trainer.build_optimizer(cfg, build_model(cfg))


@pytest.mark.parametrize(("name", "rewire"), [(NAME, False), ("resnet18", True)])
def test_weighted_sums_are_counted(name, rewire):
    """One multiply-add an edge and element; of a rewired stage the first node reads the input of the stage."""

    class OnlyBackbone(nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

        def forward(self, inputs):
            return self.backbone(inputs[0]["image"][None])

    backbone = ConnectedTimm(name, rewire=rewire, norm="BN").eval()
    calibrate_batchnorm(backbone, backbone, image(64, 64))
    counts = count(OnlyBackbone(backbone), synthetic_images(1, 64, 64))
    if rewire:
        edges = 6 * 5 // 2
        expected = edges * 64 * 16**2
        for channels, side in ((128, 8), (256, 4), (512, 2)):
            expected += (edges - 1) * channels * side**2 + (channels // 2) * (2 * side) ** 2
    else:
        expected = 3 * 16 * 16**2 + 6 * 16 * 8**2 + (10 * 32 + 6 * 48) * 4**2 + 6 * 80 * 2**2
    assert counts.weighted_sums == expected
