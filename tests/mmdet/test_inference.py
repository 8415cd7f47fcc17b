"""Detectors as files, in MMDetection."""

import ast
import pprint

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.runner import Runner
from PIL import Image

from tests.detection import SIZE, with_ground_truth, write_coco
from tests.mmdet.helpers import NANO, small_config, train
from topodet import weights
from topodet.datasets.images import read_image
from topodet.detections import Detections
from topodet.errors import ConfigError, WeightsError
from topodet.files import sha256
from topodet.mmdet import coco_evaluation, draw, evaluate, load_detector, predict, publish_detector

CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, nano):
    """Folder of a short training: its config, checkpoint and images."""
    folder = tmp_path_factory.mktemp("my_run")
    coco = write_coco(folder / "set", classes=tuple(CLASSES))
    options = {"train_cfg.max_epochs": 1, "model.backbone.pretrained": str(nano.pth)}
    config = small_config(NANO, coco, folder, options)
    config.dump(folder / "config.py")
    train(config)
    return folder


@pytest.fixture(scope="module")
def published(trained):
    return publish_detector(trained / "epoch_1.pth", trained / "config.py", trained / "published", notes="no real one")


@pytest.fixture(scope="module")
def stock(trained):
    return init_detector(str(trained / "config.py"), str(trained / "epoch_1.pth"), device="cpu")


def with_card(folder, path, **changes):
    """Write a published detector with another card, under the hash that it then has."""
    content = torch.load(path, weights_only=True)
    content["card"].update(changes)
    torch.save(weights.with_digests(content), folder / "theirs.pth")
    return folder / "theirs.pth"


def test_the_file_holds_the_model_and_what_it_needs(trained, published, nano):
    assert published.name.startswith("my_run")
    assert sha256(published).startswith(published.stem.rpartition("-")[2])
    content = torch.load(published, weights_only=True)
    card = content["card"]
    assert (card["kind"], card["framework"], card["classes"]) == ("detector", "mmdetection", CLASSES)
    assert card["architecture"] == "toponet_nano"
    assert card["mean"] == pytest.approx(weights.read(nano.pth).card["mean"])
    ours = torch.load(trained / "epoch_1.pth", weights_only=False)["state_dict"]  # the test's own
    assert all(torch.equal(content["state_dict"][name], tensor) for name, tensor in ours.items())
    assert str(trained) not in card["config"]
    assert str(nano.pth) not in card["config"] + content["meta"]["cfg"]


def test_it_predicts_as_mmdetection_does(published, stock, trained):
    detector = load_detector(published, device="cpu")
    for path in sorted((trained / "set" / "images").iterdir()):
        theirs = inference_detector(stock, str(path)).pred_instances
        by_path = inference_detector(detector, str(path)).pred_instances  # by its own config, which stays as it was
        assert torch.equal(by_path.bboxes, theirs.bboxes)
        found = predict(detector, read_image(path), score_threshold=0)
        assert len(found) == len(theirs) > 0
        assert np.array_equal(found.boxes, theirs.bboxes.numpy())
        assert np.array_equal(found.scores, theirs.scores.numpy())
        assert np.array_equal(found.labels, theirs.labels.numpy())
    best = found.above(float(found.scores.max()))
    picture = draw(detector, read_image(path), best)
    assert picture.shape == read_image(path).shape
    assert np.any(picture != read_image(path))


def test_names_stand_above_their_boxes(published):
    blank = np.full((200, 200, 3), 255, dtype=np.uint8)
    box = np.array([[40, 60, 100, 130]], dtype=np.float32)
    found = Detections(box, np.array([0.5], dtype=np.float32), np.array([0]))
    drawn = draw(load_detector(published, device="cpu"), blank, found)
    assert np.all(drawn[64:126, 44:96] == 255)
    assert np.any(drawn[44:56, 44:96] < 100)


def test_mmdetections_own_inferencer_takes_it(published, stock, trained, tmp_path):
    path = trained / "set" / "images" / "0.jpg"
    inferencer = DetInferencer(weights=str(published), device="cpu", show_progress=False)
    [found] = inferencer(str(path), pred_score_thr=0)["predictions"]
    theirs = inference_detector(stock, str(path)).pred_instances
    assert found["scores"] == pytest.approx(theirs.scores.tolist(), abs=1e-6)
    assert found["labels"] == theirs.labels.tolist()
    assert list(inferencer.model.dataset_meta["classes"]) == CLASSES


def test_scores_are_those_of_mmdetections_own_evaluation(published, stock, trained, tmp_path):
    """On a truth that is near to what the detector finds, so that scores are neither 0 nor 100."""
    found = {}
    for number in range(2):
        boxes = inference_detector(stock, str(trained / "set" / "images" / f"{number}.jpg")).pred_instances[:6]
        moved = (boxes.bboxes.numpy() + np.array([2, 0, 3, 1])).clip(0, [*SIZE, *SIZE])
        found[number] = (moved, boxes.labels.numpy())
    truth = with_ground_truth(trained / "set", found, tmp_path / "truth.json")
    detector = load_detector(published, device="cpu")
    ours = evaluate(detector, truth, trained / "set" / "images", progress=False)
    options = {"val_evaluator.ann_file": str(truth), "val_dataloader.dataset.ann_file": str(truth)}
    config = small_config(
        NANO, trained / "set", tmp_path / "work", {**options, "load_from": str(trained / "epoch_1.pth")}
    )
    runner = Runner.from_cfg(config)
    theirs = coco_evaluation(runner)(runner.model)
    assert 0 < ours["bbox/AP"] < 100
    for name in ("AP", "AP50", "AP75", "APm"):
        # MMDetection rounds to three decimals of 1.
        assert ours[f"bbox/{name}"] == pytest.approx(theirs[f"bbox/{name}"], abs=0.051, nan_ok=True), name


def test_thresholds_options_and_classes(published, trained):
    image = read_image(trained / "set" / "images" / "0.jpg")
    few = load_detector(published, device="cpu", opts=["model.test_cfg.rcnn.max_per_img=1"])
    assert len(predict(few, image, score_threshold=0)) == 1
    none = load_detector(published, device="cpu", score_threshold=0.999)
    assert len(predict(none, image, score_threshold=0)) == 0
    with pytest.raises(ConfigError, match=r"score_threshold=50 must lie in 0\.\.1"):
        predict(few, image, score_threshold=50)
    with pytest.raises(ConfigError, match=r"the image is '.*0\.jpg'; expected RGB .*read_image"):
        predict(few, str(trained / "set" / "images" / "0.jpg"))
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        load_detector(published, device="cpu", opts=["model.test_cfg", "1"])
    with pytest.raises(ConfigError, match="num_classes is 10, but 2 classes are named"):
        load_detector(published, device="cpu", classes=["a", "b"])
    renamed = load_detector(trained / "epoch_1.pth", config=trained / "config.py", classes=list("abcdefghij"))
    assert renamed.dataset_meta["classes"] == list("abcdefghij")
    named = load_detector(published, device="cpu", classes=[str(trained / "set" / "all.json")])
    assert named.dataset_meta["classes"] == CLASSES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "os.system"}, r"type 'os\.system'"),
        ({"type": "NoSuchDetector"}, "type 'NoSuchDetector'"),
        ({"init_cfg": {"type": "Pretrained", "checkpoint": "http://a/b.pth"}}, "init_cfg"),
        ({"pretrained": "torchvision://resnet50"}, "pretrained 'torchvision://resnet50'"),
    ],
    ids=lambda change: str(change)[:20],
)
def test_a_strangers_config_asks_for_nothing_else(published, tmp_path, change, message):
    config = ast.literal_eval(weights.read(published).card["config"])
    config["model"]["neck"].update(change)
    with pytest.raises(WeightsError, match=f"is refused: its config refers to .*{message}"):
        load_detector(with_card(tmp_path, published, config=pprint.pformat(config)), device="cpu")


def test_a_strangers_pipeline_and_what_is_no_config(published, tmp_path):
    config = ast.literal_eval(weights.read(published).card["config"])
    config["test_pipeline"].append({"type": "Mosaic"})
    with pytest.raises(WeightsError, match="the step 'Mosaic'"):
        load_detector(with_card(tmp_path, published, config=pprint.pformat(config)), device="cpu")
    for text in ("__import__('os').mkdir('ran')", "model = dict()", "[1, 2]", "{" * 3000):
        with pytest.raises(WeightsError, match="is not a detector's"):
            load_detector(with_card(tmp_path, published, config=text), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_published_detector(published, trained, nano, tmp_path):
    with pytest.raises(WeightsError, match="is a backbone, not a published detector"):
        load_detector(nano.pth)
    with pytest.raises(WeightsError, match="is a detector for 'detectron2', not for 'mmdetection'"):
        load_detector(with_card(tmp_path, published, framework="detectron2"))
    damaged = tmp_path / published.name
    content = bytearray(published.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged or was changed"):
        load_detector(damaged)
    with pytest.raises(ConfigError, match="no config file at"):
        load_detector(trained / "epoch_1.pth", config=tmp_path / "missing.py")


def test_a_published_detector_can_be_published_again(published, trained, tmp_path):
    again = publish_detector(published, trained / "config.py", tmp_path)
    assert weights.read(again).card["mean"] == weights.read(published).card["mean"]
    Image.fromarray(np.zeros((32, 48, 3), dtype=np.uint8)).save(tmp_path / "black.png")
    load_detector(again, device="cpu")
