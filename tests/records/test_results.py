import json

import numpy as np
import pytest
from PIL import Image

from tests.run_folders import ITERATION, detectron2_run, mmdet_run
from topodet.errors import DataError
from topodet.records.results import (
    average_precision_curves,
    contact_sheet,
    read_evaluations,
    read_speed,
    seed_curves,
)
from topodet.records.runs import record_detector


def test_both_frameworks_scores_are_read_under_the_same_keys(tmp_path):
    theirs = read_evaluations(mmdet_run(tmp_path / "mmdet", [0.1, 0.4]))
    ours = read_evaluations(detectron2_run(tmp_path / "detectron2", [10.0, 40.0]))
    assert [row["step"] for row in theirs] == [1, 2]
    assert [row["step"] for row in ours] == [19, 40]
    assert [row["coco/bbox_mAP"] for row in ours] == [row["coco/bbox_mAP"] for row in theirs] == [0.1, 0.4]
    assert ours[-1] == {
        "coco/bbox_mAP": 0.4,
        "coco/bbox_mAP_50": 0.6,
        "coco/bbox_mAP_75": 0.4,
        "coco/bbox_mAP_s": -1.0,  # no small objects: NaN there
        "coco/bbox_mAP_m": 0.4,
        "coco/bbox_mAP_l": 0.4,
        "step": 40,
    }


def test_masks_have_averages_of_their_own(tmp_path):
    (tmp_path / "metrics.json").write_text('{"bbox/AP": 40.0, "bbox/AP50": 60.0, "segm/AP75": 30.0, "iteration": 9}\n')
    (row,) = read_evaluations(tmp_path)
    assert (row["coco/bbox_mAP"], row["coco/segm_mAP_75"]) == (0.4, 0.3)


def test_a_run_that_started_again_is_read_once(tmp_path):
    """Detectron2 appends to its log: first a longer run that was given up, then another from the beginning."""
    detectron2_run(tmp_path, [1.0, 2.0, 3.0, 4.0])
    detectron2_run(tmp_path, [50.0, 60.0])
    assert [row["coco/bbox_mAP"] for row in read_evaluations(tmp_path)] == [0.5, 0.6]


def test_what_a_resumed_run_did_twice_counts_once(tmp_path):
    rows = [{"iteration": 19, "bbox/AP": 10.0, "bbox/AP50": 20.0}, {**ITERATION, "iteration": 25}]
    rows += [{"iteration": 39, "bbox/AP": 11.0, "bbox/AP50": 21.0}, {**ITERATION, "iteration": 30}]
    rows += [{"iteration": 39, "bbox/AP": 12.0, "bbox/AP50": 22.0}]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["coco/bbox_mAP"] for row in read_evaluations(tmp_path)] == [0.1, 0.12]


def test_a_run_of_mmdetection_that_was_resumed_is_read_once(tmp_path):
    mmdet_run(tmp_path, [0.1, 0.2, 0.3])
    mmdet_run(tmp_path, [0.4, 0.5], started="20260102_000000", first=3)  # from the checkpoint of epoch 2
    rows = read_evaluations(tmp_path)
    assert [(row["step"], row["coco/bbox_mAP"]) for row in rows] == [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5)]
    # Begun again from the first epoch, and not evaluated yet.
    path = tmp_path / "20260103_000000" / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"loss": 1.0, "epoch": 2, "iter": 11, "step": 11}\n')
    assert [row["step"] for row in read_evaluations(tmp_path)] == [1]


def test_iterations_of_mmdetection_are_compared_with_iterations(tmp_path):
    def start(name, *lines):
        path = tmp_path / name / "vis_data" / "scalars.json"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def evaluated(step, score):
        return {"coco/bbox_mAP": score, "coco/bbox_mAP_50": score, "step": step}

    start("20260101_000000", {"loss": 1.0, "iter": 50, "step": 50}, evaluated(50, 0.1), evaluated(100, 0.2))
    start("20260102_000000", {"loss": 1.0, "iter": 60, "step": 60}, evaluated(100, 0.3))
    assert [row["coco/bbox_mAP"] for row in read_evaluations(tmp_path)] == [0.1, 0.3]


def test_a_test_in_the_folder_of_a_training_is_no_part_of_it(tmp_path):
    mmdet_run(tmp_path, [0.1, 0.2])
    # As tools/test.py leaves it, and an evaluation outside of a training.
    (tmp_path / "20260102_000000").mkdir()
    (tmp_path / "20260102_000000" / "20260102_000000.json").write_text('{"coco/bbox_mAP": 0.9, "time": 0.1}')
    lone = {"coco/bbox_mAP": 0.8, "coco/bbox_mAP_50": 0.9, "step": 0}
    (tmp_path / "20260102_000000" / "vis_data").mkdir()
    (tmp_path / "20260102_000000" / "vis_data" / "scalars.json").write_text(json.dumps(lone) + "\n")
    assert [row["coco/bbox_mAP"] for row in read_evaluations(tmp_path)] == [0.1, 0.2]
    record = record_detector(tmp_path, config="c.py", initialization="random", data="d", command="c", seed=0)
    assert (record["metrics"]["bbox_mAP"], [row["step"] for row in record["history"]]) == (0.2, [1, 2])


def test_speed_and_memory_are_what_the_logs_say(tmp_path):
    log = "iter: 19 max_mem: 1200M\niter: 39 max_mem: 1500M\n"
    ours = read_speed(detectron2_run(tmp_path / "detectron2", [1.0, 2.0], log=log))
    assert ours == {"iterations_per_second": 4, "images_per_second": 32, "peak_memory_mb": 1500}
    theirs = read_speed(mmdet_run(tmp_path / "mmdet", [0.1, 0.2]))
    assert theirs == {"iterations_per_second": 2, "peak_memory_mb": 900}


def test_the_batch_of_a_lazy_config_counts_too(tmp_path):
    run = detectron2_run(tmp_path, [1.0])
    (run / "config.yaml").write_text(
        "dataloader:\n  train:\n    total_batch_size: 4\nmodel:\n  input_shape: !!python/object:a.Shape {height: 7}\n"
    )
    assert read_speed(run)["images_per_second"] == 16
    (run / "config.yaml").unlink()
    assert read_speed(run) == {"iterations_per_second": 4}


def test_folders_without_a_result_are_named(tmp_path):
    with pytest.raises(DataError, match="neither metrics.json .*OUTPUT_DIR.* nor .*--work-dir"):
        read_evaluations(tmp_path)
    with pytest.raises(DataError, match="no evaluation .*did the run finish an epoch"):
        read_evaluations(mmdet_run(tmp_path / "mmdet", []))
    log = tmp_path / "metrics.json"
    log.write_text(json.dumps({**ITERATION, "iteration": 19}) + "\n")
    with pytest.raises(DataError, match=r"no evaluation \(bbox/AP\) found in .*TEST.EVAL_PERIOD"):
        read_evaluations(tmp_path)
    log.write_text('{"a/bbox/AP": 1.0, "b/bbox/AP": 2.0, "iteration": 19}\n')
    with pytest.raises(DataError, match=r"several datasets \(a, b\).*DATASETS.TEST"):
        read_evaluations(tmp_path)
    log.write_text('{"bbox/AP": 1.0, "iteration": 19}\n{"bbox/A')
    with pytest.raises(DataError, match="metrics.json, line 2 .*killed run"):
        read_evaluations(tmp_path)


def test_curves_of_runs(tmp_path):
    rows = {"a": read_evaluations(mmdet_run(tmp_path / "a", [0.1, 0.2, 0.3]))}
    lines = average_precision_curves(rows).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[0.1, 0.2, 0.3], [0.2, 0.4, 0.6]]


def test_curves_of_seeds_have_a_line_each_and_their_mean():
    def run(*points):
        return [{"step": step, "coco/bbox_mAP": score} for step, score in points]

    seeds = {
        "MMDetection": [run((1, 0.1), (2, 0.3)), run((1, 0.2), (2, 0.5))],
        "Detectron2": [run((25, 0.0), (100, 0.6)), run((50, 0.4), (100, 0.4))],
    }
    axis = seed_curves(seeds).axes[0]
    drawn = [(list(line.get_xdata()), np.round(line.get_ydata(), 6).tolist()) for line in axis.lines]
    assert drawn[:3] == [([50, 100], [10, 30]), ([50, 100], [20, 50]), ([50, 100], [15, 40])]
    # The mean begins where both were evaluated: at 50% the first seed is a third of the way from 0 to 60.
    assert drawn[5] == ([50, 100], [30, 50])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "MMDetection, mean of 2 seeds",
        "Detectron2, mean of 2 seeds",
    ]


def test_sheets_are_pasted_row_by_row(tmp_path):
    paths = []
    for k in range(3):
        paths.append(tmp_path / f"{k}.png")
        Image.new("RGB", (4, 2), (80 * k, 0, 0)).save(paths[-1])
    sheet = Image.open(contact_sheet(paths, tmp_path / "sheet.png", columns=2))
    assert sheet.size == (8, 4)
    assert [sheet.getpixel(at)[0] for at in ((0, 0), (4, 0), (0, 2), (4, 2))] == [0, 80, 160, 255]
    with pytest.raises(DataError, match="no images"):
        contact_sheet([], tmp_path / "none.png")
