"""Folders as trainings leave them, with what a record is made from."""

import csv
import json

import yaml

# What Detectron2's log says of an iteration.
ITERATION = {"data_time": 0.01, "loss_box_reg": 0.1, "loss_cls": 0.2, "lr": 0.02, "total_loss": 0.3}


def mmdet_run(folder, scores, *, started="20260101_000000", first=1):
    """Lay out a work folder as MMDetection does from epoch `first` on: losses, then scores, and so on."""
    lines = []
    for epoch, score in enumerate(scores, start=first):
        lines.append({"lr": 0.02, "loss": 1.0, "time": 0.5, "memory": 900, "epoch": epoch, "step": 10 * epoch})
        lines.append({"coco/bbox_mAP": score, "coco/bbox_mAP_50": 2 * score, "coco/bbox_mAP_75": score, "step": epoch})
    path = folder / started / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def detectron2_run(folder, scores, *, period=20, log=""):
    """Lay out an output folder as Detectron2 does: scores in percent, the last ones beyond the last iteration."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for place, score in enumerate(scores, start=1):
        losses = {**ITERATION, "iteration": place * period - 1, "time": 0.25}
        named = {"AP": score, "AP50": 1.5 * score, "AP75": score, "APs": float("nan"), "APm": score, "APl": score}
        evaluation = {f"bbox/{name}": value for name, value in named.items()} | {"bbox/AP-RBC": score}
        if place < len(scores):
            lines.append(losses | evaluation)
        else:
            lines += [losses, evaluation | {"iteration": place * period}]
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    with open(folder / "metrics.json", "a") as file:  # as its JSONWriter does
        file.write(text)
    (folder / "config.yaml").write_text("SOLVER:\n  IMS_PER_BATCH: 8\n")
    (folder / "log.txt").write_text(log)
    return folder


def pretraining_run(folder, **args):
    """Lay out a folder of topodet.pretrain, two epochs in."""
    folder.mkdir(parents=True)
    settings = {"experiment": "nano", "model": "toponet_nano", "sparsity": "adaptive", "seed": 3, "epochs": 4, **args}
    (folder / "args.yaml").write_text(yaml.safe_dump(settings))
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "eval_top1", "ema_eval_top1", "edges_below_0.01", "edges_below_0.1"])
        writer.writeheader()
        writer.writerow({"epoch": 0, "eval_top1": 20.5, "ema_eval_top1": "", "edges_below_0.01": 0.25})
        writer.writerow({"epoch": 1, "eval_top1": 31.25, "ema_eval_top1": 30.5, "edges_below_0.01": 0.5})
    return folder
