"""A small Faster R-CNN with a TopoNet, as a Detectron2 config."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from tests.detection import IMAGENET
from topodet import weights
from topodet.detectron2 import TopoNetCheckpointer, load_config, register_dataset

ROOT = Path(__file__).resolve().parents[2]
# In fvcore's words, and small enough for a step in a fraction of a second.
SMALL = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_toponet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.TOPONET.ARCH": "toponet_nano",
    "MODEL.TOPONET.LOG_PERIOD": 0,
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.PIXEL_MEAN": [255 * value for value in IMAGENET["mean"]],
    "MODEL.PIXEL_STD": [255 * value for value in IMAGENET["std"]],
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.MAX_SIZE_TEST": 96,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": [],
    "SOLVER.WARMUP_ITERS": 0,
    "SEED": 0,
}


def small_config(**changes: object) -> CfgNode:
    """Return the small config; `changes` are keys with __ for the dots."""
    options = {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    return load_config("", [word for pair in options.items() for word in pair])


def trainable_config(coco: Path, output: Path, **changes: object) -> CfgNode:
    """Return the small config that trains on, and evaluates, `write_coco`'s set."""
    name = f"set_{uuid.uuid4().hex}"
    register_dataset(name, coco / "all.json", coco / "images")
    return small_config(**{"DATASETS__TRAIN": [name], "DATASETS__TEST": [name], "OUTPUT_DIR": str(output), **changes})


def metrics(output: Path) -> list[dict]:
    """Return the lines of metrics.json."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


CLASSES = ["person", "bicycle"]
RETINANET = {
    "MODEL__META_ARCHITECTURE": "RetinaNet",
    "MODEL__BACKBONE__NAME": "build_retinanet_toponet_fpn_backbone",
    "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL__RETINANET__NUM_CLASSES": 2,
    "MODEL__RETINANET__TOPK_CANDIDATES_TEST": 50,
}


def write_run(folder, nano, **changes):
    """Leave what a training of the small detector leaves; return the folder."""
    cfg = small_config(MODEL__TOPONET__PRETRAINED=str(nano.pth), OUTPUT_DIR=str(folder), **changes)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    folder.mkdir(exist_ok=True)
    TopoNetCheckpointer(model, str(folder), optimizer=optimizer).save("model_final", iteration=7)
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def with_card(folder, published, **changes):
    """Write the published detector with a card that somebody changed, under the hash that it then has."""
    content = torch.load(published, weights_only=True)
    content["card"].update(changes)
    torch.save(weights.with_digests(content), folder / "theirs.pth")
    return folder / "theirs.pth"
