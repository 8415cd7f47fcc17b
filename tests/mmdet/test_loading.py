"""A backbone is filled whole and by the right file, or the run stops: whatever loads it."""

import importlib
import pickle

import pytest
import timm
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint, load_from_local

from tests import hub
from tests.detection import published
from tests.mmdet.helpers import CONFIGS, NANO, build, small_config
from topodet import weights
from topodet.errors import ConfigError, WeightsError
from topodet.mmdet import TopoNetCheckHook, check_detector, loader

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "channel_order": "RGB"}
# What of a file can be wrong, and what is said then.
WRONG = {
    "architecture": "toponet_small|of a different shape|a different topology",
    "topology": "a different topology than the model",
    "dtype": "is int32 in the file|a different shape or dtype",
    "preprocessing": "does not fit its backbone.*weights were trained with",
    "bytes": "damaged or was changed",
    "a tensor less": r"missing in the file|fills \d+/\d+",
    "objects": "could run code. Nothing in it was executed",
}


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return (__import__("os").mkdir, (self.path,))


def content(folder, wrong, prefix):
    """A file's content: a backbone's, or with a prefix a detector's as far as its backbone goes."""
    options = {"architecture": {"arch": "toponet_small"}, "topology": {"topology": "residual"}}.get(wrong, {})
    torch.manual_seed(1)
    tensors = build(**options).state_dict()
    if wrong == "dtype":
        tensors["stem.conv.weight"] = tensors["stem.conv.weight"].int()
    if wrong == "a tensor less":
        del tensors["stages.1.nodes.2.conv_pw.weight"]
    card = {"architecture": options.get("arch", "toponet_nano"), **IMAGENET}
    if wrong == "preprocessing":
        card["mean"] = [0.1, 0.2, 0.3]
    tensors = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    found = {"state_dict": tensors, **({"meta": {"topodet_card": card}} if prefix else {"card": card})}
    found = weights.with_digests(found)
    if wrong == "bytes":
        tensors[f"{prefix}stem.conv.weight"][0, 0, 0, 0] += 1
    if wrong == "objects":
        found["more"] = Payload()
        Payload.path = str(folder / "executed")
    return found


def init(**more):
    return {"type": "Pretrained", **more}


# Ways to fill a backbone: the options of the backbone, or what the runner loads; `backbone` and `detector` are files.
WAYS = {
    "pretrained": lambda backbone, detector: {"pretrained": backbone},
    "init_cfg": lambda backbone, detector: {"init_cfg": init(checkpoint=backbone)},
    "init_cfg scope": lambda backbone, detector: {"init_cfg": init(checkpoint=backbone, type="mmengine.Pretrained")},
    "init_cfg list": lambda backbone, detector: {
        "init_cfg": [{"type": "Constant", "layer": "Conv2d", "val": 0.0}, init(checkpoint=backbone)]
    },
    "init_cfg prefix": lambda backbone, detector: {"init_cfg": init(checkpoint=detector, prefix="backbone.")},
    "init_cfg list prefix": lambda backbone, detector: {"init_cfg": [init(checkpoint=detector, prefix="backbone")]},
    "load_from": lambda backbone, detector: detector,
    "resume": lambda backbone, detector: detector,
}


@pytest.fixture(scope="module")
def runner(digits, tmp_path_factory):
    return Runner.from_cfg(small_config(NANO, digits, tmp_path_factory.mktemp("run")))


def check_hook(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, TopoNetCheckHook))


def fill(runner, way, folder, wrong):
    files = []
    for name, prefix in (("backbone", ""), ("detector", "backbone.")):
        torch.save(content(folder, wrong, prefix), folder / f"{name}.pth")
        files.append(str(folder / f"{name}.pth"))
    source = WAYS[way](*files)
    runner.model.backbone = build(**source) if isinstance(source, dict) else build()
    if way == "load_from":
        runner.load_checkpoint(source)
    elif way == "resume":
        runner.resume(source, resume_optimizer=False, resume_param_scheduler=False)
    else:
        runner.model.backbone.init_weights()
    check_detector(runner.model)  # as the hook does before a training and before a test
    return torch.load(files[0], weights_only=True)["state_dict"]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_fit_is_refused_on_every_way(runner, tmp_path, way, wrong):
    with pytest.raises((WeightsError, ConfigError), match=f"(?s){WRONG[wrong]}"):
        fill(runner, way, tmp_path, wrong)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "resume"])  # which needs a whole run's state
def test_what_fits_fills_it_on_every_way_and_says_so(runner, tmp_path, way, log):
    tensors = fill(runner, way, tmp_path, None)
    backbone = runner.model.backbone
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor.cpu(), tensors[name]), name
    assert backbone.card["mean"] == IMAGENET["mean"]
    assert f"topodet: {len(tensors)}/{len(tensors)} tensors" in log()


DIGITS = [str(digit) for digit in range(10)]  # the classes of the set
SWAPPED, FEWER = ["1", "0", *DIGITS[2:]], DIGITS[:9]
# Stages of a run, and the classes of a checkpoint that are refused there.
STAGES = {"load_from": [SWAPPED], "resume": [SWAPPED, FEWER], "test": [SWAPPED, FEWER], "val": [SWAPPED, FEWER]}


def test_classes_and_head_of_the_checkpoint_are_compared(runner, tmp_path, monkeypatch):
    for name in ("train", "val", "test"):
        loop = getattr(runner, f"build_{name}_loop")(getattr(runner, f"_{name}_loop"))
        monkeypatch.setattr(runner, f"_{name}_loop", loop)
    monkeypatch.setattr(runner, "optim_wrapper", runner.build_optim_wrapper(runner.optim_wrapper))
    runner.model.backbone = build()
    hook, path = check_hook(runner), tmp_path / "a.pth"
    state = {"state_dict": runner.model.state_dict(), "message_hub": runner.message_hub.state_dict()}
    for names in (SWAPPED, FEWER, DIGITS):
        torch.save({**state, "meta": {"epoch": 1, "iter": 2, "dataset_meta": {"classes": names}}}, path)
        for stage, refused in STAGES.items():
            runner.train_loop._iter = 0
            if stage == "resume":
                runner.resume(str(path), resume_optimizer=False, resume_param_scheduler=False)
            else:
                runner.load_checkpoint(str(path))
            check = {"test": hook.before_test, "val": hook.before_val}.get(stage, hook.before_train)
            if names in refused:
                with pytest.raises(ConfigError, match="the checkpoint was trained on other classes than the dataset's"):
                    check(runner)
            else:
                check(runner)
    runner.train_loop._iter = 0
    monkeypatch.setattr(hook, "allow", ("classes_differ",))
    hook.classes = SWAPPED
    hook.before_train(runner)
    state["state_dict"]["roi_head.bbox_head.fc_cls.weight"] = torch.ones(5, 3)
    torch.save({**state, "meta": {}}, path)
    runner.load_checkpoint(str(path))
    hook.before_train(runner)  # which gives it a new head
    with pytest.raises(WeightsError, match=r"another shape, 1 in all \(roi_head.bbox_head.fc_cls.weight\)"):
        hook.before_test(runner)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_wrappers_of_a_detector_are_taken_off_and_said(runner, tmp_path, prefix, log):
    tensors = content(tmp_path, None, "backbone.")["state_dict"]
    torch.save({"state_dict": {f"{prefix}{name}": t for name, t in tensors.items()}, "meta": {}}, tmp_path / "a.pth")
    runner.model.backbone = build()
    runner.load_checkpoint(str(tmp_path / "a.pth"))
    assert torch.equal(runner.model.backbone.stem.conv.weight, tensors["backbone.stem.conv.weight"])
    assert f"removed the prefix {prefix!r} of a wrapper" in log()


def test_load_from_a_published_backbone_stops(nano, runner):
    """Its names are not those of a detector: MMEngine would log them and train on from random weights."""
    with pytest.raises(WeightsError, match=r"fills 0/\d+ tensors .* set model.backbone.pretrained=PATH"):
        runner.load_checkpoint(str(nano.pth))


def test_a_prefix_that_is_not_there(tmp_path):
    torch.save(content(tmp_path, None, "body."), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="no tensors under the prefix 'backbone.'"):
        build(init_cfg=init(checkpoint=str(tmp_path / "a.pth"), prefix="backbone.")).init_weights()


def test_a_payload_is_refused_before_mmengine_opens_it(tmp_path, runner):
    """MMEngine unpickles what `weights_only` refuses; with the hook or a backbone of topodet the file is read first."""
    Payload.path = str(tmp_path / "executed")
    torch.save({"state_dict": {"w": torch.ones(1)}, "log": Payload()}, tmp_path / "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload()))
    # As the log of MMEngine is pickled, but another attribute.
    (tmp_path / "method.pth").write_bytes(b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\nX\x08\0\0\0__call__\x86R.")
    for name in ("torch", "plain", "method"):
        with pytest.raises(WeightsError, match="could run code"):
            load_checkpoint(torch.nn.Linear(1, 1), str(tmp_path / f"{name}.pth"))
    assert not (tmp_path / "executed").exists()


def test_an_inferencer_opens_nothing_before_topodet_has(tmp_path, monkeypatch):
    """MMDetection's opens the weights before it builds the detector of the config."""
    Payload.path = str(tmp_path / "executed")
    torch.save({"state_dict": {}, "more": Payload()}, tmp_path / "a.pth")
    monkeypatch.setattr(CheckpointLoader, "_schemes", {"": load_from_local})  # as MMEngine begins
    importlib.reload(loader)
    with pytest.raises(WeightsError, match="Nothing in it was executed"):
        DetInferencer(str(CONFIGS / f"{NANO}.py"), str(tmp_path / "a.pth"), device="cpu")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_mmengine_comes_back_with_its_log(runner, tmp_path):
    runner.message_hub.update_scalar("train/loss", 1.5)
    torch.save({"state_dict": {"weight": torch.ones(1, 1)}, "hub": runner.message_hub.state_dict()}, tmp_path / "a.pth")
    linear = torch.nn.Linear(1, 1)
    checkpoint = load_checkpoint(linear, str(tmp_path / "a.pth"))
    assert linear.weight.item() == 1
    assert checkpoint["hub"]["log_scalars"]["train/loss"].current() == 1.5


def test_weights_of_the_hub(nano, runner, tmp_path, monkeypatch):
    hub.go_offline(monkeypatch, tmp_path)
    hub.put(tmp_path, "me/nano", nano.pth)
    expected = weights.read(nano.pth).state_dict
    for options in ({"pretrained": "hf-hub:me/nano"}, {"init_cfg": init(checkpoint="hf-hub:me/nano@main")}):
        backbone = build(**options)
        backbone.init_weights()
        assert torch.equal(backbone.stem.conv.weight, expected["stem.conv.weight"])
    # MMEngine's own loading: a detector's checkpoint, and the weights of a backbone of MMDetection.
    torch.save({"state_dict": {"weight": torch.full((1, 1), 3.0)}}, tmp_path / "own.pth")
    hub.put(tmp_path, "me/own", tmp_path / "own.pth")
    linear = torch.nn.Linear(1, 1)
    load_checkpoint(linear, "hf-hub:me/own")
    assert linear.weight.item() == 3
    with pytest.raises(WeightsError, match="hf-hub:me/gone is not in the cache"):
        runner.load_checkpoint("hf-hub:me/gone")


def test_a_test_of_random_weights_is_refused(runner):
    runner.model.backbone = build()
    check_hook(runner).unfilled = []  # of what an earlier test has loaded
    with pytest.raises(ConfigError, match="the backbone toponet_nano has no weights"):
        check_hook(runner).before_test(runner)
    runner.model.backbone.load_state_dict(build().state_dict())
    check_hook(runner).before_test(runner)


def test_a_file_that_tells_nothing_is_named(tmp_path, log):
    torch.save(build().state_dict(), tmp_path / "bare.pth")
    build(pretrained=str(tmp_path / "bare.pth")).init_weights()
    assert "bare.pth: the file does not say what images it was trained on" in log()


def test_another_wiring_is_told_edge_by_edge(tmp_path):
    torch.save(content(tmp_path, "topology", "backbone."), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="the file has a different topology than the model"):
        load_checkpoint(torch.nn.ModuleDict({"backbone": build()}), str(tmp_path / "a.pth"))


def test_a_connected_network_takes_the_original(tmp_path):
    files = published(tmp_path, "mobilenetv2_050")
    options = {"type": "ConnectedTimm", "name": "mobilenetv2_050"}
    plain = MODELS.build({**options, "wiring": "none", "pretrained": str(files.pth)})
    plain.init_weights()
    state = {f"backbone.{name}": tensor for name, tensor in plain.state_dict().items()}
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "detector.pth")
    connected = MODELS.build(options)
    load_checkpoint(torch.nn.ModuleDict({"backbone": connected}), str(tmp_path / "detector.pth"))
    again = MODELS.build({**options, "init_cfg": init(checkpoint=f"{tmp_path}/detector.pth", prefix="backbone.")})
    again.init_weights()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(connected.state_dict()[name], tensor)
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_another_network_of_timm(tmp_path):
    tensors = timm.create_model("resnet18", num_classes=0).state_dict()
    torch.save({"state_dict": {f"backbone.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"fills 0/\d+ tensors"):
        load_checkpoint(torch.nn.ModuleDict({"backbone": build()}), str(tmp_path / "a.pth"))
