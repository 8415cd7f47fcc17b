"""Many processes train what one process trains."""

from __future__ import annotations

import shutil

import pytest
import torch

from topodet.errors import ConfigError
from topodet.pretrain.group import join

from .helpers import curve, load, options, start, train


@pytest.mark.slow
def test_two_processes_equal_one(images, tmp_path):
    # Normalisation within each image: batch statistics would depend on how a batch is divided.
    more = ("--no-aug", "--model-kwargs", "norm_layer=groupnorm1", "--sparsity", "adaptive", "--model-ema")
    more += ("--lr", "0.01")
    # The first image is the one that a second process gets as well, so that both have as many.
    images = shutil.copytree(images, tmp_path / "images")
    min((images / "validation" / "class0").iterdir()).write_bytes(b"")
    rows = train(images, tmp_path / "one", *more)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    parts = ("--batch-size", "2", "--grad-accum-steps", "2")
    process = start(*options(images, tmp_path / "two", *more, *parts), launcher=launcher)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Grad strides" not in errors
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == 8
    assert two == pytest.approx(one, abs=1e-4)
    left, right = load(tmp_path / "one" / "last.pth.tar"), load(tmp_path / "two" / "last.pth.tar")
    assert right["args"]["world_size"] == 2
    for name, value in left["state_dict"].items():
        torch.testing.assert_close(right["state_dict"][name], value, atol=1e-4, rtol=1e-3)
    # 21 validation images, an odd number: each counts once in either, and so does the one that cannot be read.
    for row, other in zip(rows, right["history"]):
        assert row["bad_images"] == other["bad_images"] == 1
        for name in ("eval_loss", "eval_top1", "eval_top5", "ema_eval_loss", "train_top1"):
            assert other[name] == pytest.approx(row[name], abs=1e-3), name


@pytest.mark.parametrize(
    ("device", "message"),
    [("tpu", "unknown device 'tpu'"), ("meta", "'meta' is not supported"), ("cuda:99", "has no GPU")],
)
def test_refuses_a_device_that_is_not_there(device, message):
    with pytest.raises(ConfigError, match=message), join(device):
        pass
