import json
import uuid

import pytest
from detectron2.data import DatasetCatalog

from tests.detectron2.helpers import small_config
from topodet.detectron2 import check_datasets, register_dataset
from topodet.errors import ConfigError, DataError


@pytest.fixture
def name():
    return f"set_{uuid.uuid4().hex}"


def test_registered_by_name(coco, name):
    register_dataset(name, coco / "all.json", coco / "images")
    register_dataset(name, coco / "all.json", coco / "images")  # once more, as each of several runs does
    records = DatasetCatalog.get(name)
    assert [len(record["annotations"]) for record in records] == [2, 2]
    check_datasets(small_config(), [name])


def test_a_name_of_another_set(coco, name, tmp_path):
    register_dataset(name, coco / "all.json", coco / "images")
    (tmp_path / "all.json").write_bytes((coco / "all.json").read_bytes())
    with pytest.raises(DataError, match=f"--dataset {name}: .*another name"):
        register_dataset(name, tmp_path / "all.json", coco / "images")


def test_annotation_errors_are_found_before_training(coco, name, tmp_path):
    content = json.loads((coco / "all.json").read_text())
    content["annotations"][1]["bbox"] = [5, 5, -3, 4]
    content["annotations"][2]["category_id"] = 99
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        register_dataset(name, tmp_path / "bad.json", coco / "images")
    ids = [content["annotations"][k]["id"] for k in (1, 2)]
    assert all(str(i) in str(error.value) for i in ids)
    assert name not in DatasetCatalog.list()


@pytest.mark.parametrize("missing", ["annotations", "images"])
def test_missing_paths(missing, coco, tmp_path, name):
    paths = {"annotations": coco / "all.json", "images": coco / "images", missing: tmp_path / "nowhere"}
    with pytest.raises(DataError, match="nowhere"):
        register_dataset(name, paths["annotations"], paths["images"])


def test_a_builtin_set_that_is_not_there():
    with pytest.raises(DataError, match=r"coco_2017_val: no annotation file at .*DETECTRON2_DATASETS"):
        check_datasets(small_config(MODEL__ROI_HEADS__NUM_CLASSES=80), ["coco_2017_val"])


def test_unknown_names_and_other_classes(coco, name):
    with pytest.raises(ConfigError, match=r"unknown dataset 'coco_2017_vla'.*Did you mean 'coco_2017_val'"):
        check_datasets(small_config(), ["coco_2017_vla"])
    register_dataset(name, coco / "all.json", coco / "images")
    with pytest.raises(
        ConfigError, match=r"NUM_CLASSES is 5, but .* has 2 classes \(person, bicycle\): add MODEL.ROI_"
    ):
        check_datasets(small_config(MODEL__ROI_HEADS__NUM_CLASSES=5), [name])
    with pytest.raises(ConfigError, match="add MODEL.RETINANET.NUM_CLASSES 2"):
        check_datasets(small_config(MODEL__META_ARCHITECTURE="RetinaNet"), [name])
