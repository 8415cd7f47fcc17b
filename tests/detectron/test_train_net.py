"""tools/train_net.py as a user calls it."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.detectron.helpers import ROOT, SMALL, metrics
from topodet import weights

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


def call(config, coco, output, *arguments):
    command = [sys.executable, ROOT / "tools" / "train_net.py", "--config-file", config]
    command += ["--dataset", "mine", coco / "all.json", coco / "images", *arguments]
    command += ["OUTPUT_DIR", output, "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, timeout=300)
    return done.returncode, done.stdout + done.stderr


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
    code, output = call(config, coco, folder / "out")
    assert code == 0, output
    return config, folder / "out", output


def test_trains_and_evaluates(trained, nano):
    _, out, output = trained
    assert "127/127 tensors loaded from" not in output  # with statistics that are trained there are no frozen layers
    assert f"tensors loaded from {nano.pth}" in output
    row = metrics(out)[-1]
    assert row["iteration"] == 2 - 1 or row["iteration"] == 2
    assert row["total_loss"] > 0
    assert 0 <= row["bbox/AP"] <= 100
    results = json.loads((out / "inference" / "coco_instances_results.json").read_text())
    assert all({"image_id", "category_id", "bbox", "score"} <= set(result) for result in results)
    checkpoint = weights.read_checkpoint(out / "model_final.pth")
    assert checkpoint["iteration"] == 1
    assert checkpoint["card"] == weights.read(nano.pth).card


def test_resume_goes_on_with_optimizer_schedule_and_iteration(trained, coco, tmp_path):
    config, out, _ = trained
    for name in ("model_0000000.pth", "last_checkpoint"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000000.pth")
    code, output = call(config, coco, tmp_path, "--resume")
    assert code == 0, output
    assert "Starting training from iteration 1" in output
    straight, resumed = (torch.load(f / "model_final.pth", weights_only=True) for f in (out, tmp_path))
    assert resumed["iteration"] == straight["iteration"] == 1
    assert (
        resumed["scheduler" if "scheduler" in resumed else "trainer"].keys()
        == straight["scheduler" if "scheduler" in straight else "trainer"].keys()
    )
    momentum = [c["trainer"]["_trainer"]["optimizer"]["state"] for c in (straight, resumed)]
    assert momentum[0].keys() == momentum[1].keys()


def test_evaluates_a_checkpoint(trained, coco, tmp_path):
    config, out, _ = trained
    model = out / "model_final.pth"
    # A backbone that is on another machine is not asked for: the checkpoint has all.
    arguments = ("--eval-only", "MODEL.WEIGHTS", model, "MODEL.TOPONET.PRETRAINED", "elsewhere.pth")
    code, output = call(config, coco, tmp_path, *arguments)
    assert code == 0, output
    assert "tensors of the backbone are in the checkpoint" in output
    assert (tmp_path / "inference" / "coco_instances_results.json").read_text() == (
        out / "inference" / "coco_instances_results.json"
    ).read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("MODEL.TOPONET.ARHC", "toponet50"), "Did you mean 'MODEL.TOPONET.ARCH'"),
        (("MODEL.TOPONET.ARCH", "toponet51"), "unknown arch 'toponet51'. Did you mean 'toponet50'"),
        (("INPUT.FORMAT", "BGR"), "the detector feeds BGR images, the weights were trained on RGB"),
        (("MODEL.ROI_HEADS.NUM_CLASSES", "80"), "add MODEL.ROI_HEADS.NUM_CLASSES 2"),
        (("MODEL.DEVICE", "cuda"), "add MODEL.DEVICE cpu"),
        (("--dataset", "other", "nowhere.json", "nowhere"), "nowhere.json"),
        (("--eval-only", "INPUT.FORMAT", "BGR", "MODEL.WEIGHTS", "{out}/model_final.pth"), "feeds BGR images"),
    ],
)
def test_bad_input_is_one_line_and_status_1(arguments, words, trained, coco, tmp_path):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    config, out, _ = trained
    code, output = call(config, coco, tmp_path, *(word.format(out=out) for word in arguments))
    assert code == 1, output
    assert "Traceback" not in output
    error = output[output.rindex("\nerror: ") :]
    assert words in error
    assert not (tmp_path / "metrics.json").exists()
