import copy

import pytest
import torch
from mmdet.registry import MODELS
from PIL import Image

from tests.commands.helpers import run_command
from tests.detection import noise_images
from tests.mmdet.helpers import CONFIGS, NANO, load, narrow
from topodet.complexity import multiply_adds, parameters
from topodet.costs import count, synthetic_images
from topodet.errors import ConfigError, DataError
from topodet.mmdet import analyze, publish_detector
from topodet.mmdet.analyze import build_detector, counters, prepare

KINDS = [
    "mask-rcnn_toponet50-adaptive_fpn_1x_coco",
    "retinanet_toponet50-adaptive_fpn_1x_coco",
]


def costs_of(model, images):
    return count(model, model.backbone, images, lambda image: counters(model, image), depth=3)


@pytest.mark.parametrize("name", KINDS)
def test_parts_of_a_detector(name):
    """Against hooks on every convolution and linear layer, which count what they put out."""
    torch.manual_seed(0)
    model = MODELS.build(narrow(copy.deepcopy(load(name))).model).eval()
    image = synthetic_images(1, 64, 96)
    found = {torch.nn.Conv2d: 0, torch.nn.Linear: 0}
    elements = 0

    def add(module, _, output):
        nonlocal elements
        kind = torch.nn.Linear if isinstance(module, torch.nn.Linear) else torch.nn.Conv2d
        if isinstance(module, torch.nn.ConvTranspose2d):  # each of its inputs goes to every element of the kernel
            found[kind] += _[0].numel() * module.weight[0].numel()
        else:
            found[kind] += output.numel() * module.weight[0].numel()
        elements += output.numel()

    layers = torch.nn.Conv2d | torch.nn.Linear | torch.nn.ConvTranspose2d
    hooks = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, layers)]
    with torch.no_grad():
        counters(model, image[0])[0]._model(image[0])
    for hook in hooks:
        hook.remove()
    counts = costs_of(model, image)
    assert counts.operators["conv"] == found[torch.nn.Conv2d]
    assert counts.operators.get("linear", counts.operators.get("addmm", 0)) == found[torch.nn.Linear]
    assert counts.backbone == multiply_adds(model.backbone, (3, 64, 96))
    assert counts.activations == elements
    assert 0 < counts.backbone_activations < counts.activations
    assert "backbone.stages" in counts.table


def test_the_same_network_in_a_config_a_file_and_by_hand(tmp_path, nano, capsys):
    """And what is printed says so."""
    config = narrow(copy.deepcopy(load(NANO)), str(nano.pth))
    config.dump(tmp_path / "config.py")
    result = analyze(tmp_path / "config.py", ["model.test_cfg.rpn.max_per_img=20"], size=(64, 96), depth=2)
    model = build_detector(tmp_path / "config.py")
    assert (result.parameters, result.edge_weights) == parameters(model)
    assert result.backbone_parameters == sum(parameters(model.backbone))
    text = result.text()
    assert f"parameters: {result.parameters:,} and {result.edge_weights:,} learned edge weights" in text
    assert "(backbone): TopoNet(" in text
    assert "multiply-adds: " in text
    assert "activations: " in text
    assert "the table is for 64 x 96" in text
    meta = {"dataset_meta": {"classes": ["a", "b"]}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, tmp_path / "epoch_1.pth")
    file = publish_detector(tmp_path / "epoch_1.pth", tmp_path / "config.py", tmp_path)
    Image.fromarray(noise_images()[0][:40, :60]).save(tmp_path / "image.png")
    options = ["--weights", file, "--tasks", "flop", "--size", 64, 80, "--depth", 2, "--input"]
    assert run_command("analyze-model", [*options, tmp_path / "image.png"]) == 0
    printed = capsys.readouterr().out
    assert "the table is for 53 x 80" in printed  # 60 x 40 enlarged until its long side is 80
    assert f"backbone: {multiply_adds(model.backbone, (3, 64, 96)) / 1e9:.3f} G" in printed  # padded to 64 x 96


def test_an_image_is_read_as_the_pipeline_reads_it():
    image = noise_images()[0]
    expected = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
    assert torch.equal(prepare(image, short_side=64, long_side=96), expected)


def test_bad_requests(tmp_path):
    for name, text in (("other", "x = 1\n"), ("number", "model = 3\n"), ("broken", "model = (\n")):
        (tmp_path / f"{name}.py").write_text(text)
    for arguments, words in (
        ({"source": "missing.py"}, "no config file at missing.py"),
        ({"source": tmp_path / "other.py"}, "has no `model`"),
        ({"source": tmp_path / "number.py"}, "has no `model`"),
        ({"source": tmp_path / "broken.py"}, "broken.py cannot be read as a config of MMDetection: SyntaxError"),
        ({"source": "missing.py", "size": (0, 5)}, "must be positive"),
        ({"source": "missing.py", "tasks": ["flops"]}, "Did you mean 'flop'"),
        ({"source": CONFIGS / f"{NANO}.py", "opts": ["a", "b"]}, "KEY=VALUE"),
    ):
        with pytest.raises(ConfigError, match=words):
            analyze(**arguments)
    with pytest.raises(DataError, match="missing.png"):
        analyze("missing.py", inputs=["missing.png"])
