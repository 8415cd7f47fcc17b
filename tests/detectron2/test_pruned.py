"""A pruned backbone in Detectron2: built from its file, trained, published in a detector, damaged."""

import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import LazyCall, instantiate
from detectron2.data import build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model

from tests.detection import published, with_ground_truth
from tests.detectron2.helpers import small_config, trainable_config
from topodet import connectivity, weights
from topodet.detectron2 import (
    ConnectedTimm,
    TopoNet,
    Trainer,
    coco_evaluation,
    load_detector,
    publish_detector,
)
from topodet.errors import ConfigError, WeightsError


def test_the_file_gives_the_network(pruned, nano):
    small = connectivity.prune(weights.build(nano.pth), threshold=0.5, per="node").eval()
    model = TopoNet("pretrained", pretrained=pruned.pth, norm="BN").eval()
    assert (model.arch, model.topologies) == ("toponet_nano", small.topologies)
    assert {name: shape.channels for name, shape in model.output_shape().items()} == {
        "res2": 32,
        "res3": 64,
        "res4": 128,
        "res5": 256,
    }
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = small.forward_intermediates(x, intermediates_only=True)
        for ours, theirs in zip(model(x).values(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_config_names_it_as_yaml_and_lazily(pruned):
    cfg = small_config(MODEL__TOPONET__ARCH="pretrained", MODEL__TOPONET__PRETRAINED=str(pruned.pth))
    backbone = build_model(cfg).backbone.bottom_up
    lazy = instantiate(LazyCall(TopoNet)(arch="pretrained", pretrained=str(pruned.pth), edge_weights="fixed"))
    assert backbone.topologies == lazy.topologies == weights.build(pruned.pth).topologies
    assert backbone.stages[0].wiring.learned
    assert not lazy.stages[0].wiring.learned
    assert backbone.card["pruned"]


def test_edges_can_stand_in_the_config(pruned):
    card = weights.read(pruned.pth).card
    edges = [graph["edges"] for graph in card["topology"]]
    cfg = small_config(
        MODEL__TOPONET__EDGES=edges,
        MODEL__TOPONET__NODES=card["nodes"],
        MODEL__TOPONET__PRETRAINED=str(pruned.pth),
    )
    assert build_model(cfg).backbone.bottom_up.topologies == weights.build(pruned.pth).topologies


def test_what_makes_no_backbone_is_told(nano):
    with pytest.raises(ConfigError, match=r"none is given: set pretrained \(MODEL.TOPONET.PRETRAINED\)"):
        build_model(small_config(MODEL__TOPONET__ARCH="pretrained"))
    with pytest.raises(WeightsError, match="no weights file at gone.pth"):
        TopoNet("pretrained", pretrained="gone.pth")


@pytest.fixture(scope="module")
def trained(pruned, coco, tmp_path_factory):
    """What a training of the pruned backbone leaves; the backbone's own file is gone afterwards."""
    folder = tmp_path_factory.mktemp("pruned_run")
    file = Path(shutil.copy(pruned.pth, folder))
    cfg = trainable_config(
        coco, folder, MODEL__TOPONET__ARCH="pretrained", MODEL__TOPONET__PRETRAINED=str(file), SOLVER__MAX_ITER=1
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    (folder / "config.yaml").write_text(cfg.dump())
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    stock = DefaultPredictor(cfg)
    file.unlink()
    return folder, cfg, stock


def test_a_detector_is_published_with_its_graphs(trained, pruned, tmp_path):
    folder, _, stock = trained
    path = publish_detector(folder / "model_final.pth", folder / "config.yaml", tmp_path, classes=["person", "bicycle"])
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    made = load_detector(path, score_threshold=0.0, device="cpu")
    theirs, ours = stock(image)["instances"], made(image)["instances"]
    assert len(ours) == len(theirs) > 0
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.scores, theirs.scores)
    assert made.model.backbone.bottom_up.topologies == weights.build(pruned.pth).topologies
    node = yaml.safe_load(weights.read(path).card["config"])["MODEL"]["TOPONET"]
    assert (node["ARCH"], node["PRETRAINED"], node["WIDTH"]) == ("toponet50", "", 16)
    # From the training's own config as well, though the backbone's file is not there any more.
    again = load_detector(
        folder / "model_final.pth",
        config=folder / "config.yaml",
        classes=["person", "bicycle"],
        score_threshold=0.0,
        device="cpu",
    )
    assert torch.equal(again(image)["instances"].scores, theirs.scores)


def test_a_connected_network_is_built_from_its_file(coco, tmp_path):
    name = "mobilenetv2_050"
    file = published(tmp_path, name, wiring="learned", prune={"keep": 0.4, "per": "node"}).pth
    rebuilt = weights.build(file).eval()
    backbone = ConnectedTimm(name, edges="pretrained", pretrained=file, norm="BN").eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = rebuilt.forward_intermediates(x, intermediates_only=True)[1:]
        for ours, theirs in zip(backbone(x).values(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="MODEL.CONNECTED_TIMM.PRETRAINED"):
        ConnectedTimm(name, edges="pretrained")
    wrong = {
        "MODEL__BACKBONE__NAME": "build_connected_timm_fpn_backbone",
        "MODEL__CONNECTED_TIMM__EDGES": ["pretraind"],
    }
    with pytest.raises(ConfigError, match="unknown edges 'pretraind'. Did you mean 'pretrained'"):
        build_model(small_config(**wrong))

    node = {"NAME": name, "EDGES": ["pretrained"], "PRETRAINED": str(file), "LOG_PERIOD": 0}
    changes = {f"MODEL__CONNECTED_TIMM__{key}": value for key, value in node.items()}
    changes |= {"MODEL__BACKBONE__NAME": "build_connected_timm_fpn_backbone", "SOLVER__MAX_ITER": 1}
    cfg = trainable_config(coco, tmp_path, **changes, DATASETS__TEST=[])
    Trainer(cfg).train()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    file.unlink()  # the detector's own tensors tell the graphs
    path = publish_detector(
        tmp_path / "model_final.pth", tmp_path / "config.yaml", tmp_path / "out", classes=["person", "bicycle"]
    )
    network = load_detector(path, device="cpu").model.backbone.bottom_up.network
    for run, wiring in connectivity.wirings(network).items():
        assert torch.equal(wiring.edges, rebuilt.get_submodule(run).edges)
    edges = yaml.safe_load(weights.read(path).card["config"])["MODEL"]["CONNECTED_TIMM"]["EDGES"]
    assert build_model(
        small_config(**{**changes, "MODEL__CONNECTED_TIMM__EDGES": edges, "MODEL__CONNECTED_TIMM__PRETRAINED": ""})
    )


def test_damage_by_coco_ap(trained, coco, tmp_path):
    """The detector's own boxes are the truth, so that its AP is 100 and damage shows."""
    _, cfg, stock = trained
    found = {}
    for number in range(2):
        image = read_image(str(coco / "images" / f"{number}.jpg"), format="BGR")
        boxes = stock(image)["instances"][:5]
        found[number] = (boxes.pred_boxes.tensor.numpy(), boxes.pred_classes.numpy())
    name = f"found_{uuid.uuid4().hex}"
    truth = with_ground_truth(coco, found, tmp_path / "found.json")
    register_coco_instances(name, {}, str(truth), str(coco / "images"))
    evaluate = coco_evaluation(cfg, name)
    before = {name: value.clone() for name, value in stock.model.state_dict().items()}
    damage = connectivity.remove_edges(stock.model, evaluate, keep=[1.0, 0.5], per="node", progress=False)
    assert all(torch.equal(value, before[name]) for name, value in stock.model.state_dict().items())
    whole, same, less = (row["bbox/AP"] for row in (damage.whole, *damage.rows))
    assert whole == same > 90 > less
    loader = build_detection_test_loader(cfg, name)
    theirs = inference_on_dataset(stock.model, loader, COCOEvaluator(name, output_dir=str(tmp_path)))
    assert theirs["bbox"]["AP"] == whole
    assert next(iter(damage.whole)) == "bbox/AP"
    small = connectivity.prune(stock.model, keep=0.9, per="node")
    with connectivity.masked(stock.model, connectivity.plan_pruning(stock.model, keep=0.9, per="node")):
        assert evaluate(small)["bbox/AP"] == pytest.approx(evaluate(stock.model)["bbox/AP"], abs=0.1)


def test_a_set_that_cannot_be_evaluated_is_told(trained):
    with pytest.raises(ConfigError, match="unknown dataset 'coco_2107_val'"):
        coco_evaluation(trained[1], "coco_2107_val")
