import csv
import json

import pytest
import yaml

from tools import record_run, update_model_zoo
from topodet import records
from topodet.analysis.results import average_precision_curves, contact_sheet, read_scalars
from topodet.errors import DataError
from topodet.files import atomic_json
from topodet.pretrain import main as pretrain

PAPER = json.loads((update_model_zoo.ROOT / "records" / "paper.json").read_text())


def mmdet_run(folder, scores):
    """Lay out a work folder as MMDetection does: a line of losses, a line of scores, and so on."""
    lines = []
    for epoch, score in enumerate(scores, start=1):
        lines.append({"lr": 0.02, "loss": 1.0, "step": 10 * epoch})
        lines.append({"coco/bbox_mAP": score, "coco/bbox_mAP_50": 2 * score, "coco/bbox_mAP_75": score, "step": epoch})
    path = folder / "20260101_000000" / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def pretraining_run(folder, **args):
    folder.mkdir(parents=True)
    settings = {"experiment": "nano", "model": "toponet_nano", "sparsity": "adaptive", "seed": 3, "epochs": 4, **args}
    (folder / "args.yaml").write_text(yaml.safe_dump(settings))
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "eval_top1", "ema_eval_top1", "edges_below_0.01", "edges_below_0.1"])
        writer.writeheader()
        writer.writerow({"epoch": 0, "eval_top1": 20.5, "ema_eval_top1": "", "edges_below_0.01": 0.25})
        writer.writerow({"epoch": 1, "eval_top1": 31.25, "ema_eval_top1": 30.5, "edges_below_0.01": 0.5})
    return folder


def test_a_detectors_record_is_read_from_its_folder(tmp_path, capsys):
    run = mmdet_run(tmp_path / "run", [0.1, 0.35])
    arguments = ["detector", str(run), "--config", "configs/mmdet/a_b.py", "--initialisation", "pretrained"]
    arguments += ["--data", "BCCD", "--command", "python train.py", "--seed", "7", "--weights", "x-1.pth"]
    assert record_run.main([*arguments, "--output", str(tmp_path / "records")]) == 0
    (record,) = records.load_all(tmp_path / "records")
    assert record["metrics"] == {"bbox_mAP": 0.35, "bbox_mAP_50": 0.7, "bbox_mAP_75": 0.35}
    assert [row["coco/bbox_mAP"] for row in record["history"]] == [0.1, 0.35]
    assert record["versions"]["torch"]
    text = records.model_zoo(PAPER, [record], [])
    assert (
        "| [a_b](configs/mmdet/a_b.py) | BCCD | pretrained | 7 | 35.0 | 70.0 | x-1.pth "
        "| [a_b_pretrained_seed7](records/runs/a_b_pretrained_seed7.json) |"
    ) in text
    assert "```bash\npython train.py\n```" in text


def test_a_pretraining_record_is_read_from_its_folder(tmp_path):
    run = pretraining_run(tmp_path / "run")
    record = records.record_pretraining(run, data="Tiny", command="python pretrain.py", published="p.pth")
    assert records.save(record, tmp_path / "out").name == "nano_seed3.json"
    text = records.model_zoo(PAPER, records.load_all(tmp_path / "out"), [])
    assert "| nano | `toponet_nano` | Tiny | 2 of 4 | 3 | 30.50 | 50.0% | p.pth |" in text


def test_imagenet_and_coco_runs_fill_the_papers_tables(tmp_path):
    config = "configs/mmdet/faster-rcnn_toponet50-adaptive_fpn_detectron-1x_coco.py"
    run = pretraining_run(tmp_path / "run", model="toponet50")
    imagenet = records.record_pretraining(run, data="ImageNet-1k", command="-")
    coco = records.record_detector(
        mmdet_run(tmp_path / "coco", [0.4]),
        config=config,
        initialisation="pretrained",
        data="COCO 2017",
        command="-",
        seed=0,
    )
    empty = records.model_zoo(PAPER, [], [config])
    filled = records.model_zoo(PAPER, [imagenet, coco], [config])
    assert "| 78.60 / 93.92 | not yet run |" in empty
    assert "| 78.60 / 93.92 | 30.50 |" in filled
    assert "| 41.69 63.86 45.45 25.58 45.52 53.69 | not yet run |" in empty
    assert "| 41.69 63.86 45.45 25.58 45.52 53.69 | 40.0 |" in filled
    assert empty.count("not yet run |") == filled.count("not yet run |") + 2


def test_the_zoo_in_the_repository_is_what_the_records_give(capsys):
    assert update_model_zoo.main(["--check"]) == 0, capsys.readouterr().out


def test_real_summaries_can_be_recorded(tmp_path):
    """The names of the columns are those that the pretraining entry point writes."""
    import numpy as np
    from PIL import Image

    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for k in range(4):
                pixels = np.random.default_rng(k).integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{k}.png")
    options = ["--data-dir", str(tmp_path / "data"), "--model", "toponet_nano", "--img-size", "32", "-b", "4"]
    options += [
        "--epochs",
        "1",
        "--workers",
        "0",
        "--output",
        str(tmp_path),
        "--experiment",
        "run",
        "--sparsity",
        "uniform",
    ]
    assert pretrain(options) == 0
    record = records.record_pretraining(tmp_path / "run", data="noise", command="-")
    text = records.model_zoo(PAPER, [record], [])
    assert "| run | `toponet_nano` | noise | 1 of " in text
    assert "0.0% / 0.0%" in text


def test_unfinished_runs_are_named(tmp_path, capsys):
    with pytest.raises(DataError, match="no evaluation .*did the run finish an epoch"):
        read_scalars(tmp_path)
    with pytest.raises(DataError, match=r"no folder of a pretraining run: .*args.yaml is missing"):
        records.record_pretraining(tmp_path, data="", command="")
    assert record_run.main(["pretraining", str(tmp_path), "--data", "x", "--command", "y"]) == 1
    assert "error: " in capsys.readouterr().err


def test_curves_and_sheets(tmp_path):
    from PIL import Image

    rows = {"a": read_scalars(mmdet_run(tmp_path / "a", [0.1, 0.2, 0.3]))}
    lines = average_precision_curves(rows).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[0.1, 0.2, 0.3], [0.2, 0.4, 0.6]]
    paths = []
    for k in range(3):
        paths.append(tmp_path / f"{k}.png")
        Image.new("RGB", (4, 2), (80 * k, 0, 0)).save(paths[-1])
    sheet = Image.open(contact_sheet(paths, tmp_path / "sheet.png", columns=2))
    assert sheet.size == (8, 4)
    assert [sheet.getpixel(at)[0] for at in ((0, 0), (4, 0), (0, 2), (4, 2))] == [0, 80, 160, 255]
    with pytest.raises(DataError, match="no images"):
        contact_sheet([], tmp_path / "none.png")


def test_a_record_is_replaced_not_doubled(tmp_path):
    for top1 in (1, 2):
        atomic_json(tmp_path / "a_seed0.json", {"name": "a", "seed": 0, "top1": top1})
    assert [r["top1"] for r in records.load_all(tmp_path)] == [2]
