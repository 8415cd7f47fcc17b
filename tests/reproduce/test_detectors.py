"""The way of Table 5 at a tiny size, with the lines that are printed: pretrain a backbone, publish it, fine-tune it."""

import json

import pytest

from tests.detection import write_coco
from topodet.reproduce import command

from .helpers import RECIPE, checkout, execute_here

STUDY = """
title: A tiny study of detectors
claim: None.
measure: AP
scales:
  small:
    data: two pictures of noise
    seeds: 1
    arms:
      backbone:
        pretrain: RECIPE
        options: {data_dir: "{data}/digits", img_size: 32, batch_size: 40, epochs: 1, warmup_epochs: 0, sparsity: none,
                  device: cpu, figure_interval: 0, model_kwargs: {nodes: [2, 2, 2, 2], width: 4}}
        measure: top1
      detector:
        mmdetection: configs/mmdet/faster-rcnn_toponet-nano_fpn_bccd.py
        detectron2: configs/detectron2/faster_rcnn_toponet_nano_FPN_bccd.yaml
        backbone: backbone
        options:
          mmdetection:
            model.backbone.arch: pretrained
            model.neck.in_channels: [8, 16, 32, 64]
            custom_hooks.2.kind: none
            custom_hooks.1.interval: 2
            train_cfg.max_epochs: 1
            train_dataloader.num_workers: 0
            train_dataloader.persistent_workers: false
            val_dataloader.num_workers: 0
            val_dataloader.persistent_workers: false
          detectron2:
            MODEL.TOPONET.ARCH: pretrained
            MODEL.TOPONET.SPARSITY: none
            MODEL.TOPONET.LOG_PERIOD: 0
            SOLVER.MAX_ITER: 1
            SOLVER.STEPS: ()
            SOLVER.IMS_PER_BATCH: 2
            DATALOADER.NUM_WORKERS: 0
            datasets:
              - [bccd_train, "{data}/bccd/train.json", "{data}/bccd/images"]
              - [bccd_val, "{data}/bccd/val.json", "{data}/bccd/images"]
""".replace("RECIPE", RECIPE)
MODULES = {"mmdetection": "mmdet", "detectron2": "detectron2"}


@pytest.mark.slow
@pytest.mark.parametrize("framework", MODULES)
def test_a_backbone_is_pretrained_published_and_fine_tuned(framework, tmp_path, monkeypatch):
    pytest.importorskip(MODULES[framework], reason=f"{MODULES[framework]} is not installed")
    if framework == "mmdetection":
        import tests.mmdet.helpers  # noqa: F401 - makes MMEngine start faster
    monkeypatch.chdir(checkout(tmp_path, {"tiny": STUDY}))
    data = write_coco(tmp_path / "data" / "bccd", ("RBC", "WBC", "Platelets"))
    for split in ("train", "val"):
        (data / f"{split}.json").write_text((data / "all.json").read_text())
    # A name that the shell must not take apart; MMEngine itself loses spaces.
    runs = tmp_path / ("my runs" if framework == "detectron2" else "runs")
    assert command("tiny", framework=framework, execute=execute_here, runs=runs) == 0
    folder = tmp_path / "records" / "studies" / "tiny-small"
    record = json.loads((folder / f"detector_{framework}_seed0.json").read_text())
    assert (record["framework"], record["arm"], record["seed"]) == (framework, f"detector_{framework}", 0)
    assert record["initialization"] == "pretrained"
    assert -1 <= record["metrics"]["bbox_mAP"] <= 1
    assert len(record["history"]) == 1
    assert [len(edges) for edges in record["alpha"].values()] == [1, 1, 1, 1]  # of the trained checkpoint
    (published,) = (runs / "tiny-small" / "published").glob("backbone_seed0-*.pth")
    assert "/published/backbone_seed0-????????.pth)" in record["command"]
    if framework == "mmdetection":
        assert published.name in next((runs / "tiny-small").glob("detector_*/*.py")).read_text()
