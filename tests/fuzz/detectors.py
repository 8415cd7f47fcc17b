"""What a stranger's detector asks a framework to build, and configs: kinds that need MMDetection or Detectron2."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.fuzz import mutations
from tests.fuzz.inputs import Kind, kinds
from topodet import weights

Random = random.Random


def all_kinds(good: Path, word: str = "") -> dict[str, Kind]:
    """Return the kinds of `inputs.kinds` and those of the frameworks that are installed, with `word` in their name."""
    found = kinds(good)
    if find_spec("mmdet"):
        found |= mmdet_kinds(good)
    if find_spec("detectron2"):
        found |= detectron2_kinds(good)
    return {name: kind for name, kind in found.items() if word in name}


def mmdet_kinds(good: Path) -> dict[str, Kind]:
    """Return the kinds that MMDetection reads: a published detector, whose config is a Python literal."""
    from mmdet.utils import register_all_modules

    from tests.mmdet.helpers import NANO, load, narrow
    from topodet.mmdet import load_detector

    register_all_modules()
    config = narrow(copy.deepcopy(load(NANO)))
    model = config.model.to_dict()
    pipeline = [step.to_dict() for step in config.test_dataloader.dataset.pipeline]
    described = {"model": model, "test_pipeline": [step for step in pipeline if step["type"] != "LoadAnnotations"]}
    from mmdet.registry import MODELS

    tensors = MODELS.build(copy.deepcopy(config.model)).state_dict()
    classes = [str(k) for k in range(config.model.roi_head.bbox_head.num_classes)]
    write = _detector(good / "mmdet.pth", "mmdetection", described, repr, tensors, classes)
    return {"config of MMDetection": Kind(write, (lambda path: load_detector(path, device="cpu"),))}


def detectron2_kinds(good: Path) -> dict[str, Kind]:
    """Return the kinds that Detectron2 reads: a YAML config, and a published detector, which has one."""
    from detectron2.modeling import build_model

    from tests.detectron2.helpers import CLASSES, small_config
    from topodet.detectron2 import load_config, load_detector

    cfg = small_config(MODEL__TOPONET__NODES=[2, 3, 2, 2])
    content = yaml.safe_load(cfg.dump())
    tensors = build_model(cfg).state_dict()

    def as_yaml(content: Any) -> str:
        return yaml.safe_dump(content, allow_unicode=False)

    def write_config(rng: Random, folder: Path) -> Path:
        path = folder / "config.yaml"
        changed = mutations.content_of(rng, content, mutations.plain_value) if rng.random() < 0.7 else content
        data = mutations.yaml_text(rng, changed)
        path.write_bytes(mutations.bytes_of(rng, data) if changed is content else data)
        return path

    write = _detector(good / "detectron2.pth", "detectron2", content, as_yaml, tensors, CLASSES)
    return {
        "YAML of Detectron2": Kind(write_config, (load_config,)),
        "config of Detectron2": Kind(write, (lambda path: load_detector(path, device="cpu"),)),
    }


def _detector(
    place: Path,
    framework: str,
    content: dict[str, Any],
    dump: Callable[[Any], str],
    tensors: dict[str, torch.Tensor],
    classes: list[str],
) -> Callable[[Random, Path], Path]:
    """Return what writes a published detector with a changed config, and leaves its unchanged form at `place`."""
    card = {"kind": "detector", "name": "found", "framework": framework, "config": dump(content), "classes": classes}
    whole = weights.with_digests({"model": tensors, "card": card})
    torch.save(whole, place)

    def write(rng: Random, folder: Path) -> Path:
        changed = dict(card)
        kind = rng.randrange(10)
        if kind == 0:
            changed["config"] = mutations.bytes_of(rng, card["config"].encode()).decode("utf-8", "replace")
        elif kind == 1:
            changed = mutations.content_of(rng, card, mutations.torch_value)
        else:
            changed["config"] = dump(mutations.content_of(rng, content, mutations.small_value))
        path = folder / "detector.pth"
        # The digests would refuse everything: a stranger leaves them out.
        torch.save({"model": tensors, "card": changed}, path)
        return path

    return write
