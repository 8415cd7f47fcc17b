"""A backbone is filled whole and by the right file, or the run stops: whatever loads it."""

import os
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from tests import hub
from tests.coco_sets import base_set, write_set
from tests.detection import IMAGENET
from tests.detectron2.helpers import small_config, write_run
from topodet import weights
from topodet.detectron2 import (
    TopoNet,
    TopoNetCheckpointer,
    build_optimizer,
    load_config,
    register_dataset,
    train_net,
)
from topodet.errors import ConfigError, WeightsError

CARD = {"architecture": "toponet_nano", "channel_order": "RGB", **{key: IMAGENET[key] for key in ("mean", "std")}}
WRONG = {
    "architecture": "does not fit TopoNet|of a different shape",
    "topology": "a different topology than the model|a different shape or dtype: stages.0.wiring.alpha",
    "dtype": "is int32 in the file|a different shape or dtype",
    "preprocessing": "the detector does not fit its backbone, the detector's mean",
    "bytes": "damaged or was changed",
    "a tensor less": r"missing in the file|fills \d+/\d+",
    "objects": "could run code. Nothing in it was executed",
}


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def write(folder, wrong, prefix):
    """Write a file of a backbone, or with a prefix of a detector as far as its backbone goes; return its path."""
    torch.manual_seed(1)
    options = {"topology": "residual"} if wrong == "topology" else {}
    model = TopoNet("toponet_small" if wrong == "architecture" else "toponet_nano", norm="BN", **options)
    tensors = model.state_dict()
    if wrong == "dtype":
        tensors["stem.conv.weight"] = tensors["stem.conv.weight"].int()
    if wrong == "a tensor less":
        del tensors["stages.1.nodes.2.conv_pw.weight"]
    card = {**CARD, "mean": [0.1, 0.2, 0.3]} if wrong == "preprocessing" else CARD
    tensors = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    content = {"model": tensors, "card": card, **({} if prefix else {"matching_heuristics": True})}
    content = weights.with_digests(content)
    if wrong == "bytes":
        tensors[f"{prefix}stem.conv.weight"] += 1
    if wrong == "objects":
        content["more"] = Payload()
        Payload.path = str(folder / "executed")
    torch.save(content, folder / "a.pth")
    return str(folder / "a.pth")


def pretrained(path):
    return build_model(small_config(MODEL__TOPONET__PRETRAINED=path))


def loaded(path, checkpointer):
    model = build_model(small_config())
    checkpointer(model).load(path)
    return model


# Ways to fill a backbone, and the prefix of the names in the file that each takes.
WAYS = {
    "PRETRAINED": (pretrained, ""),
    "MODEL.WEIGHTS": (lambda path: loaded(path, TopoNetCheckpointer), ""),
    "a detector": (lambda path: loaded(path, TopoNetCheckpointer), "backbone.bottom_up."),
    "DetectionCheckpointer": (lambda path: loaded(path, DetectionCheckpointer), ""),
    "DetectionCheckpointer, a detector": (lambda path: loaded(path, DetectionCheckpointer), "backbone.bottom_up."),
}
# Detectron2's own checkpointer hands on tensors alone. What stands beside them is compared by `build_optimizer` of the
# LazyConfigs, before it loads; objects are refused by torch.
BESIDE = ("preprocessing", "bytes", "objects")


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_fit_is_refused_on_every_way(tmp_path, way, wrong):
    fill, prefix = WAYS[way]
    if way.startswith("DetectionCheckpointer") and wrong in BESIDE:
        pytest.skip("Detectron2's own checkpointer hands on tensors alone")
    with pytest.raises((WeightsError, ConfigError), match=WRONG[wrong]):
        fill(write(tmp_path, wrong, prefix))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("way", WAYS)
def test_what_fits_fills_it_on_every_way_and_says_so(tmp_path, way, log):
    fill, prefix = WAYS[way]
    path = write(tmp_path, None, prefix)
    backbone = fill(path).backbone.bottom_up
    tensors = torch.load(path, weights_only=True)["model"]
    own = backbone.state_dict()
    for name, tensor in own.items():
        assert torch.equal(tensor, tensors[f"{prefix}{name}"]), name
    assert f"topodet: {len(own)}/{len(own)} tensors" in log.text


@pytest.mark.parametrize("way", WAYS)
def test_weights_of_the_hub(tmp_path, way, monkeypatch):
    fill, prefix = WAYS[way]
    hub.go_offline(monkeypatch, tmp_path / "hub")
    path = write(tmp_path, None, prefix)
    hub.put(tmp_path / "hub", "me/nano", path)
    backbone = fill("hf-hub:me/nano@main").backbone.bottom_up
    name = "stem.conv.weight"
    assert torch.equal(backbone.state_dict()[name], torch.load(path, weights_only=True)["model"][f"{prefix}{name}"])
    with pytest.raises(WeightsError, match="hf-hub:me/gone is not in the cache"):
        fill("hf-hub:me/gone")


def test_classes_and_head_of_the_checkpoint_are_compared(tmp_path):
    """In an evaluation and a resumed training all must be these; a training may begin with a new head for others."""
    classes, swapped, more = ["cell", "nut"], ["nut", "cell"], ["cell", "nut", "tree"]
    model = build_model(small_config())
    folder, path = str(tmp_path), str(tmp_path / "model_final.pth")
    for saved in (classes, swapped, more):
        TopoNetCheckpointer(model, folder, classes=saved).save("model_final", iteration=0)
        uses = {
            "load": lambda: TopoNetCheckpointer(model, classes=classes).load(path),
            "resume": lambda: TopoNetCheckpointer(model, folder, classes=classes).resume_or_load("", resume=True),
            "evaluate": lambda: TopoNetCheckpointer(model, classes=classes, whole=True).load(path),
        }
        for use, run in uses.items():
            if saved == classes or (use, saved) == ("load", more):
                run()
            else:
                with pytest.raises(ConfigError, match="the checkpoint was trained on other classes than the dataset's"):
                    run()
    TopoNetCheckpointer(model, folder, classes=swapped).save("model_final")
    TopoNetCheckpointer(model, classes=classes, other_classes=True).load(path)
    with pytest.raises(ConfigError, match="other classes"):
        TopoNetCheckpointer(model, classes=classes, other_classes=True, whole=True).load(path)
    # A set's classes, and a published detector's.
    write_set(tmp_path / "set", base_set())
    register_dataset(f"set_{tmp_path}", tmp_path / "set" / "all.json", tmp_path / "set" / "images")
    cfg = small_config(DATASETS__TEST=[f"set_{tmp_path}"], MODEL__WEIGHTS=path, OUTPUT_DIR=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="class 0 is 'nut' in the checkpoint and 'cell' in the dataset"):
        train_net.evaluate(cfg, resume=False)
    content = {"model": model.state_dict(), "card": {"kind": "detector", "classes": swapped}}
    torch.save(content, tmp_path / "published.pth")
    options = {"model": model, "lr": 0.1, "datasets": f"set_{tmp_path}"}
    with pytest.raises(ConfigError, match="class 0 is 'nut' in the checkpoint and 'cell' in the dataset"):
        build_optimizer(model.parameters(), init_checkpoint=str(tmp_path / "published.pth"), **options)
    del content["card"], content["model"]["roi_heads.box_predictor.cls_score.weight"]
    torch.save(content, path)
    TopoNetCheckpointer(model).load(path)
    with pytest.raises(WeightsError, match=r"another shape, 1 in all \(roi_heads.box_predictor.cls_score.weight\)"):
        TopoNetCheckpointer(model, whole=True).load(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["", "backbone.bottom_up."])
def test_wrappers_are_taken_off_and_said(tmp_path, prefix, name, log):
    content = torch.load(write(tmp_path, None, name), weights_only=True)
    tensors = {f"{prefix}{key}": tensor for key, tensor in content["model"].items()}
    torch.save({"model": tensors, "matching_heuristics": not name}, tmp_path / "b.pth")
    backbone = loaded((tmp_path / "b.pth").as_uri(), TopoNetCheckpointer).backbone.bottom_up
    assert torch.equal(backbone.stem.conv.weight, content["model"][f"{name}stem.conv.weight"])
    assert f"removed the prefix {prefix!r} of a wrapper" in log.text


def test_a_checkpoint_that_is_not_there(tmp_path):
    for path in (str(tmp_path / "a.pth"), f"{tmp_path}/a.pth?matching_heuristics=True", str(tmp_path), "~/a.pth"):
        with pytest.raises(WeightsError, match=r"no checkpoint at .*check MODEL.WEIGHTS"):
            loaded(path, TopoNetCheckpointer)
    with pytest.raises(WeightsError, match="no weights file at /nowhere.pth"):
        loaded("file:///nowhere.pth", TopoNetCheckpointer)


def test_a_training_checkpoint_is_taken_with_what_its_options_tell(tmp_path):
    state = TopoNet("toponet_nano", norm="BN").state_dict()
    content = {"state_dict": state, "arch": "toponet_nano", "data_config": {**IMAGENET, "mean": (0.1, 0.2, 0.3)}}
    torch.save(content, tmp_path / "last.pth.tar")
    with pytest.raises(ConfigError, match="the detector's mean is"):
        loaded(str(tmp_path / "last.pth.tar"), TopoNetCheckpointer)
    with pytest.raises(ConfigError, match="the detector's mean is"):
        pretrained(str(tmp_path / "last.pth.tar"))


def test_yaml_runs_nothing(tmp_path):
    """Detectron2's default is `yaml.unsafe_load`, also for the config.yaml beside a stranger's checkpoint."""
    for name, text in (
        ("a.yaml", f"MODEL:\n  WEIGHTS: !!python/object/apply:os.mkdir ['{tmp_path}/executed']\n"),
        ("b.yaml", "_BASE_: a.yaml\nSEED: 1\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=r"is refused: .*could run code, nothing in it was executed"):
            load_config(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def evaluation(tmp_path, *options):
    """Return the config of an evaluation, with these options at the end."""
    words = ["--eval-only", "--config-file", str(tmp_path / "config.yaml"), *options]
    return train_net.setup(train_net.parser().parse_args(words))


def test_an_evaluation_needs_weights(tmp_path):
    (tmp_path / "config.yaml").write_text(small_config(OUTPUT_DIR=str(tmp_path / "out")).dump())
    with pytest.raises(ConfigError, match="--eval-only has no weights to evaluate: give the detector's checkpoint"):
        evaluation(tmp_path)
    with pytest.raises(ConfigError, match="--eval-only has no weights to evaluate"):
        evaluation(tmp_path, "--resume")


def test_an_evaluated_network_is_that_of_the_checkpoint(tmp_path, pruned):
    """With ARCH pretrained too: the file that the training started from is not asked for."""
    run = write_run(tmp_path / "run", pruned, MODEL__TOPONET__ARCH="pretrained")
    (run / "config.yaml").rename(tmp_path / "config.yaml")
    gone = ("MODEL.TOPONET.PRETRAINED", "elsewhere.pth", "OUTPUT_DIR", str(tmp_path / "out"))
    cfg = evaluation(tmp_path, *gone, "MODEL.WEIGHTS", str(run / "model_final.pth"))
    model = build_model(cfg)
    TopoNetCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    ours = sum(graph.num_edges for graph in model.backbone.bottom_up.topologies)
    assert ours == sum(len(topology["edges"]) for topology in weights.read(pruned.pth).card["topology"])


def test_a_plain_pickle_is_refused(tmp_path):
    Payload.path = str(tmp_path / "executed")
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"model": Payload()}))
    with pytest.raises(WeightsError, match="could run code"):
        loaded(str(tmp_path / "a.pth"), TopoNetCheckpointer)
    assert not (tmp_path / "executed").exists()
