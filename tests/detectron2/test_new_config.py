import shlex

import pytest

from tests.detection import coco
from topodet import cli
from topodet.detectron2 import load_config

__all__ = ["coco"]


@pytest.mark.slow
def test_what_it_writes_and_prints_trains(coco, tmp_path, capsys, monkeypatch):
    """Two iterations and an evaluation, by the command that is printed."""
    monkeypatch.chdir(tmp_path)
    data = ["--train", coco / "all.json", "--val", coco / "all.json", "--images", coco / "images"]
    command = ["new-config", "--framework", "detectron2", *data, "--backbone", "toponet_nano", "--batch", "1"]
    assert cli.main([*map(str, command), "--epochs", "1", "--output", "mine.yaml"]) == 0
    program, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert program == "topodet"
    assert cli.main([*words, "DATALOADER.NUM_WORKERS", "0"]) == 0
    assert (tmp_path / "runs" / "mine" / "model_final.pth").is_file()
    cfg = load_config("mine.yaml")
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert cfg.SOLVER.MAX_ITER == 2
    assert (cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.TOPONET.PRETRAINED) == (2, "topodet")
