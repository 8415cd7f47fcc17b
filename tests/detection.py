"""What the tests of both frameworks start from: a COCO set of a few small images, and published backbones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from topodet import weights
from topodet.models import create_timm_network

SIZE = (96, 64)  # width, height
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def write_coco(root: Path, classes: tuple[str, ...] = ("person", "bicycle"), count: int = 2) -> Path:
    """Write `count` JPEGs with two boxes each, `all.json` and `images/`; return the folder."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for k in range(count):
        pixels = rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        for place, (x, y, w, h) in enumerate(((4, 6, 40, 48), (50, 10, 36, 36))):
            pixels[y : y + h, x : x + w] = (40, 200 - 100 * place, 90)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": k,
                    "category_id": place + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        Image.fromarray(pixels).save(root / "images" / f"{k}.jpg")
        images.append({"id": k, "file_name": f"{k}.jpg", "width": SIZE[0], "height": SIZE[1]})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "all.json").write_text(json.dumps(content))
    return root


def with_ground_truth(root: Path, found: dict[int, tuple[np.ndarray, np.ndarray]], path: Path) -> Path:
    """Write `write_coco`'s annotations with other boxes: by image, x1 y1 x2 y2 [N, 4] and classes [N] by index."""
    content = json.loads((root / "all.json").read_text())
    content["annotations"] = []
    for image, (boxes, labels) in found.items():
        for (x, y, right, bottom), label in zip(boxes.tolist(), labels.tolist()):
            box = [x, y, right - x, bottom - y]
            number = len(content["annotations"]) + 1
            row = {"id": number, "image_id": image, "category_id": content["categories"][label]["id"], "iscrowd": 0}
            content["annotations"].append({**row, "bbox": box, "area": box[2] * box[3]})
    path.write_text(json.dumps(content))
    return path


def published(
    folder: Path,
    arch: str,
    *,
    wiring: str = "none",
    rewire: bool = False,
    prune: dict | None = None,
    data_config: dict | None = None,
    **kwargs: object,
) -> weights.PublishedFiles:
    """Publish a network that knows random weights and the statistics they give, as if it had been trained."""
    torch.manual_seed(1234)  # not the seed of the tests, whose networks would start from the same numbers
    model = create_timm_network(arch, wiring=wiring, rewire=rewire, num_classes=3, **kwargs).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the average over all that it sees
    with torch.no_grad():
        model(torch.randn(4, kwargs.get("in_chans", 3), 64, 64))
        for name, alpha in model.named_parameters():
            if name.endswith("alpha"):
                alpha.uniform_(-0.5, 1)
    edges = {"rewire" if rewire else "connect": wiring} if wiring != "none" else {}
    args = {"model": arch, "model_kwargs": kwargs, "connect": None, "rewire": None, **edges}
    content = {"arch": arch, "state_dict": model.state_dict(), "args": args, "data_config": data_config or IMAGENET}
    torch.save(content, folder / "last.pth.tar")
    return weights.publish(folder / "last.pth.tar", folder, prune=prune)


def noise_images() -> list[np.ndarray]:
    """Return two images of noise that the small detectors read at their own size, the second one narrower."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (SIZE[1], width, 3), dtype=np.uint8) for width in (SIZE[0], 70)]


def spread_out(model: torch.nn.Module, run: Callable[[np.ndarray], object], heads: dict[str, float]) -> None:
    """Scale layers so that scores and boxes differ as a trained detector's do.

    Which of a hundred equal scores are best, and which anchors overlap by half, is nobody's to say.

    Args:
        model: a detector with random weights.
        run: it on an image, RGB uint8 [H, W, 3].
        heads: by the end of a layer's name the standard deviation that its outputs get, in this order.
    """
    for name, deviation in heads.items():
        layers = [module for path, module in model.named_modules() if path.endswith(name)]
        outputs: list[torch.Tensor] = []
        hooks = [layer.register_forward_hook(lambda *a, seen=outputs: seen.append(a[2].flatten())) for layer in layers]
        run(np.random.default_rng(1).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
        for layer, hook in zip(layers, hooks):
            hook.remove()
            layer.weight.data.mul_(deviation / torch.cat(outputs).std())


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco") / "set")


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    return published(tmp_path_factory.mktemp("nano"), "toponet_nano")


@pytest.fixture(scope="session")
def grey(tmp_path_factory):
    """A backbone that was trained on images of one channel."""
    data_config = {"mean": [0.4], "std": [0.25], "input_size": [1, 64, 64]}
    return published(tmp_path_factory.mktemp("grey"), "toponet_nano", in_chans=1, data_config=data_config)


@pytest.fixture(scope="session")
def pruned(tmp_path_factory):
    """The network of `nano` with most of its edges gone, and nodes with them."""
    files = published(tmp_path_factory.mktemp("pruned"), "toponet_nano", prune={"threshold": 0.5, "per": "node"})
    assert any(graph.num_nodes < count for graph, count in zip(weights.build(files.pth).topologies, (4, 5, 6, 4)))
    return files


@pytest.fixture(scope="session")
def dilated(tmp_path_factory):
    """A network that strides by 16, its last stage dilated."""
    return published(tmp_path_factory.mktemp("dilated"), "toponet_nano", output_stride=16)


@pytest.fixture(scope="session")
def backbone_files(tmp_path_factory):
    """Return a published file for an architecture and further arguments of `published`, made once."""
    made = {}

    def get(arch, **options):
        key = (arch, *options.items())
        if key not in made:
            made[key] = published(tmp_path_factory.mktemp(arch), arch, **options).pth
        return made[key]

    return get
