import numpy as np
import pytest
import torch
from PIL import Image

from topodet.datasets.images import SUFFIXES, check_image, find_images, image_path, leads_outside, read_image
from topodet.errors import ConfigError, DataError


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_read_as_opencv_reads_them(suffix, tmp_path):
    cv2 = pytest.importorskip("cv2")
    values = np.linspace(0, 65535, 12 * 10).round().astype(np.uint16).reshape(12, 10)
    path = tmp_path / f"grey{suffix}"
    Image.fromarray(values).save(path)
    found = read_image(path)
    np.testing.assert_array_equal(found, cv2.imread(str(path))[..., ::-1])
    assert (found.min(), found.max()) == (0, 255)
    assert len(np.unique(found)) == 120


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_are_refused(dtype, tmp_path):
    Image.fromarray(np.full((4, 4), 70000, dtype)).save(tmp_path / "depth.tif")
    with pytest.raises(DataError, match=r"cannot read the image .*depth.tif: its pixels are 32-bit .*8 or 16 bits"):
        read_image(tmp_path / "depth.tif")


def test_images_of_a_folder(tmp_path):
    for name in ("b.WEBP", "a/1.jpg", "a/deep/2.tiff", "a/.hidden.png", ".ipynb_checkpoints/1-checkpoint.jpg", "c.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    found = find_images(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found.images] == ["a/1.jpg", "a/deep/2.tiff", "b.WEBP"]
    assert found.skipped() == (
        f"1 files that are not {', '.join(SUFFIXES)} (.gif: 1) and 2 hidden files or folders (.hidden.png, "
        ".ipynb_checkpoints)"
    )


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        ("a.jpg", False),
        ("sub/a..b.jpg", False),
        ("a:b.jpg", False),
        ("../a.jpg", True),
        ("sub/../../a.jpg", True),
        ("sub/..", True),
        ("/etc/passwd", True),
    ],
)
def test_names_that_lead_out_of_the_folder(name, outside, tmp_path):
    assert leads_outside(name) == outside
    if outside:
        with pytest.raises(DataError, match="is outside the image folder"):
            image_path(tmp_path, name)
    else:
        assert image_path(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("a.jpg", "the image is 'a.jpg'; expected RGB"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "a Tensor"),
        (np.zeros((4, 4, 3), np.float32), r"a float32 array \[4, 4, 3\]"),
        (np.zeros((3, 4, 4), np.uint8), r"a uint8 array \[3, 4, 4\]"),
        (np.zeros((4, 4), np.uint8), r"a uint8 array \[4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"a uint8 array \[0, 4, 3\]"),
    ],
)
def test_what_is_not_an_image_is_named(image, words):
    check_image(np.zeros((1, 2, 3), np.uint8))
    with pytest.raises(ConfigError, match=words):
        check_image(image)
