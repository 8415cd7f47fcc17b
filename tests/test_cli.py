from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from tests.commands.helpers import run_command
from topodet import cli, connectivity
from topodet.commands import COMMANDS, list_models, load_command
from topodet.errors import DataError


@pytest.fixture
def dataset(tmp_path):
    data = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 80}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 30], "area": 600, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 80)).save(tmp_path / "images" / "1.jpg")
    return tmp_path, data


def check(dataset, *options):
    folder, data = dataset
    (folder / "ann.json").write_text(json.dumps(data))
    return run_command("check-coco", [folder / "ann.json", folder / "images", *options])


def test_check_coco_of_a_good_set(dataset, capsys):
    assert check(dataset, "--read-images") == 0
    out = capsys.readouterr().out
    assert "1 images, 1 annotations, 1 categories" in out
    assert out.splitlines()[-1] == "ok"


def test_check_coco_prints_the_problems(dataset, capsys):
    dataset[1]["annotations"].append({**dataset[1]["annotations"][0], "id": 2})
    dataset[1]["annotations"][0]["bbox"] = [10, 10, 0, 30]
    assert check(dataset) == 1
    assert re.search(
        r"error +boxes of zero, negative or NaN size +1 +1 \(bbox \[10, 10, 0, 30\]\)", capsys.readouterr().out
    )
    assert check(dataset, "--allow", "empty_boxes") == 0


def test_check_coco_as_json(dataset, tmp_path, capsys):
    dataset[1]["annotations"][0]["area"] = 0
    assert check(dataset, "--json", "-") == 1
    printed = json.loads(capsys.readouterr().out)
    assert check(dataset, "--json", tmp_path / "findings.json") == 1
    assert json.loads((tmp_path / "findings.json").read_text()) == printed
    assert not printed["ok"]
    assert printed["counts"] == {"images": 1, "annotations": 1, "categories": 1}
    findings = {finding["kind"]: finding for finding in printed["findings"]}
    assert findings["invalid_areas"]["ids"] == [1]
    assert findings["invalid_areas"]["level"] == "error"
    assert [(use["framework"], use["boxes"]) for use in printed["usage"]] == [("MMDetection", 0), ("Detectron2", 1)]
    assert findings["nothing_left"]["ids"] == ["MMDetection"]


def test_check_coco_reads_headers_only_when_asked(dataset, capsys):
    dataset[1]["images"][0]["width"] = 200
    assert check(dataset) == 0
    assert check(dataset, "--read-images") == 1
    assert "1.jpg: 100x80, file says 200x80" in capsys.readouterr().out


def test_errors_are_one_line_on_stderr(dataset, capsys, monkeypatch):
    assert check(dataset, "--allow", "nonsense") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: unknown kind of problem 'nonsense'")
    assert captured.out == ""

    def failing(words):
        raise DataError("the data is bad")

    monkeypatch.setattr(list_models, "main", failing)
    assert cli.main(["list"]) == 1
    assert capsys.readouterr().err == "error: the data is bad\n"


@pytest.mark.parametrize(
    "arguments", [[], ["check-coco"], ["check-coco", "a.json"], ["nonsense"], ["list", "--nonsense"]]
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: topodet" in capsys.readouterr().err


def test_help_names_every_command_and_imports_nothing_heavy():
    ours = [name for name in COMMANDS if name != "train-net"]  # most of its options are Detectron2's
    script = (
        "import sys, topodet.cli as cli\n"
        f"for words in *([name, '--help'] for name in {ours}), ['--help']:\n"
        "    try: cli.main(words)\n"
        "    except SystemExit as error: print('status', error.code)\n"
        "print('heavy', sorted({'torch', 'timm', 'numpy', 'PIL', 'sklearn'} & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"^ +{name}\b", out, flags=re.MULTILINE) for name in COMMANDS)
    assert out.count("status 0") == len(ours) + 1
    assert "heavy []" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_under_its_name(name, capsys):
    if name == "train-net":
        pytest.importorskip("detectron2", reason="detectron2 is not installed")  # most of its options are Detectron2's
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: topodet {name} ")
    assert "default: None" not in printed
    assert "default: )" not in printed


def test_an_unknown_command_is_told_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        cli.main(["publsh"])
    assert "unknown command 'publsh'. Did you mean 'publish'? Known: pretrain, publish" in capsys.readouterr().err


def test_one_name_for_one_option():
    """Pruning has the same options everywhere, with the values that `topodet.connectivity` has."""
    for name in ("pretrain", "publish", "damage"):
        options = {
            option: action for action in load_command(name).parser()._actions for option in action.option_strings
        }
        assert {"--threshold", "--keep", "--per", "--on-disconnected"} <= options.keys()
        assert options["--per"].choices == get_args(connectivity.Per)
        assert set(options["--on-disconnected"].choices) <= set(get_args(connectivity.OnDisconnected))
    for name in ("pretrain", "publish", "demo", "export", "analyze-model"):
        options = {option for action in load_command(name).parser()._actions for option in action.option_strings}
        assert "--config" in options
        assert "--config-file" not in options


def test_interruption_is_one_line(capsys, monkeypatch):
    def stopped(words):
        raise KeyboardInterrupt("go on by X")

    monkeypatch.setattr(list_models, "main", stopped)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted; go on by X\n"


TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["analyze_model", "analyze_topology", "benchmark", "damage", "demo", "export_model"])
def test_a_tool_is_its_command(tool):
    done = subprocess.run([sys.executable, TOOLS / f"{tool}.py", "--help"], capture_output=True, text=True)
    assert done.stdout.startswith("usage: topodet ")
    assert done.returncode == 0


def test_list_prints_every_registered_network(capsys):
    import timm

    assert cli.main(["list"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(rows) == set(timm.list_models("toponet*"))
    assert rows["toponet50"][1:] == ["14,20,26,14", "64", "697", "learned", "23,746,337", "complete"]
    assert rows["toponet50_residual2"][3:] == ["235", "fixed", "23,745,640", "residual", "interval=2"]


def run_in_a_shell(command, code):
    script = f"import sys; from topodet.errors import exit_status; {code}"
    command = command.replace("PYTHON", f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}")
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_reader_that_stops_reading_is_no_error(size):
    code = f"sys.exit(exit_status(lambda: (sys.stdin.read(), print('x' * {size}))[1]))"
    assert run_in_a_shell("(sleep 0.2; echo) | PYTHON | true", code) == (1, "", "")


def test_another_broken_pipe_is_an_error():
    code = "def run(): raise BrokenPipeError(32, 'of a worker')\nstatus = exit_status(run); print('more', status)"
    status, out, err = run_in_a_shell("PYTHON | cat", code.replace("def run", "\ndef run", 1))
    assert (status, out, err) == (0, "more 1\n", "error: [Errno 32] of a worker\n")


def test_no_output_at_all():
    assert run_in_a_shell("PYTHON >&-", "sys.exit(exit_status(lambda: 0))") == (0, "", "")
