"""What `connect(nodes="auto")` makes of networks of timm, a sample of them across families."""

import json

import pytest
import timm
import torch
from torch import nn

from topodet.analysis import census
from topodet.errors import ConfigError
from topodet.models.connected.follow import follow
from tools import update_model_zoo

# Network -> arguments that make it small, edges of its runs by their form.
NETWORKS = {
    "test_vit": ({}, {"residuals": 91}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_connected_network_equals_the_original(name):
    options, edges = NETWORKS[name]
    row = census.survey(name, **options)
    assert row.get("reason") is None
    assert (row["forms"].keys(), row["edges"]) == (edges.keys(), sum(edges.values()))
    assert row["difference"] <= 1e-5
    assert row["gradient"] <= 1e-4


def test_what_is_not_measured_or_not_connected_is_said():
    assert census.survey("test_vit", parameters=1000)["reason"] == "not measured: it has more than 1000 parameters"
    assert "took more than" in census.survey("test_vit", seconds=1e-3)["reason"]
    row = census.survey("test_efficientnet")
    assert (row["blocks"], row["input"]) == (False, [[1, 3, 96, 96]])
    assert row["reason"].startswith("nothing to connect in EfficientNet")
    counts = census.totals([row, census.survey("test_vit", parameters=1000)])
    assert (counts["taken"], counts["measured"], counts["connected"]) == (2, 1, 0)


def test_a_difference_is_found():
    """A network that adds noise to what one of its blocks reads, where it is connected."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            wrong = 1e-3 if type(self).__name__.startswith("Connected") and torch.is_grad_enabled() else 0
            return self.linear(x) + wrong

    model = nn.Sequential(Block(), Block()).eval()
    row = census.compare(model, torch.randn(2, 4))
    assert row["difference"] > 1e-5


def test_two_blocks_of_one_class_are_seen_whatever_is_between_them():
    class Restless(nn.Module):
        def __init__(self, between):
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
            self.between = between

        def forward(self, x):
            return self.b(self.a(x) + self.between)

    for between in (0.0, 1.0):
        model = Restless(between)
        root, _, sample = follow(model, torch.randn(2, 4))
        assert census.has_two_blocks(root)
        with pytest.raises(ConfigError):
            census.compare(model, sample)


def test_networks_are_taken_family_by_family():
    names = census.in_order(["resnet50", "resnet18", "vit_base_patch16_224", "vit_tiny_patch16_224", "resnet101"])
    assert names == ["resnet18", "vit_tiny_patch16_224", "resnet50", "vit_base_patch16_224", "resnet101"]


def test_the_record_is_of_names_that_timm_has():
    record = json.loads((update_model_zoo.ROOT / "records" / "census.json").read_text())
    names = [row["name"] for row in record["networks"]]
    assert len(set(names)) == len(names)
    if record["timm"] == timm.__version__:
        assert set(names) <= set(timm.list_models())
    counts = census.totals(record["networks"])
    assert counts["exact"] == counts["connected"]
    assert counts["connected_with_blocks"] >= 0.9 * counts["with_blocks"]
