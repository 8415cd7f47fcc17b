"""COCO sets as MMDetection reads them: what the check says of a set against what the real loader makes of it."""

from __future__ import annotations

import copy
import inspect
import re

import pytest
from mmdet.registry import DATASETS, MODELS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests.coco_sets import SPOILED, base_set, spoiled_set, write_set
from tests.mmdet.helpers import CONFIGS, LOADERS, NANO, load, small_config
from topodet.datasets.coco import check_coco
from topodet.datasets.coco.report import TITLES
from topodet.errors import ConfigError, DataError
from topodet.mmdet import reading_of_config
from topodet.mmdet.check import class_counts
from topodet.mmdet.data import check_dataset, reading_of


def dataset_config(root, *, masks="", **options):
    steps = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}]
    if masks:
        steps[1] |= {"with_mask": True, "poly2mask": masks == "bitmask"}
    return {
        "type": "CocoDataset",
        "data_root": f"{root}/",
        "ann_file": "all.json",
        "data_prefix": {"img": "images/"},
        "metainfo": {"classes": ("cell", "nut")},
        "filter_cfg": {"filter_empty_gt": True, "min_size": 32},
        "pipeline": steps,
        **options,
    }


@pytest.mark.parametrize("masks", ["", "bitmask", "polygon"])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_and_images_are_those_of_the_real_loader(seed, masks, tmp_path):
    content = spoiled_set(seed, masks=bool(masks))
    write_set(tmp_path, content)
    dataset = DATASETS.build(dataset_config(tmp_path, masks=masks))
    report = check_coco(tmp_path / "all.json", tmp_path / "images", readings=[reading_of(dataset)])
    found = report.usage[0]
    loaded = [dataset[k] for k in range(len(dataset))]
    flags = [loaded_image["gt_ignore_flags"] for loaded_image in loaded]
    instances = [instance for k in range(len(dataset)) for instance in dataset.get_data_info(k)["instances"]]
    assert found.images == len(loaded)
    assert found.boxes == sum(int((~flag).sum()) for flag in flags)
    assert found.images_without_boxes == sum(bool(flag.all()) for flag in flags)
    assert found.crowds == sum(instance["ignore_flag"] for instance in instances)
    assert sum(found.images_left_out.values()) == report.num_images - found.images


def test_a_config_says_how_its_training_set_is_read():
    reading = reading_of_config(CONFIGS / "mask-rcnn_toponet50-adaptive_fpn_1x_coco.py")
    assert (reading.framework, reading.masks, reading.drops_empty, reading.min_size) == (
        "MMDetection",
        "bitmask",
        True,
        32,
    )
    assert reading.num_classes == {
        "model.roi_head.bbox_head.num_classes": 80,
        "model.roi_head.mask_head.num_classes": 80,
    }
    assert reading.classes[:2] == ("person", "bicycle")
    assert reading_of_config(CONFIGS / f"{NANO}.py").classes == tuple("0123456789")


@pytest.fixture(scope="module")
def model():
    """The small detector, built once for all trainings that do not begin."""
    config = copy.deepcopy(load(NANO).model)
    config.roi_head.bbox_head.num_classes = 2
    return MODELS.build(config)


# MMDetection's own dataset, as in configs of users: the hook finds what its reader lets pass.
STOCK = {f"{loader}.dataset.type": "CocoDataset" for loader in LOADERS}


class FirstStepError(Exception):
    """The first step."""


class FirstStep(Hook):
    priority = "LOWEST"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        raise FirstStepError


def start(model, root, work_dir, options=None, metainfo=("cell", "nut")):
    """Start a training of the shipped small config on a set; raise `FirstStepError` at its first step."""
    options = {
        "custom_hooks": [{"type": "TopoNetCheckHook"}],
        "default_hooks.checkpoint": None,
        "vis_backends": [],
        "visualizer.vis_backends": [],
        **{f"{loader}.dataset.metainfo": {"classes": metainfo} for loader in LOADERS},
        **(options or {}),
    }
    config = small_config(NANO, root, work_dir, options)
    parts = set(inspect.signature(Runner.__init__).parameters) & set(config) - {"model"}
    runner = Runner(model=model, **{part: config[part] for part in parts})
    runner.register_hook(FirstStep())
    runner.train()


@pytest.mark.parametrize("name", SPOILED)
def test_no_training_begins_on_a_set_that_trains_on_nothing(name, model, tmp_path):
    content = base_set()
    spoil, kind = SPOILED[name]
    spoil(content)
    write_set(tmp_path, content)
    with pytest.raises(DataError, match=re.escape(TITLES[kind])):
        start(model, tmp_path, tmp_path / "out")
    if name in ("area 0", "crowds"):
        with pytest.raises(DataError, match=re.escape(TITLES[kind])):
            start(model, tmp_path, tmp_path / "stock", STOCK)


@pytest.mark.parametrize(
    ("metainfo", "heads", "words"),
    [
        (("cell", "Nut"), 2, "classes Nut are not categories of .*all.json: set metainfo=dict"),
        (("nut", "cell"), 2, "in the order of the file.*: class 0 is 'cell' there, but 'nut' in the config"),
        (("cell", "nut"), 80, "model.roi_head.bbox_head.num_classes is 80, but .* 2 classes (cell, nut)"),
        (("cell", "nut"), 1, "model.roi_head.bbox_head.num_classes is 1, but .*=2"),
        (None, 2, "uses COCO's 80 if a dataset has no metainfo"),
        ("cell", 2, "metainfo.classes is the string 'cell': write classes=('cell',), with a comma"),
    ],
)
def test_classes_are_compared_before_the_first_step(metainfo, heads, words, model, tmp_path, monkeypatch):
    write_set(tmp_path, base_set())
    monkeypatch.setattr(model.roi_head.bbox_head, "num_classes", heads)
    words = ".*".join(map(re.escape, words.split(".*")))
    options = {} if metainfo else {f"{loader}.dataset.metainfo": None for loader in LOADERS}
    with pytest.raises(ConfigError, match=words):
        start(model, tmp_path, tmp_path / "out", options, metainfo)


def test_classes_of_mmdetections_own_dataset_are_compared(model, tmp_path):
    write_set(tmp_path, base_set())
    with pytest.raises(ConfigError, match=r"class 0 is 'cell' there, but 'nut' in the config.*The config names 2"):
        start(model, tmp_path, tmp_path / "out", STOCK, ("nut", "cell"))


def test_a_good_set_begins_and_single_boxes_are_a_warning(model, tmp_path):
    content = base_set(images=60)
    content["annotations"][3]["area"] = 0
    write_set(tmp_path, content)
    with pytest.raises(FirstStepError):
        start(model, tmp_path, tmp_path / "out")
    [log] = (tmp_path / "out").rglob("*.log")
    assert "WARNING - boxes that are dropped or clipped" in log.read_text()
    content["annotations"][4]["area"] = content["annotations"][5]["area"] = 0
    write_set(tmp_path, content)
    with pytest.raises(DataError, match="areas of zero"):
        start(model, tmp_path, tmp_path / "more")
    with pytest.raises(FirstStepError):
        start(
            model,
            tmp_path,
            tmp_path / "allowed",
            {
                "train_dataloader.dataset.allow": ["invalid_areas"],
                "val_dataloader.dataset.allow": ["invalid_areas"],
                "custom_hooks": [{"type": "TopoNetCheckHook", "allow": ["invalid_areas"]}],
            },
        )


def test_part_of_the_categories_may_be_used(model, tmp_path):
    content = base_set()
    content["categories"].insert(1, {"id": 9, "name": "tree"})
    write_set(tmp_path, content)
    with pytest.raises(FirstStepError):
        start(model, tmp_path, tmp_path / "out")


def test_datasets_of_other_formats_have_their_number_compared(model):
    names = {"metainfo": {"classes": ("cell", "nut", "tree")}, "ann_file": "", "lazy_init": True}
    dataset = DATASETS.build({"type": "XMLDataset", "img_subdir": "", **names})
    with pytest.raises(ConfigError, match=r"roi_head.bbox_head.num_classes is 2, but .* 3 classes \(cell, nut, tree\)"):
        check_dataset(dataset, num_classes=class_counts(model))
