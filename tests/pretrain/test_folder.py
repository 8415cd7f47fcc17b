import os
import pickle

import numpy as np
import pytest
from PIL import Image

from topodet.errors import DataError
from topodet.pretrain.command_line import parse
from topodet.pretrain.data import open_datasets
from topodet.pretrain.folder import FolderReader
from topodet.pretrain.group import join
from topodet.pretrain.unreadable import SkipUnreadable


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path) if path.suffix != ".txt" else path.touch()


def test_classes_and_what_is_left_out(tmp_path, caplog):
    write(tmp_path, "b/1.png", "b/2.webp", "b/3.bmp", "b/4.tif", "b/more/5.JPEG", "a/1.jpg", ".ipynb_checkpoints/1.png")
    write(tmp_path, "stray.png", "a/notes.txt", "a/.thumb.png", "empty/none.txt", "__MACOSX/a/1.jpg", "@eaDir/1.png")
    reader = FolderReader(tmp_path)
    assert reader.class_to_idx == {"a": 0, "b": 1}
    assert [reader.filename(k) for k in range(len(reader))] == [
        *("a/1.jpg", "b/1.png", "b/2.webp", "b/3.bmp", "b/4.tif", "b/more/5.JPEG")
    ]
    assert [target for _, target in reader.samples] == [0, 1, 1, 1, 1, 1]
    text = caplog.text
    assert "2 files that are not .bmp, .jpeg" in text
    assert "(.txt: 2)" in text
    assert "4 hidden files or folders (.ipynb_checkpoints, .thumb.png, @eaDir, __MACOSX)" in text
    assert "1 images outside class folders" in text
    assert "no images in the folders empty, which are not used as classes" in text
    assert "1 images are in subfolders of their class folder (b) and count towards that class" in text


def test_a_class_map_chooses(tmp_path, caplog):
    write(tmp_path, "a/1.png", "b/1.png", "c/1.png")
    (tmp_path / "map.txt").write_text("c\na\n")
    reader = FolderReader(tmp_path, "map.txt")
    assert reader.class_to_idx == {"c": 0, "a": 1}
    assert [target for _, target in reader.samples] == [1, 0]
    assert "1 images of classes that are not in map.txt (b)" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("map.txt", b"a\na\nb\n", "blank line or a duplicate name"),
        ("map.txt", b"a\n\nb\n", "blank line or a duplicate name"),
        ("map.pkl", b"cos\nmkdir\n(Vexecuted\ntR.", "cannot read --class-map map.pkl: .*os.mkdir"),
        ("map.pkl", pickle.dumps(["a", "b"]), "map.pkl: it is not a dict of class names"),
        ("map.pkl", pickle.dumps({"a": "0"}), "map.pkl: it is not a dict of class names"),
        ("map.pkl", pickle.dumps({"a": 0})[:-2], "cannot read --class-map map.pkl"),
        ("map.json", b"{}", "cannot read --class-map map.json"),
        ("map.txt", b"\xff", "cannot read --class-map map.txt"),
        ("", b"", "cannot read --class-map gone.txt"),
    ],
)
def test_a_class_map_that_is_none(tmp_path, name, content, message, monkeypatch):
    write(tmp_path, "a/1.png", "b/1.png")
    if name:
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        FolderReader(tmp_path, name or "gone.txt")
    assert not (tmp_path / "executed").exists()


def test_a_class_map_of_timms_pickle(tmp_path):
    """With every timm: older ones unpickle it with all that is in it."""
    write(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "map.pkl").write_bytes(pickle.dumps({"b": 0, "a": 1}))
    assert [target for _, target in FolderReader(tmp_path, "map.pkl").samples] == [1, 0]


def test_nothing_there(tmp_path):
    write(tmp_path, "stray.png")
    with pytest.raises(DataError, match="Found 0 images in class folders .* left out: 1 images outside class folders"):
        FolderReader(tmp_path)


def test_deep_images_of_torchvisions_folder(tmp_path):
    for split in ("train", "validation"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.full((4, 4), 128 << 8, np.uint16)).save(tmp_path / split / name / "1.png")
    options = parse(["--data-dir", str(tmp_path), "--dataset", "torch/image_folder", "--device", "cpu"])
    with join("cpu") as group:
        image, _ = open_datasets(options, group, 3).train[0]
    assert np.asarray(image).tolist() == [[[128] * 3] * 4] * 4


def test_deep_images_are_scaled_or_named(tmp_path):
    from timm.data import ImageDataset

    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 128 << 8, np.uint16)).save(tmp_path / "a" / "1.png")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a" / "2.tif")
    dataset = SkipUnreadable(ImageDataset(tmp_path, reader=FolderReader(tmp_path)), "stop", count_substitutes=True)
    assert np.asarray(dataset[0][0]).tolist() == [[[128] * 3] * 4] * 4
    os.mkfifo(tmp_path / "a" / "3.png")
    dataset = SkipUnreadable(ImageDataset(tmp_path, reader=FolderReader(tmp_path)), "stop", count_substitutes=True)
    with pytest.raises(DataError, match=r"cannot read the image .*3.png: it is not a regular file"):
        dataset[2]
    with pytest.raises(DataError, match=r"cannot read the image .*2.tif: its pixels are 32-bit floats"):
        dataset[1]
