"""Training from the memory of the device: the images against torchvision's, one by one, and runs as others are."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.processes import run_two
from topodet.errors import ConfigError
from topodet.pretrain.command_line import parse
from topodet.pretrain.data import open_datasets, val_loader
from topodet.pretrain.group import Group, join
from topodet.pretrain.on_device import Augmentation, DeviceLoader
from topodet.pretrain.run import run

from .helpers import assert_losses_are_of_their_updates, assert_same_tensors, curve, load, options, train

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
FAST = ("--dataset", "npz", "--on-device", "--crop-pct", "1", "--crop-padding", "2", "--cutout", "8")
CPU = torch.device("cpu")


def one_by_one(image: np.ndarray, draw: list[int], augmentation: Augmentation) -> torch.Tensor:
    """Return what the usual transforms make of one image [H, W, C] where they draw the same."""
    top, left, mirrored, flipped, row, column = draw
    height, width, channels = image.shape
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    picture = tvf.crop(tvf.pad(picture, augmentation.crop_padding), top, left, height, width)
    picture = tvf.hflip(picture) if mirrored else picture
    picture = tvf.vflip(picture) if flipped else picture
    result = tvf.normalize(tvf.to_tensor(picture), MEAN[:channels], STD[:channels])
    side = augmentation.cutout
    for y in range(row - side // 2, row - side // 2 + side):
        for x in range(column - side // 2, column - side // 2 + side):
            if 0 <= y < height and 0 <= x < width:
                result[:, y, x] = 0
    return result


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])),
    padding=st.integers(0, 4),
    cutout=st.integers(0, 6),
    hflip=st.sampled_from([0.0, 0.5, 1.0]),
    vflip=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_each_image_as_the_usual_transforms_make_it(shape, padding, cutout, hflip, vflip, seed):
    images = np.random.default_rng(seed).integers(0, 256, (5, *shape), dtype=np.uint8)
    augmentation = Augmentation(padding, hflip, vflip, cutout)
    chosen = torch.tensor([3, 1, 4, 1, 0, 2, 3, 3])
    draws = augmentation.draw(len(chosen), shape[0], shape[1], torch.Generator().manual_seed(seed))
    mean, std = (255 * torch.tensor(values[: shape[2]]) for values in (MEAN, STD))
    batch = augmentation(torch.from_numpy(images), chosen, draws, mean, std)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous()
    expected = [one_by_one(images[i], draw, augmentation) for i, draw in zip(chosen, draws.tolist())]
    torch.testing.assert_close(batch, torch.stack(expected))


def test_draws_are_uniform_and_as_likely_as_asked():
    augmentation = Augmentation(crop_padding=1, hflip=0.25, vflip=1.0, cutout=4)
    draws = augmentation.draw(20000, 4, 5, torch.Generator().manual_seed(0))
    for column, choices in ((0, 3), (1, 3), (4, 4), (5, 5)):
        shares = torch.bincount(draws[:, column]) / len(draws)
        assert shares.tolist() == pytest.approx([1 / choices] * choices, abs=0.02)
    assert draws[:, 2].double().mean() == pytest.approx(0.25, abs=0.02)
    assert draws[:, 3].min() == 1
    # No draw follows from another.
    assert torch.corrcoef(draws[:, [0, 1, 2, 4, 5]].double().T).sub(torch.eye(5)).abs().max() < 0.03


def loader(count, *, rank=0, world_size=1, batch_size=4, augmentation=None, seed=0):
    images = np.zeros((count, 6, 6, 3), dtype=np.uint8)
    images[:] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    images[:, :, :, 1] = np.arange(36, dtype=np.uint8).reshape(6, 6)
    return DeviceLoader(
        images,
        np.arange(count),
        batch_size=batch_size,
        mean=MEAN,
        std=STD,
        augmentation=augmentation,
        seed=seed,
        group=Group(rank, world_size, CPU),
    )


def batches(loader, epoch=0):
    loader.set_epoch(epoch)
    found = list(loader)
    assert len(found) == loader.batches
    return found


VARIED = Augmentation(crop_padding=2, hflip=0.5, cutout=2)


def test_an_epoch_shows_each_image_once_and_drops_what_fills_no_batch():
    shown = torch.cat([labels for _, labels in batches(loader(23, augmentation=VARIED))])
    assert len(shown) == 20
    assert len(shown.unique()) == 20
    assert not torch.equal(shown, shown.sort().values)


def test_depends_on_seed_and_epoch_alone():
    torch.manual_seed(0)
    one, other = loader(12, augmentation=VARIED), loader(12, augmentation=VARIED)
    first = batches(other, epoch=3)
    torch.rand(7)
    batches(one, epoch=1)
    again = batches(one, epoch=3)
    for (images, labels), (same_images, same_labels) in zip(first, again):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    elsewhere = [batches(one, epoch=4), batches(loader(12, augmentation=VARIED, seed=1), epoch=3)]
    for found in elsewhere:
        assert not torch.equal(torch.cat([labels for _, labels in found]), torch.cat([labels for _, labels in first]))


def test_processes_together_see_what_one_sees():
    whole = batches(loader(25, batch_size=6, augmentation=VARIED), epoch=2)
    parts = [batches(loader(25, rank=r, world_size=3, batch_size=2, augmentation=VARIED), epoch=2) for r in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    for step, (images, labels) in enumerate(whole):
        for rank in range(3):
            assert torch.equal(parts[rank][step][1], labels[rank::3])
            assert torch.equal(parts[rank][step][0], images[rank::3])


def test_validation_is_in_order_and_whole():
    assert torch.cat([labels for _, labels in batches(loader(10))]).tolist() == list(range(10))
    parts = [batches(loader(10, rank=r, world_size=3), epoch=5) for r in range(3)]
    assert [torch.cat([labels for _, labels in part]).tolist() for part in parts] == [
        [0, 3, 6, 9],
        [1, 4, 7],
        [2, 5, 8],
    ]
    images, labels = batches(loader(10))[0]
    assert (
        images[:, 0].mul(STD[0] * 255).add(MEAN[0] * 255).round().long().unique(dim=1).ravel().tolist()[:6] == [0] * 6
    )
    torch.testing.assert_close(images[2, 0], torch.full((6, 6), (2 / 255 - MEAN[0]) / STD[0]))
    assert labels.tolist() == [0, 1, 2, 3]


def train_as_one_of_two(rank: int, _: str, folder: Path) -> None:
    """Train as torchrun's process `rank` does, with the variables that it sets."""
    content = json.loads((folder / "two.json").read_text())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(content["port"])}
    run(parse(content["argv"]))


class TestRun:
    def test_validates_on_what_the_usual_loader_gives(self, arrays, tmp_path):
        found = []
        for more in ((), ("--on-device",)):
            args = parse(options(arrays, tmp_path, "--dataset", "npz", *more))
            group = Group(0, 1, CPU)
            config = {"input_size": (3, 32, 32), "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 1.0}
            with join("cpu"):
                found.append(list(val_loader(args, open_datasets(args, group, 3).val, config, group)))
        assert len(found[0]) == len(found[1]) == 3
        for (images, labels), (expected, targets) in zip(*found):
            torch.testing.assert_close(images, expected)
            assert torch.equal(labels, targets)

    def test_resumes_exactly(self, arrays, tmp_path):
        more = (*FAST, "--epochs", "3", "--mixup", "0.2", "--sparsity", "adaptive")
        rows = train(arrays, tmp_path / "whole", *more)
        assert rows[-1]["train_loss"] < rows[0]["train_loss"]
        first = load(tmp_path / "whole" / "checkpoint-0.pth.tar")
        (tmp_path / "killed").mkdir()
        torch.save(first, tmp_path / "killed" / "last.pth.tar")
        train(arrays, tmp_path / "killed", *more, "--resume", "auto")
        left, right = (load(tmp_path / name / "last.pth.tar") for name in ("whole", "killed"))
        assert_same_tensors(left["state_dict"], right["state_dict"])
        with pytest.raises(ConfigError, match="--cutout 8 -> 4"):
            train(arrays, tmp_path / "killed", *more, "--cutout", "4", "--resume", "auto")

    @pytest.mark.slow
    def test_two_processes_equal_one(self, arrays, tmp_path):
        more = (*FAST, "--model-kwargs", "norm_layer=groupnorm1", "--lr", "0.01", "--epochs", "1")
        rows = train(arrays, tmp_path / "one", *more)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        argv = options(arrays, tmp_path / "two", *more, "--batch-size", "4")
        (tmp_path / "two.json").write_text(json.dumps({"port": port, "argv": argv}))
        run_two(train_as_one_of_two, tmp_path)
        assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), abs=1e-4)
        other = load(tmp_path / "two" / "last.pth.tar")["history"][0]
        for name in ("eval_loss", "eval_top1", "eval_top5"):
            assert other[name] == pytest.approx(rows[0][name], abs=1e-3), name

    @pytest.mark.parametrize(
        "more",
        [
            ("--channels-last", "--amp", "--amp-dtype", "bfloat16", "--no-aug", "--pin-mem"),
            ("--cutmix", "1.0", "--grad-accum-steps", "2", "--val-split", "", "--model-ema"),
        ],
        ids=lambda more: more[0],
    )
    def test_options_in_use(self, arrays, tmp_path, more):
        rows = train(arrays, tmp_path, *FAST, *more)
        assert [row["bad_images"] for row in rows] == [0, 0]
        assert_losses_are_of_their_updates(rows, tmp_path)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--img-size", "64"), "the images are 3x32x32, the network needs 3x64x64: give --input-size 3 32 32"),
            (("--crop-pct", "0.9"), "not on a crop of 0.9: give --crop-pct 1"),
            (("--batch-size", "64"), "an update needs 64 images, but there are 39"),
        ],
    )
    def test_refuses(self, arrays, tmp_path, more, message):
        with pytest.raises((ConfigError, ValueError), match=message):
            train(arrays, tmp_path, *FAST, *more)

    def test_datasets_of_torchvision(self, tmp_path):
        """The files of MNIST, as their format says: a magic number, the sizes, the bytes."""
        folder = tmp_path / "MNIST" / "raw"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for part, count in (("train", 20), ("t10k", 10)):
            images, labels = rng.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
            for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
                header = np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes()
                (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())
        more = ("--dataset", "torch/mnist", "--on-device", "--crop-pct", "1", "--input-size", "1", "28", "28")
        argv = options(tmp_path, tmp_path / "out", *more)
        size = argv.index("--img-size")
        del argv[size : size + 2]
        assert len(run(parse(argv))) == 2
        state = load(tmp_path / "out" / "last.pth.tar")
        assert state["data"] == {"train_images": 20, "val_images": 10, "classes": 10}
        assert state["data_config"]["input_size"] == [1, 28, 28]

    def test_refuses_images_of_a_folder(self, images, tmp_path):
        with pytest.raises(ConfigError, match="needs a dataset that is in memory.*'an image folder'"):
            train(images, tmp_path, "--on-device")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--on-device --aa rand-m9 --reprob 0.2", "--on-device does not support --aa, --reprob: leave it out"),
        ("--on-device --color-jitter 0", "--on-device does not support --color-jitter"),
        ("--on-device --no-prefetcher", "--on-device does not support --no-prefetcher"),
        ("--crop-padding 4 --cutout 8", "--crop-padding, --cutout can only be used with --on-device: give it too"),
        ("--on-device --cutout -1", "--cutout must be at least 0, not -1"),
    ],
)
def test_refuses_options(argv, message):
    with pytest.raises(ConfigError, match=message):
        parse(argv.split())
