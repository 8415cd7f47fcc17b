import json

import pytest
from scipy.stats import t

from tests.run_folders import mmdet_run, pretraining_run
from tools import update_model_zoo
from topodet.records import runs, zoo

PAPER = json.loads((update_model_zoo.ROOT / "records" / "paper.json").read_text())
BCCD = {
    "mmdetection": "configs/mmdet/faster-rcnn_toponet-nano_fpn_bccd.py",
    "detectron2": "configs/detectron2/faster_rcnn_toponet_nano_FPN_bccd.yaml",
}


def detector(framework, seed, score, **changed):
    """Return a record as far as the zoo reads it."""
    record = {
        "kind": "detector",
        "name": BCCD[framework].rpartition("/")[2].rpartition(".")[0],
        "framework": framework,
        "config": BCCD[framework],
        "initialization": "pretrained",
        "weights": "x-1.pth",
        "data": "BCCD (a place), 292 train",
        "command": "train",
        "seed": seed,
        "metrics": {"bbox_mAP": score, "bbox_mAP_50": 0.9, "bbox_mAP_75": 0.5},
        "history": [{"step": step, "coco/bbox_mAP": step / 10, "coco/bbox_mAP_50": 0.9} for step in (1, 2)],
        "machine": "a machine",
        "versions": {"torch": "2"},
    }
    return record | changed


def page(*runs, configs=()):
    return zoo.model_zoo(PAPER, runs, configs)


def test_imagenet_and_coco_runs_fill_the_papers_tables(tmp_path):
    config = "configs/mmdet/faster-rcnn_toponet50-adaptive_fpn_detectron-1x_coco.py"
    run = pretraining_run(tmp_path / "run", model="toponet50")
    imagenet = runs.record_pretraining(run, data="ImageNet-1k", command="-")
    common = {"config": config, "initialization": "pretrained", "command": "-", "seed": 0}
    coco = runs.record_detector(mmdet_run(tmp_path / "coco", [0.4]), data="COCO 2017", **common)
    empty = page(configs=[config])
    filled = page(imagenet, coco, configs=[config])
    assert "| 78.60 / 93.92 | not yet run |" in empty
    assert "| 78.60 / 93.92 | 30.50 |" in filled
    row = "| toponet50-adaptive | 41.69 63.86 45.45 25.58 45.52 53.69 |"
    assert f"{row} not yet run | not yet run |" in empty
    assert f"{row} 40.0 | not yet run |" in filled
    assert empty.count("not yet run |") == filled.count("not yet run |") + 2
    assert f"- [{config[14:-3]}]({config}), AP 40.0, [" in filled
    # A few images of COCO with that config are no COCO result.
    few = runs.record_detector(tmp_path / "coco", data="COCO-mini", **common)
    assert f"{row} not yet run | not yet run |" in page(few, configs=[config])


def test_detectron2s_configs_stand_beside_mmdetections_and_the_papers_numbers():
    names = ("faster_rcnn_R_50_FPN_noaug_1x", "faster_rcnn_R_50_FPN_1x", "retinanet_toponet50_adaptive_FPN_1x")
    configs = [f"configs/detectron2/{name}{suffix}" for name in names for suffix in (".py", ".yaml")]
    text = page(configs=["configs/mmdet/faster-rcnn_r50_fpn_detectron-1x_coco.py", *configs])
    assert text.count("- [") == 4  # one line for the YAML and its twin
    twins = "- [{0}](configs/detectron2/{0}.yaml), [.py](configs/detectron2/{0}.py)\n"
    assert all(twins.format(name) in text for name in names)
    assert "| r50 | 36.42 58.66 38.90 21.93 39.84 46.74 | not yet run | not yet run |" in text
    assert "| r50 | 36.42 58.66 38.90 21.93 39.84 46.74 | not yet run | 36.0 |" in page(
        detector("detectron2", 0, 0.36, name=names[0], data="COCO 2017")
    )


def test_every_coco_config_has_a_row():
    text = page(configs=update_model_zoo.coco_configs())
    for name in ("faster-rcnn_toponet50-alpha_fpn_1x_coco", "faster_rcnn_toponet50_adaptive_FPN_3x"):
        assert f"- [{name}](configs/" in text


def test_seeds_of_one_run_are_one_row():
    runs = [detector("mmdetection", seed, score) for seed, score in enumerate((0.50, 0.51, 0.55))]
    runs += [detector("mmdetection", 0, 0.4, initialization="random", weights="")]
    text = page(*runs)
    name = "faster-rcnn_toponet-nano_fpn_bccd"
    path = f"records/runs/{name}_x-1_seed"
    # 50, 51, 55: the mean is 52, the squares of what is left 4 + 1 + 9, over two 7, of which the root is 2.65.
    assert (
        f"| [{name}]({BCCD['mmdetection']}) | BCCD | x-1.pth | 3 "
        "| 52.0 ± 2.6 (50.0 to 55.0) | 90.0 ± 0.0 (90.0 to 90.0) | 50.0 ± 0.0 (50.0 to 50.0) "
        f"| [seed 0]({path}0.json), [seed 1]({path}1.json), [seed 2]({path}2.json) |"
    ) in text
    assert "| random | 1 | 40.0 | 90.0 | 50.0 | [seed 0]" in text


def test_readme_has_intervals_of_several_seeds():
    """50, 51, 55: mean 52, deviation 2.65, and t of two degrees of freedom is 4.303: 4.303 * 2.65 / sqrt(3) = 6.57."""
    runs = [detector("mmdetection", seed, score) for seed, score in enumerate((0.50, 0.51, 0.55))]
    text = zoo.results([*runs, detector("detectron2", 0, 0.6)])
    assert "| MMDetection | BCCD | x | 3 | 52.0 [45.4, 58.6] |" in text
    assert "Detectron2" not in text


@pytest.mark.parametrize(
    "changed",
    [
        {"data": "other cells"},
        {"weights": "y-2.pth"},
        {"history": [{"step": 1, "coco/bbox_mAP": 0.1}]},  # stopped earlier
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_runs_are_not_averaged(changed):
    text = page(detector("detectron2", 0, 0.5), detector("detectron2", 1, 0.6, **changed))
    assert text.count("| 1 | ") == 2
    assert "±" not in text.partition("| config |")[2].replace("± the", "")


def test_notes_and_speed_are_told():
    speed = {"iterations_per_second": 2.0, "images_per_second": 32.5, "peak_memory_mb": 10240}
    run = detector("detectron2", 0, 0.001, note="a check of the pipeline", speed=speed)
    other = detector("mmdetection", 0, -1.0)
    text = page(run, other)
    assert "faster_rcnn_toponet_nano_FPN_bccd (pretrained): a check of the pipeline\n" in text
    assert "| 1 | - | 90.0 |" in text  # nothing to average
    commands = zoo.commands([run, other])
    assert "(a machine; torch 2; 2 iterations/s, 32.5 images/s, at most 10,240 MB of GPU memory):" in commands
    assert "(a machine; torch 2):\n\n```bash\ntrain\n```" in commands


def test_frameworks_are_compared_by_welchs_interval():
    """0.52 and 0.54 against 0.50 and 0.51, by hand: variances 2 and 0.5, over 2 runs each, in percent."""
    theirs = [detector("mmdetection", seed, score) for seed, score in enumerate((0.50, 0.51))]
    ours = [detector("detectron2", seed, score) for seed, score in enumerate((0.52, 0.54))]
    error = (2 / 2 + 0.5 / 2) ** 0.5
    freedom = error**4 / ((2 / 2) ** 2 + (0.5 / 2) ** 2)
    half = t.ppf(0.975, freedom) * error
    text = page(*theirs, *ours)
    assert (
        "**BCCD, pretrained:** faster-rcnn_toponet-nano_fpn_bccd against faster_rcnn_toponet_nano_FPN_bccd. "
        "AP in MMDetection 50.5 ± 0.7 (50.0 to 51.0), 2 seeds; in Detectron2 53.0 ± 1.4 (52.0 to "
        f"54.0), 2 seeds. Detectron2 less MMDetection is +2.5, 95% interval {2.5 - half:+.1f} to {2.5 + half:+.1f}: "
        "within the spread of the seeds."
    ) in text
    assert "](docs/faster-rcnn_toponet-nano_fpn_bccd_pretrained_seeds.png)" in text


@pytest.mark.parametrize(
    ("theirs", "ours", "verdict"),
    [
        ((0.50, 0.50), (0.50, 0.50), "within"),
        ((0.50, 0.50), (0.51, 0.51), "larger than"),
        ((0.500, 0.501, 0.502), (0.600, 0.601, 0.602), "larger than"),
        ((0.500, 0.510, 0.520), (0.505, 0.515, 0.525), "within"),
    ],
)
def test_what_the_seeds_do_not_explain_is_said(theirs, ours, verdict):
    runs = [detector("mmdetection", seed, score) for seed, score in enumerate(theirs)]
    runs += [detector("detectron2", seed, score) for seed, score in enumerate(ours)]
    assert f": {verdict} the spread of the seeds." in page(*runs)


def test_without_a_second_seed_or_the_same_weights_nothing_is_compared():
    theirs = [detector("mmdetection", seed, 0.5) for seed in (0, 1)]
    for ours in ([detector("detectron2", 0, 0.5)], [detector("detectron2", s, 0.5, weights="y.pth") for s in (0, 1)]):
        assert "against Detectron2" not in page(*theirs, *ours)
        assert zoo.pictures([*theirs, *ours]) == {}


def test_variants_of_a_config_are_compared_too():
    variant = {"name": "faster-rcnn_toponet-nano_fpn_bccd-pillow", "config": "configs/mmdet/variant.py"}
    runs = [detector("mmdetection", seed, 0.5) for seed in (0, 1)]
    runs += [detector("mmdetection", seed, 0.52, **variant) for seed in (0, 1)]
    runs += [detector("detectron2", seed, 0.52) for seed in (0, 1)]
    text = page(*runs)
    assert "faster-rcnn_toponet-nano_fpn_bccd against faster_rcnn_toponet_nano_FPN_bccd." in text
    assert "faster-rcnn_toponet-nano_fpn_bccd-pillow against faster_rcnn_toponet_nano_FPN_bccd." in text
    assert text.count("Detectron2 less MMDetection is") == 2
    assert len(zoo.pictures(runs)) == 2


def test_the_picture_has_every_seed():
    runs = [detector(framework, seed, 0.5) for framework in BCCD for seed in (0, 1, 2)]
    ((path, figure),) = zoo.pictures(runs).items()
    assert path == "docs/faster-rcnn_toponet-nano_fpn_bccd_pretrained_seeds.png"
    assert len(figure.axes[0].lines) == 8  # three seeds and a mean for each


def test_the_zoo_in_the_repository_is_what_the_records_give(capsys):
    assert update_model_zoo.main(["--check"]) == 0, capsys.readouterr().out
