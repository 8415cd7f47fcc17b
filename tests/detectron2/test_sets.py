"""COCO sets as Detectron2 reads them: what the check says of a set against what the real loader makes of it."""

from __future__ import annotations

import re
import uuid

import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances

from tests.coco_sets import SPOILED, base_set, spoiled_set, write_set
from tests.detectron2.helpers import ROOT, small_config
from topodet.datasets.coco import check_coco
from topodet.datasets.coco.report import TITLES
from topodet.detectron2 import Trainer, build_optimizer, check_datasets, reading_of_config, register_dataset
from topodet.detectron2.data import reading_of
from topodet.errors import ConfigError, DataError

CONFIGS = ROOT / "configs" / "detectron2"


def register(root, content):
    """Register a set as a user's script does, without topodet's check; return its name."""
    name = f"set_{uuid.uuid4().hex}"
    write_set(root, content)
    register_coco_instances(name, {}, str(root / "all.json"), str(root / "images"))
    return name


@pytest.mark.parametrize("masks", ["", "polygon", "bitmask"])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_and_images_are_those_of_the_real_loader(seed, masks, tmp_path):
    content = spoiled_set(seed, masks=bool(masks))
    if masks == "polygon":  # which is an error of its own
        for annotation in content["annotations"]:
            if isinstance(annotation["segmentation"], dict):
                annotation["segmentation"] = [[1, 2, 30, 4, 30, 20]]
    name = register(tmp_path, content)
    cfg = small_config(MODEL__MASK_ON=bool(masks), INPUT__MASK_FORMAT=masks or "polygon")
    cfg.INPUT.RANDOM_FLIP = "none"
    report = check_coco(tmp_path / "all.json", tmp_path / "images", readings=[reading_of(cfg)])
    found = report.usage[0]
    records = get_detection_dataset_dicts([name])
    counts = [len(DatasetMapper(cfg, is_train=True)(record)["instances"]) for record in records]
    assert found.images == len(records)
    assert found.boxes == sum(counts)
    assert found.images_without_boxes == counts.count(0)
    assert found.crowds == sum(a["iscrowd"] for record in records for a in record["annotations"])


@pytest.mark.parametrize("name", SPOILED)
def test_no_training_begins_on_a_set_that_trains_on_nothing(name, tmp_path):
    content = base_set()
    spoil, kind = SPOILED[name]
    spoil(content)
    registered = register(tmp_path, content)
    cfg = small_config(DATASETS__TRAIN=[registered], DATASETS__TEST=[], OUTPUT_DIR=str(tmp_path / "out"))
    with pytest.raises(DataError, match=re.escape(TITLES[kind])):
        Trainer(cfg)
    with pytest.raises(DataError, match=re.escape(TITLES[kind])):
        register_dataset(f"{registered}_again", tmp_path / "all.json", tmp_path / "images")


def test_mask_heads_need_masks_that_they_read(tmp_path):
    content = base_set()
    width, height = (content["images"][0][key] for key in ("width", "height"))
    content["annotations"][0]["segmentation"] = {"size": [height, width], "counts": [10, 20, width * height - 30]}
    del content["annotations"][1]["segmentation"]
    name = register(tmp_path, content)
    check_datasets(small_config(DATASETS__TRAIN=[name]), [name])
    with pytest.raises(DataError, match=r"INPUT.MASK_FORMAT bitmask, .* 1 +1") as caught:
        check_datasets(small_config(DATASETS__TRAIN=[name], MODEL__MASK_ON=True), [name])
    assert re.search(r"without segmentation.* 1 +2", str(caught.value))


def test_sets_must_agree_on_their_classes(tmp_path):
    content = base_set()
    train = register(tmp_path / "train", content)
    content["categories"] = [{"id": 1, "name": "nut"}, {"id": 2, "name": "cell"}]
    val = register(tmp_path / "val", content)
    with pytest.raises(ConfigError, match=r"by their ids: class 0 is 'nut' there, but 'cell' in the config"):
        check_datasets(small_config(DATASETS__TRAIN=[train]), [train, val])


def with_keypoints(names=("nose", "left_eye", "right_eye")):
    content = base_set()
    for category in content["categories"]:
        category["keypoints"] = list(names)
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["keypoints"] = [x + w // 2, y + h // 2, 2] * len(names)
        annotation["num_keypoints"] = len(names)
    return content


KEYPOINTS = {
    "MODEL__KEYPOINT_ON": True,
    "MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS": 3,
    "MODEL__ROI_KEYPOINT_HEAD__CONV_DIMS": [8],
    "MODEL__ROI_KEYPOINT_HEAD__MIN_KEYPOINTS_PER_IMAGE": 1,
    "TEST__KEYPOINT_OKS_SIGMAS": [0.05] * 3,
}


def test_keypoints_come_with_a_registered_set(tmp_path):
    write_set(tmp_path, with_keypoints())
    name = f"set_{uuid.uuid4().hex}"
    register_dataset(name, tmp_path / "all.json", tmp_path / "images")
    assert MetadataCatalog.get(name).keypoint_names == ["nose", "left_eye", "right_eye"]
    assert MetadataCatalog.get(name).keypoint_flip_map == [("left_eye", "right_eye")]
    cfg = small_config(
        DATASETS__TRAIN=[name], DATASETS__TEST=[], OUTPUT_DIR=str(tmp_path / "out"), SOLVER__MAX_ITER=1, **KEYPOINTS
    )
    trainer = Trainer(cfg)
    trainer.train()
    assert trainer.storage.latest()["loss_keypoint"][0] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS": 17},
            "add MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS 3",
        ),
        ({"TEST__KEYPOINT_OKS_SIGMAS": []}, "TEST.KEYPOINT_OKS_SIGMAS must have 3 values, .*not the 17 of COCO"),
    ],
)
def test_keypoints_that_the_config_does_not_describe(changes, words, tmp_path):
    write_set(tmp_path, with_keypoints())
    name = f"set_{uuid.uuid4().hex}"
    register_dataset(name, tmp_path / "all.json", tmp_path / "images")
    cfg = small_config(**{"DATASETS__TRAIN": [name], "DATASETS__TEST": [name], **KEYPOINTS, **changes})
    with pytest.raises((ConfigError, DataError), match=words):
        check_datasets(cfg, [name])


def test_keypoints_that_are_not_there(tmp_path):
    content = with_keypoints()
    write_set(tmp_path, content)
    name = f"set_{uuid.uuid4().hex}"
    register_dataset(name, tmp_path / "all.json", tmp_path / "images")
    del content["annotations"][1]["keypoints"]
    content["annotations"][2]["keypoints"].pop()
    write_set(tmp_path, content)
    with pytest.raises(DataError, match="missing, which the keypoint head needs +1 +2") as caught:
        check_datasets(small_config(DATASETS__TRAIN=[name], **KEYPOINTS), [name])
    assert re.search(r"cannot be read +1 +3 \(8 numbers, not three for each of 3 points\)", str(caught.value))
    name = register(tmp_path / "plain", base_set())
    with pytest.raises(ConfigError, match="no category of the dataset .* has keypoints"):
        check_datasets(small_config(DATASETS__TRAIN=[name], **KEYPOINTS), [name])


def test_the_optimizer_of_a_lazy_config_checks_the_dataset(tmp_path):
    model = torch.nn.Linear(2, 2)
    options = {"params": model.parameters(), "model": model, "lr": 0.1}
    content = base_set()
    build_optimizer(**options, datasets=register(tmp_path / "good", content))
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(DataError, match="no box is left to train on"):
        build_optimizer(**options, datasets=[register(tmp_path / "bad", content)])
    model.num_classes = 5
    with pytest.raises(ConfigError, match="model.num_classes is 5, but .* has 2 classes"):
        build_optimizer(**options, datasets=register(tmp_path / "other", base_set()))


@pytest.mark.parametrize("suffix", [".yaml", ".py"])
def test_a_config_says_how_its_training_set_is_read(suffix):
    reading = reading_of_config(CONFIGS / f"mask_rcnn_toponet50_adaptive_FPN_1x{suffix}")
    assert (reading.framework, reading.masks, reading.drops_empty) == ("Detectron2", "polygon", True)
    assert list(reading.num_classes.values()) == [80]
