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
    write(tmp_path, "stray.png", "a/notes.txt", "a/.thumb.png", "empty/none.txt")
    reader = FolderReader(tmp_path)
    assert reader.class_to_idx == {"a": 0, "b": 1}
    assert [reader.filename(k) for k in range(len(reader))] == [
        *("a/1.jpg", "b/1.png", "b/2.webp", "b/3.bmp", "b/4.tif", "b/more/5.JPEG")
    ]
    assert [target for _, target in reader.samples] == [0, 1, 1, 1, 1, 1]
    text = caplog.text
    assert "2 files that are no .bmp, .jpeg" in text
    assert "(.txt: 2)" in text
    assert "2 hidden files or folders (.ipynb_checkpoints, .thumb.png)" in text
    assert "1 images that lie in no class folder" in text
    assert "no images in the folders empty, which are no classes" in text
    assert "1 images lie in folders within their class (b), and count as of that class" in text


def test_a_class_map_chooses(tmp_path, caplog):
    write(tmp_path, "a/1.png", "b/1.png", "c/1.png")
    (tmp_path / "map.txt").write_text("c\na\n")
    reader = FolderReader(tmp_path, "map.txt")
    assert reader.class_to_idx == {"c": 0, "a": 1}
    assert [target for _, target in reader.samples] == [1, 0]
    assert "1 images of classes that map.txt does not name (b)" in caplog.text


def test_nothing_there(tmp_path):
    write(tmp_path, "stray.png")
    with pytest.raises(
        DataError, match="Found 0 images in class folders .* there are 1 images that lie in no class folder"
    ):
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
    with pytest.raises(DataError, match=r"cannot read the image .*2.tif: its pixels are floats of 32 bits"):
        dataset[1]
