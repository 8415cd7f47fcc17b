from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.datasets import load_digits

from topodet.datasets import digits
from topodet.datasets.coco import check_coco
from topodet.datasets.digits import split_digits, write_digit_folders, write_digit_scenes
from topodet.errors import ConfigError, DataError

SCENES = {"num_train": 12, "num_val": 6, "size": (160, 128), "digit_px": (16, 60)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_digit_folders(tmp_path_factory.mktemp("digits") / "folders", size=16, copies=1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_digit_scenes(tmp_path_factory.mktemp("digits") / "scenes", **SCENES)


def content(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------------- split


@pytest.mark.parametrize("val_share", [0.1, 0.25, 0.5])
def test_split_is_disjoint_complete_and_stratified(val_share):
    train, val = split_digits(seed=3, val_share=val_share)
    assert sorted([*train, *val]) == list(range(1797))
    classes = load_digits().target
    for digit in range(10):
        total = (classes == digit).sum()
        assert abs((classes[val] == digit).sum() - val_share * total) <= 0.5
        assert (classes[train] == digit).sum() + (classes[val] == digit).sum() == total


def test_split_depends_on_the_seed_alone():
    for first, second in zip(split_digits(seed=5), split_digits(seed=5)):
        np.testing.assert_array_equal(first, second)
    assert set(split_digits(seed=5)[1]) != set(split_digits(seed=6)[1])


@pytest.mark.parametrize("val_share", [0, 1, -0.2, 25])
def test_split_refuses_a_share_outside_0_and_1(val_share):
    with pytest.raises(ConfigError, match="val_share"):
        split_digits(val_share=val_share)


def test_missing_scikit_learn_is_named_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._digits.cache_clear()
    with pytest.raises(DataError, match=r'pip install "topodet\[test\]"'):
        write_digit_folders(tmp_path / "folders")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- drawing


def test_every_scan_gives_ink_that_fills_its_box():
    scans, _ = digits._digits()
    for scan, angle in zip(scans, itertools.cycle((-15, -4, 0, 9, 15))):
        mask = digits._ink(scan, 24, angle) >= 0.5
        assert min(mask.shape) >= 3
        assert max(mask.shape) <= 1.25 * 24
        assert all(border.any() for border in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


@given(seed=st.integers(0, 10_000), side=st.integers(16, 60))
@settings(max_examples=25, deadline=None)
def test_box_is_the_extent_of_the_ink(seed, side):
    """On a plain canvas the ink can be found again: pixels that changed at least half as much as the most changed."""
    canvas = np.full((96, 112, 3), 90.0, dtype=np.float32)
    scans, classes = digits._digits()
    by_class = [np.flatnonzero(classes == digit) for digit in range(10)]
    rng = np.random.default_rng(seed)
    ((_, _, box),) = digits._place_digits(rng, canvas, scans, by_class, (1, 1), (side, side))
    change = np.abs(canvas - 90.0).sum(axis=2).tolist()
    threshold = max(map(max, change)) / 2
    rows, columns = [], []
    for row in range(96):
        for column in range(112):
            if change[row][column] >= threshold:
                rows.append(row)
                columns.append(column)
    assert box == (min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_ink_stands_out_from_any_background(seed):
    rng = np.random.default_rng(seed)
    canvas = digits._background(rng, 64, 48)
    assert canvas.shape == (48, 64, 3)
    assert canvas.min() >= 0
    assert canvas.max() <= 255
    before = canvas.copy()
    ink = digits._ink(digits._digits()[0][seed % 1797], 32, 5.0)
    digits._paint(rng, canvas, ink, 8, 4)
    h, w = ink.shape
    full = np.zeros((48, 64), dtype=bool)
    full[4 : 4 + h, 8 : 8 + w] = ink == 1
    weights = np.array([0.299, 0.587, 0.114])
    under, painted = (before @ weights)[full].mean(), (canvas @ weights)[full].mean()
    assert under - painted >= 85  # 100 to the mean under all of the ink, of which this is the opaque part
    assert canvas.min() >= -0.01
    assert canvas.max() <= 255.01


# -------------------------------------------------------------------------------------------------------------- folders


def test_folders_hold_each_sample_under_its_class(folders):
    classes = load_digits().target
    found = {}
    for name in ("train", "val"):
        paths = list((folders / name).rglob("*.png"))
        found[name] = {int(path.stem.split("_")[0]) for path in paths}
        assert len(found[name]) == len(paths)
        for path in paths:
            assert str(classes[int(path.stem.split("_")[0])]) == path.parent.name
    train, val = split_digits()
    assert found == {"train": set(train.tolist()), "val": set(val.tolist())}
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("RGB", (16, 16))


def test_copies_differ_and_only_train_has_them(tmp_path):
    root = write_digit_folders(tmp_path / "two", size=16, copies=2, seed=1)
    assert len(list((root / "train").rglob("*.png"))) == 2 * len(split_digits()[0])
    assert len(list((root / "val").rglob("*.png"))) == len(split_digits()[1])
    first, second = sorted((root / "train" / "7").glob("*.png"))[:2]
    assert first.stem.split("_")[0] == second.stem.split("_")[0]
    assert first.read_bytes() != second.read_bytes()


def test_folders_are_read_by_timm(folders):
    from timm.data import create_dataset

    dataset = create_dataset("", root=str(folders), split="val")
    assert len(dataset) == len(split_digits()[1])
    image, label = dataset[len(dataset) - 1]
    assert image.size == (16, 16)
    assert label == 9


@pytest.mark.parametrize("arguments", [{"size": 8}, {"copies": 0}])
def test_folders_refuse_impossible_settings(arguments, tmp_path):
    with pytest.raises(ConfigError, match="copies"):
        write_digit_folders(tmp_path / "folders", **arguments)


# --------------------------------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize("name", ["train", "val"])
def test_scenes_are_valid(scenes, name):
    report = check_coco(scenes / f"{name}.json", scenes / name, read_images=True)
    assert report.ok, report.text()
    assert "images_without_annotations" not in report.findings
    assert report.num_images == SCENES[f"num_{name}"]


def test_train_and_val_scenes_show_disjoint_digits(scenes, folders):
    classes = load_digits().target
    shown = {}
    for name, allowed in zip(("train", "val"), split_digits()):
        annotations = json.loads((scenes / f"{name}.json").read_text())["annotations"]
        shown[name] = {a["sample"] for a in annotations}
        assert shown[name] <= set(allowed.tolist())
        assert all(classes[a["sample"]] == a["category_id"] - 1 for a in annotations)
    assert not shown["train"] & shown["val"]
    pretrained = {int(path.stem.split("_")[0]) for path in (folders / "train").rglob("*.png")}
    assert not pretrained & shown["val"]


def test_digits_stay_inside_and_apart(scenes):
    width, height = SCENES["size"]
    for name in ("train", "val"):
        data = json.loads((scenes / f"{name}.json").read_text())
        by_image = {image["id"]: [] for image in data["images"]}
        for annotation in data["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert 0 <= x < x + w <= width
            assert 0 <= y < y + h <= height
            assert annotation["area"] == w * h
            assert max(w, h) <= 1.25 * SCENES["digit_px"][1]
            by_image[annotation["image_id"]].append((x, y, w, h))
        for boxes in by_image.values():
            assert 2 <= len(boxes) <= 6
            for a, b in itertools.combinations(boxes, 2):
                w = max(0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
                h = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
                assert w * h / (a[2] * a[3] + b[2] * b[3] - w * h) <= 0.1


def test_ground_truth_as_detections_has_ap_1(scenes, capsys):
    truth = COCO(str(scenes / "val.json"))
    assert [truth.cats[i]["name"] for i in range(1, 11)] == list("0123456789")
    annotations = truth.loadAnns(truth.getAnnIds())
    for annotation in annotations:
        mask = truth.annToMask(annotation)
        assert mask.sum() == annotation["area"]
    keys = ("image_id", "category_id", "bbox")
    detections = truth.loadRes([{**{key: a[key] for key in keys}, "score": 0.9} for a in annotations])
    evaluation = COCOeval(truth, detections, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)
    assert evaluation.stats[1] == pytest.approx(1.0)


def test_scenes_depend_on_the_seed_alone(scenes, tmp_path):
    small = {**SCENES, "num_train": 2, "num_val": 1}
    first = write_digit_scenes(tmp_path / "a", **small, seed=4)
    assert content(first) == content(write_digit_scenes(tmp_path / "b", **small, seed=4))
    other = content(write_digit_scenes(tmp_path / "c", **small, seed=5))
    assert all(content(first)[path] != data for path, data in other.items() if path.suffix == ".jpg")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_val": 0}, "num_val"),
        ({"digits_per_scene": (3, 2)}, "digits_per_scene"),
        ({"digits_per_scene": (0, 2)}, "digits_per_scene"),
        ({"digit_px": (24, 110)}, "at most 102"),
        ({"digit_px": (30, 20)}, "digit_px"),
    ],
)
def test_scenes_refuse_impossible_settings(arguments, named, tmp_path):
    with pytest.raises(ConfigError, match=named):
        write_digit_scenes(tmp_path / "scenes", **{**SCENES, "size": (128, 160), **arguments})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- idempotence


def test_failure_halfway_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="no room for 30 digits"):
        write_digit_scenes(tmp_path / "scenes", size=(64, 64), digits_per_scene=(30, 30), digit_px=(24, 48))
    assert list(tmp_path.iterdir()) == []


def test_same_settings_reuse_and_others_are_refused(tmp_path):
    small = {**SCENES, "num_train": 1, "num_val": 1}
    root = write_digit_scenes(tmp_path / "new" / "scenes", **small)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert write_digit_scenes(root, **small) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times
    with pytest.raises(DataError, match="seed is 0, not 1"):
        write_digit_scenes(root, **small, seed=1)
    with pytest.raises(DataError, match="kind is 'digit scenes'"):
        write_digit_folders(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


def test_foreign_folder_is_left_alone_and_an_empty_one_is_used(tmp_path):
    small = {**SCENES, "num_train": 1, "num_val": 1}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years")
    with pytest.raises(DataError, match=r"settings\.json"):
        write_digit_scenes(foreign, **small)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    write_digit_scenes(empty, **small)
    assert (empty / "train.json").is_file()
