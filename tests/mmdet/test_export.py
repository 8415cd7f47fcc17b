import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.registry import MODELS
from PIL import Image

from tests.commands.helpers import run_command
from tests.detection import noise_images, spread_out, write_coco
from tests.mmdet.helpers import NANO, narrow, small_config
from topodet.detections import Detections
from topodet.errors import ConfigError, DataError
from topodet.mmdet import export_detector, load_detector, predict
from topodet.mmdet.export import traceable
from topodet.models.calibrate import calibrate_batchnorm

CLASSES = ["person", "bicycle"]
TWO_STAGES = {"rpn_cls": 3.0, "rpn_reg": 0.3, "fc_cls": 3.0, "fc_reg": 0.5}
# The layers whose outputs `spread_out` scales.
KINDS = {
    "faster": (NANO, TWO_STAGES),
    "mask": ("mask-rcnn_toponet50-adaptive_fpn_1x_coco", {**TWO_STAGES, "conv_logits": 2.0}),
    "retinanet": ("retinanet_toponet50-adaptive_fpn_1x_coco", {"retina_cls": 2.0, "retina_reg": 0.3}),
    "cascade": ("cascade-rcnn_toponet50-adaptive_fpn_1x_coco", TWO_STAGES),
}


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """Return a detector of a kind, made once."""
    coco = write_coco(tmp_path_factory.mktemp("coco") / "set")
    made = {}

    def get(kind):
        if kind not in made:
            torch.manual_seed(0)
            name, heads = KINDS[kind]
            folder = tmp_path_factory.mktemp(kind)
            config = narrow(small_config(name, coco, folder))
            model = MODELS.build(config.model)
            model.init_weights()
            meta = {"dataset_meta": {"classes": CLASSES}}
            torch.save({"state_dict": model.state_dict(), "meta": meta}, folder / "epoch_1.pth")
            config.dump(folder / "config.py")
            made[kind] = load_detector(folder / "epoch_1.pth", config=folder / "config.py", device="cpu")
            calibrate_batchnorm(made[kind], predict, made[kind], noise_images()[0])
            spread_out(made[kind], lambda image: predict(made[kind], image), heads)
        return made[kind]

    return get


@pytest.fixture(scope="module")
def images():
    return noise_images()


def as_input(image):
    """The network's input: images of this height are not resized."""
    return image.astype(np.float32).transpose(2, 0, 1).copy()


def sides(boxes):
    """Return the shorter side of each box."""
    return (boxes[:, 2:] - boxes[:, :2]).min(axis=1)


def check(outputs, detector, image):
    """Compare with what MMDetection finds in the image, through its own pipeline."""
    found = predict(detector, image, score_threshold=0)
    # Whether the image's border leaves a thousandth of a pixel of a box, or nothing, is a matter of rounding.
    kept = np.flatnonzero(sides(found.boxes) > 0.5)
    masks = None if found.masks is None else found.masks[kept]
    theirs = Detections(found.boxes[kept], found.scores[kept], found.labels[kept], masks)
    order = np.argsort(-outputs["scores"], kind="stable")
    order = order[sides(outputs["boxes"][order]) > 0.5]
    assert len(theirs) == len(order) > 5
    assert np.allclose(outputs["scores"][order], theirs.scores, atol=1e-4)
    assert np.allclose(outputs["boxes"][order], theirs.boxes, atol=1e-2)
    assert (outputs["labels"][order] == theirs.labels).all()
    assert outputs["image_size"].tolist() == list(image.shape[:2])
    assert ("masks" in outputs) == (theirs.masks is not None)
    if theirs.masks is not None:
        masks, boxes = torch.from_numpy(outputs["masks"][order]), torch.from_numpy(theirs.boxes)
        pasted = _do_paste_mask(masks, boxes, *image.shape[:2], skip_empty=False)[0].numpy() >= 0.5
        assert theirs.masks.any()
        assert (pasted != theirs.masks).mean() < 1e-4


@pytest.mark.parametrize("kind", ["mask", "retinanet", "cascade"])
def test_onnx_in_onnxruntime(detectors, images, kind, tmp_path):
    detector = detectors(kind)
    content = export_detector(detector, images[0], tmp_path / "m.onnx", format="onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.onnx.json"}
    assert json.loads((tmp_path / "m.onnx.json").read_text()) == content
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == content["outputs"]
    check(dict(zip(content["outputs"], session.run(None, {"image": as_input(images[1])}))), detector, images[1])
    assert content["compared"]["score"] <= 1e-4
    assert content["compared"]["boxes"] == len(predict(detector, images[0], score_threshold=0))
    assert content["classes"] == CLASSES
    assert content["input"] == {
        "name": "image",
        "dtype": "float32",
        "layout": "CHW, 0..255, any size",
        "channel_order": "RGB",
        "short_side": 64,
        "long_side_at_most": 96,
    }


@pytest.mark.parametrize("kind", ["mask", "retinanet"])
def test_torchscript(detectors, images, kind, tmp_path):
    detector = detectors(kind)
    content = export_detector(detector, images[0], tmp_path / "m.ts", format="torchscript")
    read = torch.jit.load(tmp_path / "m.ts")
    outputs = [output.numpy() for output in read(torch.from_numpy(as_input(images[1])))]
    check(dict(zip(content["outputs"], outputs)), detector, images[1])
    # What torch and torchvision have, and nothing of mmcv.
    assert set(re.findall(r"= (\w+)::", str(read.inlined_graph))) <= {"aten", "prim", "torchvision"}


def test_the_command(detectors, images, tmp_path, capsys):
    """And the detector is left as it was."""
    detector = detectors("faster")
    before = predict(detector, images[0], score_threshold=0)
    meta = {"dataset_meta": {"classes": CLASSES}}
    torch.save({"state_dict": detector.state_dict(), "meta": meta}, tmp_path / "epoch_1.pth")
    Image.fromarray(images[0]).save(tmp_path / "sample.png")
    options = ["--weights", tmp_path / "epoch_1.pth", "--config", detector.cfg.filename, "--output", tmp_path / "out"]
    assert run_command("export", [*options, "--sample", tmp_path / "sample.png", "--format", "onnx"]) == 0
    assert f"{len(before)} boxes equal the original's" in capsys.readouterr().out
    names = json.loads((tmp_path / "out" / "epoch_1.onnx.json").read_text())["outputs"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "epoch_1.onnx", providers=["CPUExecutionProvider"])
    check(dict(zip(names, session.run(None, {"image": as_input(images[1])}))), detector, images[1])
    export_detector(detector, images[0], tmp_path / "m.ts")
    assert np.array_equal(predict(detector, images[0], score_threshold=0).boxes, before.boxes)
    assert all(parameter.requires_grad for parameter in detector.roi_head.parameters())


def test_what_cannot_be_exported_is_told(detectors, images, tmp_path):
    detector = detectors("faster")
    with pytest.raises(ConfigError, match="Did you mean 'onnx'"):
        export_detector(detector, images[0], tmp_path / "m", format="onxx")
    suppression = detector.test_cfg.rcnn.nms
    for changes in ({"type": "soft_nms"}, {"max_num": 3}):
        detector.test_cfg.rcnn.nms = {**suppression, **changes}
        with pytest.raises(ConfigError, match="nms=.*cannot be exported: only type 'nms'"):
            export_detector(detector, images[0], tmp_path / "m")
    detector.test_cfg.rcnn.nms = suppression
    with pytest.raises(ConfigError, match="FCOSHead cannot be exported"):
        traceable(MODELS.build(FCOS))
    quiet = detector.test_cfg.rcnn.score_thr
    detector.test_cfg.rcnn.score_thr = 1.0
    with pytest.raises(DataError, match="finds nothing in the sample image"):
        export_detector(detector, images[0], tmp_path / "m")
    detector.test_cfg.rcnn.score_thr = quiet
    assert not list(tmp_path.iterdir())


FCOS = {
    "type": "FCOS",
    "data_preprocessor": {"type": "DetDataPreprocessor"},
    "backbone": {"type": "TopoNet", "arch": "toponet_nano"},
    "neck": {"type": "FPN", "in_channels": [32, 64, 128, 256], "out_channels": 8, "num_outs": 5},
    "bbox_head": {"type": "FCOSHead", "num_classes": 2, "in_channels": 8, "feat_channels": 32, "stacked_convs": 1},
    "test_cfg": {"nms_pre": 10, "score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 10},
}
