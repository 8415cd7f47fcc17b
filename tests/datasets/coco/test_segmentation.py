import math

import numpy as np
import pytest
from pycocotools import mask

from tests.coco_sets import base_set, write_set
from topodet.datasets.coco import Reading, check_coco, segmentation
from topodet.datasets.coco.segmentation import Segmentation, classify, keypoint_problems, visible_keypoints


def kind_of(value, size=(8, 5)):
    kinds, problems = classify([value], np.array([size], dtype=float))
    return Segmentation(kinds[0]), problems.get(0, "")


def encoded(pixels):
    """Return a mask [H, W] as pycocotools compresses it."""
    lengths = mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return {"size": list(lengths["size"]), "counts": lengths["counts"].decode()}


@pytest.mark.parametrize("characters", [1_000_000, 50])
def test_compressed_run_lengths_are_those_of_pycocotools(characters, monkeypatch):
    monkeypatch.setattr(segmentation, "_CHARACTERS", characters)
    rng = np.random.default_rng(0)
    masks = [
        rng.random((height, width)) < share
        for height, width in ((5, 8), (1, 1), (300, 211))
        for share in (0, 0.001, 0.1, 0.5, 1)
    ]
    sizes = np.array([m.shape[::-1] for m in masks], dtype=float)
    values = [encoded(m) for m in masks]
    kinds, problems = classify(values, sizes)
    assert (kinds == Segmentation.RLE).all()
    assert not problems
    # A run more or less, and what is no text of run lengths.
    longer = [{**value, "counts": value["counts"] + "1"} for value in values]
    damaged = [
        {**value, "counts": counts} for value, counts in zip(values, ("", "é", " 0", "0`", "o" * 20, "~", "000O"))
    ]
    kinds, problems = classify(longer + damaged, np.vstack([sizes, sizes[: len(damaged)]]))
    assert (kinds == Segmentation.MALFORMED).all()
    assert len(problems) == len(kinds)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (None, "NONE", ""),
        ([], "NONE", ""),
        ({}, "NONE", ""),
        ([[0, 0, 4, 0, 4, 4]], "POLYGONS", ""),
        ([[0, 0, 4, 0], [0, 0, 4, 0, 4, 4.5]], "POLYGONS", ""),
        ([[0, 0, 4, 0]], "NO_POLYGON", "polygons of 4 coordinates"),
        ([[0, 0, 4, 0, 4, 4, 1]], "NO_POLYGON", "polygons of 7 coordinates"),
        ([[]], "NO_POLYGON", ""),
        ([0, 0, 4, 0, 4, 4], "MALFORMED", "not lists"),
        ([[0, 0, 4, 0, 4, math.nan]], "MALFORMED", "not all finite numbers"),
        ([[0, 0, 4, 0, 4, "4"]], "MALFORMED", "not all finite numbers"),
        ([[0, 0, 4, 0, 4, 10**400]], "MALFORMED", "not all finite numbers"),
        ([[0, 0, 4, 0, 10**400, -(10**400)]], "MALFORMED", "not all finite numbers"),
        ([[0, 0, 4, 0, 4, True]], "MALFORMED", "not all finite numbers"),
        ("polygon", "MALFORMED", "a str, not polygons"),
        ({"counts": [40]}, "MALFORMED", "size None"),
        ({"size": [5, 8], "counts": [10, 30]}, "RLE", ""),
        ({"size": [8, 5], "counts": [10, 30]}, "MALFORMED", r"size [8, 5] in an image of [5, 8]"),
        ({"size": [5, 8], "counts": [10, 31]}, "MALFORMED", "do not cover the 40 pixels"),
        ({"size": [5, 8], "counts": [-10, 50]}, "MALFORMED", "do not cover"),
        ({"size": [5, 8], "counts": None}, "MALFORMED", "not text or a list"),
    ],
)
def test_kinds(value, kind, words):
    found, problem = kind_of(value)
    assert found.name == kind
    assert words in problem
    assert bool(problem) == (kind in ("MALFORMED", "NO_POLYGON"))


def test_one_bad_row_does_not_hide_the_others():
    good = [[0, 0, 4, 0, 4, 4]]
    kinds, problems = classify([good, [[0, 0, 4, 0, 4, "4"]], None, good, [1]], np.full((5, 2), np.nan))
    assert [Segmentation(kind).name for kind in kinds] == ["POLYGONS", "MALFORMED", "NONE", "POLYGONS", "MALFORMED"]
    assert problems.keys() == {1, 4}


@pytest.mark.parametrize(
    ("polygons", "ok"),
    [
        ([[4, 6, 44, 6, 44, 54]], True),
        ([[-3, -3, 60, 6, 44, 70]], True),  # drawn beyond the box and the border
        ([[4, 6, 5, 6, 5, 7], [40, 6, 44, 6, 44, 54], [999, 9]], True),
        ([[0.04, 0.1, 0.4, 0.1, 0.4, 0.8]], False),  # of 0..1
        ([[200, 6, 240, 6, 240, 54]], False),
        ([[46, 6, 60, 6, 60, 54]], False),
        ([[4, 6, 44, 6, 3e7, 54]], False),  # ends the process of pycocotools
        ([[4, 6, 44, 6, 44, -5e9]], False),
    ],
)
def test_polygons_lie_where_their_box_is(polygons, ok, tmp_path):
    content = base_set()
    content["annotations"][0]["segmentation"] = polygons
    write_set(tmp_path, content)
    for framework, masks in (("MMDetection", "bitmask"), ("Detectron2", "polygon")):
        reading = Reading(framework=framework, masks=masks)
        found = check_coco(tmp_path / "all.json", tmp_path / "images", readings=[reading])
        assert found.ok == ok
        assert [finding.ids for finding in found.findings.values()] == [[1]] * (not ok)
        assert "bbox [4, 6, 40, 48])" in found.text() or ok
    assert check_coco(tmp_path / "all.json", tmp_path / "images").ok  # boxes alone


def test_keypoints():
    good = [1, 2, 2, 3, 4, 1, 0, 0, 0]
    values = [good, None, [], good[:-1], [*good[:-1], "2"], good[:6], {"x": 1}, [*good[:-1], math.inf]]
    assert keypoint_problems(values[:3], [3] * 3) == {}
    problems = keypoint_problems(values, [3] * 8)
    assert problems.keys() == {3, 4, 5, 6, 7}
    assert problems[5] == "6 numbers, not three for each of 3 points"
    assert keypoint_problems(values, [None] * 8).keys() == {3, 4, 6, 7}
    np.testing.assert_array_equal(visible_keypoints(values[:3]), [2, 0, 0])


def test_evaluation_needs_the_number_of_keypoints(tmp_path):
    content = base_set()
    for annotation in content["annotations"]:
        annotation["keypoints"] = [10, 20, 2]
        annotation["num_keypoints"] = 1
    del content["annotations"][2]["num_keypoints"]
    write_set(tmp_path, content)
    readings = [Reading(framework="Detectron2", num_keypoints=1)]
    found = check_coco(tmp_path / "all.json", tmp_path / "images", readings=readings).findings
    assert {kind: (f.ids, f.details) for kind, f in found.items()} == {"missing_keys": ([3], ["no num_keypoints"])}
