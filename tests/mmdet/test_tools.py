"""MMDetection's own command line tools, unmodified, with a shipped config."""

import re
import runpy
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.runner import Runner

from tests.mmdet.helpers import CONFIGS, NANO, data_options, small_config
from topodet.errors import ConfigError

TOOLS = Path(mmdet.__file__).parent / ".mim" / "tools"


def call(tool, *arguments, options, work_dir):
    """Run a tool as `python TOOL` does, in this process, and return its log."""
    words = [TOOLS / tool, CONFIGS / f"{NANO}.py", *arguments, "--work-dir", work_dir, "--cfg-options"]
    words += [f"{name}={value}" for name, value in options.items()]
    # Loggers, message hubs and visualizers live as long as the process and are found by name.
    words += [f"{key}={work_dir}_{tool}".replace("/", "_") for key in ("experiment_name", "visualizer.name")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, words)))
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    log = max(work_dir.glob("*/*.log"), key=lambda path: path.stat().st_mtime_ns)
    return log.read_text()


@pytest.fixture(scope="module")
def first_epoch(digits, nano, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("work")
    options = {
        **data_options(digits),
        "model.backbone.pretrained": nano.pth,
        "train_cfg.max_epochs": 1,
        "default_hooks.logger.interval": 1,
        "default_hooks.checkpoint.max_keep_ckpts": 2,
        "randomness.seed": 0,
    }
    return work_dir, options, call("train.py", options=options, work_dir=work_dir)


@pytest.mark.slow
def test_training_says_what_it_loaded_and_leaves_its_record(first_epoch, nano):
    work_dir, _, output = first_epoch
    tensors = len(torch.load(nano.pth, weights_only=True)["state_dict"])
    assert f"topodet: {tensors}/{tensors} tensors loaded from {nano.pth}" in output
    assert re.search(r"Epoch\(train\) +\[1\]\[1/1\].* loss: .* sparsity_penalty: 0\.0", output)
    assert "coco/bbox_mAP" in output
    assert (work_dir / "epoch_1.pth").is_file()
    assert {p.name for p in (work_dir / "alpha").iterdir()} >= {"adjacency_epoch001.png", "alpha_epoch001.png"}
    assert list(work_dir.glob("*/vis_data/events.out.tfevents.*"))


@pytest.mark.slow
def test_testing_needs_the_weights_file_no_more(first_epoch, tmp_path):
    work_dir, options, _ = first_epoch
    options = {**options, "model.backbone.pretrained": None}
    assert "coco/bbox_mAP" in call("test.py", work_dir / "epoch_1.pth", options=options, work_dir=tmp_path)


def test_a_checkpoint_remembers_its_preprocessing(first_epoch, digits, tmp_path):
    work_dir, _, _ = first_epoch
    options = {"load_from": str(work_dir / "epoch_1.pth"), "model.data_preprocessor.bgr_to_rgb": False}
    runner = Runner.from_cfg(small_config(NANO, digits, tmp_path, options))
    with pytest.raises(ConfigError, match="the detector feeds BGR images, the weights were trained on RGB"):
        runner.test()


@pytest.mark.slow
def test_resuming(first_epoch):
    work_dir, options, _ = first_epoch
    output = call("train.py", "--resume", options={**options, "train_cfg.max_epochs": 2}, work_dir=work_dir)
    assert "resumed epoch: 1" in output
    assert re.search(r"Epoch\(train\) +\[2\]\[1/1\]", output)
    assert (work_dir / "epoch_2.pth").is_file()
