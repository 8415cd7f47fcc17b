"""Load, predict, draw and evaluate with a detector; publish a trained one."""

from __future__ import annotations

import ast
import copy
import os
import pprint
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from .. import detections, weights
from ..datasets.images import check_image, to_grey
from ..detections import Detections, check_threshold, given_names
from ..errors import ConfigError, WeightsError
from ..parse import MAX_YAML, parse_yaml
from .base import card_of_run, classes_of_run
from .check import backbones, channel_order, check_detector, class_counts

# Steps of a test pipeline that an untrusted file may use: they only work on the image.
_PIPELINE = {
    "CenterCrop",
    "FixScaleResize",
    "FixShapeResize",
    "LoadAnnotations",
    "LoadImageFromFile",
    "LoadImageFromNDArray",
    "PackDetInputs",
    "Pad",
    "Resize",
}
_MAX_PIXELS = 10_000  # the longest side that it may resize or pad to
# Operators of mmcv that a config names by type; they are not in any registry.
_OPERATORS = {"RoIAlign", "RoIPool", "nms", "nms_quadri", "nms_rotated", "soft_nms"}
# Keys of a config that name files to read.
_FILES = ("checkpoint", "init_cfg", "pretrained")


def load_detector(
    source: str | os.PathLike | weights.WeightsFile,
    *,
    config: str | os.PathLike | None = None,
    classes: Sequence[str] | str | os.PathLike = (),
    score_threshold: float | None = None,
    device: str | None = None,
    opts: Sequence[str] = (),
) -> nn.Module:
    """Load a published detector or a training checkpoint; every tensor is loaded, or an error is raised.

    Args:
        source: path, URL or hf-hub:USER/REPO of a published file, whose hash is checked and which cannot run code; or,
            with `config`, of a checkpoint, e.g. RUN/epoch_12.pth; or a result of `weights.read`.
        config: the .py config of the checkpoint, e.g. the one in the training's folder. It is run: use your own.
        classes: names by index, or the path of COCO annotations with them; those in the file by default.
        score_threshold: the detector's own threshold, in 0..1; the config's, usually 0.05, by default. `predict` has
            another one.
        device: "cuda" or "cpu"; a GPU by default if there is one.
        opts: KEY=VALUE overrides of the config.

    Returns:
        MMDetection's detector in inference mode; `dataset_meta["classes"]` has its class names.

    Raises:
        ConfigError: a missing config, an option of another form, a number of class names that differs from the
            detector's.
        WeightsError: a file that is damaged, unsafe, without class names, is not a published MMDetection detector
            although no config is given, or does not fill the model completely.
    """
    if score_threshold is not None:
        check_threshold(score_threshold)
    options = {"score_threshold": score_threshold, "device": device, "opts": opts}
    if config is None:
        file = weights.read_detector(source, "mmdetection")
        with weights.described_by(file, "MMDetection"):
            names = given_names(classes, by_id=False) or file.card["classes"]
            return _load(_published_config(file), file, names, True, **options)
    made = read_config(config)
    file = source if isinstance(source, weights.WeightsFile) else weights.read_trained(source)
    _describe_network(made, file)
    return _load(made, file, given_names(classes, by_id=False) or _class_names(file), False, **options)


def _load(
    made: Config,
    file: weights.WeightsFile,
    names: list[str],
    strange: bool,
    *,
    score_threshold: float | None,
    device: str | None,
    opts: Sequence[str],
) -> nn.Module:
    """Build the detector of a config, which is untrusted if `strange`, and fill it."""
    if score_threshold is not None:
        for part in _dicts(made.model.get("test_cfg") or {}):
            part.update({key: float(score_threshold) for key in part if key == "score_thr"})
    made.merge_from_dict(_options(opts))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if strange:
        weights.check_size(file, lambda: MODELS.build(copy.deepcopy(made.model)))
    with warnings.catch_warnings(record=True):  # about a missing checkpoint, which is loaded below
        model = init_detector(made, device=device)
    weights.load(model, file, head=True)
    for backbone in backbones(model):
        backbone.card = _backbone_card(file)
    check_detector(model)
    _check_number_of_classes(model, names, file)
    model.dataset_meta = {"classes": names, "palette": model.dataset_meta.get("palette", "random")}
    pipeline = get_test_pipeline_cfg(copy.deepcopy(model.cfg))  # MMDetection's own functions read images by the config
    pipeline[0].type = "mmdet.LoadImageFromNDArray"
    model.test_pipeline = Compose(pipeline)
    return model


def class_names(detector: nn.Module) -> list[str]:
    """Return a detector's class names, by label."""
    return list(detector.dataset_meta["classes"])


def predict(detector: nn.Module, image: np.ndarray, *, score_threshold: float = 0.5) -> Detections:
    """Return the detections in an image.

    Args:
        detector: result of `load_detector`.
        image: RGB, uint8 [H, W, 3].
        score_threshold: threshold of the returned objects, in 0..1. None are below the config's own (`score_thr`,
            0.05).

    Raises:
        ConfigError: an invalid threshold or image.
    """
    check_image(image)
    if channel_order(detector.data_preprocessor) == "L":
        pixels = to_grey(image)
    else:
        pixels = np.ascontiguousarray(image[:, :, ::-1])  # MMDetection's pipelines read BGR
    instances = inference_detector(detector, pixels, test_pipeline=detector.test_pipeline).pred_instances.cpu()
    masks = instances.masks.numpy() if "masks" in instances else None
    boxes, scores, labels = (instances[key].numpy() for key in ("bboxes", "scores", "labels"))
    return Detections(boxes, scores, labels, masks).above(score_threshold)


def draw(detector: nn.Module, image: np.ndarray, found: Detections) -> np.ndarray:
    """Return the image with boxes, masks (if any), class names and scores, uint8 [H, W, 3].

    Args:
        detector: result of `load_detector`.
        image: RGB, uint8 [H, W, 3].
        found: detections in this image.
    """
    fields = {"bboxes": found.boxes, "scores": found.scores, "labels": found.labels}
    fields |= {} if found.masks is None else {"masks": found.masks}
    sample = DetDataSample(pred_instances=InstanceData(**{key: torch.from_numpy(v) for key, v in fields.items()}))
    visualizer = _visualizer()
    visualizer.dataset_meta = detector.dataset_meta
    visualizer.add_datasample("image", image, sample, draw_gt=False, pred_score_thr=0)
    return visualizer.get_image()


def evaluate(
    detector: nn.Module, annotations: str | os.PathLike, images: str | os.PathLike, *, progress: bool = True
) -> dict[str, float]:
    """Return COCO's scores of a detector in percent, see `topodet.detections.evaluate`."""
    find = partial(predict, detector, score_threshold=0)
    return detections.evaluate(find, class_names(detector), annotations, images, progress=progress)


def publish_detector(
    checkpoint: str | os.PathLike,
    config: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    name: str | None = None,
    classes: Sequence[str] | str | os.PathLike = (),
    licence: str = "Apache-2.0",
    notes: str = "",
) -> Path:
    """Turn a training checkpoint and its config into one file for `load_detector` and MMDetection's tools.

    `DetInferencer(weights=FILE)` and image_demo.py read the config and the class names in it.

    Args:
        checkpoint: e.g. RUN/epoch_12.pth; only its model is published.
        config: the .py config that the training wrote into its folder.
        folder: folder for the file.
        name: stem before the hash; by default the name of the checkpoint's folder or hub repository.
        classes: names by index, or the path of COCO annotations with them; those in the checkpoint by default.
        licence: license of the weights, as SPDX identifier.
        notes: one line for the card, e.g. the data.

    Returns:
        the path of NAME-<hash>.pth.

    Raises:
        ConfigError: what `load_detector` raises.
        WeightsError: a checkpoint that is damaged, unsafe, or does not fill the config's model completely; a config
            that would be unsafe to load as an untrusted file.
    """
    file = weights.read_trained(checkpoint)
    model = load_detector(file, config=config, classes=classes, device="cpu")
    made = read_config(config)
    _describe_network(made, file)
    names = model.dataset_meta["classes"]
    own = _without_files(
        {"model": made.model.to_dict(), "test_pipeline": [step.to_dict() for step in _test_pipeline(made)]}
    )
    # DetInferencer needs a config that it can run, and the class names.
    imports = {"imports": ["topodet.mmdet"], "allow_failed_imports": False}
    stock = Config({**own, "custom_imports": imports}, format_python_code=False)  # formatting takes seconds
    stock.default_scope = "mmdet"
    stock.visualizer = {"type": "DetLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}]}
    stock.test_dataloader = {"dataset": {"type": "CocoDataset", "pipeline": own["test_pipeline"]}}
    palette = model.dataset_meta["palette"]
    meta = {"cfg": stock.pretty_text, "dataset_meta": {"classes": names, "palette": palette}}
    card = {**_preprocessing(model), **weights.backbone_card(file.card), **card_of_run(file.checkpoint)}
    path = weights.publish_detector(
        weights.WeightsFile(file.path, file.state_dict, card, file.checkpoint),
        folder,
        name=name or weights.run_name(checkpoint),
        framework="mmdetection",
        config=pprint.pformat(own, width=120),
        classes=names,
        licence=licence,
        notes=notes,
        more={"state_dict": file.state_dict, "meta": meta},
    )
    try:
        load_detector(path, device="cpu")  # with all the checks for a published file
    except BaseException:
        path.unlink()  # do not publish a file that cannot be loaded
        raise
    return path


class _NamesAbove(DetLocalVisualizer):
    """Writes names above the boxes: within, they would cover small objects."""

    def draw_texts(self, texts, positions, font_sizes=None, **options):
        above = positions - 2 * self.line_width  # MMDetection's position is below the line of the box
        height = font_sizes * self.fig_save.dpi / 72
        if "horizontal_alignments" not in options and above[1] > height:  # centered: the name of a mask without a box
            return super().draw_texts(texts, above, font_sizes, vertical_alignments="bottom", **options)
        return super().draw_texts(texts, positions, font_sizes, **options)


@cache
def _visualizer() -> DetLocalVisualizer:
    return _NamesAbove(name="topodet")


def read_config(path: str | os.PathLike, opts: Sequence[str] = ()) -> Config:
    """Run a detector's .py config and return it with KEY=VALUE overrides.

    Raises:
        ConfigError: a missing file, another kind of file, a config without a detector, or an option of another form.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file at {path} (working folder {Path.cwd()}); check --config")
    if path.suffix != ".py":
        raise ConfigError(f"{path} is not a config of MMDetection: give a .py")
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is Python code and can raise anything
        raise ConfigError(
            f"{path} cannot be read as a config of MMDetection: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config.get("model"), dict):
        raise ConfigError(f"{path} has no `model`: it is not a config of a detector")
    config.merge_from_dict(_options(opts))
    return config


def _describe_network(config: Config, file: weights.WeightsFile) -> None:
    """Remove the initial weights from a config; if it refers to the network of a file, describe the network instead."""
    backbone = config.model.get("backbone", {})
    if backbone.get("arch") == weights.PRETRAINED:
        network = weights.infer_architecture(weights.extract_backbone(file.state_dict))
        graphs = [{"num_nodes": graph.num_nodes, "edges": graph.edges} for graph in network["topology"]]
        backbone.update(arch="toponet50", nodes=network["nodes"], width=network["width"], topology=graphs)
        stride = backbone.get("output_stride") or _backbone_card(file).get("output_stride")
        backbone.update({"output_stride": stride} if stride else {})
    elif backbone.get("edges") == weights.PRETRAINED:
        backbone.edges = list(weights.run_edges(file.state_dict).items())
    if "pretrained" in backbone:
        backbone.pretrained = None


def _test_pipeline(config: Config) -> list[dict[str, Any]]:
    return [step for step in get_test_pipeline_cfg(config.copy()) if step["type"] != "LoadAnnotations"]


def _preprocessing(model: nn.Module) -> dict[str, Any]:
    """Return the preprocessing of a detector in the format of a card."""
    preprocessor = model.data_preprocessor
    order = {"channel_order": channel_order(preprocessor)}
    if not preprocessor._enable_normalize:
        return order
    mean, std = (values.flatten() / 255 for values in (preprocessor.mean, preprocessor.std))
    return {"mean": mean.tolist(), "std": std.tolist(), **order}


def _without_files(value: Any) -> Any:
    """Return plain types without the names of files that a detector would read."""
    if isinstance(value, Mapping):
        return {key: None if key in _FILES else _without_files(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_without_files, value))
    return value


def _published_config(file: weights.WeightsFile) -> Config:
    """Return the config in a published detector's card, read as untrusted data.

    Raises:
        WeightsError: it is not a config of a detector, or refers to something that no detector needs.
    """
    try:
        if len(file.card["config"]) > MAX_YAML:
            raise ValueError(f"it has more than {MAX_YAML >> 10} KB")
        content = ast.literal_eval(file.card["config"])
        model, pipeline = content["model"], content["test_pipeline"]
        steps = [step["type"] for step in pipeline]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise WeightsError(
            f"the config in {file.path} is not a detector's ({error}); it was published with topodet "
            f"{file.card.get('topodet')}: update topodet and MMDetection, or ask its author"
        ) from error
    if not isinstance(model, dict):
        raise WeightsError(f"the config in {file.path} is not a detector's: its model is a {type(model).__name__}")
    weights.check_numbers(file.path, model, weights.MAX_NUMBER, "the model")
    weights.check_numbers(file.path, pipeline, _MAX_PIXELS, "the test pipeline")
    # MMEngine imports the module of a type with dots in its name, and opens the file of an init_cfg.
    asked = [f"type {kind!r}" for kind in _types(model) if not _is_registered(kind)]
    asked += [f"{key} {value!r}" for key, value in _named_files(model)]
    asked += [f"the step {step!r}" for step in steps if step not in _PIPELINE]
    if asked:
        raise WeightsError(
            f"{file.path} is refused: its config refers to what no published detector needs: {', '.join(asked[:3])}"
        )
    backbone = model.get("backbone", {})
    if backbone.get("type") == "ConnectedTimm":
        weights.check_network(file.path, backbone.get("name", ""), backbone.get("options") or {}, file.state_dict)
    dataset = {"type": "CocoDataset", "pipeline": pipeline}
    return Config({"model": model, "test_dataloader": {"dataset": dataset}, "default_scope": "mmdet"})


def _is_registered(kind: Any) -> bool:
    if not isinstance(kind, str) or "." in kind:
        return False
    return kind in _OPERATORS or any(registry.get(kind) is not None for registry in (MODELS, TASK_UTILS))


def _types(value: Any) -> Iterator[Any]:
    for part in _dicts(value):
        if "type" in part:
            yield part["type"]


def _named_files(value: Any) -> Iterator[tuple[str, Any]]:
    for part in _dicts(value):
        yield from ((key, part[key]) for key in _FILES if part.get(key))


def _dicts(value: Any) -> Iterator[dict]:
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _dicts(item)


def _options(opts: Sequence[str]) -> dict[str, Any]:
    options = {}
    for option in opts:
        key, separator, value = option.partition("=")
        if not separator:
            raise ConfigError(f"--opts {option}: options of an MMDetection config are KEY=VALUE")
        options[key] = parse_yaml(value, f"--opts {key}", ConfigError)
    return options


def _backbone_card(file: weights.WeightsFile) -> Mapping[str, Any]:
    """Return the backbone's card from a published file, or from a checkpoint of `TopoNetCheckHook`."""
    return weights.backbone_card(file.card) or card_of_run(file.checkpoint)


def _class_names(file: weights.WeightsFile) -> list[str]:
    names = classes_of_run(file.checkpoint)
    if not names:
        raise WeightsError(
            f"{file.path} does not name its classes (meta.dataset_meta): it is not a checkpoint of MMDetection; if it "
            "is your own, give --classes"
        )
    return names


def _check_number_of_classes(model: nn.Module, names: Sequence[str], file: weights.WeightsFile) -> None:
    wrong = {head: count for head, count in class_counts(model).items() if count != len(names)}
    if wrong:
        head, count = next(iter(wrong.items()))
        raise ConfigError(
            f"{file.path}: {head} is {count}, but {len(names)} classes are named "
            f"({', '.join(names[:5])}); give the names in the order of their labels"
        )
