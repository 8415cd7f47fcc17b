import json
import sys

import pytest

from tools import quickstart

KEYS = {"ap", "ap50", "ap50_random_init", "tensors_loaded", "tensors_total", "edges_near_zero", "minutes"}


@pytest.mark.slow
@pytest.mark.parametrize("framework", quickstart.FRAMEWORKS)
def test_every_step_on_a_few_images(framework, tmp_path, capfd):
    """The whole way, too short to learn anything: what it must leave behind is there."""
    for module in quickstart.FRAMEWORKS[framework].MODULES:
        pytest.importorskip(module, reason=f"{module} is not installed")
    out = tmp_path / "out"
    options = [
        "--framework",
        framework,
        "--pretrain-epochs",
        "1",
        "--epochs",
        "1",
        "--train-scenes",
        "8",
        "--val-scenes",
        "4",
        "--copies",
        "1",
    ]
    assert quickstart.main(["--output", str(out), *options]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["tensors_loaded"] == summary["tensors_total"] == 147
    assert 0 <= summary["ap"] <= summary["ap50"] <= 1
    assert (out / "published" / summary["backbone"]).is_file()
    assert list((out / "pretrain").rglob("events.out.tfevents.*"))
    assert list((out / "pretrained").rglob("events.out.tfevents.*"))
    pictures = {path.name for path in (out / "pictures").iterdir()}
    assert pictures == {
        "adjacency_pretrained.png",
        "alpha_pretrained.png",
        "ap_curves.png",
        "detections",
        "detections.jpg",
    }
    assert len(list((out / "pictures" / "detections").iterdir())) == 4
    output = capfd.readouterr().out
    assert "tensors loaded          147/147" in output
    assert {"mmdetection": "Epoch(train)", "detectron2": "iter: "}[framework] in output  # progress is shown
    assert ("without the ground truth" in output) == (framework == "detectron2")


@pytest.mark.parametrize(
    ("framework", "module"), [("mmdetection", "sklearn"), ("detectron2", "sklearn"), ("detectron2", "cv2")]
)
def test_what_is_missing_is_said_before_the_first_step(framework, module, tmp_path, capsys, monkeypatch):
    for name in quickstart.FRAMEWORKS[framework].MODULES:
        pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.setitem(sys.modules, module, None)  # Python's own way to say that there is none
    assert quickstart.main(["--framework", framework, "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert f"this needs {module}, which" in printed.err
    assert "pip install" in printed.err
    assert "[1/5]" not in printed.out
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert quickstart.main(["--output", str(tmp_path)]) == 1
    assert "holds files that are not a quickstart's" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_a_failing_step_is_told_with_its_output(tmp_path, capfd):
    failing = quickstart.Logged(
        ["python", "-c", "print('why it failed'); raise SystemExit(3)"], tmp_path / "log", show=None, environment={}
    )
    with pytest.raises(quickstart.subprocess.CalledProcessError):
        failing.wait()
    assert "why it failed" in capfd.readouterr().err
