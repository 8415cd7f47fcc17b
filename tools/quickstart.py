#!/usr/bin/env python
"""From a graph to boxes on real handwritten digits, on a CPU, in minutes and without a download.

Pretrains toponet_nano with adaptive sparsity, publishes its backbone, draws a COCO-format set of digit scenes,
fine-tunes Faster R-CNN with it through MMDetection's own tools/train.py, or with `--framework detectron2` through
`topodet train-net`, and once more from random initialization, evaluates both, and writes numbers and pictures to
runs/quickstart. Finished steps are not repeated: the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from topodet import visualization, weights
from topodet.datasets.digits import write_digit_folders, write_digit_scenes
from topodet.datasets.images import read_image, write_image
from topodet.detections import Detections
from topodet.errors import ConfigError, exit_status
from topodet.files import atomic_json, atomic_path
from topodet.frameworks import import_framework, require_framework
from topodet.records.results import average_precision_curves, contact_sheet, read_evaluations

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN_RECIPE = "configs/pretrain/toponet_nano_quick.yaml"
EPOCHS = re.compile(r"^(epoch .*)")  # of pretraining
LOADED = re.compile(r"topodet: (\d+)/(\d+) tensors")
SCENE = (192, 192)  # pixels, as in the configs
DIGIT = (18, 66)  # pixels, the smallest and the largest
DRAWN = 16  # scenes
# Pictures are drawn on enlarged scenes, so that lines and names are small compared with the objects.
ENLARGED = 3
MARGIN = 20  # pixels above a picture, for the names of objects at its upper edge
THRESHOLD = 0.5  # lowest score of the detections that are drawn


class Framework(Protocol):
    """The command line of a framework's training."""

    MODULES: tuple[str, ...]  # required modules
    STEP: str  # unit of its steps
    PROGRESS: re.Pattern  # the part of a log line to show

    def train(self, folder: Path, pretrained: Path | None, *, seed: int, epochs: int | None) -> list:
        """Return the command that trains, or resumes, in `folder`, from a published backbone or random weights."""

    def trained(self, folder: Path) -> dict:
        """Return the arguments of `load_detector` for the detector trained in `folder`."""


class MMDetection:
    """MMDetection's own tools/train.py, as it is installed."""

    MODULES = ("mmdet",)
    STEP = "epoch"
    CONFIG = "configs/mmdet/faster-rcnn_toponet-nano_fpn_digits.py"
    PROGRESS = re.compile(r"INFO - (.*topodet.*|Epoch\(.*)")

    def __init__(self, scenes: Path):
        options = [f"{split}_dataloader.dataset.data_root={scenes}/" for split in ("train", "val", "test")]
        self.data = [*options, *(f"{split}_evaluator.ann_file={scenes}/val.json" for split in ("val", "test"))]

    def train(self, folder: Path, pretrained: Path | None, *, seed: int, epochs: int | None) -> list:
        import mmdet

        options = [*self.data, f"randomness.seed={seed}", f"model.backbone.pretrained={pretrained}"]
        options += [f"train_cfg.max_epochs={epochs}"] if epochs else []
        tool = Path(mmdet.__file__).parent / ".mim" / "tools" / "train.py"
        resume = ["--resume"] if (folder / "last_checkpoint").is_file() else []
        return [sys.executable, tool, self.CONFIG, "--work-dir", folder, *resume, "--cfg-options", *options]

    def trained(self, folder: Path) -> dict:
        last = Path((folder / "last_checkpoint").read_text())
        return {"source": last, "config": folder / Path(self.CONFIG).name}


class Detectron2:
    """`topodet train-net`, which evaluates each epoch and at the end."""

    MODULES = ("detectron2", "cv2")
    STEP = "iteration"
    CONFIG = "configs/detectron2/faster_rcnn_toponet_nano_FPN_digits.yaml"
    EPOCH = 40  # iterations, in the config
    PROGRESS = re.compile(r"d2\.(?:topodet|utils\.events|evaluation\.testing)\]: +(.*)")

    def __init__(self, scenes: Path):
        self.scenes = scenes
        self.data = []
        for split in ("train", "val"):
            self.data += ["--dataset", f"digits_{split}", scenes / f"{split}.json", scenes / split]

    def train(self, folder: Path, pretrained: Path | None, *, seed: int, epochs: int | None) -> list:
        import torch

        options = ["OUTPUT_DIR", folder, "SEED", seed, "MODEL.TOPONET.PRETRAINED", pretrained or "''"]
        options += ["SOLVER.CHECKPOINT_PERIOD", self.EPOCH]
        options += [] if torch.cuda.is_available() else ["MODEL.DEVICE", "cpu"]
        command = [sys.executable, "-m", "topodet", "train-net", "--config-file", self.CONFIG, "--resume", *self.data]
        return [*command, *(["--epochs", epochs] if epochs else []), *options]

    def trained(self, folder: Path) -> dict:
        classes = [str(self.scenes / "val.json")]
        return {"source": folder / "model_final.pth", "config": folder / "config.yaml", "classes": classes}


FRAMEWORKS: dict[str, type[Framework]] = {"mmdetection": MMDetection, "detectron2": Detectron2}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/quickstart"), help="output folder (default: %(default)s)"
    )
    parser.add_argument("--framework", choices=list(FRAMEWORKS), default="mmdetection", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--pretrain-epochs", type=int, help="epochs of pretraining (default: the recipe's)")
    parser.add_argument("--epochs", type=int, help="epochs of fine-tuning (default: the config's)")
    parser.add_argument("--copies", type=int, default=3, help="images per digit to classify (default: %(default)s)")
    parser.add_argument("--train-scenes", type=int, default=320, help="scenes to train on (default: %(default)s)")
    parser.add_argument("--val-scenes", type=int, default=100, help="scenes to evaluate on (default: %(default)s)")
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    try:
        return exit_status(quickstart, args)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd))} failed; see its output above", file=sys.stderr)
        return 1


def quickstart(args: argparse.Namespace) -> None:
    """Run every unfinished step, write summary.json and print it.

    Raises:
        KeyboardInterrupt: Ctrl-C; says how to continue.
    """
    for module in (*FRAMEWORKS[args.framework].MODULES, "sklearn"):
        require_framework(module)
    progress = Progress(args.output, {key: value for key, value in vars(args).items() if key != "output"})
    try:
        summary = run_steps(args, args.output, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues from here") from None
    print(table(summary, args.output))


def run_steps(args: argparse.Namespace, out: Path, progress: Progress) -> dict:
    """Run every unfinished step, and return the content of summary.json."""
    started = time.monotonic()
    framework = FRAMEWORKS[args.framework](out / "scenes")

    say(1, "data: digits to classify, scenes of digits to detect (scikit-learn's bundled set, no download)")
    with ProcessPoolExecutor(2) as pool:
        written = [
            pool.submit(write_digit_folders, out / "digits", copies=args.copies, seed=args.seed),
            pool.submit(
                write_digit_scenes,
                out / "scenes",
                num_train=args.train_scenes,
                num_val=args.val_scenes,
                size=SCENE,
                digit_px=DIGIT,
                seed=args.seed,
            ),
        ]
        digits, scenes = (each.result() for each in written)

    train(args, out, progress, framework, digits)
    backbone = out / "published" / progress.known["pth"]

    histories = {name: read_evaluations(out / name) for name in ("random_init", "pretrained")}
    if progress.needs("pictures"):
        say(3, "drawing detections and curves")
        draw(args.framework, framework.trained(out / "pretrained"), scenes, out / "pictures")
        visualization.save_figures(weights.build(backbone, quiet=True), out / "pictures", "pretrained")
        with atomic_path(out / "pictures" / "ap_curves.png") as temporary:
            title = f"Faster R-CNN, toponet_nano, scenes of digits, seed {args.seed}"
            figure = average_precision_curves(histories, step=framework.STEP, title=title)
            figure.savefig(temporary, format="png", dpi=130)
        progress.done("pictures")

    if progress.needs("summary"):
        loaded = LOADED.search((out / "pretrained.log").read_text())
        scores = {name: rows[-1] for name, rows in histories.items()}
        sparsity = json.loads((out / "published" / progress.known["card"]).read_text())["sparsity"]
        summary = {
            "ap": scores["pretrained"]["coco/bbox_mAP"],
            "ap50": scores["pretrained"]["coco/bbox_mAP_50"],
            "ap75": scores["pretrained"]["coco/bbox_mAP_75"],
            "ap_random_init": scores["random_init"]["coco/bbox_mAP"],
            "ap50_random_init": scores["random_init"]["coco/bbox_mAP_50"],
            "tensors_loaded": int(loaded[1]) if loaded else 0,
            "tensors_total": int(loaded[2]) if loaded else 0,
            "edges_near_zero": sparsity["below_0.01"],
            "edges_below": sparsity,
            "minutes": round((progress.seconds + time.monotonic() - started) / 60, 2),
            "seed": args.seed,
            "framework": args.framework,
            "backbone": backbone.name,
        }
        atomic_json(out / "summary.json", summary)
        progress.done("summary")
    return json.loads((out / "summary.json").read_text())


def train(args: argparse.Namespace, out: Path, progress: Progress, framework: Framework, digits: Path) -> None:
    """Pretrain and publish the backbone, and train both detectors, with no processor idle.

    The detector from random initialization needs no backbone, so it trains in parallel with the pretraining.
    """
    cores = os.cpu_count() or 1
    half = {"OMP_NUM_THREADS": str(max(1, cores // 2))}
    # The last detector shares the machine at its start and then has it alone, so waiting threads must not spin.
    whole = {"OMP_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "passive"}
    runs: dict[str, Logged] = {}

    def detector(name: str, start: Path | None, threads: dict[str, str]) -> None:
        command = framework.train(out / name, start, seed=args.seed, epochs=args.epochs)
        runs[name] = Logged(command, out / f"{name}.log", framework.PROGRESS, environment=threads)

    def pretrained() -> None:
        if progress.needs("publishing"):
            checkpoint = out / "pretrain" / "model_best.pth.tar"
            options = {"name": "toponet_nano_digits", "notes": "digits, quickstart"}
            files = weights.publish(checkpoint, out / "published", **options)
            progress.done("publishing", pth=files.pth.name, card=files.card.name)
            print(f"published {files.pth}  {files.pth.stat().st_size / 1e6:.1f} MB", flush=True)
        if progress.needs("pretrained"):
            detector("pretrained", out / "published" / progress.known["pth"], whole)

    names = {
        "pretraining": "pretraining toponet_nano with adaptive sparsity",
        "random_init": f"training Faster R-CNN FPN with {args.framework} from random initialization",
        "pretrained": f"fine-tuning Faster R-CNN FPN with {args.framework} from the pretrained backbone",
    }
    missing = [name for name in names if progress.needs(name)]
    if missing:
        say(2, "; ".join(names[name] for name in missing))
        print("a framework takes a while to start; it prints its first losses after ten iterations", flush=True)
    if progress.needs("random_init"):
        detector("random_init", None, half)
    if progress.needs("pretraining"):
        command = [sys.executable, "-m", "topodet.pretrain", "-c", PRETRAIN_RECIPE, "--data-dir", digits]
        command += ["--output", out, "--experiment", "pretrain", "--seed", args.seed, "--resume", "auto"]
        command += ["--epochs", args.pretrain_epochs] if args.pretrain_epochs else []
        runs["pretraining"] = Logged(command, out / "pretraining.log", EPOCHS, environment=half)
    else:
        pretrained()
    for name in follow(runs):
        progress.done(name)
        if name == "pretraining":
            pretrained()


class Progress:
    """The finished steps, their settings and their time in seconds, stored in the folder itself.

    Args:
        folder: created if it does not exist.
        settings: settings of all steps.

    Raises:
        ConfigError: the folder contains something else, or a quickstart with other settings. Nothing is ever deleted.
    """

    def __init__(self, folder: Path, settings: dict):
        self.path = folder / ".quickstart"
        if self.path.is_file() and self.path.stat().st_size:
            content = json.loads(self.path.read_text())
            if content["settings"] != settings:
                told = [
                    f"{key} {content['settings'].get(key)}"
                    for key in settings
                    if content["settings"].get(key) != settings[key]
                ]
                raise ConfigError(
                    f"{folder} contains a quickstart with other settings ({', '.join(told)}); choose another --output, "
                    "or remove it"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} contains files that are not from a quickstart; choose another --output")
        else:
            content = {"settings": settings, "steps": [], "known": {}, "seconds": 0.0}
            folder.mkdir(parents=True, exist_ok=True)
            atomic_json(self.path, content)
        self.known: dict[str, str] = content["known"]
        self.seconds: float = content["seconds"]
        self._content = content
        self._since = time.monotonic()

    def needs(self, step: str) -> bool:
        """Whether a step is not finished."""
        return step not in self._content["steps"]

    def done(self, step: str, **known: str) -> None:
        """Save that a step is finished, values that later steps need, and its time."""
        self.known.update(known)
        self._content["steps"].append(step)
        self._content["seconds"] += time.monotonic() - self._since
        self._since = time.monotonic()
        atomic_json(self.path, self._content)


def say(step: int, text: str) -> None:
    """Announce a step."""
    print(f"\n\033[1m[{step}/3] {text}\033[0m", flush=True)


class Logged:
    """A command in the background that appends its output to a file.

    Args:
        command: words.
        log: the file.
        show: pattern whose first group in a line is shown.
        environment: additional environment variables.
    """

    def __init__(self, command: list, log: Path, show: re.Pattern, *, environment: dict[str, str]):
        self.command = [str(part) for part in command]
        self.log = log
        self.show = show
        with open(log, "a") as file:
            self._read = file.tell()
            self.process = subprocess.Popen(
                self.command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )

    def lines(self) -> Iterator[str]:
        """Yield the lines that were written since the last call."""
        with open(self.log) as file:
            file.seek(self._read)
            yield from file
            self._read = file.tell()


def follow(runs: dict[str, Logged]) -> Iterator[str]:
    """Show the logs of all runs; yield the name of each one that ends, and remove it.

    Args:
        runs: runs by name; more may be added after each yield.

    Raises:
        CalledProcessError: one failed; the end of its log has been printed. The others are terminated.
    """
    try:
        while runs:
            for name, logged in list(runs.items()):
                status = logged.process.poll()
                for line in logged.lines():
                    if found := logged.show.search(line):
                        print(f"{name:11}  {found[1]}", flush=True)
                if status:
                    sys.stderr.write(logged.log.read_text()[-4000:])
                    raise subprocess.CalledProcessError(status, logged.command)
                if status == 0:
                    del runs[name]
                    yield name
            time.sleep(0.5)
    finally:
        for logged in runs.values():
            logged.process.terminate()
            logged.process.wait()


def draw(name: str, trained: dict, scenes: Path, folder: Path) -> None:
    """Draw validation scenes with ground truth (left) and detections (right), and a sheet of the first eight."""
    framework = import_framework(name)
    detector = framework.load_detector(trained.pop("source"), **trained)
    content = json.loads((scenes / "val.json").read_text())
    categories = [category["id"] for category in content["categories"]]
    paths = []
    for image in content["images"][:DRAWN]:
        picture = read_image(scenes / "val" / image["file_name"])
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([categories.index(row["category_id"]) for row in rows], dtype=np.int64)
        truth = Detections(boxes, np.ones(len(rows), dtype=np.float32), labels)
        found = framework.predict(detector, picture, score_threshold=THRESHOLD)
        large = picture.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
        large = np.pad(large, ((MARGIN, 0), (0, 0), (0, 0)), constant_values=255)
        halves = []
        for each in (truth, found):
            placed = each.boxes * ENLARGED + np.array([0, MARGIN, 0, MARGIN], dtype=np.float32)
            halves.append(framework.draw(detector, large, Detections(placed, each.scores, each.labels)))
        paths.append(folder / "detections" / f"{Path(image['file_name']).stem}.jpg")
        write_image(np.concatenate(halves, axis=1), paths[-1])
    contact_sheet(paths[:8], folder / "detections.jpg", columns=2)


def table(summary: dict, out: Path) -> str:
    """Return the numbers as text for the terminal."""
    rows = [
        ("", "AP", "AP50"),
        ("pretrained", f"{summary['ap']:.3f}", f"{summary['ap50']:.3f}"),
        ("random initialization", f"{summary['ap_random_init']:.3f}", f"{summary['ap50_random_init']:.3f}"),
    ]
    lines = [f"{name:24}{ap:>8}{ap50:>8}" for name, ap, ap50 in rows]
    lines += [
        f"{'tensors loaded':24}{summary['tensors_loaded']}/{summary['tensors_total']}",
        f"{'edges with |alpha|<0.01':24}{summary['edges_near_zero']:.1%}",
        f"{'minutes':24}{summary['minutes']:.1f}",
        f"numbers: {out / 'summary.json'}; curves: tensorboard --logdir {out}",
        f"pictures: {out / 'pictures'} (the ground truth left, detections with a score of {THRESHOLD} or more right)",
    ]
    return "\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
