from __future__ import annotations

import copy
import json
import math
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from topodet.datasets.coco import check_coco
from topodet.errors import ConfigError, DataError

NOTES = {"images_without_annotations", "categories_without_annotations", "annotation_id_zero"}


@st.composite
def datasets(draw, min_annotations=1):
    """Valid annotation files, with gaps in the ids, boxes that touch the border and images in sub-folders."""

    def ids(low, high):
        return draw(st.lists(st.integers(1, 10**6), min_size=low, max_size=high, unique=True))

    images = [
        {
            "id": i,
            "file_name": f"{draw(st.sampled_from(['', 'a/', 'a/b/']))}{i}.jpg",
            "width": draw(st.integers(32, 900)),
            "height": draw(st.integers(32, 900)),
        }
        for i in ids(1, 5)
    ]
    categories = [{"id": i, "name": f"category {i}"} for i in ids(1, 4)]
    annotations = []
    for i in ids(min_annotations, 8):
        image = draw(st.sampled_from(images))
        x, y = (draw(st.floats(0, image[key] - 1.5)) for key in ("width", "height"))
        w, h = (draw(st.floats(1, image[key] - low)) for key, low in (("width", x), ("height", y)))
        annotations.append(
            {
                "id": i,
                "image_id": image["id"],
                "category_id": draw(st.sampled_from(categories))["id"],
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
        )
    return {"images": images, "annotations": annotations, "categories": categories}


def check(data, *, missing=(), **options):
    """Write the file and its (empty) images into a folder and check that."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        root.mkdir()
        for image in data.get("images", []):
            name = image.get("file_name") if isinstance(image, dict) else None
            if isinstance(name, str) and image.get("id") not in missing:
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        (Path(folder) / "annotations.json").write_text(json.dumps(data))
        return check_coco(Path(folder) / "annotations.json", root, **options)


def errors(report):
    """Return ids by kind, but for `nothing_left`, which follows where all boxes have an error."""
    found = {kind: finding.ids for kind, finding in report.findings.items() if finding.is_error}
    return {kind: ids for kind, ids in found.items() if kind != "nothing_left" or len(found) == 1}


@given(datasets())
@settings(max_examples=60, deadline=None)
def test_valid_files_pass_with_notes_alone(data):
    report = check(data)
    assert report.ok, report.text()
    report.raise_if_bad()
    assert set(report.findings) <= NOTES
    assert (report.num_images, report.num_annotations, report.num_categories) == tuple(
        len(data[name]) for name in ("images", "annotations", "categories")
    )
    for kind, records, key in (
        ("images_without_annotations", "images", "image_id"),
        ("categories_without_annotations", "categories", "category_id"),
    ):
        unused = [r["id"] for r in data[records] if all(a[key] != r["id"] for a in data["annotations"])]
        found = report.findings.get(kind)
        assert (found.ids if found else []) == unused


def _unknown_image(annotation, image, value):
    annotation["image_id"] = 10**7


def _unknown_category(annotation, image, value):
    annotation["category_id"] = "10000000"


def _empty_box(annotation, image, value):
    annotation["bbox"][2 + value % 2] = (0, 0.0, -3, math.nan, math.inf)[value % 5]


def _outside_box(annotation, image, value):
    w, h = image["width"], image["height"]
    annotation["bbox"] = ([-1.5, 0, 2, 1], [0, -2, 1, 1], [0, 0, w + 1.01, 1], [0, h, 1.5, 1.5], [w + 5, 0, 1, 1])[
        value % 5
    ]


def _malformed_box(annotation, image, value):
    annotation["bbox"] = ([1, 2, 3], [1, 2, 3, 4, 5], ["1", "2", "3", "4"], {"x": 1}, [1, 2, 3, None], 7)[value % 6]


def _incomplete(annotation, image, value):
    del annotation[("image_id", "category_id", "bbox", "area", "iscrowd")[value % 5]]


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("unknown_images", _unknown_image),
        ("unknown_categories", _unknown_category),
        ("empty_boxes", _empty_box),
        ("boxes_outside", _outside_box),
        ("invalid_boxes", _malformed_box),
        ("missing_keys", _incomplete),
    ],
)
@given(data=datasets(), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_spoiled_annotations_are_found_by_id(kind, spoil, data, seed):
    rng = random.Random(seed)
    chosen = rng.sample(range(len(data["annotations"])), rng.randint(1, len(data["annotations"])))
    images = {image["id"]: image for image in data["images"]}
    for i in chosen:
        annotation = data["annotations"][i]
        spoil(annotation, images[annotation["image_id"]], rng.randrange(60))
    report = check(data)
    assert errors(report) == {kind: [data["annotations"][i]["id"] for i in sorted(chosen)]} or kind == "missing_keys"
    # Which entry is missing decides the order of these.
    assert sorted(errors(report)[kind]) == sorted(data["annotations"][i]["id"] for i in chosen)
    assert report.findings[kind].count == len(chosen)
    assert not report.ok
    with pytest.raises(DataError, match=report.findings[kind].title):
        report.raise_if_bad()


@given(data=datasets(), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_missing_images_are_found_by_id_and_name(data, seed):
    rng = random.Random(seed)
    gone = [i for i in data["images"] if rng.random() < 0.5] or data["images"][:1]
    report = check(data, missing=[image["id"] for image in gone])
    assert errors(report) == {"missing_images": [image["id"] for image in gone]}
    assert report.findings["missing_images"].details == [image["file_name"] for image in gone]


@pytest.mark.parametrize("name", ["image", "annotation"])
@given(data=datasets(), times=st.integers(2, 4))
@settings(max_examples=15, deadline=None)
def test_duplicate_ids_are_found(name, data, times):
    records = data[f"{name}s"]
    records.extend(copy.deepcopy(records[-1]) for _ in range(times - 1))
    report = check(data)
    kind = f"duplicate_{name}_ids"
    assert errors(report) == {kind: [records[-1]["id"]]}
    assert report.findings[kind].details == [f"{times} times"]


@given(data=datasets(), key=st.sampled_from(["width", "height"]), value=st.sampled_from([0, -5, math.nan, "640"]))
@settings(max_examples=25, deadline=None)
def test_image_sizes_must_be_positive_numbers(data, key, value):
    data["images"][0][key] = value
    report = check(data)
    assert errors(report) == {"invalid_image_sizes": [data["images"][0]["id"]]}


def base():
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in (1, 2, 3)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 30], "area": 600, "iscrowd": 0}
            for i in (1, 2, 3)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }


@pytest.mark.parametrize(
    ("bbox", "ok"),
    [
        ([-1, -1, 102, 82], True),
        ([-1.01, 0, 10, 10], False),
        ([0, -1.01, 10, 10], False),
        ([0, 0, 101.01, 10], False),
        ([0, 0, 10, 81.01], False),
    ],
)
def test_one_pixel_beyond_the_border_is_tolerated(bbox, ok):
    data = base()
    data["annotations"][1]["bbox"] = bbox
    assert errors(check(data)) == ({} if ok else {"boxes_outside": [2]})


def test_all_problems_are_reported_at_once():
    data = base()
    data["images"].append({"id": 4, "file_name": "4.jpg", "width": 100, "height": 80})
    data["categories"].append({"id": 7, "name": "unused"})
    data["annotations"][0]["bbox"] = [90, 10, 20, 30]
    data["annotations"][1]["category_id"] = 9
    data["annotations"][2]["bbox"] = [10, 10, 0, 30]
    report = check(data, missing=[2])
    assert errors(report) == {
        "missing_images": [2],
        "unknown_categories": [2],
        "boxes_outside": [1],
        "empty_boxes": [3],
    }
    assert report.findings["images_without_annotations"].ids == [4]
    assert report.findings["categories_without_annotations"].details == ["unused"]
    text = report.text()
    assert "2 (2.jpg)" in text
    assert "4 images, 3 annotations, 2 categories" in text
    assert "4 kinds of problem, 4 in all" in text


def test_a_report_prints_ten_ids_and_keeps_all():
    data = base()
    data["annotations"] = [{**data["annotations"][0], "id": i, "bbox": [0, 0, 0, 0]} for i in range(1, 31)]
    report = check(data)
    assert report.findings["empty_boxes"].ids == list(range(1, 31))
    assert "10 (bbox [0, 0, 0, 0]), ... 20 more" in report.text()
    assert "11 (bbox" not in report.text()


def test_allowed_kinds_become_notes():
    data = base()
    data["annotations"][2]["bbox"] = [10, 10, 5, 0]
    report = check(data, allow=["empty_boxes"])
    assert report.ok
    assert report.findings["empty_boxes"].ids == [3]
    assert "note   boxes of zero" in report.text()
    with pytest.raises(ConfigError, match="Did you mean 'empty_boxes'"):
        check(data, allow=["empty_box"])


def test_records_that_cannot_be_read_do_not_hide_the_others():
    data = base()
    data["images"][0] = {"id": 1, "file_name": 1, "width": 100, "height": 80}
    data["images"].append({"file_name": "5.jpg", "width": 1, "height": 1})
    data["annotations"] += [
        "annotation",
        {**data["annotations"][0], "id": [4]},
        {**data["annotations"][0], "id": 5, "category_id": 2},
    ]
    report = check(data)
    assert errors(report) == {
        "missing_keys": ["images[3]"],
        "invalid_entries": [1, "annotations[3]", "annotations[4]"],
        "unknown_categories": [5],
    }
    assert report.findings["invalid_entries"].details == ["file_name is 1", "str, not an object", "id is [4]"]


def test_annotation_id_zero_is_noted():
    data = base()
    data["annotations"][0]["id"] = 0
    report = check(data)
    assert report.ok
    assert report.findings["annotation_id_zero"].ids == [0]


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_lists_must_be_there_and_hold_something(name):
    data = base()
    data[name] = []
    assert errors(check(data))["empty"] == [name]
    data[name] = {}
    assert errors(check(data)) == {"invalid_entries": [name]}
    del data[name]
    report = check(data)
    assert errors(report) == {"missing_keys": [name]}
    assert not report.ok


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (None, "unreadable_file", "No such file"),
        (b'{"images": [', "unreadable_file", "not JSON"),
        (b"\xff\xfe\x00", "unreadable_file", "not JSON"),
        (b"", "unreadable_file", "not JSON"),
        (b'[{"image_id": 1, "score": 0.5}]', "invalid_entries", "contains a list"),
    ],
)
def test_a_file_that_is_no_annotation_file(content, kind, reason, tmp_path):
    path = tmp_path / "annotations.json"
    if content is not None:
        path.write_bytes(content)
    report = check_coco(path, tmp_path)
    assert list(report.findings) == [kind]
    assert str(path) in report.text()
    assert reason in report.text()
    with pytest.raises(DataError, match=reason):
        report.raise_if_bad()


def test_missing_image_folder_is_one_problem(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(base()))
    report = check_coco(path, tmp_path / "nowhere", read_images=True)
    assert errors(report) == {"image_root_missing": [str(tmp_path / "nowhere")]}


def test_headers_are_compared_when_asked(tmp_path):
    data = base()
    data["images"] += [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in (4, 5)]
    for i, size in ((1, (100, 80)), (2, (80, 100)), (3, (100, 80)), (4, (80, 100))):
        exif = Image.Exif()
        if i == 4:
            exif[274] = 6  # a quarter turn: seen as 100x80
        Image.new("RGB", size).save(tmp_path / f"{i}.jpg", exif=exif)
    (tmp_path / "3.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    unread = check_coco(tmp_path / "annotations.json", tmp_path)
    assert errors(unread) == {"missing_images": [5]}
    report = check_coco(tmp_path / "annotations.json", tmp_path, read_images=True)
    assert errors(report) == {"missing_images": [5], "unreadable_images": [3], "image_size_differs": [2]}
    assert report.findings["image_size_differs"].details == ["2.jpg: 80x100, file says 100x80"]
    assert report.findings["unreadable_images"].details[0].startswith("3.jpg: UnidentifiedImageError")
