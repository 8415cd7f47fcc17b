import json

import pytest
import timm
import torch

from tools import penalty_experiment
from topodet import connectivity
from topodet.models import connect
from topodet.records import runs

FEW = ["--seeds", "2", "--images", "32", "--epochs", "1", "--epochs-before", "1", "--weights", "0.5"]


def test_the_two_penalties_differ_by_the_chain_alone():
    network = timm.create_model("resnet20_cifar", num_classes=2)
    residuals = connect(timm.create_model("resnetv2_18", num_classes=2), nodes="residuals")
    torch.testing.assert_close(penalty_experiment.on_magnitude(residuals), connectivity.penalty(residuals, "adaptive"))
    blocks = connect(network, nodes="blocks")
    # At the start, |alpha| is 1 on the chain's edges only; their targets are nodes with 1, 2, ... inputs.
    degrees = [
        k + 1.0 for wiring in connectivity.wirings(blocks).values() for k in range(wiring.topology.num_nodes - 1)
    ]
    assert penalty_experiment.on_magnitude(blocks).item() == pytest.approx(torch.tensor(degrees).log().sum().item())
    assert penalty_experiment.on_distance(blocks).item() == 0


def test_every_arm_is_recorded_for_every_seed(tmp_path, capsys):
    assert penalty_experiment.main([*FEW, "--json", str(tmp_path / "a.json")]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert penalty_experiment.table(record) in capsys.readouterr().out
    assert [(arm["penalty"], arm["weight"], arm["connected"]) for arm in record["arms"]] == [
        (None, 0.0, False),
        (None, 0.0, True),
        ("magnitude", 0.5, True),
        ("distance", 0.5, True),
    ]
    for arm in record["arms"]:
        assert len(arm["top1"]) == 2
        if arm["connected"]:
            assert (len(arm["alpha"]["chain"]), len(arm["alpha"]["others"])) == (13, 22)
            assert arm["weakest"][0] == pytest.approx(min(map(abs, arm["alpha"]["chain"])))
            small = sum(abs(alpha) < 0.01 for alpha in arm["alpha"]["others"])
            assert arm["small"][0] == pytest.approx(small / 22)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "1"), "--seeds 1: intervals need at least 2 seeds"),
        (("--epochs", "0"), "--epochs 0: give at least"),
        (("--weights", "0.1", "0.1"), "give different numbers above 0"),
        (("--weights", "-1"), "give different numbers above 0"),
        (("--images", "9999"), "--images 9999: give a number from 2 to 1347"),
        (("--images", "0"), "--images 0: give a number"),
    ],
)
def test_bad_input_is_refused_before_training(words, message, capsys):
    assert penalty_experiment.main([*words]) == 1
    assert message in capsys.readouterr().err


def test_the_page_shows_the_recorded_trial():
    root = penalty_experiment.ROOT
    (record,) = [r for r in runs.load_all(root / "records" / "experiments") if r["name"] == "penalty_digits"]
    page = (root / "docs" / "connect.md").read_text()
    assert penalty_experiment.table(record) in page
    assert record["command"] in page
    assert "](penalty_digits.png)" in page
    assert (root / "docs" / "penalty_digits.png").exists()
