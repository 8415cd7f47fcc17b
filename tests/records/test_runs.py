import json
import subprocess
from pathlib import Path

import pytest
import timm
import torch

from tests.run_folders import detectron2_run, mmdet_run, pretraining_run
from tools import record_run, update_model_zoo
from topodet import connectivity
from topodet.errors import DataError
from topodet.files import atomic_json
from topodet.models import connect
from topodet.pretrain import main as pretrain
from topodet.records import runs, zoo

PAPER = json.loads((update_model_zoo.ROOT / "records" / "paper.json").read_text())
PAPER["backbones"] = {"resnet50": PAPER["backbones"]["resnet50"]}
pytestmark = pytest.mark.usefixtures("small_zoo")


def test_a_detectors_record_is_read_from_its_folder(tmp_path, capsys):
    run = mmdet_run(tmp_path / "run", [0.1, 0.35])
    arguments = ["detector", str(run), "--config", "configs/mmdet/a_b.py", "--initialization", "pretrained"]
    arguments += ["--data", "BCCD", "--command", "python train.py", "--seed", "7", "--weights", "x-1.pth"]
    assert record_run.main([*arguments, "--output", str(tmp_path / "records")]) == 0
    (record,) = runs.load_all(tmp_path / "records")
    assert record["framework"] == "mmdetection"
    assert record["metrics"] == {"bbox_mAP": 0.35, "bbox_mAP_50": 0.7, "bbox_mAP_75": 0.35}
    assert [row["coco/bbox_mAP"] for row in record["history"]] == [0.1, 0.35]
    assert record["versions"]["torch"]
    text = zoo.model_zoo(PAPER, [record], [])
    assert (
        "| [a_b](configs/mmdet/a_b.py) | BCCD | x-1.pth | 1 | 35.0 | 70.0 | 35.0 "
        "| [seed 7](records/runs/a_b_x-1_seed7.json) |"
    ) in text
    assert "```bash\npython train.py\n```" in zoo.commands([record])


def test_the_same_command_records_a_detectron2_run(tmp_path, monkeypatch):
    run = detectron2_run(tmp_path / "run", [10.0, 51.2345], log="max_mem: 700M")
    arguments = ["detector", str(run), "--config", "configs/detectron2/a_b.yaml", "--initialization", "pretrained"]
    arguments += ["--data", "BCCD", "--command", "python train_net.py", "--seed", "7", "--note", "a check"]
    assert record_run.main([*arguments, "--output", str(tmp_path / "records")]) == 0
    (record,) = runs.load_all(tmp_path / "records")
    assert (tmp_path / "records" / "a_b_pretrained_seed7.json").exists()
    assert (record["framework"], record["note"]) == ("detectron2", "a check")
    assert record["metrics"]["bbox_mAP"] == 0.51234
    assert record["metrics"]["bbox_mAP_s"] == -1  # NaN in Detectron2's log
    assert [row["step"] for row in record["history"]] == [19, 40]
    assert record["speed"] == {"iterations_per_second": 4, "images_per_second": 32, "peak_memory_mb": 700}
    assert not any("mmdet" in package for package in record["versions"])
    text = zoo.model_zoo(PAPER, [record], [])
    assert "| [a_b](configs/detectron2/a_b.yaml) | BCCD | pretrained | 1 | 51.2 |" in text


def test_both_frameworks_records_have_the_same_keys(tmp_path):
    common = {"initialization": "random", "data": "BCCD", "command": "-", "seed": 0}
    theirs = runs.record_detector(mmdet_run(tmp_path / "a", [0.5]), config="a.py", **common)
    ours = runs.record_detector(detectron2_run(tmp_path / "b", [50.0]), config="b.yaml", **common)
    assert theirs.keys() == ours.keys()
    assert theirs["metrics"].keys() <= ours["metrics"].keys()
    assert theirs["history"][0].keys() == ours["history"][0].keys()


@pytest.mark.parametrize("framework", ["mmdetection", "detectron2"])
def test_a_detectors_record_has_the_edge_weights_of_its_last_checkpoint(framework, tmp_path):
    if framework == "mmdetection":  # state_dict, and a path that another machine may have had
        run, key, pointer = mmdet_run(tmp_path / "run", [0.5]), "state_dict", "/elsewhere/epoch_2.pth"
    else:  # model, and the file's name
        run, key, pointer = detectron2_run(tmp_path / "run", [50.0]), "model", "model_final.pth"
    arguments = {"config": "a.py", "initialization": "random", "data": "", "command": "", "seed": 0}
    assert runs.record_detector(run, **arguments)["alpha"] == {}
    network = connect(timm.create_model("resnet18"), nodes="blocks")
    connectivity.wirings(network)["layer1.0.wiring"].alpha.data[:] = torch.tensor([0.75, -0.5, 1.0])
    tensors = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({key: tensors}, run / Path(pointer).name)
    (run / "last_checkpoint").write_text(pointer)
    edges = [[0, 1, 0.75], [0, 2, -0.5], [1, 2, 1.0]]
    assert runs.record_detector(run, **arguments)["alpha"] == {"backbone.layer1.0.wiring": edges}
    (run / "last_checkpoint").write_text("..")  # not a file
    assert runs.record_detector(run, **arguments)["alpha"] == {}


def test_the_commit_of_an_installation_is_told(tmp_path, monkeypatch):
    """By PEP 610's direct_url.json, as pip writes it for git+https."""
    folder = tmp_path / "detectron2-0.6.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = {"config": "b.yaml", "initialization": "random", "data": "", "command": "", "seed": 0}
    run = detectron2_run(tmp_path / "run", [50.0])
    assert runs.record_detector(run, **arguments)["versions"]["detectron2"] == "0.6"
    origin = {"url": "https://a.b", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}
    (folder / "direct_url.json").write_text(json.dumps(origin))
    assert runs.record_detector(run, **arguments)["versions"]["detectron2"] == "0.6 (0123456789ab)"


def test_the_commit_of_a_checkout_is_told_by_its_root_alone(tmp_path):
    assert runs.commit_of(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "topodet").mkdir()
    (tmp_path / "topodet" / "a.py").write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout[:12]
    assert runs.commit_of(tmp_path) == head
    (tmp_path / "topodet" / "a.py").write_text("2")
    assert runs.commit_of(tmp_path) == head + "+"
    assert runs.commit_of(tmp_path / "topodet") == ""  # as site-packages of an environment within a checkout


def test_records_from_before_frameworks_are_mmdetections(tmp_path):
    atomic_json(tmp_path / "a.json", {"kind": "detector"})
    assert runs.load_all(tmp_path)[0]["framework"] == "mmdetection"


def test_a_pretraining_record_is_read_from_its_folder(tmp_path):
    run = pretraining_run(tmp_path / "run")
    record = runs.record_pretraining(run, data="Tiny", command="python pretrain.py", published="p.pth")
    assert runs.save(record, tmp_path / "out").name == "nano_seed3.json"
    text = zoo.model_zoo(PAPER, runs.load_all(tmp_path / "out"), [])
    link = "[nano](records/runs/nano_seed3.json)"
    assert f"| {link} | `toponet_nano` | Tiny | 2 of 4 | 3 | 30.50 | 50.0% | p.pth |" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"connect": "learned", "rewire": None}, "convnext_atto, connected"),
        ({"connect": None, "rewire": "fixed"}, "convnext_atto, rewired with fixed weights"),
        ({"connect": None, "rewire": None}, "convnext_atto"),
    ],
)
def test_a_pretraining_record_tells_plain_networks_from_connected_ones(tmp_path, args, words):
    run = pretraining_run(tmp_path / "run", model="convnext_atto", **args)
    record = runs.record_pretraining(run, data="Tiny", command="-")
    assert record["architecture"] == words
    assert f"](records/runs/nano_seed3.json) | `{words}` | Tiny |" in zoo.model_zoo(PAPER, [record], [])


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
    record = runs.record_pretraining(tmp_path / "run", data="noise", command="-")
    text = zoo.model_zoo(PAPER, [record], [])
    assert "](records/runs/run_seed42.json) | `toponet_nano` | noise | 1 of " in text
    assert "0.0% / 0.0%" in text


def test_unfinished_runs_are_named(tmp_path, capsys):
    with pytest.raises(DataError, match="neither metrics.json .* nor"):
        runs.record_detector(tmp_path, config="a.py", initialization="random", data="", command="", seed=0)
    with pytest.raises(DataError, match=r"not the folder of a pretraining run: .*args.yaml is missing"):
        runs.record_pretraining(tmp_path, data="", command="")
    assert record_run.main(["pretraining", str(tmp_path), "--data", "x", "--command", "y"]) == 1
    assert "error: " in capsys.readouterr().err


def test_half_written_records_are_named(tmp_path):
    whole = json.dumps({"kind": "detector", "name": "ü", "scores": [1, 2]}, ensure_ascii=False).encode()
    for end in range(len(whole)):
        (tmp_path / "a.json").write_bytes(whole[:end])
        with pytest.raises(DataError, match="a.json cannot be read as JSON"):
            runs.load_all(tmp_path)
    for content in (b"[1]", b"3", b"null", b"[" * 100_000, b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DataError, match="a.json (is not a record|cannot be read as JSON)"):
            runs.load_all(tmp_path)
    (tmp_path / "a.json").write_bytes(whole)
    assert runs.load_all(tmp_path)[0]["framework"] == "mmdetection"


def test_a_record_is_replaced_not_doubled(tmp_path):
    for top1 in (1, 2):
        atomic_json(tmp_path / "a_seed0.json", {"name": "a", "seed": 0, "top1": top1})
    assert [r["top1"] for r in runs.load_all(tmp_path)] == [2]
