"""A checkout with tiny studies of its own: the tools and configs are the repository's."""

from __future__ import annotations

import io
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from topodet.cli import main
from topodet.reproduce.runner import run_line

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "configs/pretrain/toponet_nano_wiring.yaml"
# Two arms of one epoch, and one that starts from another's weights.
TINY = """
title: A tiny study
claim: Learned weights are above fixed ones.
measure: top1
scales:
  small:
    data: 120 digits
    seeds: 2
    hours: 0.5
    options: {data_dir: "{data}/digits", img_size: 32, batch_size: 40, epochs: 1, warmup_epochs: 0, sparsity: none,
              device: cpu, figure_interval: 0, model_kwargs: {nodes: [2, 3], width: 4}}
    arms:
      fixed: {pretrain: RECIPE, options: {model_kwargs: {edge_weights: fixed}}, paper: cifar100/resnet20_cifar/original}
      learned: {pretrain: RECIPE, paper: cifar100/resnet20_cifar/connected}
      again: {pretrain: RECIPE, options: {initial_checkpoint: "{run:learned}/last.pth.tar"}}
    comparisons:
      - {arm: learned, than: fixed}
      - {arm: learned, than: 0}
    edges: [learned]
""".replace("RECIPE", RECIPE)


def checkout(folder: Path, studies: dict[str, str]) -> Path:
    """Lay out a checkout with these studies, and 120 digits of 32 x 32 pixels as data/digits."""
    for name in ("tools", "topodet"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "configs").mkdir()
    for name in ("pretrain", "mmdet", "detectron2"):
        (folder / "configs" / name).symlink_to(ROOT / "configs" / name)
    (folder / "configs" / "studies").mkdir()
    for name, text in studies.items():
        (folder / "configs" / "studies" / f"{name}.yaml").write_text(text)
    (folder / "records").mkdir()
    (folder / "records" / "paper.json").write_text((ROOT / "records" / "paper.json").read_text())
    digits = load_digits()
    images = np.kron(digits.images[:120], np.ones((1, 4, 4))).repeat(3, axis=0).reshape(120, 3, 32, 32)
    images = (images * 15).astype(np.uint8).transpose(0, 2, 3, 1)
    names = [f"{digit}" for digit in range(10)]
    (folder / "data" / "digits").mkdir(parents=True)
    for split in ("train", "validation"):
        np.savez(
            folder / "data" / "digits" / f"{split}.npz", images=images, labels=digits.target[:120], class_names=names
        )
    return folder


def execute_here(line: str, seconds: float | None) -> int:
    """Run a line in this process where it starts topodet in one of its own, which saves the import of torch."""
    _, ours, words = line.partition("python -m topodet ")
    if not ours or " train-net " in line:
        return run_line(line, seconds)
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        return main(shlex.split(words))
