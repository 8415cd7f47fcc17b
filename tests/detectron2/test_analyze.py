import numpy as np
import pytest
import timm
import torch
from detectron2.modeling import build_model
from PIL import Image

from tests.commands.helpers import run_command
from tests.detectron2.helpers import RETINANET, ROOT, small_config
from topodet.commands import analyze_model
from topodet.complexity import multiply_adds, parameters
from topodet.detectron2 import TopoNet
from topodet.detectron2.analyze import build_detector, count, synthetic_images
from topodet.errors import ConfigError
from topodet.models.calibrate import calibrate_batchnorm

FEATURES = ["res2", "res3", "res4", "res5"]


class OnlyBackbone(torch.nn.Module):
    """Takes what a detector takes."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs):
        return self.backbone(inputs[0]["image"][None])


def test_toponet50_costs_what_the_repository_counts():
    model = OnlyBackbone(TopoNet("toponet50")).eval()
    counts = count(model, synthetic_images(1, 224, 224), depth=2)
    with torch.device("meta"):
        whole = timm.create_model("toponet50")
    classifier = whole.num_features * 1000
    assert multiply_adds(whole) == 3_931_535_872  # pinned where the network is
    assert counts.flops == [multiply_adds(whole) - classifier]
    assert counts.backbone == counts.flops[0]
    assert counts.operators == {"conv": counts.flops[0]}
    # One an edge, channel and position: stages of 14, 20, 26, 14 nodes, completely connected.
    nodes, channels, sides = (14, 20, 26, 14), (128, 256, 512, 1024), (56, 28, 14, 7)
    assert counts.weighted_sums == sum(n * (n - 1) // 2 * c * s * s for n, c, s in zip(nodes, channels, sides))


@pytest.mark.parametrize("changes", [{}, RETINANET], ids=["faster", "retinanet"])
def test_parts_of_a_detector(changes):
    model = build_model(small_config(**changes)).eval()
    image = synthetic_images(1, 64, 96)
    convolutions = 0

    def add(module, _, output):
        nonlocal convolutions
        convolutions += output[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        model([{"image": image[0]}])
    for hook in hooks:
        hook.remove()
    counts = count(model, image)
    assert counts.operators["conv"] == convolutions
    assert counts.backbone == multiply_adds(model.backbone.bottom_up, (3, 64, 96))
    assert sum(counts.operators.values()) == counts.flops[0]
    assert 0 < counts.backbone_activations < counts.activations
    assert "backbone.bottom_up" in counts.table
    assert "torchvision::nms" not in counts.uncounted  # Detectron2's word for what costs nothing


def test_a_detector_without_toponet():
    changes = {"MODEL__BACKBONE__NAME": "build_resnet_fpn_backbone", "MODEL__RESNETS__OUT_FEATURES": FEATURES}
    model = build_model(small_config(**changes)).eval()
    counts = count(model, synthetic_images(1, 64, 96))
    assert counts.backbone == multiply_adds(model.backbone.bottom_up, (3, 64, 96))
    assert counts.weighted_sums == 0


def test_mean_over_images():
    model = build_model(small_config()).eval()
    images = [*synthetic_images(1, 64, 96), *synthetic_images(1, 32, 32)]
    both = count(model, images)
    each = [count(model, [image]) for image in images]
    assert both.flops == [counts.flops[0] for counts in each]
    for name in ("backbone", "weighted_sums", "activations", "backbone_activations"):
        assert getattr(both, name) == pytest.approx(sum(getattr(counts, name) for counts in each) / 2)


def test_the_tool_on_a_yaml(tmp_path, capsys):
    cfg = small_config()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "image.png")
    arguments = ["--config", str(tmp_path / "config.yaml"), "--size", "64", "96", "--tasks"]
    assert run_command("analyze-model", [*arguments, *analyze_model.TASKS]) == 0
    out = capsys.readouterr().out
    model = build_model(cfg)
    plain, alphas = parameters(model)
    assert f"parameters: {plain:,} and {alphas:,} learned edge weights" in out
    assert "(bottom_up): TopoNet(" in out
    assert "multiply-adds: " in out
    assert "activations: " in out
    assert "the table is for 64 x 96" in out
    call = ["--config", str(tmp_path / "config.yaml"), "--tasks", "flop", "--size", "64", "80", "--input"]
    assert run_command("analyze-model", [*call, str(tmp_path / "image.png"), "--depth", "2"]) == 0
    assert "the table is for 53 x 80" in capsys.readouterr().out  # 60 x 40 enlarged until its long side is 80


def test_a_yaml_and_its_lazy_config_cost_the_same():
    """And neither needs COCO, weights or a GPU."""
    folder = ROOT / "configs" / "detectron2"
    name = "faster_rcnn_toponet50_adaptive_FPN_1x"
    models = [build_detector(folder / f"{name}{suffix}") for suffix in (".yaml", ".py")]
    assert {input_format for _, input_format in models} == {"RGB"}
    costs = []
    for model, _ in models:
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        image = synthetic_images(1, 64, 64)
        calibrate_batchnorm(model, model, [{"image": image[0]}])
        costs.append(count(model, image))
    assert costs[0].flops == costs[1].flops
    assert costs[0].table == costs[1].table
    assert costs[0].operators["linear"] > 0  # proposals reach the heads


def test_options_of_a_lazy_config():
    path = ROOT / "configs" / "detectron2" / "faster_rcnn_toponet50_adaptive_FPN_1x.py"
    model, _ = build_detector(path, ["model.backbone.out_channels=32", "model.backbone.bottom_up.arch=toponet_nano"])
    assert model.backbone.output_shape()["p2"].channels == 32
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        build_detector(path, ["model.backbone.out_channels", "32"])


def test_bad_requests(tmp_path, capsys):
    (tmp_path / "other.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("from detectron2.config import LazyCall\nmodel = (\n")
    for arguments, words in (
        (["--config", "missing.yaml"], "no config file at missing.yaml"),
        (["--config", "missing.py"], "no config file at missing.py"),
        (["--config", "config.json"], "'.json' is neither"),
        (["--config", str(tmp_path / "other.py")], "has no `model`"),
        (["--config", str(tmp_path / "broken.py")], "broken.py is not a LazyConfig of a detector: SyntaxError"),
        (["--config", "missing.yaml", "--size", "0", "5"], "must be positive"),
        (["--config", "missing.yaml", "--input", "missing.png"], "missing.png"),
    ):
        assert run_command("analyze-model", [*arguments, "--tasks", "flop"]) == 1
        assert words in capsys.readouterr().err
