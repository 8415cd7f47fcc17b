"""A trained detector by the same lines in both frameworks: those of docs/own_data.md."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.detection import published, write_coco

ROOT = Path(__file__).resolve().parents[1]
[BLOCK] = re.findall(
    r"```python\n(# of MMDetection.*?)```", (ROOT / "docs" / "own_data.md").read_text(), flags=re.DOTALL
)
CLASSES = ("person", "bicycle")


def train_mmdet(folder, coco, nano):
    pytest.importorskip("mmdet", reason="needs the mmdet extra")
    from tests.mmdet.helpers import NANO, small_config, train

    options = {
        "train_cfg.max_epochs": 1,
        "custom_hooks": [{"type": "TopoNetCheckHook"}],
        "model.backbone.pretrained": str(nano.pth),
        "model.roi_head.bbox_head.num_classes": 2,
        "metainfo": {"classes": CLASSES},
        **{f"{part}_dataloader.dataset.metainfo": {"classes": CLASSES} for part in ("train", "val", "test")},
    }
    config = small_config(NANO, coco, folder / "run", options)
    (folder / "run").mkdir()
    config.dump(folder / "run" / "config.py")
    train(config)
    return _in_run(BLOCK.replace("epoch_12.pth", "epoch_1.pth"))


def train_detectron2(folder, coco, nano):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from tests.detectron2.helpers import write_run

    write_run(folder / "run", nano)
    names = f'"published", classes={list(CLASSES)}'  # its checkpoints do not hold them
    code = BLOCK.replace("topodet.mmdet", "topodet.detectron2").replace('"published"', names)
    return _in_run(code.replace("epoch_12.pth", "model_final.pth")).replace("config.py", "config.yaml")


def _in_run(code):
    return code.replace('"runs/mine"', '"run"').replace("mine.py", "config.py")


@pytest.mark.slow
@pytest.mark.parametrize("train", [train_mmdet, train_detectron2])
def test_the_same_lines(train, tmp_path, monkeypatch, capsys):
    coco = write_coco(tmp_path / "set", CLASSES)
    code = train(tmp_path, coco, published(tmp_path, "toponet_nano"))
    images = [path.rename(path.with_name(f"{k}.jpg")) for k, path in enumerate(sorted((coco / "images").iterdir()))]
    (coco / "all.json").rename(tmp_path / "val.json")
    (coco / "images").rename(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    names: dict = {}
    exec(compile(code.replace("score_threshold=0.3", "score_threshold=0"), "own_data.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()[-1]
    assert set(json.loads(printed.replace("'", '"').replace("nan", "NaN"))) >= {"bbox/AP", "bbox/AP50", "bbox/AP75"}
    assert len(names["found"]) > 0
    with Image.open("drawn.png") as drawn, Image.open(Path("images") / images[1].name) as image:
        assert drawn.size == image.size
