"""Images that are arrays: what the file must hold, and that they train like any others."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torchvision.datasets import CIFAR10, FakeData

from topodet.datasets import npz
from topodet.errors import DataError
from topodet.pretrain import main
from topodet.pretrain.arrays import ArrayDataset, in_memory

from .helpers import load, options, train, write_arrays

IMAGES = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
LABELS = np.array([0, 1, 2, 1, 0])


def write(path, **arrays):
    whole = {"images": IMAGES, "labels": LABELS, "class_names": ["a", "b", "c"]} | arrays
    np.savez(path, **{name: array for name, array in whole.items() if array is not None})
    return path


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3])),
    dtype=st.sampled_from([np.uint8, np.int16, np.int64]),
    compressed=st.booleans(),
    data=st.data(),
)
def test_gives_what_was_written(tmp_path, shape, dtype, compressed, data):
    images = data.draw(arrays_of.arrays(np.uint8, shape))
    labels = data.draw(arrays_of.arrays(dtype, shape[0], elements=st.integers(0, 9)))
    (np.savez_compressed if compressed else np.savez)(tmp_path / "file.npz", images=images, labels=labels)
    dataset = ArrayDataset(tmp_path / "file.npz", "RGB" if shape[3] == 3 else "L")
    assert len(dataset) == shape[0]
    assert dataset.class_to_idx == {}
    for index in range(shape[0]):
        image, label = dataset[index]
        assert np.array_equal(np.asarray(image).reshape(shape[1:]), images[index])
        assert label == labels[index]
        assert type(label) is int
    stored, targets = in_memory(dataset)
    assert np.array_equal(stored, images)
    assert targets.dtype == np.int64
    assert np.array_equal(targets, labels)


def test_names_and_mode(tmp_path):
    dataset = ArrayDataset(write(tmp_path / "file.npz"), "L")
    assert dataset.class_to_idx == {"a": 0, "b": 1, "c": 2}
    assert dataset[0][0].mode == "L"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": None}, "has no images, but labels, class_names: expected images uint8"),
        ({"images": None, "labels": None}, "has no images and no labels"),
        ({"images": IMAGES / 255}, r"images is float64 \[5, 4, 4, 3\]; expected"),
        ({"images": IMAGES[0]}, r"images is uint8 \[4, 4, 3\]"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"images is uint8 \[5, 3, 4, 4\]"),
        ({"images": IMAGES[:4]}, "has 4 images, but 5 labels"),
        ({"labels": LABELS.astype(float)}, r"labels is float64 \[5\]"),
        ({"labels": np.full(5, 2**63, np.uint64)}, r"labels\[0\] is 9223372036854775808, which is not a class index"),
        ({"labels": np.eye(5, dtype=int)}, r"labels is int64 \[5, 5\]"),
        ({"labels": LABELS - 1}, r"labels\[0\] is -1; class indices start at 0"),
        ({"labels": LABELS + 1}, r"labels\[2\] is 3, but class_names defines 3 classes, 0 to 2; 1 of 5 labels"),
        ({"labels": np.array([0, 1, None, 1, 0])}, "labels contains Python objects"),
        ({"class_names": [1, 2, 3]}, r"class_names is int64 \[3\]"),
        ({"class_names": ["a", "b", "a"]}, "class_names contains 'a' more than once"),
        ({"class_names": [*map(str, range(50_000)), "7"]}, "class_names contains '7' more than once"),  # at once
    ],
)
def test_refuses(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as error:
        ArrayDataset(write(tmp_path / "file.npz", **arrays))
    assert "file.npz" in str(error.value)


def test_refuses_what_is_no_npz(tmp_path):
    path = tmp_path / "file.npz"
    np.savez_compressed(path, images=IMAGES, labels=LABELS)
    whole = path.read_bytes()
    for spoilt in (b"", b"no archive", whole[:100], whole[:60] + bytes(40) + whole[100:]):
        path.write_bytes(spoilt)
        with pytest.raises(DataError, match="cannot read .*damaged or not an .npz"):
            ArrayDataset(path)
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(DataError, match="is a single array, not an .npz file"):
        ArrayDataset(tmp_path / "one.npy")
    with pytest.raises(DataError, match="cannot read .*No such file"):
        ArrayDataset(tmp_path / "gone.npz")


def archive(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, (shape, dtype, data) in entries.items():
            with file.open(f"{name}.npy", "w") as entry:
                header = {"descr": dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(entry, header)
                entry.write(data)


@pytest.mark.parametrize(
    ("shape", "dtype", "data", "message"),
    [
        ((10**12, 4, 4, 3), "|u1", b"", r"uint8 \[1000000000000, 4, 4, 3\], which is 48,000,000,000,000 bytes"),
        ((2**62, 4, 4, 3), "|u1", bytes(48), "it is damaged"),  # more than 64 bits of bytes
        ((-1, 4, 4, 3), "|u1", bytes(48), "damaged"),
        ((5, 0, 4, 3), "|u1", b"", r"images is uint8 \[5, 0, 4, 3\]"),
        ((10**9, 0, 4, 3), "|u1", b"", r"images is uint8 \[1000000000, 0, 4, 3\]"),
        ((1,), "|O", pickle.dumps(None), "contains Python objects, and unpickling could run code"),
        ((1,), "|V4000000000", bytes(8), "not a valid dtype"),
        ((1,), "<U100000000", bytes(8), "400,000,000 bytes, but has 8"),
        ((4 << 20, 1, 1, 3), "|u1", bytes(12 << 20), "200 times as many: save"),
    ],
)
def test_refuses_arrays_that_are_larger_than_their_bytes(tmp_path, shape, dtype, data, message, monkeypatch):
    monkeypatch.setattr(npz, "MAX_RATIO", npz.MAX_RATIO if len(data) < 2**20 else 8)
    labels = ((5,), "<i8", LABELS.astype("<i8").tobytes())
    archive(tmp_path / "bomb.npz", {"images": (shape, dtype, data), "labels": labels})
    with pytest.raises(DataError, match=message.replace("200", str(npz.MAX_RATIO))):
        ArrayDataset(tmp_path / "bomb.npz")


def test_datasets_of_torchvision(tmp_path):
    cifar = CIFAR10.__new__(CIFAR10)  # its files are a download; these are the attributes it documents
    cifar.data, cifar.targets = IMAGES, LABELS.tolist()
    images, labels = in_memory(cifar)
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert in_memory(FakeData()) is None


class TestRun:
    def test_trains_with_the_usual_loader(self, arrays, tmp_path):
        rows = train(
            arrays, tmp_path, "--dataset", "npz", "--workers", "1", "--no-aug", "--epochs", "3", "--lr", "0.01"
        )
        assert rows[-1]["train_loss"] < rows[0]["train_loss"]
        state = load(tmp_path / "last.pth.tar")
        assert state["class_names"] == ["class0", "class1", "class2"]
        assert state["data"] == {"train_images": 39, "val_images": 21, "classes": 3}

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--val-split", "test"), "has no file 'test.npz'; expected DIR/train.npz and DIR/validation.npz."),
            (("--num-classes", "4"), "--num-classes 4, but"),
            (("--dataset", "npz/cifar100"), "unknown kind of dataset 'npz'"),
        ],
    )
    def test_refuses(self, arrays, tmp_path, capsys, more, message):
        assert main(options(arrays, tmp_path, "--dataset", "npz", *more)) == 1
        assert message in capsys.readouterr().err

    def test_names_are_known_under_other_names_of_the_split(self, tmp_path):
        images = write_arrays(tmp_path / "arrays", {"training": 4, "val": 3})
        assert len(train(images, tmp_path / "out", "--dataset", "npz", "--epochs", "1")) == 1

    def test_without_names(self, tmp_path, capsys):
        write(tmp_path / "train.npz", class_names=None)
        write(tmp_path / "validation.npz", class_names=None)
        argv = options(tmp_path, tmp_path / "out", "--dataset", "npz", "--batch-size", "4")
        assert main(argv) == 1
        assert "does not define its number of classes: give --num-classes" in capsys.readouterr().err
        assert main([*argv, "--num-classes", "2"]) == 1
        assert "labels[2] is 2, but --num-classes 2 defines 2 classes, 0 to 1" in capsys.readouterr().err
        assert main([*argv, "--num-classes", "3"]) == 0

    def test_labels_of_validation_must_be_classes_of_training(self, tmp_path, capsys):
        write(tmp_path / "train.npz")
        write(tmp_path / "validation.npz", class_names=None, labels=LABELS + 1)
        assert main(options(tmp_path, tmp_path / "out", "--dataset", "npz")) == 1
        assert "validation.npz: labels[2] is 3, but the train split defines 3 classes" in capsys.readouterr().err
