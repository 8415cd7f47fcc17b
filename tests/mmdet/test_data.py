import json

import pytest
from mmengine.runner import Runner

from tests.mmdet.helpers import LOADERS, NANO, small_config
from topodet.errors import ConfigError

TWO = {"model.roi_head.bbox_head.num_classes": 2}


def runner(root, work_dir, classes, **options):
    names = {f"{loader}.dataset.metainfo": {"classes": classes} for loader in LOADERS}
    return Runner.from_cfg(small_config(NANO, root, work_dir, {**TWO, **names, **options}))


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (("person",), {}, r"num_classes=2, but the CocoDataset of .*all.json has 1 classes \(person\)"),
        (("person", "Bicycle"), {}, "the classes Bicycle are none of its categories, which are person, bicycle"),
        (
            ("bicycle", "person"),
            {},
            "has the classes bicycle, person, but .* in the order of the file, person, bicycle",
        ),
    ],
    ids=["number", "name", "order"],
)
def test_classes_are_compared_before_the_first_step(coco, tmp_path, classes, options, message):
    with pytest.raises(ConfigError, match=message):
        runner(coco, tmp_path, classes, **options).train()
    assert not list(tmp_path.rglob("*.pth"))


def test_part_of_the_categories_may_be_used(coco, tmp_path):
    content = json.loads((coco / "all.json").read_text())
    content["categories"].insert(1, {"id": 9, "name": "tree"})
    (tmp_path / "all.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(coco / "images")
    options = {"train_cfg.max_epochs": 0, "train_cfg.val_begin": 9}
    run = runner(tmp_path, tmp_path / "work", ("person", "bicycle"), **options)
    run.train()
    assert run.train_dataloader.dataset.cat_ids == [1, 2]
