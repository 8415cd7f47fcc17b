"""Each notebook runs from top to bottom in a small form, and holds the outputs of a whole run."""

import importlib.util
import json
from pathlib import Path

import pytest

from tools import run_notebooks
from topodet import connectivity
from topodet.errors import ConfigError

TUTORIALS = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
NAMES = sorted(path.stem for path in TUTORIALS.glob("*.ipynb"))
SMALL = {
    "01_graph_to_detector": {"EPOCHS": 1, "TRAIN_SCENES": 8, "VAL_SCENES": 4, "WIDTH": 4},
    "02_connect_resnet50": {"STEPS": 2, "SCENES": 4, "WIDTH": 4},
    "03_read_prune_ship": {"EPOCHS": 1, "KEEP": [0.5]},
}
NEEDS = {
    "01_graph_to_detector": ("mmdet", "sklearn"),
    "02_connect_resnet50": ("mmdet", "sklearn"),
    "03_read_prune_ship": ("onnxruntime", "sklearn"),
}


def notebook(name):
    return json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))


def run_small(name, folder):
    for module in NEEDS[name]:
        pytest.importorskip(module, reason=f"{module} is not installed")
    if "mmdet" in NEEDS[name]:
        importlib.import_module("tests.mmdet.helpers")  # runs start without formatting their configs
    return run_notebooks.run(notebook(name), {**SMALL[name], "FOLDER": str(folder)})


def test_a_graph_becomes_a_detector(tmp_path):
    made = run_small("01_graph_to_detector", tmp_path)
    graphs = [wiring.topology for wiring in connectivity.wirings(made["detector"]).values()]
    assert graphs == [made["topology"]] * 4
    assert made["topology"].num_edges == 9
    assert 0 <= made["scores"]["bbox/AP50"] <= 100


def test_resnet50_is_connected(tmp_path):
    made = run_small("02_connect_resnet50", tmp_path)
    assert len(made["theirs"]) > 0
    assert made["same"]
    assert made["boxes"] < 1e-3
    assert len(made["moved"]) == 27
    assert {name.partition(".")[0] for change, name, *_ in made["moved"] if change} == {"layer2", "layer3", "layer4"}


def test_a_wiring_is_shipped(tmp_path):
    made = run_small("03_read_prune_ship", tmp_path)
    assert made["same"]
    assert made["close"]
    sizes = [sum(w.topology.num_edges for w in connectivity.wirings(made[m]).values()) for m in ("model", "pruned")]
    assert sizes[1] < sizes[0] == 37
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_stored_outputs_are_those_of_a_whole_run_and_small():
    assert sorted(SMALL) == NAMES
    assert sum((TUTORIALS / f"{name}.ipynb").stat().st_size for name in NAMES) < 1_500_000
    for name in NAMES:
        cells = [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]
        outputs = [output for cell in cells for output in cell["outputs"]]
        if not outputs:
            continue  # not run yet: tools/run_notebooks.py stores them
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        assert sum("image/png" in output.get("data", ()) for output in outputs) >= 2
        assert str(TUTORIALS.parents[1]) not in json.dumps(outputs)


def test_parameters_are_those_of_the_notebook():
    with pytest.raises(ConfigError, match="no parameter EPOCH"):
        run_notebooks.run(notebook("03_read_prune_ship"), {"EPOCH": 1})
