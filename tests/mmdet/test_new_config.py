import shlex
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from tests.detection import coco, nano
from tests.mmdet.helpers import train
from topodet import cli

__all__ = ["coco", "nano"]


@pytest.mark.slow
def test_what_it_writes_trains(coco, nano, tmp_path, capsys):
    """Two iterations and an evaluation from a published backbone, by MMEngine's runner, and the printed command."""
    path = tmp_path / "mine.py"
    data = ["--train", coco / "all.json", "--val", coco / "all.json", "--images", coco / "images"]
    command = ["new-config", "--framework", "mmdet", *data, "--weights", nano.pth, "--batch", "1", "--epochs", "1"]
    assert cli.main([*map(str, command), "--output", str(path)]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words == ["python", words[1], str(path), "--work-dir", "runs/mine"]
    assert Path(words[1]) == Path(mmdet.__file__).parent / ".mim" / "tools" / "train.py"
    assert Path(words[1]).is_file()

    config = Config.fromfile(path, format_python_code=False)
    assert config.model.roi_head.bbox_head.num_classes == 2
    config.work_dir = str(tmp_path / "run")
    for loader in ("train_dataloader", "val_dataloader"):
        config[loader].update(num_workers=0, persistent_workers=False)
    runner = train(config)
    assert runner.iter == 2
    assert (tmp_path / "run" / "epoch_1.pth").is_file()
    (log,) = tmp_path.rglob("*.log")
    assert "147/147 tensors loaded" in log.read_text()
    assert "topodet: weight decay" not in log.read_text()
    assert "topodet: the warm-up" not in log.read_text()
