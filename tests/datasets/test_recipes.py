"""Datasets of recipes, from an archive laid out as Tiny ImageNet's is."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from topodet.cli import main
from topodet.datasets import recipes
from topodet.errors import DataError
from topodet.pretrain.arrays import ArrayDataset

CLASSES = recipes.TINY_IMAGENET75[:2]


def jpeg(value, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (64, 64), value).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def archive(tmp_path):
    """Two images a class to train on, one to validate on, and those of a class that nobody asked for."""
    path = tmp_path / "tiny-imagenet-200.zip"
    lines = []
    with zipfile.ZipFile(path, "w") as file:
        for place, label in enumerate([*CLASSES, "n00000001"]):
            file.writestr(f"tiny-imagenet-200/train/{label}/images/{label}_0.JPEG", jpeg((40 * place, 0, 0)))
            file.writestr(f"tiny-imagenet-200/train/{label}/images/{label}_1.JPEG", jpeg(40 * place, "L"))
            file.writestr(f"tiny-imagenet-200/train/{label}/{label}_boxes.txt", "")
            file.writestr(f"tiny-imagenet-200/val/images/val_{2 - place}.JPEG", jpeg((0, 0, 40 * place)))
            lines.append(f"val_{2 - place}.JPEG\t{label}\t0\t0\t9\t9\n")
        file.writestr("tiny-imagenet-200/val/val_annotations.txt", "".join(lines))
        file.writestr("tiny-imagenet-200/wnids.txt", "\n".join(reversed(CLASSES)))
    return path


def test_folders_have_the_bytes_of_the_archive(archive, tmp_path):
    assert recipes.write_tiny_imagenet(archive, tmp_path / "out", classes=CLASSES) == {"train": 4, "val": 2}
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.JPEG"))
    a, b = CLASSES
    assert found == [
        *(f"train/{label}/{label}_{k}.JPEG" for label in (a, b) for k in (0, 1)),
        f"val/{a}/val_2.JPEG",
        f"val/{b}/val_1.JPEG",
    ]
    with zipfile.ZipFile(archive) as file:
        inside = file.read("tiny-imagenet-200/val/images/val_1.JPEG")
    assert (tmp_path / "out" / "val" / b / "val_1.JPEG").read_bytes() == inside


def test_arrays_are_what_pretraining_reads(archive, tmp_path):
    recipes.write_tiny_imagenet(archive, tmp_path, arrays=True)  # all classes of wnids.txt
    train, validation = (ArrayDataset(tmp_path / f"{split}.npz") for split in ("train", "validation"))
    assert train.data.shape == (4, 64, 64, 3)
    assert train.targets.tolist() == [0, 0, 1, 1]
    assert validation.targets.tolist() == [0, 1]
    assert list(train.class_to_idx) == CLASSES
    assert np.unique(train.data[3]).tolist() == [40]  # a grey image becomes RGB


def test_archives_that_are_none(archive, tmp_path):
    with pytest.raises(DataError, match=r"has no train images of n00000002"):
        recipes.write_tiny_imagenet(archive, tmp_path / "out", classes=[*CLASSES, "n00000002"])
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(DataError, match=r"text.zip cannot be read as tiny-imagenet-200.zip"):
        recipes.write_tiny_imagenet(tmp_path / "text.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(DataError, match=r"empty.zip"):
        recipes.write_tiny_imagenet(tmp_path / "empty.zip", tmp_path / "out")


def test_the_command(archive, tmp_path, capsys):
    words = ["make-dataset", "tiny_imagenet75", "--output", str(tmp_path / "out"), "--archive", str(archive)]
    assert main(words) == 1  # two of 75 classes
    assert "has no train images of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["make-dataset", "cifar100", "--output", str(tmp_path), "--archive", str(archive)])
    for words in (["cifar100", "--size", "0"], ["tiny_imagenet75", "--images-per-class", "1"]):
        with pytest.raises(SystemExit):
            main(["make-dataset", *words, "--output", str(tmp_path)])


def test_a_part_does_not_depend_on_the_order_of_its_source(tmp_path):
    rng = np.random.default_rng(0)
    images, labels, names = rng.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8), np.arange(12) % 3, ["a", "b", "c"]
    order = rng.permutation(12)
    options = {"size": 8, "images_per_class": 2}
    assert recipes.write_part(tmp_path / "one.npz", images, labels, names, **options) == 6
    recipes.write_part(tmp_path / "two.npz", images[order], labels[order], names, **options)
    one, two = (ArrayDataset(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert one.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert one.data.shape == (6, 8, 8, 3)
    assert np.array_equal(one.data, two.data)
    with pytest.raises(DataError, match="there are only 4 images of a, fewer than images_per_class=5"):
        recipes.write_part(tmp_path / "one.npz", images, labels, names, size=4, images_per_class=5)


def test_there_are_75_classes():
    assert len(set(recipes.TINY_IMAGENET75)) == 75
    assert sorted(recipes.TINY_IMAGENET75) == recipes.TINY_IMAGENET75
