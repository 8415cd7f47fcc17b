"""What the tests of pretraining share: tiny image folders, runs in this process and in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from topodet.pretrain.command_line import parse
from topodet.pretrain.run import run

ROOT = Path(__file__).resolve().parents[2]


def write_images(root: Path, splits: dict[str, int], classes: int = 3, seed: int = 0) -> Path:
    """Write `root/SPLIT/classN/I.{png,jpg}` of 32x32: class n is bright in channel n."""
    rng = np.random.default_rng(seed)
    for split, count in splits.items():
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(_pixels(rng, label)).save(folder / f"{index:02d}.{'png' if index % 2 else 'jpg'}")
    return root


def write_arrays(root: Path, splits: dict[str, int], classes: int = 3, seed: int = 0) -> Path:
    """Write `root/SPLIT.npz` with images such as `write_images` writes, and the names of the classes."""
    rng = np.random.default_rng(seed)
    names = [f"class{label}" for label in range(classes)]
    root.mkdir(parents=True, exist_ok=True)
    for split, count in splits.items():
        labels = np.repeat(np.arange(classes), count)
        images = np.stack([_pixels(rng, label) for label in labels])
        np.savez(root / f"{split}.npz", images=images, labels=labels, class_names=names)
    return root


def _pixels(rng: np.random.Generator, label: int) -> np.ndarray:
    pixels = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
    pixels[..., label % 3] += 150
    return pixels


def options(images: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--data-dir", str(images), "--output", str(output), "--model", "toponet_nano", "--img-size", "32"),
        *("--batch-size", "8", "--epochs", "2", "--warmup-epochs", "0", "--lr", "0.05", "--workers", "0"),
        *("--log-interval", "1", "--figure-interval", "0", "--device", "cpu"),
        *more,
    ]


def train(images: Path, output: Path, *more: str) -> list[dict]:
    return run(parse(options(images, output, *more)))


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """Start the entry point as its users do, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "tools" / "pretrain.py"), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def curve(output: Path, name: str = "step/loss") -> list[float]:
    """Return a value of each update, in order, as TensorBoard shows it."""
    board = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    points = board.Scalars(name)
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    return [point.value for point in points]


def assert_losses_are_of_their_updates(rows: list[dict], output: Path) -> None:
    """Check that an epoch's loss is the mean of its updates' losses, which TensorBoard has one by one."""
    steps = torch.tensor(curve(output), dtype=torch.float64)
    assert [row["train_loss"] for row in rows] == pytest.approx(
        steps.view(len(rows), -1).mean(dim=1).tolist(), rel=1e-5
    )


def assert_same_tensors(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    differing = [name for name in left if not torch.equal(left[name], right[name])]
    assert not differing
