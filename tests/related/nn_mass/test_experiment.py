import json
import re

import numpy as np
import pytest
from scipy.stats import spearmanr

from tools import nn_mass_experiment
from topodet.errors import ConfigError
from topodet.records import runs
from topodet.related.nn_mass import experiment
from topodet.related.nn_mass.cells import nn_mass_of_cells
from topodet.related.nn_mass.experiment import FAMILIES, Family, cells_of_mass, correlations

TINY = Family(widths=(3, 4), depths=(3, 5), masses=(4, 8), epochs=1)


@pytest.mark.parametrize(("width", "depth", "num_cells"), [(8, 8, 1), (8, 32, 1), (4, 6, 3)])
@pytest.mark.parametrize("mass", [5, 20, 60])
def test_cells_have_the_mass_nearest_to_the_wanted_one(width, depth, num_cells, mass):
    found = cells_of_mass(width, depth, mass, num_cells=num_cells)
    assert [cell[:2] for cell in found] == [(width * 2**k, depth) for k in range(num_cells)]
    step = found[0][2]
    assert [cell[2] for cell in found] == [step * 2**k for k in range(num_cells)]
    off = abs(nn_mass_of_cells(found).mass - mass)
    for other in range(width * depth):
        assert off <= abs(nn_mass_of_cells([(w, d, other * 2**k) for k, (w, d, _) in enumerate(found)]).mass - mass)


def test_a_mass_that_no_cell_has_is_named():
    with pytest.raises(ConfigError, match=r"width 8 and depth 4 give a mass of 32 at most, not 40"):
        cells_of_mass(8, 4, 40)


def test_every_familys_networks_differ():
    for family in FAMILIES.values():
        made = [tuple(cells) for cells in family.configurations()]
        assert len(set(made)) == len(made) == len(family.widths) * len(family.depths) * len(family.masses)


def test_correlations():
    rng = np.random.default_rng(0)
    keys = ("mass", "parameters", "ldi", "accuracy")
    networks = [dict(zip(keys, row)) for row in rng.uniform(size=(40, 4)).tolist()]
    for row in networks:
        row["accuracy"] = row["mass"] ** 3  # follows mass alone, and parameters follow mass a little
        row["parameters"] += row["mass"]
    found = correlations(networks)
    columns = {key: [row[key] for row in networks] for key in keys}
    for a, b in (("mass", "ldi"), ("parameters", "accuracy"), ("ldi", "accuracy"), ("mass", "parameters")):
        assert found[f"{a}_{b}"] == pytest.approx(spearmanr(columns[a], columns[b]).statistic)
    assert found["mass_accuracy"] == pytest.approx(1)
    assert found["mass_accuracy_given_parameters"] == pytest.approx(1)
    assert found["parameters_accuracy"] > 0.5
    assert found["parameters_accuracy_given_mass"] is None  # nothing is left to explain
    # The textbook's partial correlation, of ranks.
    a, b, c = (found[key] for key in ("mass_ldi", "mass_parameters", "parameters_ldi"))
    expected = (a - b * c) / np.sqrt((1 - b**2) * (1 - c**2))
    assert found["mass_ldi_given_parameters"] == pytest.approx(expected)


def test_the_tool_records_every_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(FAMILIES, "tiny", TINY)
    monkeypatch.setitem(FAMILIES, "tiny_cnn", Family((2,), (3,), (4, 6), num_cells=2, epochs=1, fan="fan_out"))
    words = ["--families", "tiny", "tiny_cnn", "--seeds", "2", "--json", str(tmp_path / "a.json")]
    assert nn_mass_experiment.main(words) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert experiment.table(record) in capsys.readouterr().out
    assert (record["kind"], record["name"]) == ("experiment", "a")
    assert record["command"].startswith("python tools/nn_mass_experiment.py --families tiny tiny_cnn")
    assert {"torch", "topodet", "python", "scikit-learn"} <= record["versions"].keys()
    networks = record["families"]["tiny"]["networks"]
    assert len(networks) == 8
    for row in networks:
        assert row["mass"] == nn_mass_of_cells(row["cells"]).mass
        assert len(row["seeds"]["accuracy"]) == 2
        assert 0 <= row["accuracy"] <= 1
        assert row["ldi"] > 0
    width, depth, _ = networks[0]["cells"][0]
    skips = sum(min(width * (i - 1), networks[0]["cells"][0][2]) for i in range(2, depth))
    weights = 64 * width + (depth - 1) * width**2 + skips * width + width * 10
    assert networks[0]["parameters"] == weights + depth * width + 10
    again = experiment.run(["tiny"], seeds=2)
    assert json.loads(json.dumps(again["families"]["tiny"])) == record["families"]["tiny"]


def test_the_page_shows_the_recorded_run():
    root = nn_mass_experiment.ROOT
    (record,) = [r for r in runs.load_all(root / "records" / "experiments") if r["name"] == "nn_mass_digits"]
    for family in record["families"].values():
        assert correlations(family["networks"]) == pytest.approx(family["correlations"])
    pages = [path.read_text() for path in (root / "docs").glob("*.md")]
    (page,) = [text for text in pages if experiment.table(record) in text]
    assert record["command"] in page
    assert "](nn_mass_digits.png)" in page
    assert (root / "docs" / "nn_mass_digits.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--families", "mpl"], "unknown family 'mpl'. Did you mean 'mlp'"),
        (["--seeds", "0"], "needs at least 1 seed, got 0"),
    ],
)
def test_wrong_options_are_one_line(words, message, capsys):
    assert nn_mass_experiment.main(words) == 1
    assert re.search(f"^error: .*{re.escape(message)}", capsys.readouterr().err)
