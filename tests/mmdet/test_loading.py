"""A backbone is filled whole, or the run stops: whatever loads it."""

from functools import partial

import pytest
import timm
import torch
from mmdet.registry import MODELS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint

from tests.detection import published
from tests.mmdet.helpers import NANO, build, small_config
from topodet.errors import WeightsError


def detector_file(path, backbone, prefix="backbone."):
    """A checkpoint of a detector, as far as its backbone goes."""
    torch.save({"meta": {}, "state_dict": {f"{prefix}{name}": tensor for name, tensor in backbone.items()}}, path)
    return path


@pytest.fixture(scope="module")
def trained():
    """The tensors of a backbone that differs from a new one in all of them."""
    tensors = build().state_dict()
    return {name: tensor + 0.5 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def test_load_from_a_published_backbone_stops(nano, digits, tmp_path):
    """Its names are not those of a detector: MMEngine would log them and train on from random weights."""
    runner = Runner.from_cfg(small_config(NANO, digits, tmp_path, {"load_from": str(nano.pth)}))
    with pytest.raises(WeightsError, match=r"fills 0/\d+ tensors .* is given by model.backbone.pretrained=PATH"):
        runner.load_or_resume()


def test_load_from_a_detector(trained, digits, tmp_path, capsys):
    path = detector_file(tmp_path / "detector.pth", trained)
    runner = Runner.from_cfg(small_config(NANO, digits, tmp_path, {"load_from": str(path)}))
    runner.load_or_resume()
    for name, tensor in runner.model.backbone.state_dict().items():
        torch.testing.assert_close(tensor.cpu(), trained[name])
    assert f"{len(trained)}/{len(trained)} tensors of the backbone" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["another width", "a tensor less", "a network of timm", "another prefix"])
@pytest.mark.parametrize("way", ["load_from", "init_cfg"])
def test_what_does_not_fill_it_stops(way, wrong, trained, tmp_path):
    tensors = dict(trained)
    if wrong == "another width":
        tensors = build(width=8).state_dict()
    elif wrong == "a tensor less":
        del tensors["stages.1.nodes.2.conv_pw.weight"]
    elif wrong == "a network of timm":
        tensors = timm.create_model("resnet18", num_classes=0).state_dict()
    path = detector_file(tmp_path / "detector.pth", tensors, "body." if wrong == "another prefix" else "backbone.")
    if way == "load_from":
        load = partial(load_checkpoint, torch.nn.ModuleDict({"backbone": build()}), str(path))
    else:
        load = build(init_cfg={"type": "Pretrained", "checkpoint": str(path), "prefix": "backbone."}).init_weights
    # A prefix that is not there is MMEngine's own error.
    with pytest.raises((WeightsError, AssertionError), match=r"fills \d+/\d+ tensors|is not in the pretrained model"):
        load()


def test_another_wiring_is_told_edge_by_edge(trained, tmp_path):
    other = build(topology="residual").state_dict()
    path = detector_file(tmp_path / "detector.pth", other)
    with pytest.raises(WeightsError, match="the file has another topology than the model"):
        load_checkpoint(torch.nn.ModuleDict({"backbone": build()}), str(path))


def test_a_connected_network_takes_the_original(tmp_path):
    files = published(tmp_path, "mobilenetv2_050")
    options = {"type": "ConnectedTimm", "name": "mobilenetv2_050"}
    plain = MODELS.build({**options, "wiring": "none", "pretrained": str(files.pth)})
    plain.init_weights()
    path = detector_file(tmp_path / "detector.pth", plain.state_dict())
    connected = MODELS.build(options)
    load_checkpoint(torch.nn.ModuleDict({"backbone": connected}), str(path))
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(connected.state_dict()[name], tensor)
