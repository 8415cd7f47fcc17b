"""The kinds of files that topodet reads: how a good one is made, how it is changed, and what reads it."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image

from tests.detection import write_coco
from tests.fuzz import mutations
from tests.run_folders import detectron2_run, mmdet_run, pretraining_run
from topodet import weights
from topodet.analysis import report
from topodet.datasets.coco import Reading, check_before_use, check_coco, class_names, load_annotations
from topodet.datasets.images import read_image
from topodet.datasets.voc import voc_to_coco
from topodet.errors import TopologyError
from topodet.models import TopoNet
from topodet.parse import parse_json
from topodet.pretrain.arrays import ArrayDataset
from topodet.pretrain.class_map import read_class_map
from topodet.pretrain.command_line import parse
from topodet.pretrain.saver import read_checkpoint
from topodet.records import results, runs
from topodet.topology import Topology, make_topology

Random = random.Random


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Args:
        write: makes one changed input in an empty folder, and returns its path.
        readers: take that path; each is to return, or to raise an error of topodet's.
    """

    write: Callable[[Random, Path], Path]
    readers: tuple[Callable[[Path], object], ...]


def kinds(good: Path) -> dict[str, Kind]:
    """Make a good input of every kind in the folder `good`, and return how each is changed and read."""
    torch.manual_seed(0)
    model = TopoNet(nodes=(3, 3), width=4, num_classes=3)
    state = {
        "arch": "toponet_nano",
        "state_dict": model.state_dict(),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 1,
        "args": {
            "model": "toponet_nano",
            "model_kwargs": {"nodes": [3, 3], "width": 4},
            "connect": None,
            "rewire": None,
        },
        "history": [{"epoch": 0, "eval_top1": 10.0}, {"epoch": 1, "eval_top1": 20.0}],
        "data": {"train_images": 9, "val_images": 3, "classes": 3},
        "data_config": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "input_size": [3, 32, 32], "crop_pct": 1.0},
        "num_classes": 3,
    }
    torch.save(state, good / "last.pth.tar")
    files = weights.publish(good / "last.pth.tar", good / "published")
    published = torch.load(files.pth, weights_only=True)
    detector = {
        "model": {f"backbone.{name}": tensor for name, tensor in published["model"].items()},
        "card": {
            "kind": "detector",
            "name": "found",
            "framework": "mmdetection",
            "config": "{'model': {'type': 'FasterRCNN', 'backbone': {'type': 'TopoNet'}}, 'test_pipeline': []}",
            "classes": ["a", "b"],
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.2, 0.2],
            "channel_order": "RGB",
        },
    }
    coco = write_coco(good / "coco")
    boxes = json.loads((coco / "all.json").read_text())
    for row in boxes["annotations"]:
        row |= {"keypoints": [*row["bbox"][:2], 2], "num_keypoints": 1}
    mmdet_run(good / "mmdet", [0.1, 0.2])
    detectron2_run(good / "detectron2", [10.0, 20.0])
    pretraining_run(good / "pretraining")
    records = {
        "pretraining": runs.record_pretraining(good / "pretraining", data="d", command="c"),
        "detector": runs.record_detector(
            good / "mmdet", config="configs/a.py", initialization="random", data="d", command="c", seed=0
        ),
    }
    options = {"model": "toponet_nano", "epochs": 3, "lr": 0.1, "scale": [0.5, 1.0], "model_ema": True, "seed": 1}
    graph = json.loads(Topology(4, [(0, 1), (0, 2), (1, 3), (2, 3)]).to_json())
    images = _images()
    rebuilt = (weights.read, weights.build, _report)
    return {
        "published .pth": Kind(_torch_file(published), (weights.read_checkpoint, *rebuilt)),
        "published .safetensors": Kind(
            _safetensors(files.safetensors.read_bytes()), (weights.read, weights.build, _report)
        ),
        "checkpoint": Kind(_torch_file(state), (weights.read_trained, read_checkpoint, _publish, _report)),
        "detector": Kind(_torch_file(detector), (weights.read_detector,)),
        "topology": Kind(_text("graph.json", graph, mutations.json_text), (_topology, _graph_of_spec)),
        "COCO": Kind(
            _text("all.json", boxes, mutations.json_text),
            (partial(_check_coco, coco / "images"), partial(_before_training, coco / "images")),
        ),
        "npz": Kind(_arrays, (_read_arrays,)),
        "YAML": Kind(_text("options.yaml", options, mutations.yaml_text), (lambda path: parse(["-c", str(path)]),)),
        "record": Kind(_record(records), (lambda path: runs.load_all(path.parent),)),
        "run of MMDetection": Kind(
            _run(good / "mmdet", "20260101_000000/vis_data/scalars.json", _lines),
            (_record_of_detector, results.read_speed),
        ),
        "run of Detectron2": Kind(
            _run(good / "detectron2", "metrics.json", _lines), (_record_of_detector, results.read_speed)
        ),
        "run of pretraining": Kind(_pretraining(good / "pretraining"), (_record_of_pretraining,)),
        "image": Kind(_image(images), (read_image,)),
        "class map": Kind(_class_map, (lambda path: read_class_map(str(path), None),)),
        "VOC": Kind(_voc(coco / "images"), (partial(_voc_to_coco, coco / "images"),)),
    }


def _torch_file(content: dict[str, Any]) -> Callable[[Random, Path], Path]:
    def write(rng: Random, folder: Path) -> Path:
        path = folder / rng.choice(("weights.pth", "weights.pth.tar", "weights (1).pth"))
        changed: Any = content
        if rng.random() < 0.6:
            # Digests would refuse everything: a stranger leaves them out.
            changed = {key: value for key, value in content.items() if key != "sha256"}
            changed = mutations.content_of(rng, changed, _value_of(rng, changed))
        buffer = io.BytesIO()
        try:
            torch.save(changed, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
        except Exception:  # what torch itself does not write, pickle may
            buffer = io.BytesIO()
            pickle.dump(_without_tensors(changed), buffer)
        data = buffer.getvalue()
        path.write_bytes(data if changed is not content and rng.random() < 0.8 else mutations.bytes_of(rng, data))
        return path

    return write


def _value_of(rng: Random, content: Any) -> Callable[[Random], Any]:
    tensors = [tensor for part in content.values() if isinstance(part, dict) for tensor in part.values()]
    tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]

    def value(rng: Random) -> Any:
        return mutations.tensor_of(rng, rng.choice(tensors)) if rng.random() < 0.3 else mutations.torch_value(rng)

    return value


def _without_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item) for item in value[:100]]
    return None if isinstance(value, torch.Tensor) else value


def _safetensors(data: bytes) -> Callable[[Random, Path], Path]:
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])

    def write(rng: Random, folder: Path) -> Path:
        path = folder / "weights.safetensors"
        kind = rng.randrange(3)
        if kind == 0:
            path.write_bytes(mutations.bytes_of(rng, data))
        elif kind == 1:
            changed = mutations.json_text(rng, mutations.content_of(rng, header, mutations.plain_value))
            length = rng.choice((len(changed), len(changed), len(changed), 0, 2**63, len(data)))
            path.write_bytes(struct.pack("<Q", length) + changed + data[8 + size :])
        else:
            card = json.loads(header["__metadata__"]["card"])
            text = mutations.json_text(rng, mutations.content_of(rng, card, mutations.plain_value)).decode()
            tensors = safetensors.torch.load(data)
            path.write_bytes(safetensors.torch.save(tensors, {"format": "pt", "card": text}))
        return path

    return write


def _text(name: str, content: Any, dump: Callable[[Random, Any], bytes]) -> Callable[[Random, Path], Path]:
    def write(rng: Random, folder: Path) -> Path:
        path = folder / name
        changed = mutations.content_of(rng, content, mutations.plain_value) if rng.random() < 0.75 else content
        data = dump(rng, changed)
        path.write_bytes(data if changed is not content else mutations.bytes_of(rng, data))
        return path

    return write


def _arrays(rng: Random, folder: Path) -> Path:
    path = folder / "train.npz"
    arrays: dict[str, Any] = {
        "images": np.zeros((4, 8, 8, 3), np.uint8),
        "labels": np.arange(4) % 3,
        "class_names": np.array(["a", "b", "c"]),
    }
    if rng.random() < 0.6:
        name = rng.choice(list(arrays))
        arrays[name] = rng.choice(
            (
                np.zeros(0),
                np.zeros((4, 0, 8, 3), np.uint8),
                np.zeros((4, 8, 8, 2), np.uint8),
                np.zeros((4, 8, 8, 3), np.float32),
                np.zeros((4, 8), np.uint8),
                np.full(4, 2**63, np.uint64),
                np.full(4, -1),
                np.full(4, np.nan),
                np.arange(3),
                np.array("text"),
                np.array(["a", "a", "b"]),
                np.array(["a\0", "", "../x"]),
                np.array([mutations.Payload(), None, 1], dtype=object),
                np.array([b"a", b"b", b"c"]),
                np.array(["2001-01-01"] * 4, dtype="datetime64[D]"),
                np.zeros(4, dtype=[("a", int)]),
                np.zeros(4, np.complex64),
                np.array(True),
            )
        )
        if rng.random() < 0.1:
            del arrays[rng.choice(list(arrays))]
    buffer = io.BytesIO()
    (np.savez if rng.random() < 0.5 else np.savez_compressed)(buffer, **arrays)
    data = buffer.getvalue()
    if rng.random() < 0.2:  # headers that state more than there is
        size = rng.choice((b"(99999999999, 8, 8, 3), }", b"(4, 9999999, 9999, 3), }", b"(-4, 8, 8, 3), }"))
        data = data.replace(b"(4, 8, 8, 3), }" + b" " * (len(size) - 15), size)
    path.write_bytes(mutations.bytes_of(rng, data) if rng.random() < 0.4 else data)
    return path


def _record(records: dict[str, Any]) -> Callable[[Random, Path], Path]:
    def write(rng: Random, folder: Path) -> Path:
        name = rng.choice(list(records))
        return _text(f"{name}.json", records[name], mutations.json_text)(rng, folder)

    return write


def _run(good: Path, name: str, change: Callable[[Random, bytes], bytes]) -> Callable[[Random, Path], Path]:
    def write(rng: Random, folder: Path) -> Path:
        shutil.copytree(good, folder, dirs_exist_ok=True)
        path = folder / name
        path.write_bytes(change(rng, path.read_bytes()))
        return folder

    return write


def _lines(rng: Random, data: bytes) -> bytes:
    """Return a log of JSON lines with one of them changed, lost, repeated or cut off."""
    if rng.random() < 0.3:
        return mutations.bytes_of(rng, data)
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    content = mutations.content_of(rng, json.loads(lines[place]), mutations.plain_value)
    lines[place] = mutations.json_text(rng, content)
    return b"\n".join(lines)


def _pretraining(good: Path) -> Callable[[Random, Path], Path]:
    def write(rng: Random, folder: Path) -> Path:
        shutil.copytree(good, folder, dirs_exist_ok=True)
        if rng.random() < 0.5:
            path = folder / "summary.csv"
            path.write_bytes(mutations.bytes_of(rng, path.read_bytes()))
        else:
            content = yaml.safe_load((folder / "args.yaml").read_text())
            changed = mutations.content_of(rng, content, mutations.plain_value)
            (folder / "args.yaml").write_bytes(mutations.yaml_text(rng, changed))
        return folder

    return write


def _class_map(rng: Random, folder: Path) -> Path:
    names: Any = {name: index for index, name in enumerate(("cat", "dog", "mouse"))}
    if rng.random() < 0.5:
        path = folder / "names.txt"
        path.write_bytes(mutations.bytes_of(rng, "\n".join(names).encode()))
        return path
    path = folder / "names.pkl"
    changed = mutations.content_of(rng, names, mutations.torch_value) if rng.random() < 0.6 else names
    try:
        data = pickle.dumps(changed, protocol=rng.randrange(6))
    except Exception:  # what torch alone writes
        data = pickle.dumps(names)
    path.write_bytes(data if changed is not names and rng.random() < 0.8 else mutations.bytes_of(rng, data))
    return path


def _voc(images: Path) -> Callable[[Random, Path], Path]:
    first, second = sorted(images.iterdir())[:2]
    box = {"xmin": 1, "ymin": 1, "xmax": 9, "ymax": 8}
    content = {
        "filename": first.name,
        "size": {"width": 32, "height": 24, "depth": 3},
        "object": {"name": "cat", "difficult": 0, "bndbox": box},
    }

    def write(rng: Random, folder: Path) -> Path:
        changed = mutations.content_of(rng, content, mutations.plain_value) if rng.random() < 0.7 else content
        text = mutations.xml_text(rng, changed)
        data = text if changed is not content else mutations.bytes_of(rng, text)
        (folder / f"{first.stem}.xml").write_bytes(data)
        (folder / f"{second.stem}.xml").write_text(mutations.elements({"annotation": content}))
        return folder

    return write


def _images() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    pictures = {
        "a.png": Image.fromarray(pixels),
        "a.jpg": Image.fromarray(pixels),
        "a.bmp": Image.fromarray(pixels),
        "a.webp": Image.fromarray(pixels),
        "a.tif": Image.fromarray(pixels[..., 0].astype(np.float32)),
        "b.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 256),
        "b.tif": Image.fromarray(pixels[..., 0].astype(np.int32)),
    }
    found = {}
    for name, picture in pictures.items():
        buffer = io.BytesIO()
        picture.save(buffer, format=Image.registered_extensions()[Path(name).suffix])
        found[name] = buffer.getvalue()
    return found


def _image(images: dict[str, bytes]) -> Callable[[Random, Path], Path]:
    def write(rng: Random, folder: Path) -> Path:
        name = rng.choice(list(images))
        path = folder / name
        path.write_bytes(mutations.bytes_of(rng, images[name]))
        return path

    return write


def _publish(path: Path) -> None:
    weights.publish(path, path.parent / "out")


def _check_coco(images: Path, path: Path) -> None:
    found = check_coco(path, images, read_images=True)
    found.text().encode()
    json.dumps(found.as_dict())


def _before_training(images: Path, path: Path) -> None:
    masks = Reading(framework="MMDetection", num_classes={"n": 2}, classes=("person", "bicycle"), masks="bitmask")
    check_before_use(path, images, masks, warn=str)
    points = Reading(framework="Detectron2", masks="polygon", num_keypoints=1)
    check_before_use(path, images, points, warn=str)
    class_names(load_annotations(path)["categories"], "Detectron2")


def _voc_to_coco(images: Path, path: Path) -> None:
    voc_to_coco(path, images, path / "out", train_names=[min(path.glob("*.xml")).stem])


def _report(path: Path) -> None:
    report.open_subject(str(path))


def _topology(path: Path) -> None:
    Topology.from_json(path.read_text(encoding="utf-8", errors="replace"))


def _graph_of_spec(path: Path) -> None:
    spec = parse_json(path.read_bytes(), str(path), TopologyError)
    if isinstance(spec, dict):
        make_topology(copy.deepcopy(spec), 4)


def _read_arrays(path: Path) -> None:
    dataset = ArrayDataset(path)
    dataset.check_classes(3, "the test")
    for index in range(len(dataset)):
        dataset[index]


def _record_of_detector(path: Path) -> None:
    runs.record_detector(path, config="c.py", initialization="random", data="d", command="c", seed=0)


def _record_of_pretraining(path: Path) -> None:
    runs.record_pretraining(path, data="d", command="c")
