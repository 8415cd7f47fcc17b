import math

import pytest

from topodet.analysis.damage_curves import edge_figure, figures, node_figure, tables, update_page
from topodet.connectivity import Damage
from topodet.records.markdown import END, START

NODES = Damage(
    "nodes",
    {"top1": 50.0, "loss": 1.0},
    [
        {"wiring": name, "node": node, "in_degree": node, "out_degree": 2 - node, "top1": 40.0 - node, "loss": 2.0}
        for name in ("stages.0.wiring", "stages.1.wiring")
        for node in range(3)
    ],
)
ROWS = {
    "keep": (0.2, 0.6),
    "weak": (8, 4),
    "edges": (0, 5),
    "nodes": (0, 4),
    "removed": (1.0, 0.5),
    "disconnected": (1, 0),
}
EDGES = Damage(
    "edges",
    {"AP": 0.4},
    [{**{name: values[k] for name, values in ROWS.items()}, "AP": score} for k, score in enumerate((0.01, 0.3))],
)
RETRAINED = [
    {"name": "b", "start": "its weights", "removed": 0.8, "edges": 2, "epochs": 3, "AP": 0.35, "command": ""},
    {"name": "a", "start": "its weights", "removed": 0.5, "edges": 5, "epochs": 3, "AP": 0.39, "command": ""},
]


@pytest.mark.parametrize(("score", "height"), [("", 40.0), ("loss", 2.0)])
def test_a_panel_for_each_wiring(score, height):
    axes = node_figure(NODES, score).axes
    assert [axis.get_title() for axis in axes] == ["stages.0", "stages.1"]
    for axis in axes:
        bars = [bar.get_height() for bar in axis.patches]
        assert bars == [height - (0 if score else node) for node in range(3)]
        assert axis.lines[0].get_ydata()[0] == NODES.whole[score or "top1"]


def test_before_and_after_retraining():
    axis = edge_figure(EDGES, retrained=RETRAINED).axes[0]
    before, disconnected, after, whole = axis.lines
    assert list(zip(before.get_xdata(), before.get_ydata())) == [(0, 0.4), (50, 0.3), (100, 0.01)]
    assert list(zip(disconnected.get_xdata(), disconnected.get_ydata())) == [(100, 0.01)]
    assert list(zip(after.get_xdata(), after.get_ydata())) == [(50, 0.39), (80, 0.35)]
    assert whole.get_ydata()[0] == 0.4
    assert len(edge_figure(EDGES).axes[0].lines) == 3


def test_a_record_becomes_tables_and_pictures():
    record = {
        "name": "x",
        "nodes": {"whole": NODES.whole, "rows": NODES.rows},
        "edges": {"whole": {"AP": 0.4}, "rows": [{**EDGES.rows[0], "AP": None}, EDGES.rows[1]]},
        "retrained": RETRAINED,
    }
    text = tables(record)
    assert "| stages.1        | 2            | 2 / 0           | 38   | -12        |" in text
    assert "| 0.6             | 50.0%         | 5          | 4          | 0                   | 0.3 |" in text
    assert "| 0.2             | 100.0%        | 0          | 0          | 1                   | -   |" in text
    assert "| a         | its weights  | 50.0%         | 5          | 3      | 0.39 |" in text
    page = {"architecture": "y", "data": "z", "checkpoint": "c", "machine": "m", "versions": {}, "date": "d"}
    longer = {"name": "c", "start": "its weights", "removed": 0.0, "edges": 10, "epochs": 3, "AP": 0.41, "command": ""}
    whole = {
        **record,
        **page,
        "retrained": [*RETRAINED, longer],
        "command": "python x",
        "edges": {"whole": {"AP": 0.4}, "rows": EDGES.rows},
    }
    overview = update_page(f"{START}\n{END}", [whole])
    assert "| x       | AP    | 0.0%          | 0.4           | 0.41      |" in overview
    assert "| x       | AP    | 50.0%         | 0.3           | 0.39      |" in overview
    assert "| x       | AP    | 80.0%" not in overview  # what has other edges than any cut
    assert "not retrained" not in update_page(f"{START}\n{END}", [{**whole, "retrained": []}])
    drawn = figures(record)
    assert list(drawn) == ["damage_x_nodes.png", "damage_x_edges.png"]
    assert math.isnan(drawn["damage_x_edges.png"].axes[0].lines[0].get_ydata()[-1])


def test_pictures_of_a_series_share_the_axis_of_the_score():
    def record(best, **rest):
        found = {"whole": {"AP": best}, "rows": [{**EDGES.rows[1], "AP": best / 2}]}
        return {"name": "x", "architecture": "y", "data": "z", "retrained": [], "edges": found, **rest}

    weak, strong, other = record(0.2), record(0.4), record(0.8, data="others")
    ends = [figures(each, [weak, strong, other])["damage_x_edges.png"].axes[0].get_ylim() for each in (weak, strong)]
    assert ends == [(0, pytest.approx(1.05 * 0.4))] * 2


def test_titles_tell_network_data_penalty_and_seed():
    record = {"name": "x", "architecture": "y", "data": "z", "retrained": [], "nodes": vars(NODES)}
    for trained, words in (
        ({"sparsity": "adaptive", "seed": 3}, "adaptive penalty, seed 3"),
        ({"sparsity": "none", "seed": 0}, "no penalty, seed 0"),
        ({}, "x"),
    ):
        (figure,) = figures({**record, **trained}).values()
        assert figure.get_suptitle() == f"y, z\n{words}"
