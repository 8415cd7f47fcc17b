"""What `connect(nodes="auto")` makes of networks of timm, a sample of them across families."""

import json
import re

import pytest
import timm
import torch
from torch import nn

from tools import update_model_zoo
from topodet.analysis import census
from topodet.errors import ConfigError
from topodet.models.connected.follow import follow
from topodet.records import markdown

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
RESNET = {"layers": (2, 1, 1, 1), "channels": (64, 8, 8, 8)}
# Network -> arguments that make it small, side of its image, edges of its runs by their form.
NETWORKS = {
    "test_convnext": ({}, 32, "residuals", 30),
    "inception_next_atto": ({"depths": (1, 2, 1, 1)}, 32, "residuals", 15),
    "mobilenetv2_035": ({}, 32, "residuals", 31),
    "mobilenetv3_small_050": ({}, 32, "residuals", 21),
    "hardcorenas_a": ({}, 32, "residuals", 15),
    "resnetv2_18": ({"channels": (16, 16, 16, 16), "stem_chs": 8}, 32, "residuals", 12),
    "cs3darknet_focus_s": ({}, 32, "residuals", 31),
    "test_vit": ({"img_size": 32}, 32, "residuals", 91),
    "deit_tiny_distilled_patch16_224": ({**VIT, "depth": 2}, 32, "residuals", 15),
    "beit_base_patch16_224": (VIT, 32, "residuals", 28),
    "eva02_tiny_patch14_224": (VIT, 32, "residuals", 28),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "window_size": 4, "embed_dim": 12, "depths": (1, 2), "num_heads": (1, 2)},
        64,
        "residuals",
        21,
    ),
    "mobilevit_xxs": ({}, 64, "residuals", 97),
    "resnet18": (RESNET, 32, "blocks", 3),
    "skresnet18": ({"layers": (2, 1, 1, 1)}, 32, "blocks", 3),
    "tresnet_m": ({"layers": (2, 1, 1, 1)}, 64, "blocks", 3),
    "regnetx_002": ({}, 64, "blocks", 27),
    "regnety_002": ({}, 64, "blocks", 27),
    "gernet_s": ({}, 64, "blocks", 24),
    "repvgg_a0": ({}, 64, "blocks", 97),
    "dla46x_c": ({}, 64, "blocks", 15),
    "ghostnet_050": ({}, 64, "blocks", 16),
    "hgnetv2_b0": ({}, 64, "blocks", 39),
    "ese_vovnet19b_dw": ({}, 64, "blocks", 24),
    "fasternet_t0": ({}, 64, "blocks", 42),
    "edgenext_xx_small": ({}, 64, "blocks", 30),
    "starnet_s1": ({}, 64, "blocks", 48),
    "efficientvit_b0": ({}, 64, "blocks", 23),
    "test_mambaout": ({}, 64, "blocks", 6),
    "test_maxvit": ({}, None, "blocks", 12),
    "test_vit_relpos": ({"img_size": 64}, 64, "blocks", 45),
    "convit_tiny": ({**VIT, "depth": 3}, 32, "blocks", 6),
    "xcit_nano_12_p16_224": ({"depth": 3, "img_size": 32}, 32, "blocks", 9),
    "cait_xxs24_224": ({**VIT, "depth": 3}, 32, "blocks", 9),
    "tnt_s_legacy_patch16_224": ({"depth": 2, "img_size": 64}, 64, "blocks", 3),
    "coat_tiny": ({"serial_depths": (1, 2, 1, 1), "parallel_depth": 2, "img_size": 64}, 64, "blocks", 9),
    "pvt_v2_b0": ({"depths": (1, 2, 1, 1)}, 64, "blocks", 3),
    "tiny_vit_5m_224": ({"depths": (1, 1, 3, 1)}, 64, "blocks", 6),
    "hrnet_w18_small": ({}, 64, "blocks", 27),
    "dpn48b": ({}, 64, "blocks", 6),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_connected_network_equals_the_original(name):
    options, side, form, edges = NETWORKS[name]
    torch.manual_seed(0)
    model = census.randomize(timm.create_model(name, num_classes=3, **options)).eval()
    side = side or model.pretrained_cfg["input_size"][-1]
    row = census.compare(model, torch.randn(1, 3, side, side))
    assert (list(row["forms"]), row["edges"]) == ([form], edges)
    assert row["difference"] <= 1e-5
    assert row["gradient"] <= 1e-4


def test_what_is_not_measured_or_not_connected_is_said():
    assert census.survey("test_vit", parameters=1000)["reason"] == "not measured: it has more than 0.001 M parameters"
    assert "took more than" in census.survey("test_vit", seconds=1e-3)["reason"]
    row = census.survey("test_efficientnet")
    assert (row["blocks"], row["input"]) == (False, "1 x 3 x 96 x 96")
    assert row["reason"].startswith("nothing to connect in EfficientNet")
    counts = census.totals([row, census.survey("test_vit", parameters=1000)])
    assert (counts["taken"], counts["measured"], counts["connected"]) == (2, 1, 0)


def test_what_differs_is_compared_in_float64(monkeypatch):
    assert "float64" not in census.survey("resnet18")
    monkeypatch.setattr(census, "EXACT", -1.0)
    row = census.survey("resnet18")
    assert 0 <= row["float64"]["gradient"] <= 1e-12
    record = {"networks": [row], "registered": 2, "timm": "1", "versions": {"torch": "2"}, "date": "", "commits": []}
    page = census.update_page(f"{markdown.START}{markdown.END}", record | {"command": ""})
    assert "Of the 2 names that timm 1 registers, 1 were taken so far" in page
    assert re.search(r"in float64: resnet18 [0-9.e-]+, in float64 [0-9.e-]+\.\n", page)


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
    inexact = [row for row in record["networks"] if row.get("gradient", 0) > 1e-5]
    assert all(row["float64"]["gradient"] <= 1e-10 for row in inexact)  # only rounding
    assert counts["connected_with_blocks"] >= 0.9 * counts["with_blocks"]


def test_a_time_limit_that_ends_within_no_grad_leaves_gradients_on():
    def stopped():
        with census._limit(60):
            torch.no_grad().__enter__()  # what is left if the error comes before `with` has it
            raise TimeoutError

    with pytest.raises(TimeoutError):
        stopped()
    assert torch.is_grad_enabled()
