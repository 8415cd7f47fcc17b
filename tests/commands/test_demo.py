"""Commands that open a detector, with MMDetection's; tests/detectron2 has Detectron2's. And the demo's own work."""

import csv
import importlib.util
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands.helpers import run_command
from tests.detection import IMAGENET, with_ground_truth, write_coco
from topodet import connectivity, weights
from topodet.analysis.report import open_subject
from topodet.commands import demo
from topodet.connectivity import wirings
from topodet.datasets.images import read_image
from topodet.errors import DataError, WeightsError

SIZE = (96, 64)
CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with two images (PNG: every reader reads the same), one of them in a subfolder."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for path in (folder / "a.png", folder / "sub" / "b.png"):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Config and checkpoint that MMDetection's training left."""
    pytest.importorskip("mmdet", reason="needs the mmdet extra")
    from tests.mmdet.helpers import NANO, small_config, train

    folder = tmp_path_factory.mktemp("mmdet")
    coco = write_coco(folder / "set", classes=tuple(CLASSES))
    config = small_config(NANO, coco, folder / "work", {"train_cfg.max_epochs": 1})
    config.dump(folder / "config.py")
    train(config)
    return folder / "config.py", folder / "work" / "epoch_1.pth"


def call(trained, images, output, *more):
    config, checkpoint = trained
    arguments = ["--config", config, "--weights", checkpoint, "--input", images, "--output", output, *more]
    return run_command("demo", [*arguments, "--device", "cpu"])


def test_mmdetection_finds_what_it_finds_by_itself(trained, images, tmp_path):
    from mmdet.apis import inference_detector, init_detector

    assert call(trained, images, tmp_path, "--score-threshold", "0.05") == 0
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")} == {"a.png", "sub/b.png"}
    with Image.open(tmp_path / "a.png") as drawn, Image.open(images / "a.png") as before:
        assert drawn.size == before.size
        assert np.any(np.array(drawn) != np.array(before))
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert written["classes"] == CLASSES
    assert [(i["id"], i["width"], i["height"]) for i in written["images"]] == [(0, *SIZE), (1, *SIZE)]
    model = init_detector(*map(str, trained), device="cpu")
    for number, path in enumerate((images / "a.png", images / "sub" / "b.png")):
        theirs = inference_detector(model, str(path)).pred_instances
        theirs = theirs[theirs.scores >= 0.05]
        ours = [row for row in written["predictions"] if row["image_id"] == number]
        assert len(ours) == len(theirs) > 0
        assert {row["file_name"] for row in ours} == {str(path)}
        boxes = theirs.bboxes.clone()
        boxes[:, 2:] -= boxes[:, :2]
        assert torch.allclose(torch.tensor([row["bbox"] for row in ours]), boxes, atol=0.01)
        assert torch.allclose(torch.tensor([row["score"] for row in ours]), theirs.scores, atol=1e-4)
        assert [row["category_name"] for row in ours] == [CLASSES[k] for k in theirs.labels]


def test_a_threshold_above_every_score_is_told(trained, images, tmp_path, capsys):
    content = torch.load(trained[1], weights_only=False)  # the test's own
    for name, tensor in content["state_dict"].items():
        if "fc_cls" in name:
            tensor.zero_()  # ten digits and background, equally likely
    torch.save(content, tmp_path / "unsure.pth")
    assert call((trained[0], tmp_path / "unsure.pth"), images, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "2 images, 0 boxes" in printed
    assert f"no score reaches --score-threshold 0.5; the highest is {1 / 11:.3f}\n" in printed


def test_a_damaged_image_is_named_and_the_others_are_drawn(trained, images, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    (tmp_path / "in" / "fine.png").write_bytes((images / "a.png").read_bytes())
    assert call(trained, tmp_path / "in", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"cannot read the image {tmp_path / 'in' / 'broken.jpg'}" in error
    assert "1 of 2 images" in error
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"fine.png", "predictions.json"}


def test_options_of_an_mmdetection_config(trained, images, tmp_path, capsys):
    assert call(trained, images, tmp_path, "--score-threshold", "0", "--opts", "model.test_cfg.rcnn.max_per_img=1") == 0
    assert len(json.loads((tmp_path / "predictions.json").read_text())["predictions"]) == 2
    assert call(trained, images, tmp_path, "--opts", "model.test_cfg", "1") == 1
    assert "KEY=VALUE" in capsys.readouterr().err


class Evil:
    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


def test_pickled_objects_of_a_checkpoint_are_left_out(trained, tmp_path):
    content = torch.load(trained[1], weights_only=False)  # the test's own
    mark = tmp_path / "ran"
    torch.save({**content, "message_hub": Evil(eval, f"__import__('os').mkdir({str(mark)!r})")}, tmp_path / "a.pth")
    assert weights.read_trained(tmp_path / "a.pth").state_dict.keys() == content["state_dict"].keys()
    torch.save({**content, "message_hub": Evil(os.mkdir, str(mark))}, tmp_path / "b.pth")
    assert weights.read_trained(tmp_path / "b.pth").state_dict.keys() == content["state_dict"].keys()
    assert not mark.exists()
    with pytest.raises(WeightsError, match="no weights file"):
        weights.read_trained(tmp_path / "missing.pth")
    (tmp_path / "c.pth").write_bytes(b"half")
    with pytest.raises(WeightsError, match="c.pth"):
        weights.read_trained(tmp_path / "c.pth")


def test_the_wiring_of_a_checkpoint_can_be_looked_at(trained, tmp_path):
    subject = open_subject(str(trained[1]))
    assert subject.kind == "backbone of a detector"
    tensors = weights.extract_backbone(weights.read_trained(trained[1]).state_dict)
    found = {f"{name}.alpha": wiring.alpha for name, wiring in wirings(subject.model).items()}
    assert found
    assert all(torch.equal(alpha, tensors[name]) for name, alpha in found.items())


def test_a_checkpoint_that_does_not_fit(trained, images, tmp_path, capsys):
    content = torch.load(trained[1], weights_only=False)  # the test's own
    del content["state_dict"]["neck.fpn_convs.0.conv.weight"]
    torch.save(content, tmp_path / "half.pth")
    assert call((trained[0], tmp_path / "half.pth"), images, tmp_path / "out") == 1
    assert "missing in the file: neck.fpn_convs.0.conv.weight" in capsys.readouterr().err
    content = torch.load(trained[1], weights_only=False)
    card = {"mean": IMAGENET["mean"], "std": IMAGENET["std"], "channel_order": "BGR"}
    content["meta"] = {"dataset_meta": {"CLASSES": CLASSES}, "topodet_card": card}
    torch.save(content, tmp_path / "bgr.pth")
    assert call((trained[0], tmp_path / "bgr.pth"), images, tmp_path / "out") == 1
    assert "trained on BGR" in capsys.readouterr().err
    del content["meta"]
    torch.save(content, tmp_path / "nameless.pth")
    assert call((trained[0], tmp_path / "nameless.pth"), images, tmp_path / "out") == 1
    assert "does not name its classes" in capsys.readouterr().err


def test_damage_of_a_detector(trained, tmp_path, capsys):
    from topodet.mmdet import evaluate, load_detector, predict

    config, checkpoint = trained
    coco = checkpoint.parents[1] / "set"
    detector = load_detector(checkpoint, config=config, device="cpu")
    # What the whole detector finds is the truth, so that its score is not 0.
    found = [predict(detector, read_image(coco / "images" / f"{n}.jpg"), score_threshold=0) for n in range(2)]
    boxes = {number: (each.boxes[:6], each.labels[:6]) for number, each in enumerate(found)}
    truth = with_ground_truth(coco, boxes, tmp_path / "truth.json")
    where = ["--annotations", truth, "--images", coco / "images", "--output", tmp_path]
    words = [checkpoint, "--config", config, "--device", "cpu", *where, "--no-nodes", "--keep", "0.5", "--per", "node"]
    assert run_command("damage", words) == 0
    whole, half = csv.DictReader((tmp_path / "edges.csv").open())
    pruned = connectivity.prune(detector, keep=0.5, per="node")
    for row, network in ((whole, detector), (half, pruned)):
        scores = evaluate(network, truth, coco / "images", progress=False)
        assert {name: float(row[name]) for name in scores} == pytest.approx(scores, nan_ok=True)
    assert float(whole["bbox/AP"]) > 10
    assert whole["bbox/AP"] != half["bbox/AP"]
    capsys.readouterr()
    assert run_command("damage", [*words, "--in-memory"]) == 1
    assert "a detector does not support --in-memory" in capsys.readouterr().err
    assert run_command("damage", [checkpoint, "--config", config]) == 1
    assert "--config needs a detector: give --annotations ANN.json" in capsys.readouterr().err


def test_input_that_cannot_be_drawn(images, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.mp4").touch()
    for given, words in (
        ([tmp_path / "missing"], "no such file or folder"),
        ([tmp_path / "empty"], "no images in this folder"),
        ([tmp_path / "film.mp4"], r"unknown kind of image '\.mp4'; known: .*\.jpg"),
        ([images / "a.png", images / "sub" / ".." / "a.png"], "both be drawn to"),
    ):
        with pytest.raises(DataError, match=words):
            demo.find_images(given, tmp_path / "out")
    with pytest.raises(DataError, match="would be overwritten"):
        demo.find_images([images], images)
    assert list(demo.find_images([images / "a.png", images / "a.png"], tmp_path)) == [images / "a.png"]


def test_an_image_is_read_upright(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png")
    assert read.shape == (8, 4, 3)
    assert (read[:4] == 255).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--score-threshold", "50"], "must lie in 0..1"),
        (["--config", "a.json"], ".yaml is for Detectron2, .py for MMDetection"),
        (["--config", "lazy.py"], "is a LazyConfig"),
        ([], "no weights file at w.pth"),
        pytest.param(
            ["--config", "a.yaml"],
            "this needs detectron2, which",
            marks=pytest.mark.skipif(bool(importlib.util.find_spec("detectron2")), reason="detectron2 is installed"),
        ),
    ],
)
def test_settings_that_contradict_each_other(images, tmp_path, options, words, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lazy.py").write_text("from detectron2.config import LazyCall\n")
    arguments = ["--weights", "w.pth", "--input", str(images), "--output", "out", *options]
    assert run_command("demo", arguments) == 1
    assert words in capsys.readouterr().err
