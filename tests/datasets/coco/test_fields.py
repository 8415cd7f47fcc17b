"""Every entry that frameworks read, with values that no program should write: an error of the check, never another."""

import json
import os

import pytest

from tests.coco_sets import base_set, write_set
from topodet.datasets.coco import Reading, check_coco, load_annotations
from topodet.errors import DataError

BIG = "1" + "0" * 400
VALUES = (
    *("NaN", "Infinity", "-Infinity", "1e400", BIG, "9" * 5000, "true", "false", "null", "-1", "0", "1.5", '"1"', '""'),
    *("[]", "{}", '"a\\u0000"', '"\\ud800"'),
)
# Where an entry stands, and the values that both frameworks take as they are meant.
FIELDS = {
    ("images", 0, "id"): (),
    ("images", 0, "width"): (),
    ("images", 0, "height"): (),
    ("images", 0, "file_name"): (),
    ("annotations", 0, "id"): ("-1", "0"),
    ("annotations", 0, "image_id"): (),
    ("annotations", 0, "category_id"): (),
    ("annotations", 0, "area"): ("1.5",),
    ("annotations", 0, "iscrowd"): ("true", "false", "0"),
    ("annotations", 0, "bbox"): (),
    ("annotations", 0, "bbox", 0): ("-1", "0", "1.5"),
    ("annotations", 0, "bbox", 2): ("1.5",),
    ("annotations", 0, "segmentation"): (),
    ("annotations", 0, "segmentation", 0): (),
    ("annotations", 0, "segmentation", 0, 0): ("-1", "0", "1.5"),
    ("categories", 0, "id"): (),
    ("categories", 0, "name"): ('"1"',),
    ("images",): (),
    ("annotations",): (),
    ("categories",): (),
}
READINGS = (Reading(framework="MMDetection", masks="bitmask"), Reading(framework="Detectron2", masks="polygon"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set"), base_set())


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: ".".join(map(str, place)))
def test_only_what_frameworks_understand_passes(place, root):
    passed = []
    for value in VALUES:
        content = within = base_set()
        for key in place[:-1]:
            within = within[key]
        within[place[-1]] = "@"
        (root / "all.json").write_text(json.dumps(content).replace('"@"', value))
        found = check_coco(root / "all.json", root / "images", readings=READINGS)
        found.text().encode()
        json.dumps(found.as_dict())
        passed += [value] if found.ok else []
    assert tuple(passed) == tuple(value for value in VALUES if value in FIELDS[place])


def test_files_that_are_no_json_in_utf_8(tmp_path):
    text, path = json.dumps(base_set()), tmp_path / "all.json"
    path.write_text(text[:-1] + ', "annotations": []}')  # the last of two keys counts, as for every reader
    assert set(check_coco(path, tmp_path).findings) >= {"empty"}
    for content in (*(text.encode(code) for code in ("utf-16", "utf-8-sig", "utf-32")), b"", text[:-9].encode()):
        path.write_bytes(content)
        assert set(check_coco(path, tmp_path).findings) == {"unreadable_file"}
    path.unlink()
    for make in (lambda: path.symlink_to(path), lambda: os.mkfifo(path)):
        make()
        assert set(check_coco(path, tmp_path).findings) == {"unreadable_file"}
        with pytest.raises(DataError, match="not a file|symbolic links"):
            load_annotations(path)
        path.unlink()


def test_names_of_categories_and_info(root, monkeypatch):
    content = base_set()
    content["categories"] += [{"id": 3, "name": "cell"}, {"id": 4, "name": " "}, {"id": 5, "name": "nut "}]
    (root / "all.json").write_text(json.dumps(content))
    monkeypatch.setattr("importlib.metadata.version", lambda package: "2.0.10")
    found = check_coco(root / "all.json", root / "images").findings
    assert (found["duplicate_category_names"].ids, found["empty_category_names"].ids) == (["1, 3"], [4])
    assert (found["padded_category_names"].ids, found["padded_category_names"].is_error) == ([5], False)
    assert found["missing_info"].ids == ["pycocotools 2.0.10"]
    (root / "all.json").write_text(json.dumps({**content, "info": {}}))
    assert "missing_info" not in check_coco(root / "all.json", root / "images").findings


def test_images_that_are_links_or_pipes(root):
    content = base_set()
    content["images"].append({**content["images"][0], "id": 4})
    for image, name in zip(content["images"], ("gone.jpg", "pipe.jpg", "text.jpg", "a" * 300)):
        image["file_name"] = name
    (root / "images" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(root / "images" / "pipe.jpg")
    (root / "images" / "text.jpg").symlink_to(root / "all.json")
    (root / "all.json").write_text(json.dumps(content))
    found = check_coco(root / "all.json", root / "images", read_images=True).findings
    assert (found["missing_images"].ids, found["unreadable_images"].ids) == ([1, 2, 4], [3])
    # Names of files as if they were folders, which no framework opens.
    for image, name in zip(content["images"], ("3.jpg/", "3.jpg/.", "", ".")):
        image["file_name"] = name
    (root / "all.json").write_text(json.dumps(content))
    assert check_coco(root / "all.json", root / "images").findings["missing_images"].ids == [1, 2, 3, 4]
