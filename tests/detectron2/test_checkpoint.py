import pickle

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from tests.detection import published
from tests.detectron2.helpers import small_config
from topodet import weights
from topodet.detectron2 import TopoNetCheckpointer
from topodet.errors import ConfigError, WeightsError

CHECKPOINTERS = [DetectionCheckpointer, TopoNetCheckpointer]


@pytest.fixture
def detector():
    return build_model(small_config())


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
def test_a_published_file_fills_the_backbone(checkpointer, norm, nano, log):
    model = build_model(small_config(MODEL__TOPONET__NORM=norm))
    checkpointer(model).load(str(nano.pth))
    file = weights.read(nano.pth).state_dict
    own = model.backbone.bottom_up.state_dict()
    for name, tensor in own.items():
        assert torch.equal(tensor, file[name]), name
    assert f"{len(own)}/{len(own)} tensors of the backbone are in the checkpoint" in log.text
    assert "stages.0.nodes.0.norm" not in log.text  # no list of counters that frozen layers do not have


@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
def test_a_shorter_backbone_passes_over_what_it_was_built_without(checkpointer, nano, log):
    features = ["res2", "res3", "res4"]
    model = build_model(
        small_config(
            MODEL__TOPONET__OUT_FEATURES=features,
            MODEL__FPN__IN_FEATURES=features,
            MODEL__BACKBONE__NAME="build_retinanet_toponet_fpn_backbone",
            MODEL__RPN__IN_FEATURES=["p2", "p3", "p4", "p5", "p6"],
        )
    )
    checkpointer(model).load(str(nano.pth))
    assert "stages.3" not in log.text
    assert torch.equal(
        model.backbone.bottom_up.stages[2].wiring.alpha, weights.read(nano.pth).state_dict["stages.2.wiring.alpha"]
    )


@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
def test_other_backbones_stop_the_load(checkpointer, detector, tmp_path):
    torch.save({"model": timm.create_model("resnet18").state_dict()}, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="fills 0/127 tensors of the backbone toponet_nano"):
        checkpointer(detector).load(str(tmp_path / "resnet.pth"))
    small = published(tmp_path, "toponet_small")
    with pytest.raises(WeightsError, match="of a different shape"):
        checkpointer(detector).load(f"{small.pth}")


@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
def test_other_edges_of_equal_number_stop_the_load(checkpointer, detector, nano, tmp_path):
    content = torch.load(nano.pth, weights_only=True)
    edges = content["model"]["stages.1.wiring.edges"]
    edges[[0, 1]] = edges[[1, 0]]
    torch.save(weights.with_digests(content), tmp_path / "reordered.pth")
    with pytest.raises(WeightsError, match="edges are in a different order"):
        checkpointer(detector).load(str(tmp_path / "reordered.pth"))


def test_part_of_a_backbone_stops_the_load(detector, nano, tmp_path):
    content = torch.load(nano.pth, weights_only=True)
    del content["model"]["stages.3.nodes.2.conv_pw.weight"]
    torch.save(weights.with_digests(content), tmp_path / "partial.pth")
    with pytest.raises(WeightsError, match=r"fills 126/127 .* missing.*: stages.3.nodes.2.conv_pw.weight\."):
        DetectionCheckpointer(detector).load(str(tmp_path / "partial.pth"))


def test_a_detector_comes_back_whole_and_with_its_card(nano, tmp_path):
    model = build_model(small_config(MODEL__TOPONET__PRETRAINED=str(nano.pth)))
    TopoNetCheckpointer(model, str(tmp_path)).save("model_final", iteration=7)
    other = build_model(small_config())
    rest = TopoNetCheckpointer(other).load(str(tmp_path / "model_final.pth"))
    assert rest["iteration"] == 7
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    assert other.backbone.bottom_up.card == model.backbone.bottom_up.card == weights.read(nano.pth).card


def test_preprocessing_against_the_card_of_a_checkpoint(nano, tmp_path):
    model = build_model(small_config(MODEL__TOPONET__PRETRAINED=str(nano.pth)))
    TopoNetCheckpointer(model, str(tmp_path)).save("model_final")
    for file in (nano.pth, tmp_path / "model_final.pth"):
        with pytest.raises(
            ConfigError, match="^set INPUT.FORMAT RGB,.* feeds BGR images, the weights were trained on RGB"
        ):
            TopoNetCheckpointer(build_model(small_config(INPUT__FORMAT="BGR"))).load(str(file))
        with pytest.raises(ConfigError, match=r"^set .*MODEL.PIXEL_MEAN \[123.675.*mean is \[1.0, 2.0, 3.0\]"):
            TopoNetCheckpointer(build_model(small_config(MODEL__PIXEL_MEAN=[1.0, 2.0, 3.0]))).load(str(file))


def test_pickles_and_changed_files_are_refused(detector, nano, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harmed"), "w"))

    for name in ("model.pkl", "model.pth"):
        (tmp_path / name).write_bytes(pickle.dumps({"model": Harmful()}))
        with pytest.raises(WeightsError, match=r"could run code"):
            TopoNetCheckpointer(detector).load(str(tmp_path / name))
    assert not (tmp_path / "harmed").exists()
    changed = tmp_path / nano.pth.name
    changed.write_bytes(nano.pth.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="damaged or was changed"):
        TopoNetCheckpointer(detector).load(str(changed))


def test_a_detector_goes_over_to_mmdetection_and_back(nano, tmp_path):
    """The backbone of a checkpoint of one framework, as weights for the other one."""
    mmdet = pytest.importorskip("topodet.mmdet")
    x = torch.randn(1, 3, 64, 64)
    model = build_model(small_config(MODEL__TOPONET__NORM="BN", MODEL__TOPONET__PRETRAINED=str(nano.pth)))
    with torch.no_grad():
        for parameter in model.backbone.bottom_up.parameters():
            parameter.mul_(1.1)  # trained a little
    ours = model.backbone.bottom_up
    torch.save({"state_dict": ours.state_dict()}, tmp_path / "there.pth")
    theirs = mmdet.TopoNet("toponet_nano", pretrained=str(tmp_path / "there.pth"))
    theirs.init_weights()
    torch.save({"model": theirs.state_dict(), "matching_heuristics": True}, tmp_path / "back.pth")
    again = build_model(small_config())
    DetectionCheckpointer(again).load(str(tmp_path / "back.pth"))
    with torch.no_grad():
        maps = [ours.eval()(x).values(), theirs.eval()(x), again.eval().backbone.bottom_up(x).values()]
    for a, b, c in zip(*maps):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)
