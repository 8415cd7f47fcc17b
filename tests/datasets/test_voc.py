import json
import re

import pytest
from PIL import Image

from topodet.datasets.voc import voc_to_coco
from topodet.errors import ConfigError, DataError

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"""
FILE = """<annotation><filename>elsewhere.png</filename>
<size><width>40</width><height>30</height><depth>3</depth></size>
{objects}</annotation>"""


def voc_object(name, box, difficult=0):
    return OBJECT.format(name=name, box=box, difficult=difficult)


@pytest.fixture
def voc(tmp_path):
    """Ten images with a dog over the whole image each, the first one with a difficult cat too."""
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir()
    for k in range(10):
        objects = voc_object("dog", (1, 1, 40, 30)) + (voc_object("cat", (5.5, 6, 10, 12), 1) if k == 0 else "")
        (tmp_path / "Annotations" / f"{k}.xml").write_text(FILE.format(objects=objects))
        Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / f"{k}.jpg")
    return tmp_path


def convert(voc, **options):
    reports = voc_to_coco(voc / "Annotations", voc / "JPEGImages", voc / "coco", **options)
    return reports, *(json.loads((voc / "coco" / f"{part}.json").read_text()) for part in ("train", "val"))


def test_pixels_from_1_become_coordinates_from_0(voc):
    reports, train, val = convert(voc, train_names=["0", "3"])
    assert all(report.ok for report in reports)
    assert [image["file_name"] for image in train["images"]] == ["0.jpg", "3.jpg"]
    assert len(val["images"]) == 8
    assert train["categories"] == val["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    dog, cat, _ = train["annotations"]
    assert dog["bbox"] == [0, 0, 40, 30]  # first and last pixel of the image: all of it
    assert (dog["category_id"], dog["area"], dog["iscrowd"]) == (2, 1200, 0)
    assert (cat["bbox"], cat["category_id"], cat["iscrowd"]) == ([4.5, 5, 5.5, 7], 1, 1)
    assert "iscrowd" in val["annotations"][0]


def test_coordinates_from_0_stay(voc):
    _, train, _ = convert(voc, train_names=["0"], zero_based=True)
    assert [row["bbox"] for row in train["annotations"]] == [[1, 1, 39, 29], [5.5, 6, 4.5, 6]]


def test_the_split_is_a_draw_that_can_be_repeated(voc):
    _, train, val = convert(voc, split=0.7)
    names = [[image["file_name"] for image in part["images"]] for part in (train, val)]
    assert [len(part) for part in names] == [7, 3]
    assert sorted(names[0] + names[1]) == [f"{k}.jpg" for k in range(10)]
    assert convert(voc, split=0.7)[1] == train
    assert convert(voc, split=0.7, seed=1)[1] != train


def test_what_is_wrong_with_boxes_is_found_by_the_check(voc):
    (voc / "Annotations" / "4.xml").write_text(FILE.format(objects=voc_object("dog", (9, 9, 8, 20))))
    (voc / "Annotations" / "5.xml").write_text(FILE.format(objects=voc_object("dog", (9, 9, 80, 20))))
    reports, _, _ = convert(voc, train_names=["4", "5"])
    assert not reports[0].ok
    assert reports[0].findings.keys() >= {"empty_boxes", "boxes_outside"}
    assert reports[1].ok


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not XML"),
        ("<annotation>", "not XML"),
        (FILE.format(objects="").replace("<width>40", "<width>wide"), "size/width is 'wide', not a number"),
        (FILE.format(objects="").replace("<width>40", "<width>nan"), "size/width is 'nan'"),
        (FILE.format(objects=voc_object("", (1, 1, 2, 2))), "an object without a name"),
        (FILE.format(objects="<object><name>dog</name></object>"), "bndbox/xmin is '', not a number"),
        ("<?xml version='1.0' encoding='nonsense'?><annotation/>", "not XML"),
    ],
)
def test_files_that_are_not_vocs_are_named(text, message, voc):
    (voc / "Annotations" / "7.xml").write_text(text)
    with pytest.raises(DataError, match=f"1 of 10 files .*: 7.xml: {re.escape(message)}"):
        convert(voc)
    assert not (voc / "coco").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_they_grow(encoding, voc):
    entities = '<!ENTITY a "ha">' + "".join(f'<!ENTITY {b} "{f"&{a};" * 20}">' for a, b in zip("abcdefgh", "bcdefghi"))
    text = f'<?xml version="1.0"?><!DOCTYPE x [{entities}]>{FILE.format(objects=voc_object("&i;", (1, 1, 2, 2)))}'
    (voc / "Annotations" / "7.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match="declares a document type"):
        convert(voc)


def test_other_folders_shares_and_lists(voc):
    with pytest.raises(DataError, match="no .xml files in"):
        voc_to_coco(voc / "JPEGImages", voc / "JPEGImages", voc / "coco")
    for split in (0, 1, -0.5, 8, 0.01, float("nan")):
        with pytest.raises(ConfigError):
            convert(voc, split=split)
    with pytest.raises(ConfigError, match="without an XML file: 11, 12"):
        convert(voc, train_names=["1", "11", "12"])
    (voc / "JPEGImages" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"2.xml: no image 2 with one of"):
        convert(voc)
    with pytest.raises(DataError, match="no image folder"):
        voc_to_coco(voc / "Annotations", voc / "nowhere", voc / "coco")
