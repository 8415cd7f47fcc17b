import pytest
import torch

from topodet.errors import ConfigError, DataError
from topodet.exported import check_format, compare


def found(boxes, scores, labels, masks=None):
    fields = {"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(labels)}
    fields |= {} if masks is None else {"masks": torch.tensor(masks)[:, None, None, None].expand(-1, 1, 28, 28)}
    return {**fields, "image_size": torch.tensor([64, 100])}


def test_what_a_comparison_lets_pass():
    ours = found([[0.0, 0, 9, 9], [5.0, 5, 8, 8]], [0.5, 0.5], [0, 1])
    swapped = found([[5.0, 5, 8, 8.005], [0.0, 0, 9, 9]], [0.5, 0.50005], [1, 0])
    assert compare(ours, swapped) == pytest.approx((5e-5, 5e-5), rel=1e-2)
    for boxes, scores, labels in (
        ([[0.0, 0, 9, 9.1], [5.0, 5, 8, 8]], [0.5, 0.5], [0, 1]),
        ([[0.0, 0, 9, 9], [5.0, 5, 8, 8]], [0.5, 0.501], [0, 1]),
        ([[0.0, 0, 9, 9], [5.0, 5, 8, 8]], [0.5, 0.5], [0, 0]),
        ([[0.0, 0, 9, 9], [0.0, 0, 9, 9]], [0.5, 0.5], [0, 1]),
        ([[0.0, 0, 9, 9], [5.0, 5, 8, 8]], [0.5, float("nan")], [0, 1]),
    ):
        with pytest.raises(DataError, match="does not find box"):
            compare(ours, found(boxes, scores, labels))
    with pytest.raises(DataError, match="finds 1 boxes where the original finds 2"):
        compare(ours, found([[0.0, 0, 9, 9]], [0.5], [0]))


def test_masks_are_compared():
    two = [[0.0, 0, 9, 9], [5.0, 5, 8, 8]], [0.5, 0.5], [0, 1]
    compare(found(*two, masks=[0.2, 0.9]), found(*two, masks=[0.205, 0.9]))
    for masks in ([0.2, 0.8], [0.2, float("nan")]):
        with pytest.raises(DataError, match="gives box 1 of 2 a different mask"):
            compare(found(*two, masks=[0.2, 0.9]), found(*two, masks=masks))


def test_formats():
    check_format("onnx", 16)
    with pytest.raises(ConfigError, match="Did you mean 'onnx'"):
        check_format("onxx", 17)
    with pytest.raises(ConfigError, match="at least 16"):
        check_format("onnx", 11)
