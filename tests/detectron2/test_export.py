import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from tests.commands.helpers import run_command
from tests.detection import noise_images, spread_out
from tests.detectron2.helpers import CLASSES, RETINANET, small_config, write_run
from topodet import weights
from topodet.detectron2 import export_detector, load_detector
from topodet.errors import ConfigError

KINDS = {
    "faster": {},
    "mask": {"MODEL__MASK_ON": True},
    "retinanet": RETINANET,
}
# What a program without Detectron2 and topodet does.
DEPLOYED = """
import sys, numpy, torch, torchvision
outputs = torch.jit.load(sys.argv[1])(torch.from_numpy(numpy.load(sys.argv[2])))
numpy.savez(sys.argv[3], *[output.numpy() for output in outputs])
assert not any(name.startswith("detectron2") or name == "topodet" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def detectors(tmp_path_factory, nano):
    """Return the predictor of a kind of detector, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            torch.manual_seed(0)
            folder = write_run(tmp_path_factory.mktemp(kind), nano, **KINDS[kind])
            file = weights.read(folder / "model_final.pth")
            cfg = small_config(**KINDS[kind])
            made[kind] = load_detector(file, config=cfg, classes=CLASSES, score_threshold=0.05, device="cpu")
            for name, parameter in made[kind].model.named_parameters():
                if "_subnet" in name and parameter.ndim > 1:  # by Detectron2's initial values nothing gets through
                    torch.nn.init.kaiming_normal_(parameter)
            spread_out(made[kind].model, made[kind], {"cls_score": 3.0, "bbox_pred": 0.5})
        return made[kind]

    return get


@pytest.fixture(scope="module")
def images():
    return noise_images()


def as_input(image):
    """The network's input: images of this height are not resized."""
    return image.astype(np.float32).transpose(2, 0, 1).copy()


def run_in_another_process(folder, image):
    np.save(folder / "in.npy", as_input(image))
    command = [sys.executable, "-W", "ignore", "-c", DEPLOYED, "m.ts", "in.npy", "out.npz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "out.npz").values()


def run_here(folder, image):
    return [output.numpy() for output in torch.jit.load(folder / "m.ts")(torch.from_numpy(as_input(image)))]


@pytest.mark.parametrize(
    ("kind", "run"), [("faster", run_in_another_process), ("mask", run_here), ("retinanet", run_here)]
)
def test_torchscript(detectors, images, kind, run, tmp_path):
    predictor = detectors(kind)
    content = export_detector(predictor, images[0], tmp_path / "m.ts", format="torchscript")
    assert json.loads((tmp_path / "m.ts.json").read_text()) == content
    outputs = dict(zip(content["outputs"], run(tmp_path, images[1])))
    theirs = predictor(images[1][:, :, ::-1])["instances"]
    assert len(theirs) == len(outputs["scores"]) > 0
    assert np.allclose(outputs["scores"], theirs.scores, atol=1e-5)
    assert np.allclose(outputs["boxes"], theirs.pred_boxes.tensor, atol=1e-3)
    assert (outputs["labels"] == theirs.pred_classes.numpy()).all()
    assert outputs["image_size"].tolist() == [64, 70]
    assert ("masks" in outputs) == (kind == "mask")


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_in_onnxruntime(detectors, images, kind, tmp_path):
    predictor = detectors(kind)
    content = export_detector(predictor, images[0], tmp_path / "m.onnx", format="onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.onnx.json"}
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == content["outputs"]
    outputs = dict(zip(content["outputs"], session.run(None, {"image": as_input(images[1])})))
    theirs = predictor(images[1][:, :, ::-1])["instances"]
    assert len(theirs) == len(outputs["scores"]) > 0
    assert np.allclose(outputs["scores"], theirs.scores, atol=1e-4)
    assert content["compared"]["score"] <= 1e-4
    assert content["compared"]["boxes"] == len(predictor(images[0][:, :, ::-1])["instances"])
    assert content["classes"] == CLASSES
    assert content["input"]["channel_order"] == "RGB"


def test_the_model_is_left_as_it_was(detectors, images, tmp_path):
    predictor = detectors("faster")
    before = predictor(images[0])["instances"]
    export_detector(predictor, images[0], tmp_path / "m.onnx", format="onnx")
    assert torch.equal(predictor(images[0])["instances"].pred_boxes.tensor, before.pred_boxes.tensor)
    assert not any(module.training for module in predictor.model.modules())


def test_requests_that_cannot_be_met(detectors, images, tmp_path):
    predictor = detectors("faster")
    with pytest.raises(ConfigError, match="Did you mean 'onnx'"):
        export_detector(predictor, images[0], tmp_path / "m", format="onxx")
    with pytest.raises(ConfigError, match="at least 16"):
        export_detector(predictor, images[0], tmp_path / "m", format="onnx", opset=11)
    with pytest.raises(ConfigError, match="opset 99 cannot be written"):
        export_detector(predictor, images[0], tmp_path / "m", format="onnx", opset=99)
    assert not list(tmp_path.iterdir())


def test_the_tool(tmp_path, nano, images, capsys):
    folder = write_run(tmp_path / "run", nano)
    Image.fromarray(images[0]).save(tmp_path / "sample.png")
    out = tmp_path / "out"
    arguments = [
        "--weights",
        folder / "model_final.pth",
        "--config",
        folder / "config.yaml",
        "--classes",
        *CLASSES,
    ]
    arguments = [*map(str, arguments), "--output", str(out), "--sample"]
    assert (
        run_command(
            "export", [*arguments, str(tmp_path / "sample.png"), "--opts", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"]
        )
        == 0
    )
    assert {path.name for path in out.iterdir()} == {"model_final.ts", "model_final.ts.json"}
    assert "boxes equal the original's" in capsys.readouterr().out
    assert run_command("export", [*arguments, str(tmp_path / "missing.png")]) == 1
    assert "missing.png" in capsys.readouterr().err
    assert (
        run_command("export", [*arguments, str(tmp_path / "sample.png"), "--score-threshold", "1", "--name", "x"]) == 1
    )
    assert "finds nothing in the sample image" in capsys.readouterr().err
    assert len(list(out.iterdir())) == 2
