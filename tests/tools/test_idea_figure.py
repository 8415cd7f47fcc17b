from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tests.weights.helpers import checkpoint
from tools import idea_figure
from topodet.connectivity import wirings
from topodet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = timm.create_model("toponet_nano", num_classes=2)
    with torch.no_grad():
        alpha = list(wirings(model).values())[2].alpha
        alpha.copy_(torch.linspace(-1, 0.5, len(alpha)))
    return model, checkpoint(tmp_path_factory.mktemp("trained") / "last.pth.tar", model)


def test_widths_are_the_weights_of_the_stage(trained):
    parts = list(wirings(trained[0]).values())
    axis = idea_figure.idea_figure(parts, 2).axes[1]
    drawn = [line for line in axis.lines if len(line.get_xdata()) == 2]
    widths = sorted(line.get_linewidth() for line in drawn)
    expected = sorted(max(idea_figure.THINNEST, idea_figure.WIDEST * abs(a)) for a in parts[2].alpha.tolist())
    assert widths == pytest.approx(expected, rel=1e-6)
    ends = {(*line.get_xdata(), *line.get_ydata()) for line in drawn}
    assert len(ends) == parts[2].topology.num_edges


def test_no_edge_hides_another():
    points = idea_figure.positions(7)
    for a in range(7):
        for b in range(a):
            for c in range(b):
                (x0, y0), (x1, y1), (x2, y2) = points[a], points[b], points[c]
                assert abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) > 1e-3


def test_a_checkpoint_is_drawn(trained, tmp_path):
    output = tmp_path / "images" / "idea.png"
    assert idea_figure.main([str(trained[1]), "--output", str(output)]) == 0
    with Image.open(output) as image, Image.open(ROOT / "docs" / "images" / "idea.png") as ours:
        assert image.info.keys() == ours.info.keys()
        assert ours.width >= 1000


def test_what_cannot_be_drawn(trained, tmp_path, capsys):
    assert idea_figure.main([str(trained[1]), "--stage", "5"]) == 1
    assert "stages 1..4" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="give a weights file"):
        idea_figure.packaged_weights(tmp_path)


def test_caption_tells_what_the_file_knows():
    told = {"arch": "toponet_nano", "args": {"sparsity": "adaptive", "sparsity_weight": 1e-3, "seed": 0}, "epoch": 9}
    text = "toponet_nano, stage 3, Tiny ImageNet, adaptive penalty 0.001, 10 epochs, seed 0"
    assert idea_figure.caption({}, told, "Tiny ImageNet", 3) == text
    assert idea_figure.caption({}, {}, "digits", 1) == "TopoNet, stage 1, digits"
