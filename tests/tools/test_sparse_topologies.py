import json
import re

import numpy as np
import pytest

from tools import sparse_topologies
from topodet.records.runs import load_all

SMALL = ["--networks", "2", "--widths", "24", "20", "--epochs", "2", "--compare-at", "0", "2", "--epsilon", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert sparse_topologies.main([*SMALL, "--output", str(folder)]) == 0
    (record,) = load_all(folder)
    return folder, record


def test_a_run_leaves_record_and_picture(finished):
    folder, record = finished
    assert (folder / "sparse_topologies.png").read_bytes().startswith(b"\x89PNG")
    assert record["kind"] == "sparse_topologies"
    assert record["command"].startswith("python tools/sparse_topologies.py --networks 2 --widths 24 20")
    assert {"torch", "scipy", "scikit-learn", "python"} <= set(record["versions"])
    assert record["settings"]["images"] == [1347, 450]
    for kind, found in record["networks"].items():
        assert len(found["accuracies"]) == len(found["weights"]) == 2
        assert all(0 <= score <= 100 for score in found["accuracies"])
        dense = 64 * 24 + 24 * 20 + 20 * 10
        assert (found["weights"] == [dense] * 2) == (kind == "dense")
    assert record["distances"]["labels"] == ["0, 0", "0, 2", "1, 0", "1, 2"]
    values = np.array(record["distances"]["values"])
    assert values.shape == (4, 4, 3)
    assert np.array_equal(values, values.transpose(1, 0, 2))


def test_the_same_command_gives_the_same_numbers(finished, tmp_path):
    _, record = finished
    assert sparse_topologies.main([*SMALL, "--output", str(tmp_path)]) == 0
    (again,) = load_all(tmp_path)
    assert again["networks"] == record["networks"]
    assert again["distances"] == record["distances"]


def test_tables_are_of_the_record(finished):
    _, record = finished
    values = np.array(record["distances"]["values"])
    text = sparse_topologies.tables(record)
    cells = {row[0]: row[1:] for row in (re.split(r" ?\| ?", line)[1:-1] for line in text.splitlines() if line)}
    assert cells["two networks at epoch 2"] == [
        *(f"{v:.3f}" for v in values[1, 3]),
        *3 * [f"{values[1, 3].mean():.3f}"],
    ]
    own = (values[0, 1] + values[2, 3]) / 2
    assert cells["a network, epochs 0 and 2"][:3] == [f"{v:.3f}" for v in own]
    scores = record["networks"]["dense"]["accuracies"]
    assert cells["dense"][2] == f"{np.mean(scores):.2f} ± {abs(scores[0] - scores[1]) / 2**0.5:.2f}"


def test_the_page_shows_the_recorded_run():
    record = json.loads((sparse_topologies.ROOT / "records/experiments/sparse_topologies_digits.json").read_text())
    page = (sparse_topologies.ROOT / "docs" / "topology_nnstd.md").read_text()
    assert sparse_topologies.tables(record) in page
    assert record["command"] in page
    assert "](sparse_topologies_digits.png)" in page


def test_impossible_settings_are_named(capsys):
    assert sparse_topologies.main(["--epochs", "5", "--compare-at", "9"]) == 1
    assert "--compare-at [9]: give two networks or more, and epochs from 0 to --epochs 5" in capsys.readouterr().err
