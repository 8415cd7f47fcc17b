#!/usr/bin/env python
"""From a graph to boxes on real handwritten digits, on a CPU, in minutes and without a download.

Pretrains toponet_nano with adaptive sparsity, publishes its backbone, draws a COCO-format set of digit scenes,
fine-tunes Faster R-CNN with it through MMDetection's own tools/train.py, or with `--framework detectron2` through
tools/train_net.py, and once more from random initialisation, evaluates both, and leaves numbers and pictures in
runs/quickstart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from topodet import weights
from topodet.datasets.digits import write_digit_folders, write_digit_scenes
from topodet.errors import ConfigError, exit_status
from topodet.files import atomic_json, atomic_path
from topodet.frameworks import require_framework
from topodet.records.results import average_precision_curves, contact_sheet, read_evaluations
from topodet.visualization import save_figures

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN_RECIPE = "configs/pretrain/toponet_nano_quick.yaml"
LOADED = re.compile(r"topodet: (\d+)/(\d+) tensors")


class Framework(Protocol):
    """How a framework is told to train and to test."""

    MODULES: tuple[str, ...]  # what must be installed
    STEP: str  # what it counts
    PROGRESS: re.Pattern  # what to show of a line of its log
    PICTURES: str  # what the drawn scenes show

    def train(self, folder: Path, pretrained: Path | None, *, seed: int, epochs: int | None) -> list:
        """Return the command that trains into `folder`, from a published backbone or from random initialisation."""

    def test(self, folder: Path) -> list:
        """Return the command that tests what was trained into `folder` and draws detections under `folder`/test."""


class MMDetection:
    """MMDetection's own tools, as they are installed."""

    MODULES = ("mmdet",)
    STEP = "epoch"
    CONFIG = "configs/mmdet/faster-rcnn_toponet-nano_fpn_digits.py"
    PROGRESS = re.compile(r"INFO - (.*topodet.*|Epoch\(.*)")
    PICTURES = "the ground truth left, detections right"

    def __init__(self, scenes: Path):
        options = [f"{split}_dataloader.dataset.data_root={scenes}/" for split in ("train", "val", "test")]
        self.data = [*options, *(f"{split}_evaluator.ann_file={scenes}/val.json" for split in ("val", "test"))]

    def train(self, folder: Path, pretrained: Path | None, *, seed: int, epochs: int | None) -> list:
        options = [*self.data, f"randomness.seed={seed}", f"model.backbone.pretrained={pretrained}"]
        options += [f"train_cfg.max_epochs={epochs}"] if epochs else []
        return [*self._tool("train.py"), self.CONFIG, "--work-dir", folder, "--cfg-options", *options]

    def test(self, folder: Path) -> list:
        last = Path((folder / "last_checkpoint").read_text())
        command = [*self._tool("test.py"), self.CONFIG, last, "--work-dir", folder / "test"]
        return [*command, "--show-dir", "detections", "--cfg-options", *self.data]

    def _tool(self, name: str) -> list:
        import mmdet

        return [sys.executable, Path(mmdet.__file__).parent / ".mim" / "tools" / name]


class Detectron2:
    """tools/train_net.py, which evaluates each epoch and at the end, and tools/demo.py, which draws."""

    MODULES = ("detectron2", "cv2")
    STEP = "iteration"
    CONFIG = "configs/detectron2/faster_rcnn_toponet_nano_FPN_digits.yaml"
    BATCH = 8
    PROGRESS = re.compile(r"d2\.(?:topodet|utils\.events|evaluation\.testing)\]: +(.*)")
    PICTURES = "detections, without the ground truth beside them"

    def __init__(self, scenes: Path):
        self.scenes = scenes
        self.data = []
        for split in ("train", "val"):
            self.data += ["--dataset", f"digits_{split}", scenes / f"{split}.json", scenes / split]

    def train(self, folder: Path, pretrained: Path | None, *, seed: int, epochs: int | None) -> list:
        options = ["OUTPUT_DIR", folder, "SEED", seed, "MODEL.TOPONET.PRETRAINED", pretrained or "''"]
        images = len(json.loads((self.scenes / "train.json").read_text())["images"])
        if epochs:
            options += ["SOLVER.MAX_ITER", epochs * -(-images // self.BATCH)]
        return [*self._tool("train_net.py"), "--config-file", self.CONFIG, *self.data, *self._device(), *options]

    def test(self, folder: Path) -> list:
        command = [*self._tool("demo.py"), "--weights", folder / "model_final.pth", "--config", folder / "config.yaml"]
        command += ["--classes", self.scenes / "val.json", "--input", self.scenes / "val"]
        return [*command, "--output", folder / "test" / "detections"]

    def _tool(self, name: str) -> list:
        return [sys.executable, ROOT / "tools" / name]

    def _device(self) -> list:
        import torch

        return [] if torch.cuda.is_available() else ["MODEL.DEVICE", "cpu"]


FRAMEWORKS: dict[str, type[Framework]] = {"mmdetection": MMDetection, "detectron2": Detectron2}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder (default: %(default)s)")
    parser.add_argument("--framework", choices=list(FRAMEWORKS), default="mmdetection", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pretrain-epochs", type=int, help="other than the recipe's")
    parser.add_argument("--epochs", type=int, help="of fine-tuning, other than the config's")
    parser.add_argument("--copies", type=int, default=3, help="drawings of each digit to classify")
    parser.add_argument("--train-scenes", type=int, default=320)
    parser.add_argument("--val-scenes", type=int, default=100)
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    try:
        return exit_status(quickstart, args)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd))} failed; its output is above", file=sys.stderr)
        return 1


def quickstart(args: argparse.Namespace) -> None:
    """Run every step and write summary.json."""
    out: Path = args.output
    for module in (*FRAMEWORKS[args.framework].MODULES, "sklearn"):
        require_framework(module)
    started = time.monotonic()
    # Small networks gain nothing from many threads: half of the cores compute, the others read images or run beside.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
    make_room(out)

    say(1, "data: digits to classify, scenes of digits to detect (scikit-learn's bundled set, no download)")
    digits = write_digit_folders(out / "digits", copies=args.copies, seed=args.seed)
    scenes = write_digit_scenes(out / "scenes", num_train=args.train_scenes, num_val=args.val_scenes, seed=args.seed)

    say(2, "pretraining toponet_nano with adaptive sparsity")
    pretrain = [sys.executable, "-m", "topodet.pretrain", "-c", PRETRAIN_RECIPE, "--data-dir", digits]
    pretrain += ["--output", out, "--experiment", "pretrain", "--seed", args.seed]
    if args.pretrain_epochs:
        pretrain += ["--epochs", args.pretrain_epochs]
    run(pretrain, environment=threads)

    say(3, "publishing the backbone")
    files = weights.publish(
        out / "pretrain" / "model_best.pth.tar",
        out / "published",
        name="toponet_nano_digits",
        notes="digits, quickstart",
    )
    backbone = weights.build(files.pth)
    print(f"{files.pth}  {files.pth.stat().st_size / 1e6:.1f} MB")

    say(4, f"fine-tuning Faster R-CNN FPN with {args.framework}; from random initialisation beside it")
    framework = FRAMEWORKS[args.framework](scenes)
    runs = {}
    for name, pretrained in (("random_init", None), ("pretrained", files.pth)):
        command = framework.train(out / name, pretrained, seed=args.seed, epochs=args.epochs)
        show = framework.PROGRESS if pretrained else None
        runs[name] = Logged(command, out / f"{name}.log", show=show, environment=threads)
    try:
        for logged in reversed(runs.values()):
            logged.wait()
    finally:
        for logged in runs.values():
            logged.process.terminate()
    loaded = LOADED.search((out / "pretrained.log").read_text())
    histories = {name: read_evaluations(out / name) for name in runs}
    scores = {name: rows[-1] for name, rows in histories.items()}

    say(5, "drawing detections and curves")
    Logged(framework.test(out / "pretrained"), out / "test.log", show=None, environment=threads).wait()
    pictures = out / "pictures"
    shown = sorted((out / "pretrained" / "test").rglob("detections/**/*.jpg"))
    (pictures / "detections").mkdir(parents=True)
    for path in shown:
        shutil.copy(path, pictures / "detections" / path.name)
    contact_sheet(shown[:8], pictures / "detections.jpg", columns=2)
    save_figures(backbone, pictures, "pretrained")
    with atomic_path(pictures / "ap_curves.png") as temporary:
        average_precision_curves(histories, step=framework.STEP).savefig(temporary, format="png", dpi=130)

    sparsity = json.loads(files.card.read_text())["sparsity"]
    summary = {
        "ap": scores["pretrained"]["coco/bbox_mAP"],
        "ap50": scores["pretrained"]["coco/bbox_mAP_50"],
        "ap75": scores["pretrained"]["coco/bbox_mAP_75"],
        "ap_random_init": scores["random_init"]["coco/bbox_mAP"],
        "ap50_random_init": scores["random_init"]["coco/bbox_mAP_50"],
        "tensors_loaded": int(loaded[1]) if loaded else 0,
        "tensors_total": int(loaded[2]) if loaded else len(backbone.state_dict()),
        "edges_near_zero": sparsity["below_0.01"],
        "edges_below": sparsity,
        "minutes": round((time.monotonic() - started) / 60, 2),
        "seed": args.seed,
        "framework": args.framework,
        "backbone": files.pth.name,
    }
    atomic_json(out / "summary.json", summary)
    print(table(summary, out))


def make_room(out: Path) -> None:
    """Make the folder, empty; an earlier quickstart's is removed, so that old and new numbers do not mix.

    Raises:
        ConfigError: it holds something else.
    """
    mark = out / ".quickstart"
    if out.exists():
        if any(out.iterdir()) and not mark.exists():
            raise ConfigError(f"{out} holds files that are not a quickstart's; choose another --output")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    mark.touch()


def say(step: int, text: str) -> None:
    """Announce a step."""
    print(f"\n\033[1m[{step}/5] {text}\033[0m", flush=True)


def run(command: list, *, environment: dict[str, str]) -> None:
    """Run a command to its end, its output on the terminal.

    Raises:
        CalledProcessError: it failed.
    """
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, **environment})


class Logged:
    """A command in the background, its output in a file; what the group of `show` matches is shown on the terminal."""

    def __init__(self, command: list, log: Path, *, show: re.Pattern | None, environment: dict[str, str]):
        self.command = [str(part) for part in command]
        self.log = log
        self.show = show
        self.started = time.monotonic()
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                self.command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )

    def wait(self) -> None:
        """Follow the log until the command ends.

        Raises:
            CalledProcessError: it failed; the end of the log has been printed.
        """
        with open(self.log) as file:
            while True:
                ended = self.process.poll() is not None
                for line in file:
                    if self.show and (found := self.show.search(line)):
                        print(found[1], flush=True)
                if ended:
                    break
                time.sleep(0.5)
        if self.process.returncode:
            sys.stderr.write(self.log.read_text()[-4000:])
            raise subprocess.CalledProcessError(self.process.returncode, self.command)


def table(summary: dict, out: Path) -> str:
    """Return the numbers as text for the terminal."""
    rows = [
        ("", "AP", "AP50"),
        ("pretrained", f"{summary['ap']:.3f}", f"{summary['ap50']:.3f}"),
        ("random initialisation", f"{summary['ap_random_init']:.3f}", f"{summary['ap50_random_init']:.3f}"),
    ]
    lines = [f"{name:24}{ap:>8}{ap50:>8}" for name, ap, ap50 in rows]
    lines += [
        f"{'tensors loaded':24}{summary['tensors_loaded']}/{summary['tensors_total']}",
        f"{'edges with |alpha|<0.01':24}{summary['edges_near_zero']:.1%}",
        f"{'minutes':24}{summary['minutes']:.1f}",
        f"numbers: {out / 'summary.json'}; curves: tensorboard --logdir {out}",
        f"pictures: {out / 'pictures'} ({FRAMEWORKS[summary['framework']].PICTURES})",
    ]
    return "\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
