import copy
import json
import re

import pytest
import timm
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel, Sequential
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from tests.mmdet.helpers import load, visualizer
from tests.models.connected.helpers import randomize
from topodet import connectivity, weights
from topodet.errors import ConfigError, WeightsError
from topodet.mmdet import AlphaLogHook, ConnectedTimm, SparsityHook, TopoNetCheckHook, check_detector

NAME = "mobilenetv2_050"
CONFIG = "faster-rcnn_mobilenetv2-connected_fpn_bccd"


def build(name=NAME, **options):
    # As from a config file: its dicts are MMEngine's own kind.
    return MODELS.build(ConfigDict(type="ConnectedTimm", name=name, **options))


@pytest.fixture(scope="module")
def plain(backbone_files):
    return backbone_files(NAME)


@pytest.fixture(scope="module")
def connected(backbone_files):
    return backbone_files(NAME, wiring="learned")


def test_maps_by_stage_at_strides_4_to_32():
    model = build()
    assert model.out_channels == (16, 16, 48, 160)
    for height, width in ((96, 128), (70, 97)):
        maps = model(torch.randn(2, 3, height, width))
        assert isinstance(maps, tuple)
        assert [m.shape[1] for m in maps] == [16, 16, 48, 160]
        assert [tuple(m.shape[2:]) for m in maps] == [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
    part = build(out_indices=(0, 2), in_channels=1)
    assert [m.shape[1] for m in part(torch.randn(1, 1, 64, 64))] == list(part.out_channels) == [16, 48]


def test_starts_as_timms_network_and_as_the_plain_one(plain):
    """The comparison that the BCCD configs make: from one file, the same numbers with edges and without."""
    original = timm.create_model(NAME, num_classes=0).eval()
    weights.load(original, plain, quiet=True)
    x = torch.randn(1, 3, 96, 64)
    expected = original.forward_intermediates(x, intermediates_only=True)[1:]
    for wiring in ("learned", "fixed", "none"):
        model = build(wiring=wiring, pretrained=str(plain))
        model.init_weights()
        for ours, theirs in zip(model.eval()(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "edges", "options"),
    [
        ("resnet18", {"wiring": "learned", "rewire": True}, {"channels": [8, 16, 24, 32]}),
        ("resnet18", {"wiring": "none"}, {"channels": [8, 16, 24, 32]}),
        ("resnet18", {"connect_nodes": "auto"}, {"channels": [64, 16, 24, 32]}),
        ("resnetv2_18", {"wiring": "learned"}, {"channels": [8, 16, 24, 32], "stem_chs": 8}),
        ("swin_tiny_patch4_window7_224", {"wiring": "learned"}, {"embed_dim": 12, "depths": (1, 1, 2, 1)}),
        ("convnext_atto", {"wiring": "learned"}, {"depths": (1, 2, 1, 1), "dims": (8, 16, 24, 32)}),
    ],
)
def test_what_was_loaded_stays(name, edges, options):
    """MMEngine calls the `init_weights` of whatever is in a detector; timm's networks have one of their own."""
    model = build(name, **edges, options=options)
    randomize(model.network)
    loaded = copy.deepcopy(model.network.state_dict())
    model.pretrained = weights.WeightsFile("FILE", loaded, {})
    randomize(model.network)
    Sequential(nn.Identity(), model).init_weights()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in model.network.state_dict().items())


def test_pretrained_is_loaded_by_init_weights_and_says_so(connected, plain, log):
    model = build(pretrained=connected.as_uri())
    model.init_weights()
    total = len(model.state_dict())
    assert f"topodet: {total}/{total} tensors loaded from file://" in log()
    file = weights.read(connected)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, file.state_dict[name]), name
    assert model.card == file.card
    same = build(init_cfg={"type": "Pretrained", "checkpoint": str(connected)})
    same.init_weights()
    assert same.card == file.card
    build(pretrained=str(plain)).init_weights()
    assert f"{total - 10}/{total - 10} tensors (left at their initial values: blocks.1.1.wiring, " in log()


def test_timms_own_weights(tmp_path, log):
    original = randomize(timm.create_model(NAME)).eval()
    torch.save(original.state_dict(), tmp_path / "timm.pth")  # in the hub's place
    model = build(pretrained=True, options={"pretrained_cfg_overlay": {"file": str(tmp_path / "timm.pth")}})
    model.init_weights()
    assert re.search(rf"topodet: (\d+)/\1 tensors .*loaded from timm's {NAME}.lamb_in1k", log())
    assert model.card["mean"] == [0.485, 0.456, 0.406]
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(
        model.eval()(x), original.forward_intermediates(x, intermediates_only=True)[1:], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wiring": "none"}, "the file has wiring='learned', the config asks for wiring='none'; unknown to the model"),
        ({"name": "mobilenetv2_035"}, "the file is mobilenetv2_050, the config asks for mobilenetv2_035; "),
    ],
)
def test_a_file_of_another_network_is_refused(connected, options, message):
    with pytest.raises(WeightsError, match=rf"\({NAME}\) does not fit ConnectedTimm: {message}"):
        build(**options, pretrained=str(connected)).init_weights()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet18"}, "activation follows the addition"),
        ({"wiring": "all"}, "unknown wiring 'all'"),
        ({"out_indices": (0, 4)}, r"out_indices=\(0, 4\) .* stages 0..3"),
        ({"frozen_stages": 5}, "frozen_stages=5, but this network has 4 stages"),
        ({"pretrained": True, "init_cfg": {"type": "Kaiming"}}, "both pretrained=True and init_cfg"),
    ],
)
def test_refuses_what_makes_no_backbone(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


@pytest.mark.parametrize("frozen", [-1, 0, 2])
def test_freezing_and_gradients(frozen):
    model = build(frozen_stages=frozen, norm_eval=False)
    model.eval()
    model.train()
    sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
    parts = [["conv_stem", "bn1", "blocks.0"], ["blocks.1"], ["blocks.2"], ["blocks.3", "blocks.4"], ["blocks.6"]]
    for place, names in enumerate(parts):
        for module in map(model.network.get_submodule, names):
            expected = place > frozen
            assert all(m.training == expected for m in module.modules())
            for name, parameter in module.named_parameters():
                assert parameter.requires_grad == (parameter.grad is not None) == expected, name
    assert [w.learned for w in connectivity.wirings(model).values()] == [k > frozen for k in (1, 2, 3, 3, 4)]


def test_norm_eval_keeps_statistics_and_trains_scales():
    model = build().train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 51
    assert not any(m.training for m in norms)
    assert all(m.weight.requires_grad for m in norms)


def test_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    one, other = build(), build(with_cp=True)
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for model in (one, other):
        sum(m.square().mean() for m in model.train()(x)).backward()
    for ours, theirs in zip(one.parameters(), other.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_random_weights_are_announced(log):
    build(frozen_stages=1).init_weights()
    assert f"WARNING - ConnectedTimm ({NAME}) starts from RANDOM weights" in log()
    assert "model.backbone.frozen_stages=-1 model.backbone.norm_eval=False" in log()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, None),
        ({"neck.in_channels": [32, 64, 128, 256]}, rf"{NAME} with .* gives \[16, 16, 48, 160\]"),
        ({"data_preprocessor.bgr_to_rgb": False}, "feeds BGR images, the weights were trained on RGB"),
        ({"data_preprocessor.std": [1.0, 1.0, 1.0]}, r"std is \[1.0, 1.0, 1.0\], the weights were trained with"),
    ],
)
def test_the_detector_is_checked(options, message, tmp_path):
    """Against what timm says of its weights, as against a card."""
    torch.save(timm.create_model(NAME).state_dict(), tmp_path / "timm.pth")
    register_all_modules()
    config = Config({"model": load(CONFIG).model.copy()})
    config.merge_from_dict({f"model.{name}": value for name, value in options.items()})
    config.model.backbone.pretrained = True
    config.model.backbone.options = {"pretrained_cfg_overlay": {"file": str(tmp_path / "timm.pth")}}
    model = MODELS.build(config.model)
    model.backbone.init_weights()
    if message is None:
        check_detector(model)
        return
    with pytest.raises(ConfigError, match=message):
        check_detector(model)


class Task(BaseModel):
    """The backbone with a loss."""

    def __init__(self, **backbone):
        super().__init__()
        self.backbone = ConnectedTimm(NAME, out_indices=(0, 1), **backbone)

    def forward(self, inputs, mode="loss"):
        return {"loss": sum(m.square().mean() for m in self.backbone(inputs))}


def test_the_hooks_penalise_record_and_remember(connected, tmp_path):
    model = Task(pretrained=str(connected))
    name = str(tmp_path).replace("/", "_")  # visualizers and loggers live as long as the process
    before = [wiring.alpha.detach().clone() for wiring in connectivity.wirings(model).values()]
    runner = Runner(
        model,
        work_dir=str(tmp_path),
        train_dataloader=DataLoader([{"inputs": torch.randn(3, 64, 64)} for _ in range(2)], batch_size=2),
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.05}},
        train_cfg={"by_epoch": True, "max_epochs": 1},
        custom_hooks=[TopoNetCheckHook(), SparsityHook("adaptive", 0.01), AlphaLogHook()],
        visualizer=visualizer(name=name),
        experiment_name=name,
    )
    runner.train()
    after = [wiring.alpha for wiring in connectivity.wirings(model).values()]
    assert len(after) == 2
    assert not any(torch.equal(one, other) for one, other in zip(before, after))
    value = 0.01 * connectivity.penalty(model, "adaptive").item()
    assert runner.message_hub.get_scalar("train/sparsity_penalty").current() == pytest.approx(value)
    rows = [json.loads(line) for line in next(tmp_path.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    assert any("edges/below_0.01" in row for row in rows)
    assert len(list((tmp_path / "alpha").glob("adjacency_*.png"))) == 2
    other = Task()
    runner = Runner(
        other, work_dir=str(tmp_path / "test"), custom_hooks=[TopoNetCheckHook()], experiment_name=f"{name}_test"
    )
    runner.load_checkpoint(str(tmp_path / "epoch_1.pth"))
    assert other.backbone.card == weights.read(connected).card
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
