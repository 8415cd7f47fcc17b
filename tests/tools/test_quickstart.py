import json
import re
import signal
import sys
import threading
import time

import pytest

from tools import quickstart

ITERATIONS = re.compile("(iter.*)")
WAIT = "import signal; print('iter 0', flush=True); signal.pause()"
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
    progress = {"mmdetection": "Epoch(train)", "detectron2": "iter: "}[framework]
    assert {line.split()[0] for line in output.splitlines() if progress in line} == {"pretrained", "random_init"}
    assert re.search("^pretraining  epoch 1/1 .*eval_top1", output, flags=re.MULTILINE)

    # Once more: everything is there, nothing runs, nothing is written.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert quickstart.main(["--output", str(out), *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    again = capfd.readouterr().out
    assert output.endswith(again[again.index("tensors loaded") :])
    assert "[2/3]" not in again
    assert quickstart.main(["--output", str(out), *options, "--seed", "1"]) == 1
    assert "contains a quickstart with other settings (seed 0)" in capfd.readouterr().err


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
    assert "[1/3]" not in printed.out
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert quickstart.main(["--output", str(tmp_path)]) == 1
    assert "contains files that are not from a quickstart" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_a_failing_step_is_told_with_its_output(tmp_path, capfd):
    code = "print('iter 1'); print('why it failed', flush=True); raise SystemExit(3)"
    runs = {
        "one": quickstart.Logged([sys.executable, "-c", code], tmp_path / "one", ITERATIONS, environment={}),
        "other": quickstart.Logged([sys.executable, "-c", WAIT], tmp_path / "other", ITERATIONS, environment={}),
    }
    other = runs["other"].process
    with pytest.raises(quickstart.subprocess.CalledProcessError):
        list(quickstart.follow(runs))
    printed = capfd.readouterr()
    assert printed.out == "one          iter 1\n"
    assert "why it failed" in printed.err
    assert other.returncode is not None


def test_a_run_can_follow_another(tmp_path):
    runs = {"first": quickstart.Logged([sys.executable, "-c", ""], tmp_path / "first", ITERATIONS, environment={})}
    ended = []
    for name in quickstart.follow(runs):
        ended.append(name)
        if name == "first":
            runs["second"] = quickstart.Logged(
                [sys.executable, "-c", ""], tmp_path / "second", ITERATIONS, environment={}
            )
    assert ended == ["first", "second"]


def test_steps_that_are_done_are_remembered(tmp_path):
    progress = quickstart.Progress(tmp_path / "out", {"seed": 0})
    assert progress.needs("publishing")
    progress.done("publishing", pth="a-1a2b3c4d.pth")
    again = quickstart.Progress(tmp_path / "out", {"seed": 0})
    assert not again.needs("publishing")
    assert again.needs("pictures")
    assert again.known == {"pth": "a-1a2b3c4d.pth"}
    assert again.seconds > 0


@pytest.fixture
def default_sigint():
    """Ctrl-C as in a terminal: a shell starts what it puts into the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_sigint")
def test_ctrl_c_ends_what_runs(tmp_path):
    runs = {"one": quickstart.Logged([sys.executable, "-c", WAIT], tmp_path / "log", ITERATIONS, environment={})}
    process = runs["one"].process

    def press():
        while "iter" not in (tmp_path / "log").read_text():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        list(quickstart.follow(runs))
    assert process.returncode is not None
