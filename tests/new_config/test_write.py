import ast
import contextlib
import json
import re

import pytest
import yaml

from tests.detection import coco, nano
from topodet.errors import ConfigError, DataError, WeightsError
from topodet.new_config import FRAMEWORKS, new_config

__all__ = ["coco", "nano"]


@pytest.fixture
def write(coco, tmp_path):
    def write(framework="mmdet", **changes):
        data = {"train": coco / "all.json", "val": coco / "all.json", "images": coco / "images", "batch": 2}
        suffix = "py" if framework == "mmdet" else "yaml"
        return new_config(framework, **data | {"output": tmp_path / f"mine.{suffix}"} | changes)[0].read_text()

    return write


def numbers(framework, text):
    """Return what both frameworks' configs say, in one set of words."""
    if framework == "mmdet":
        found = {}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.keyword | ast.Assign):
                name = node.arg if isinstance(node, ast.keyword) else node.targets[0].id
                with contextlib.suppress(ValueError):  # no literal
                    found.setdefault(name, ast.literal_eval(node.value))
        keys = ("lr", "milestones", "end", "frozen_stages", "pretrained", "mean", "batch_size", "scale", "channels")
        return len(found["classes"]), *(found[key] for key in keys)
    made = yaml.safe_load(text)
    model, solver, given = made["MODEL"], made["SOLVER"], made["INPUT"]
    node = model.get("TOPONET") or model["CONNECTED_TIMM"]
    return (
        model["ROI_HEADS"]["NUM_CLASSES"],
        solver["BASE_LR"],
        list(ast.literal_eval(solver["STEPS"])),
        solver["WARMUP_ITERS"],
        model["BACKBONE"]["FREEZE_AT"] - 1,
        node["PRETRAINED"] or None,
        model["PIXEL_MEAN"],
        solver["IMS_PER_BATCH"],
        (given["MAX_SIZE_TRAIN"], ast.literal_eval(given["MIN_SIZE_TRAIN"])[0]),
        model["FPN"]["OUT_CHANNELS"],
    )


@pytest.mark.parametrize(
    ("backbone", "given"), [("toponet_nano", "a file"), ("toponet_nano", "none"), ("mobilenetv2_050", "")]
)
def test_both_frameworks_get_the_same_numbers(backbone, given, write, nano):
    weights = given == "a file"
    source = str(nano.pth) if weights else None
    given = source or given
    one, other = (numbers(f, write(f, backbone=backbone, weights_file=given, epochs=30)) for f in FRAMEWORKS)
    assert one == other
    mean = [123.675, 116.28, 103.53]
    # 2 images, 2 a step: 30 iterations, at 64 x 96 pixels
    expected = (2, 0.0025, [20, 28], 6, 1 if weights else -1, source, mean, 2, (107, 64), 64)
    assert one == expected


def test_the_weights_in_the_package_are_the_default(write):
    assert 'arch="toponet_nano"' in (text := write())
    assert "pretrained=True,  # a published backbone, path or URL; here the weights in the package" in text
    node = yaml.safe_load(write("detectron2"))["MODEL"]["TOPONET"]
    assert (node["ARCH"], node["PRETRAINED"], node["NORM"]) == ("toponet_nano", "topodet", "FrozenBN")
    with pytest.raises(ConfigError, match="no weights of 'toponet50'"):
        write(backbone="toponet50", weights_file="topodet", output="other.py")


def test_the_network_and_its_preprocessing_are_those_of_the_weights_file(write, nano):
    text = write(weights_file=str(nano.pth))
    assert 'arch="toponet_nano"' in text
    assert "norm_eval=True" in text
    with pytest.raises(WeightsError, match="does not fit"):
        write(weights_file=str(nano.pth), backbone="toponet50", output="other.py")


def test_a_network_without_batch_normalization_gets_adamw(write):
    text = write("detectron2", backbone="convnext_atto")
    assert yaml.safe_load(text)["SOLVER"]["OPTIMIZER"] == "AdamW"
    assert yaml.safe_load(text)["SOLVER"]["BASE_LR"] == 1.25e-05


def test_bad_data_stops_before_anything_is_written(write, coco, tmp_path):
    content = json.loads((coco / "all.json").read_text())
    renamed = {**content, "categories": content["categories"][::-1]}
    (tmp_path / "val.json").write_text(json.dumps(renamed))
    with pytest.raises(DataError, match="different categories"):
        write(val=tmp_path / "val.json")
    content["annotations"][0]["bbox"][2] = 0
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="boxes of zero"):
        write(train=tmp_path / "train.json")
    assert not (tmp_path / "mine.py").exists()


def test_what_cannot_be_is_refused(write, tmp_path):
    with pytest.raises(ConfigError, match="unknown framework 'mmdetection'"):
        write("mmdetection")
    with pytest.raises(ConfigError, match="must end in .yaml"):
        write("detectron2", output=tmp_path / "mine.py")
    with pytest.raises(ConfigError, match="timm publishes no weights of toponet_nano"):
        write(backbone="toponet_nano", weights_file="timm")
    with pytest.raises(ConfigError, match="unknown model 'toponet5'"):
        write(backbone="toponet5")
    write(backbone="toponet_nano")
    with pytest.raises(ConfigError, match="already exists"):
        write(backbone="toponet_nano")


def test_strange_names_stay_text(write, coco, tmp_path):
    """Names of classes and folders are data: quotes, dollars, line breaks in them make no other config."""
    content = json.loads((coco / "all.json").read_text())
    names = ['a "quoted" $thing', "two\nlines # and more", "löschen\\"]
    content["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    folder = tmp_path / 'a "folder" $here'
    folder.mkdir()
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    text = write(train=path, val=path, backbone="toponet_nano")
    assert ast.literal_eval(re.search(r"^classes = (.*)$", text, re.MULTILINE)[1]) == tuple(names)
    assert ast.literal_eval(re.search(r"ann_file=(\".*\"),", text)[1]).endswith('a "folder" $here/train.json')
    made = yaml.safe_load(write("detectron2", train=path, val=path, backbone="toponet_nano"))
    assert made["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 3
