"""The numbers that studies compare, of records small enough to count by hand."""

import pytest

from topodet.errors import ConfigError
from topodet.reproduce.measures import value

NODES = {
    "whole": {"top1": 40.0},
    "rows": [
        {"node": 0, "in_degree": 0, "out_degree": 2, "top1": 1.0},
        {"node": 1, "in_degree": 1, "out_degree": 2, "top1": 39.5},
        {"node": 2, "in_degree": 2, "out_degree": 1, "top1": 39.4},
        {"node": 3, "in_degree": 2, "out_degree": 0, "top1": 1.0},
    ],
}
RECORD = {
    "name": "a record",
    "metrics": {"eval_top1": 50.0, "bbox_mAP": 0.25},
    # Relative to the largest that a node reads: 1; 1 and 0.05; 0.5 and 1.
    "alpha": {"stages.0.wiring": [[0, 1, 0.01], [0, 2, -2.0], [1, 2, 0.1], [0, 3, 0.02], [2, 3, 0.04]]},
    "nodes": NODES,
    "edges": {"rows": [{"top1": 38.0}]},
    "networks": {"sparse, SET": {"accuracies": [91.0, 92.0]}},
    "speedup": None,
}


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("top1", 50.0),
        ("AP", 25.0),
        ("weak_edges", 20.0),
        ("free_nodes", 50.0),
        ("without_edges", 38.0),
        ("networks.sparse, SET.accuracies.1", 92.0),
        ("speedup", None),
    ],
)
def test_values(measure, expected):
    if measure == "speedup":
        assert value({**RECORD, "runs": [{"speedup": None}]}, "runs.0.speedup") is None
    else:
        assert value(RECORD, measure) == expected


def test_the_averaged_weights_count_where_there_are_any():
    metrics = {"eval_top1": 50.0, "ema_eval_top1": 51.0}
    assert value({**RECORD, "metrics": metrics}, "top1") == 51.0


@pytest.mark.parametrize("measure", ["weak_edges", "free_nodes", "without_edges"])
def test_a_record_without_the_number(measure):
    assert value({"name": "b", "metrics": {}}, measure) is None


@pytest.mark.parametrize("measure", ["networks.dense.accuracies.0", "networks.sparse, SET.accuracies.7", "name.x"])
def test_paths_that_lead_nowhere(measure):
    with pytest.raises(ConfigError, match=r"the record of a record has no '"):
        value(RECORD, measure)


def test_no_detection_is_no_score():
    assert value({"metrics": {"bbox_mAP": -1.0}}, "AP") is None
