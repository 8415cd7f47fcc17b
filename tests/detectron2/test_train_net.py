"""`topodet train-net` as a user calls it."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.detectron2.helpers import ROOT, SMALL, metrics
from topodet import cli, weights
from topodet.detectron2 import load_config, register_dataset
from topodet.detectron2.train_net import set_epochs
from topodet.errors import ConfigError

# What a config file would say; a file of its own, as users have.
CONFIG = "config.yaml"


def write_config(folder, **changes):
    nested = {"VERSION": 2}
    for name, value in {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        *path, last = name.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    (folder / CONFIG).write_text(json.dumps(nested))
    return folder / CONFIG


def words(config, coco, output, *arguments):
    """Return the command line."""
    command = [
        "train-net",
        "--config-file",
        config,
        "--dataset",
        "mine",
        coco / "all.json",
        coco / "images",
        *arguments,
    ]
    command += ["OUTPUT_DIR", output, "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)"]
    return [str(word) for word in command]


@pytest.fixture(scope="module")
def trained(coco, nano, tmp_path_factory):
    """Two steps, a checkpoint after each and an evaluation."""
    folder = tmp_path_factory.mktemp("run")
    config = write_config(
        folder,
        MODEL__TOPONET__PRETRAINED=str(nano.pth),
        MODEL__TOPONET__SPARSITY="adaptive",
        SOLVER__CHECKPOINT_PERIOD=1,
        TEST__EVAL_PERIOD=2,
    )
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), *words(config, coco, folder / "out")[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return config, folder / "out", done.stdout


def test_trains_and_evaluates(trained, nano):
    _, out, output = trained
    assert f"tensors loaded from {nano.pth}" in output
    rows = metrics(out)
    assert sum("bbox/AP" in row for row in rows) == 1
    assert any(row.get("total_loss", 0) > 0 for row in rows)
    results = json.loads((out / "inference" / "coco_instances_results.json").read_text())
    assert results
    assert all({"image_id", "category_id", "bbox", "score"} <= set(result) for result in results)
    checkpoint = weights.read_checkpoint(out / "model_final.pth")
    assert checkpoint["iteration"] == 1
    assert checkpoint["card"] == weights.read(nano.pth).card


def test_resume_goes_on_where_it_stopped(trained, coco, tmp_path):
    config, out, _ = trained
    (tmp_path / "model_0000000.pth").write_bytes((out / "model_0000000.pth").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000000.pth")
    assert cli.main(words(config, coco, tmp_path, "--resume")) == 0
    log = (tmp_path / "log.txt").read_text()
    assert "Starting training from iteration 1" in log
    assert "127/127 tensors of the backbone are in the checkpoint" in log
    first, straight, resumed = (
        weights.read_checkpoint(path)
        for path in (out / "model_0000000.pth", out / "model_final.pth", tmp_path / "model_final.pth")
    )
    assert [checkpoint["iteration"] for checkpoint in (first, straight, resumed)] == [0, 1, 1]
    # The set is one batch, but for flips: the second step is the same up to the drawn flips, and far from a first one.
    for checkpoint in (straight, resumed):
        state = checkpoint["trainer"]
        assert state["iteration"] == 1
        assert state["hooks"]["LRScheduler"] == straight["trainer"]["hooks"]["LRScheduler"]
        moved = {
            name: not torch.equal(tensor, first["model"][name])
            for name, tensor in checkpoint["model"].items()
            if name.endswith("conv_pw.weight")
        }
        assert all(moved.values())
    momenta = [c["trainer"]["_trainer"]["optimizer"]["state"] for c in (first, resumed)]
    assert momenta[0].keys() == momenta[1].keys()


def test_evaluates_a_checkpoint(trained, coco, tmp_path):
    config, out, _ = trained
    # A backbone that is on another machine is not asked for: the checkpoint has all.
    arguments = ["--eval-only", "MODEL.WEIGHTS", out / "model_final.pth", "MODEL.TOPONET.PRETRAINED", "elsewhere.pth"]
    assert cli.main(words(config, coco, tmp_path, *arguments)) == 0
    found = [(folder / "inference" / "coco_instances_results.json").read_text() for folder in (out, tmp_path)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MODEL.TOPONET.ARHC", "toponet50"), "Did you mean 'MODEL.TOPONET.ARCH'"),
        (("MODEL.TOPONET.ARCH", "toponet51"), "unknown arch 'toponet51'. Did you mean 'toponet50'"),
        (("INPUT.FORMAT", "BGR"), "the detector feeds BGR images, the weights were trained on RGB"),
        (("MODEL.ROI_HEADS.NUM_CLASSES", "80"), "add MODEL.ROI_HEADS.NUM_CLASSES 2"),
        (("MODEL.DEVICE", "cuda"), "add MODEL.DEVICE cpu"),
        (("--dataset", "other", "nowhere.json", "nowhere"), "nowhere.json"),
        (("--dataset", "other", "", "nowhere"), "--dataset 'other' '' 'nowhere': one of the three is empty"),
        (("--dataset", "other", "nowhere.json", ""), "'nowhere.json' '': one of the three is empty"),
        (("--eval-only", "INPUT.FORMAT", "BGR", "MODEL.WEIGHTS", "{out}/model_final.pth"), "feeds BGR images"),
    ],
)
def test_bad_input_is_one_error_and_status_1(arguments, message, trained, coco, tmp_path, capsys, monkeypatch):
    if "cuda" in arguments:  # no bad input where there is a GPU
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, out, _ = trained
    arguments = [word.format(out=out) for word in arguments]
    assert cli.main(words(config, coco, tmp_path, *arguments)) == 1
    captured = capsys.readouterr().err
    assert captured[captured.index("error: ") :].count("error: ") == 1
    assert message in captured
    assert not (tmp_path / "metrics.json").exists()


def test_epochs_are_passes_over_the_images(coco, tmp_path):
    """Two images in batches of one: two iterations an epoch; the config's steps move along."""
    config = write_config(tmp_path, SOLVER__IMS_PER_BATCH=1, SOLVER__MAX_ITER=100, SOLVER__WARMUP_ITERS=50)
    cfg = load_config(config, ["DATASETS.TRAIN", "('epochs',)", "SOLVER.STEPS", "(50, 90)"])
    register_dataset("epochs", coco / "all.json", coco / "images")
    set_epochs(cfg, 10)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS) == (20, (10, 18), 4)
    set_epochs(cfg, 1)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS) == (2, (1,), 1)
    with pytest.raises(ConfigError, match="--epochs 0 must be at least 1"):
        set_epochs(cfg, 0)
