import json
import sys
import uuid

import numpy as np
import pytest
import timm
import torch
from detectron2.config import LazyConfig
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image

from tests.commands.helpers import run_command
from tests.detection import with_ground_truth
from tests.detectron2.helpers import CLASSES, RETINANET, small_config, trainable_config, with_card, write_run
from topodet import weights
from topodet.detections import Detections
from topodet.detectron2 import (
    TopoNetCheckpointer,
    Trainer,
    class_names,
    coco_evaluation,
    common_config,
    draw,
    evaluate,
    load_config,
    load_detector,
    predict,
    publish_detector,
)
from topodet.errors import ConfigError, WeightsError
from topodet.files import sha256


@pytest.fixture(scope="module")
def run(tmp_path_factory, nano):
    torch.manual_seed(0)
    return write_run(tmp_path_factory.mktemp("my_run"), nano)


@pytest.fixture(scope="module")
def published(run):
    return publish_detector(
        run / "model_final.pth", run / "config.yaml", run / "published", classes=CLASSES, notes="no real one"
    )


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_classes, theirs.pred_classes)


def test_the_file_holds_the_model_and_what_it_needs(run, published, nano):
    assert published.name.startswith("my_run")
    assert sha256(published).startswith(published.stem.rpartition("-")[2])
    content = torch.load(published, weights_only=True)
    assert set(content) == {"model", "__author__", "card", "sha256"}
    assert content["__author__"] == "topodet"
    trained = torch.load(run / "model_final.pth", weights_only=True)
    assert "optimizer" in trained  # the test's own
    assert content["model"].keys() == trained["model"].keys()
    assert all(torch.equal(content["model"][name], tensor) for name, tensor in trained["model"].items())
    card = content["card"]
    backbone = json.loads(nano.card.read_text())
    assert [card[key] for key in ("mean", "std", "channel_order")] == [*map(backbone.get, ("mean", "std")), "RGB"]
    assert (card["kind"], card["framework"], card["classes"]) == ("detector", "detectron2", CLASSES)
    assert (card["architecture"], card["iteration"]) == ("toponet_nano", 7)
    assert str(run) not in card["config"]
    assert str(nano.pth) not in card["config"]


def test_a_predictor_of_the_file_predicts_as_the_trained_model(run, published, image, capsys, monkeypatch, tmp_path):
    cfg = load_config(run / "config.yaml")  # as a user of Detectron2 writes it, without topodet.detectron2.predictor
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    theirs = DefaultPredictor(cfg)(image)["instances"]
    monkeypatch.chdir(tmp_path)  # nothing of the training's place is needed
    made = load_detector(published, score_threshold=0.0, device="cpu")
    assert isinstance(made, DefaultPredictor)
    total = len(made.model.state_dict())
    assert f"{total}/{total} tensors" in capsys.readouterr().out
    assert_same(made(image)["instances"], theirs)
    assert made.metadata.thing_classes == CLASSES
    assert str(published) == made.cfg.MODEL.WEIGHTS
    cfg.MODEL.WEIGHTS = str(published)  # stock Detectron2 reads the published file too
    assert_same(DefaultPredictor(cfg)(image)["instances"], theirs)


def test_retinanet(tmp_path, nano, image):
    folder = write_run(tmp_path / "retina", nano, **RETINANET)
    path = publish_detector(folder / "model_final.pth", folder / "config.yaml", tmp_path, classes=CLASSES)
    cfg = load_config(
        folder / "config.yaml",
        ["MODEL.WEIGHTS", str(folder / "model_final.pth"), "MODEL.RETINANET.SCORE_THRESH_TEST", "0.005"],
    )
    theirs = DefaultPredictor(cfg)(image)["instances"]
    assert_same(load_detector(path, score_threshold=0.005, device="cpu")(image)["instances"], theirs)


def test_options_threshold_and_device(published, image):
    made = load_detector(published, device="cpu", opts=["INPUT.MIN_SIZE_TEST", "32"])
    assert made.cfg.INPUT.MIN_SIZE_TEST == 32
    threshold = float(predict(made, image, score_threshold=0).scores[9])
    assert len(predict(made, image, score_threshold=threshold)) == 10
    high = load_detector(published, device="cpu", score_threshold=threshold)
    assert threshold == high.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    with pytest.raises(ConfigError, match=r"score_threshold=-1 must lie in 0\.\.1"):
        predict(made, image, score_threshold=-1)
    with pytest.raises(ConfigError, match=r"the image is 'a\.jpg'; expected RGB .*read_image"):
        predict(made, "a.jpg")
    with pytest.raises(ConfigError, match="INPUT.MIN_SIZE_TEST"):
        load_detector(published, opts=["INPUT.MIN_SIZE_TSET", "32"])
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        load_detector(published, score_threshold=50)
    with pytest.raises(ConfigError, match="is unknown to torch"):
        load_detector(published, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            load_detector(published, device="cuda:0")


def test_two_detectors_of_other_classes_live_side_by_side(run, published):
    other = publish_detector(run / "model_final.pth", run / "config.yaml", run / "b", classes=["cat", "dog"])
    first, second = load_detector(published, device="cpu"), load_detector(other, device="cpu")
    assert (first.metadata.thing_classes, second.metadata.thing_classes) == (CLASSES, ["cat", "dog"])


def test_class_names_of_annotations(run, coco, tmp_path):
    for classes in ([str(coco / "all.json")], coco / "all.json", str(coco / "all.json")):
        path = publish_detector(run / "model_final.pth", run / "config.yaml", tmp_path, classes=classes)
        assert weights.read(path).card["classes"] == CLASSES


def test_class_names_of_the_checkpoint(run, tmp_path):
    """A training with `topodet train-net` writes them; names that are given come before them."""
    content = torch.load(run / "model_final.pth", weights_only=True)
    torch.save({**content, "classes": CLASSES}, tmp_path / "named.pth")
    options = {"config": run / "config.yaml", "device": "cpu"}
    assert class_names(load_detector(tmp_path / "named.pth", **options)) == CLASSES
    assert class_names(load_detector(tmp_path / "named.pth", classes=["cat", "dog"], **options)) == ["cat", "dog"]
    path = publish_detector(tmp_path / "named.pth", run / "config.yaml", tmp_path / "published")
    assert weights.read(path).card["classes"] == CLASSES


@pytest.mark.parametrize("classes", [[], ["person"], ["a", "b", "c"]])
def test_class_names_that_do_not_fit(run, tmp_path, classes):
    with pytest.raises(ConfigError, match=r"2 classes \(MODEL.ROI_HEADS.NUM_CLASSES\).*--classes"):
        publish_detector(run / "model_final.pth", run / "config.yaml", tmp_path, classes=classes)
    assert not list(tmp_path.iterdir())


def test_annotations_that_are_none(run, tmp_path):
    with pytest.raises(ConfigError, match="not COCO annotations"):
        publish_detector(
            run / "model_final.pth", run / "config.yaml", tmp_path, classes=[str(tmp_path / "missing.json")]
        )


def test_a_checkpoint_that_does_not_fill_the_detector(run, tmp_path):
    content = torch.load(run / "model_final.pth", weights_only=True)
    del content["model"]["backbone.fpn_output2.weight"]
    torch.save(weights.with_digests(content), tmp_path / "half.pth")
    with pytest.raises(WeightsError, match="missing in the file: backbone.fpn_output2.weight"):
        publish_detector(tmp_path / "half.pth", run / "config.yaml", tmp_path / "out", classes=CLASSES)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_published_detector(run, published, nano, tmp_path):
    with pytest.raises(WeightsError, match="a backbone, not a published detector"):
        load_detector(nano.pth)
    with pytest.raises(WeightsError, match="without config and class names.*--detector"):
        load_detector(run / "model_final.pth")
    with pytest.raises(WeightsError, match="a detector for 'mmdet'"):
        load_detector(with_card(tmp_path, published, framework="mmdet"))
    with pytest.raises(WeightsError, match="no class names"):
        load_detector(with_card(tmp_path, published, classes=[1, 2]))
    damaged = tmp_path / published.name
    damaged.write_bytes(published.read_bytes()[:-1] + b"!")
    with pytest.raises(WeightsError, match="damaged or was changed"):
        load_detector(damaged)


def test_a_detector_is_no_backbone(run, published):
    words = r"is a whole detector, not a backbone: load it with MODEL.WEIGHTS \(Detectron2\) or load_from \(MMDet"
    for file in (published, run / "model_final.pth"):
        with pytest.raises(WeightsError, match=f"{file} {words}"):
            build_model(small_config(MODEL__TOPONET__PRETRAINED=str(file)))
        with pytest.raises(WeightsError, match=words):
            weights.load(timm.create_model("toponet_nano"), file)
    mmdet = pytest.importorskip("topodet.mmdet")
    with pytest.raises(WeightsError, match=words):
        mmdet.TopoNet("toponet_nano", pretrained=str(published)).init_weights()


def test_what_is_trained_from_a_detector_is_no_published_detector_itself(published, nano, tmp_path):
    """It may have other classes; what is known of the backbone goes on."""
    model = build_model(small_config())
    TopoNetCheckpointer(model, str(tmp_path)).load(str(published))
    TopoNetCheckpointer(model, str(tmp_path)).save("model_final")
    with pytest.raises(WeightsError, match="without config and class names, not a published detector"):
        load_detector(tmp_path / "model_final.pth")
    backbone = weights.read(nano.pth).card
    kept = ("architecture", "mean", "std", "channel_order", "name")
    assert weights.read(tmp_path / "model_final.pth").card == {key: backbone[key] for key in kept}


def test_a_config_of_strangers_is_only_data(published, tmp_path):
    mark = tmp_path / "ran"
    base = tmp_path / "base.yaml"
    base.write_text("VERSION: 2\n")
    for config in (
        f"MODEL: !!python/object/apply:os.mkdir ['{mark}']",
        f"_BASE_: {base}",
        "MODEL: {TOPONET: {NO_SUCH_KEY: 1}}",
        "MODEL: [",
        "just text",
    ):
        with pytest.raises(WeightsError, match="cannot be read by this Detectron2"):
            load_detector(with_card(tmp_path, published, config=config))
    assert not mark.exists()


def test_weights_that_the_config_of_strangers_names_are_not_fetched(published, tmp_path):
    config = weights.read(published).card["config"]
    for key in ("WEIGHTS", "PRETRAINED"):
        changed = config.replace(f" {key}: ''", f" {key}: {tmp_path / 'missing.pth'}")
        assert changed != config
        assert load_detector(with_card(tmp_path, published, config=changed), device="cpu")


def test_a_lazy_config_is_refused(run, tmp_path):
    LazyConfig.save(common_config("common/optim.py"), str(tmp_path / "config.yaml"))
    with pytest.raises(ConfigError, match="LazyConfig"):
        publish_detector(run / "model_final.pth", tmp_path / "config.yaml", tmp_path / "out", classes=CLASSES)


def test_drawing_changes_the_picture_where_the_boxes_are(published, image):
    made = load_detector(published, score_threshold=0.0, device="cpu")
    found = predict(made, image, score_threshold=0)
    drawn = draw(made, image, found.above(float(found.scores.max())))
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (drawn != image).any()


def test_names_stand_above_their_boxes(published):
    blank = np.full((200, 200, 3), 255, dtype=np.uint8)
    box = np.array([[40, 60, 100, 130]], dtype=np.float32)
    found = Detections(box, np.array([0.5], dtype=np.float32), np.array([0]))
    drawn = draw(load_detector(published, device="cpu"), blank, found)
    assert np.all(drawn[64:126, 44:96] == 255)
    assert np.any(drawn[44:56, 44:96] < 100)


def test_prediction_is_the_predictors(published, image):
    made = load_detector(published, score_threshold=0.0, device="cpu")
    theirs, ours = made(image[:, :, ::-1])["instances"], predict(made, image, score_threshold=0)
    assert np.array_equal(ours.boxes, theirs.pred_boxes.tensor.numpy())
    assert np.array_equal(ours.scores, theirs.scores.numpy())
    assert np.array_equal(ours.labels, theirs.pred_classes.numpy())
    assert class_names(made) == CLASSES


@pytest.mark.parametrize("masks", [False, True])
def test_scores_are_those_of_detectron2s_own_evaluation(masks, nano, coco, tmp_path):
    """On a truth that is near to what the detector finds, so that scores are neither 0 nor 100."""
    folder = write_run(tmp_path / "run", nano, MODEL__MASK_ON=masks)
    path = publish_detector(folder / "model_final.pth", folder / "config.yaml", tmp_path, classes=CLASSES)
    made = load_detector(path, score_threshold=0.0, device="cpu")
    found = {}
    for number in range(2):
        seen = predict(made, read_image(str(coco / "images" / f"{number}.jpg"), format="RGB"), score_threshold=0)
        found[number] = (seen.boxes[:6] + np.array([2, 0, 3, 1], dtype=np.float32), seen.labels[:6])
    truth = with_ground_truth(coco, found, tmp_path / "truth.json")
    if masks:
        content = json.loads(truth.read_text())
        for row in content["annotations"]:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        truth.write_text(json.dumps(content))
    name = f"truth_{uuid.uuid4().hex}"
    register_coco_instances(name, {}, str(truth), str(coco / "images"))
    theirs = coco_evaluation(made.cfg, name)(made.model)
    ours = evaluate(made, truth, coco / "images", progress=False)
    assert 0 < ours["bbox/AP"] < 100
    assert {key.split("/")[0] for key in ours} == ({"bbox", "segm"} if masks else {"bbox"})
    assert ours == pytest.approx({key: theirs[key] for key in ours}, nan_ok=True)


def test_the_tool(run, tmp_path, capsys):
    options = ["--output", str(tmp_path), "--name", "mine"]
    assert run_command("publish", ["--detector", str(run / "model_final.pth"), *options, "--classes", *CLASSES]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("mine-")
    assert str(path) in capsys.readouterr().out
    assert run_command("publish", ["--detector", str(run / "model_final.pth"), *options]) == 1
    assert "--classes" in capsys.readouterr().err
    assert (
        run_command("publish", ["--detector", str(path), *options, "--classes", *CLASSES]) == 1
    )  # no config beside it
    assert "has no config.yaml and no .py: give the detector's config with --config" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command("publish", [])


def test_masks_are_drawn(tmp_path, nano, image):
    folder = write_run(tmp_path / "masks", nano, MODEL__MASK_ON=True)
    path = publish_detector(folder / "model_final.pth", folder / "config.yaml", tmp_path, classes=CLASSES)
    made = load_detector(path, score_threshold=0.0, device="cpu")
    found = predict(made, image, score_threshold=0)
    found = found.above(float(found.scores.max()))
    found.masks[:] = False
    outlined = draw(made, image, found)
    found.masks[:, 20:40, 30:60] = True
    assert (draw(made, image, found) != outlined)[20:40, 30:60].mean() > 0.5


@pytest.fixture
def pictures(tmp_path, image):
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(2):
        Image.fromarray(np.roll(image, 9 * k, axis=0)).save(folder / f"{k}.png")
    return folder


def test_the_demo_of_a_published_detector(published, pictures, tmp_path):
    out = tmp_path / "out"
    arguments = ["--weights", published, "--input", pictures, "--output", out, "--device", "cpu"]
    assert run_command("demo", [*arguments, "--score-threshold", "0.3"]) == 0
    assert {path.name for path in out.iterdir()} == {"0.png", "1.png", "predictions.json"}
    written = json.loads((out / "predictions.json").read_text())
    assert written["classes"] == CLASSES
    predict = load_detector(published, score_threshold=0.3, device="cpu")
    for number in range(2):
        theirs = predict(read_image(pictures / f"{number}.png", format="BGR"))["instances"]
        ours = [row for row in written["predictions"] if row["image_id"] == number]
        boxes = BoxMode.convert(theirs.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        assert len(ours) == len(boxes) > 0
        assert torch.allclose(torch.tensor([row["bbox"] for row in ours]), boxes, atol=0.01)
        assert [row["category_name"] for row in ours] == [CLASSES[k] for k in theirs.pred_classes]


def test_the_demo_without_what_draws(published, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    arguments = ["--weights", published, "--input", pictures, "--output", tmp_path / "out", "--device", "cpu"]
    assert run_command("demo", [*arguments]) == 1
    printed = capsys.readouterr()
    assert "this needs cv2, which" in printed.err
    assert "opencv-python-headless" in printed.err
    assert "loaded from" not in printed.out  # before the detector


def test_the_demo_of_a_training(run, pictures, tmp_path, capsys):
    def call(*more):
        arguments = ["--weights", run / "model_final.pth", "--input", pictures, "--output", tmp_path / "out"]
        return run_command("demo", [*arguments, "--device", "cpu", *more])

    assert call("--config", run / "config.yaml", "--classes", *CLASSES) == 0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["classes"] == CLASSES
    assert call("--config", run / "config.yaml") == 1
    assert "--classes NAME" in capsys.readouterr().err
    assert call() == 1
    assert "or give --config" in capsys.readouterr().err


@pytest.fixture(scope="module", params=["RGB", "BGR"])
def from_random(request, coco, tmp_path_factory):
    """What two steps from random weights leave, with preprocessing that is nobody's default; and its config."""
    folder = tmp_path_factory.mktemp(f"random_{request.param}")
    shown = {"INPUT__FORMAT": request.param, "MODEL__PIXEL_MEAN": [90.0, 100.0, 110.0]}
    cfg = trainable_config(coco, folder, **shown, MODEL__PIXEL_STD=[50.0, 60.0, 70.0], MODEL__TOPONET__NORM="BN")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture(scope="module")
def published_from_random(from_random):
    return publish_detector(
        from_random / "model_final.pth", from_random / "config.yaml", from_random / "published", classes=CLASSES
    )


def stock_prediction(run, image):
    cfg = load_config(run / "config.yaml")
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return DefaultPredictor(cfg)(image)["instances"]


def test_a_detector_from_random_weights_is_published_with_its_own_preprocessing(
    from_random, published_from_random, image
):
    theirs = load_config(from_random / "config.yaml")
    card = weights.read(published_from_random).card
    assert card["channel_order"] == theirs.INPUT.FORMAT
    for key, value in (("mean", theirs.MODEL.PIXEL_MEAN), ("std", theirs.MODEL.PIXEL_STD)):
        assert [255 * number for number in card[key]] == pytest.approx(value)
    made = load_detector(published_from_random, score_threshold=0.0, device="cpu")
    assert_same(made(image)["instances"], stock_prediction(from_random, image))
    other = {"RGB": "BGR", "BGR": "RGB"}[theirs.INPUT.FORMAT]
    with pytest.raises(ConfigError, match=f"feeds {other} images, the weights were trained on {theirs.INPUT.FORMAT}"):
        load_detector(published_from_random, device="cpu", opts=["INPUT.FORMAT", other])
    with pytest.raises(ConfigError, match=r"mean is \[1.0, 1.0, 1.0\], .* trained with \[90.0, 100.0, 110.0\]"):
        load_detector(published_from_random, device="cpu", opts=["MODEL.PIXEL_MEAN", "[1.0, 1.0, 1.0]"])


def test_it_starts_another_training_and_can_be_published_again(published_from_random, from_random, tmp_path):
    cfg = load_config(from_random / "config.yaml")
    TopoNetCheckpointer(build_model(cfg)).load(str(published_from_random))
    again = publish_detector(published_from_random, from_random / "config.yaml", tmp_path, classes=CLASSES)
    assert weights.read(again).card["mean"] == weights.read(published_from_random).card["mean"]


def test_a_file_that_says_nothing_of_its_images_is_read_by_its_config(
    from_random, published_from_random, image, tmp_path
):
    """As they were published before their cards had it."""
    path = with_card(tmp_path, published_from_random, mean=None, std=None, channel_order=None)
    made = load_detector(path, score_threshold=0.0, device="cpu")
    assert_same(made(image)["instances"], stock_prediction(from_random, image))
    TopoNetCheckpointer(build_model(load_config(from_random / "config.yaml"))).load(str(path))


def test_what_nobody_can_read_is_not_published(tmp_path):
    """Detectron2 trains on YUV images, and has no predictor for them."""
    cfg = small_config(OUTPUT_DIR=str(tmp_path), INPUT__FORMAT="YUV-BT.601")
    TopoNetCheckpointer(build_model(cfg), str(tmp_path)).save("model_final")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    with pytest.raises(ConfigError, match="INPUT.FORMAT is YUV-BT.601, but a predictor only supports RGB, BGR and L"):
        publish_detector(tmp_path / "model_final.pth", tmp_path / "config.yaml", tmp_path / "out", classes=CLASSES)
    assert not list((tmp_path / "out").iterdir())
