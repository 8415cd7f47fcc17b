"""MMDetection's own command line tools, unmodified, with a shipped config."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.runner import Runner

from tests.mmdet.helpers import CONFIGS, NANO, ROOT, data_options, small_config
from topodet.errors import ConfigError

TOOLS = Path(mmdet.__file__).parent / ".mim" / "tools"


def call(tool, *arguments, options):
    command = [sys.executable, TOOLS / tool, CONFIGS / f"{NANO}.py", *arguments, "--cfg-options"]
    command += [f"{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, timeout=300)
    return done.returncode, done.stdout + done.stderr


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
    code, output = call("train.py", "--work-dir", work_dir, options=options)
    assert code == 0, output
    return work_dir, options, output


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
    code, output = call("test.py", work_dir / "epoch_1.pth", "--work-dir", tmp_path, options=options)
    assert code == 0, output
    assert "coco/bbox_mAP" in output


def test_a_checkpoint_remembers_its_preprocessing(first_epoch, digits, tmp_path):
    work_dir, _, _ = first_epoch
    options = {"load_from": str(work_dir / "epoch_1.pth"), "model.data_preprocessor.bgr_to_rgb": False}
    runner = Runner.from_cfg(small_config(NANO, digits, tmp_path, options))
    with pytest.raises(ConfigError, match="the detector feeds BGR images, the weights were trained on RGB"):
        runner.test()


@pytest.mark.slow
def test_resuming(first_epoch):
    work_dir, options, _ = first_epoch
    code, output = call("train.py", "--work-dir", work_dir, "--resume", options={**options, "train_cfg.max_epochs": 2})
    assert code == 0, output
    assert "resumed epoch: 1" in output
    assert re.search(r"Epoch\(train\) +\[2\]\[1/1\]", output)
    assert (work_dir / "epoch_2.pth").is_file()
