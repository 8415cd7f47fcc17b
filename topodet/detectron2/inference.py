"""Load, predict, draw and evaluate with a detector; publish a trained one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.colormap import colormap
from torch import nn

from .. import detections, weights
from ..datasets.images import check_image, to_grey
from ..detections import Detections, check_threshold, given_names
from ..errors import ConfigError, WeightsError
from ..frameworks import require_framework
from ..parse import parse_yaml
from .check import backbones, check_detector
from .checkpoint import classes_of
from .config import backbone_node, head_name, load_config, merge_options

_MAX_PIXELS = 10_000  # the longest side that an untrusted config may resize to


class _GreyPredictor(DefaultPredictor):
    """A predictor for detectors of one channel: Detectron2's own cannot convert its BGR images to gray."""

    def __init__(self, cfg: CfgNode):
        colored = cfg.clone()
        colored.INPUT.FORMAT = "BGR"
        super().__init__(colored)
        self.cfg = cfg.clone()
        self.input_format = self.model.input_format = "L"

    def __call__(self, original_image: np.ndarray) -> dict[str, Instances]:
        """Return what the detector finds in a BGR image [H, W, 3] uint8."""
        return super().__call__(to_grey(original_image[:, :, ::-1])[:, :, None])


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
    """Turn a training checkpoint and its config into one file for `load_detector`.

    Args:
        checkpoint: e.g. RUN/model_final.pth; only its model is published.
        config: the RUN/config.yaml that the training wrote.
        folder: folder for the file.
        name: stem before the hash; by default the name of the checkpoint's folder or hub repository.
        classes: names, by index; or one path of the training's COCO annotations (.json), which holds them. May be
            omitted for a checkpoint of `topodet train-net`, which names them, and for Detectron2's own datasets.
        licence: license of the weights, as SPDX identifier.
        notes: one line for the card, e.g. the data.

    Returns:
        the path of NAME-<hash>.pth.

    Raises:
        ConfigError: a config of another kind, missing or too many class names, or an image format that predictors do
            not support.
        WeightsError: a checkpoint that is damaged, unsafe, or does not fill the config's model completely.
    """
    cfg = _load_yaml(config)
    file = weights.read(checkpoint)
    names = _class_names(cfg, classes, file)
    # Remove paths that only exist on this machine.
    _forget_weights(cfg, file)
    cfg.OUTPUT_DIR = load_config().OUTPUT_DIR
    model = build_model(_on(cfg, "cpu"))
    fill(model, file)
    path = weights.publish_detector(
        _with_preprocessing(file, cfg),
        folder,
        name=name or weights.run_name(checkpoint),
        framework="detectron2",
        config=cfg.dump(),
        classes=names,
        licence=licence,
        notes=notes,
    )
    try:
        load_detector(path, device="cpu")  # with all the checks for a published file
    except BaseException:
        path.unlink()  # do not publish a file that cannot be loaded
        raise
    return path


def load_detector(
    source: str | os.PathLike | weights.WeightsFile,
    *,
    config: str | os.PathLike | CfgNode | None = None,
    classes: Sequence[str] | str | os.PathLike = (),
    score_threshold: float | None = None,
    device: str | None = None,
    opts: Sequence[str] = (),
) -> DefaultPredictor:
    """Load a published detector or a training checkpoint; every tensor is loaded, or an error is raised.

    Args:
        source: path, URL or hf-hub:USER/REPO of a published file, whose hash is checked and which cannot run code; or,
            with `config`, of a checkpoint, e.g. RUN/model_final.pth; or a result of `weights.read`.
        config: the .yaml config of the checkpoint, or a config object, which is not changed.
        classes: see `publish_detector`; those in the file by default.
        score_threshold: the detector's own threshold, in 0..1; the config's, usually 0.05, by default. `predict` has
            another one.
        device: "cuda" or "cpu"; a GPU by default if there is one.
        opts: KEY VALUE pairs that override the config.

    Returns:
        Detectron2's predictor, which maps a BGR image [H, W, 3] uint8 to {"instances": ...}; its
        `metadata.thing_classes` are the detector's. Its `model` may be replaced by
        `topodet.models.fuse_for_inference(made.model)`.

    Raises:
        ConfigError: unknown options, an invalid device or image format, missing class names.
        WeightsError: a file that is damaged or unsafe, is not a published Detectron2 detector although no config is
            given, or does not fill the model completely.
    """
    options = {"score_threshold": score_threshold, "device": device, "opts": opts}
    if config is None:
        file = weights.read_detector(source, "detectron2")
        with weights.described_by(file, "Detectron2"):
            return _load(_published_config(file), file, classes, True, **options)
    file = source if isinstance(source, weights.WeightsFile) else weights.read(source)
    cfg = config if isinstance(config, CfgNode) else load_config(config)
    return _load(cfg, file, classes, False, **options)


def _load(
    cfg: CfgNode,
    file: weights.WeightsFile,
    classes: Sequence[str] | str | os.PathLike,
    strange: bool,
    *,
    score_threshold: float | None,
    device: str | None,
    opts: Sequence[str],
) -> DefaultPredictor:
    """Build the detector of a config, which is untrusted if `strange`, and fill it."""
    cfg = _on(cfg, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if score_threshold is not None:
        check_threshold(score_threshold)
        cfg.MODEL[head_name(cfg)].SCORE_THRESH_TEST = float(score_threshold)
    merge_options(cfg, opts)
    if cfg.INPUT.FORMAT not in ("RGB", "BGR", "L"):
        raise ConfigError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, but a predictor only supports RGB, BGR and L (gray) images"
        )
    names = _class_names(cfg, classes, file)
    dataset = _register_classes(names)
    cfg.DATASETS.TEST = (dataset,)
    _forget_weights(cfg, file)  # `fill` loads all of them
    if strange:
        weights.check_size(file, lambda: build_model(_on_meta(cfg)))
    made = _GreyPredictor(cfg) if cfg.INPUT.FORMAT == "L" else DefaultPredictor(cfg)
    fill(made.model, file)
    made.cfg.MODEL.WEIGHTS = str(file.path)
    return made


def class_names(detector: DefaultPredictor) -> list[str]:
    """Return a detector's class names, by label."""
    return list(detector.metadata.thing_classes)


def predict(detector: DefaultPredictor, image: np.ndarray, *, score_threshold: float = 0.5) -> Detections:
    """Return the detections in an image.

    Args:
        detector: result of `load_detector`.
        image: RGB, uint8 [H, W, 3].
        score_threshold: threshold of the returned objects, in 0..1. None are below the config's own
            (`SCORE_THRESH_TEST`, 0.05).

    Raises:
        ConfigError: an invalid threshold or image.
    """
    check_image(image)
    instances = detector(image[:, :, ::-1])["instances"].to("cpu")  # the predictor reads BGR
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    boxes, labels = instances.pred_boxes.tensor.numpy(), instances.pred_classes.numpy()
    return Detections(boxes, instances.scores.numpy(), labels, masks).above(score_threshold)


def draw(detector: DefaultPredictor, image: np.ndarray, found: Detections) -> np.ndarray:
    """Return the image with boxes, masks (if any), class names and scores, uint8 [H, W, 3].

    Args:
        detector: result of `load_detector`.
        image: RGB, uint8 [H, W, 3].
        found: detections in this image.

    Raises:
        ConfigError: OpenCV, which Detectron2 uses for drawing, is not installed.
    """
    require_framework("cv2")
    from detectron2.utils.visualizer import ColorMode, Visualizer  # the only part that needs OpenCV

    instances = Instances(image.shape[:2], scores=torch.from_numpy(found.scores))
    instances.pred_boxes = Boxes(torch.from_numpy(found.boxes))
    instances.pred_classes = torch.from_numpy(found.labels)
    if found.masks is not None:
        instances.pred_masks = torch.from_numpy(found.masks)
    picture = Visualizer(image, detector.metadata, instance_mode=ColorMode.SEGMENTATION)  # one color per class
    drawn = picture.draw_instance_predictions(instances)
    # Detectron2 draws names within the box, over small objects: move them above it if there is space.
    corners = {tuple(corner) for corner in found.boxes[:, :2].tolist()}
    for name in drawn.ax.texts:
        height = name.get_size() * drawn.fig.dpi / 72
        if name.get_position() in corners and name.get_position()[1] > height:
            name.set_verticalalignment("bottom")
    return drawn.get_image()


def evaluate(
    detector: DefaultPredictor, annotations: str | os.PathLike, images: str | os.PathLike, *, progress: bool = True
) -> dict[str, float]:
    """Return COCO's scores of a detector in percent, see `topodet.detections.evaluate`."""
    find = partial(predict, detector, score_threshold=0)
    return detections.evaluate(find, class_names(detector), annotations, images, progress=progress)


def fill(model: nn.Module, file: weights.WeightsFile) -> weights.LoadReport:
    """Load a detector's checkpoint into it, every tensor, and check its preprocessing against the file's card.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape.
        ConfigError: the detector's preprocessing differs from the backbone's card.
    """
    report = weights.load(model, file, head=True)
    for backbone in backbones(model):
        backbone.card = file.card
    check_detector(model)
    return report


def _with_preprocessing(file: weights.WeightsFile, cfg: CfgNode) -> weights.WeightsFile:
    """Return a checkpoint whose card describes the images; missing entries are taken from cfg.

    A detector that started from random weights has no backbone's card; its own config describes its images.
    """
    own = {
        "mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "channel_order": cfg.INPUT.FORMAT,
    }
    known = {key: value for key, value in file.card.items() if value is not None}
    return replace(file, card={**own, **known})


def describe_network(cfg: CfgNode, file: weights.WeightsFile) -> None:
    """If a config refers to the network of a weights file, replace it, in place, by that of a detector's checkpoint.

    Args:
        cfg: not frozen; its backbone's PRETRAINED is cleared, because the checkpoint has all weights.
        file: the detector's checkpoint.

    Raises:
        WeightsError: the file has no such network.
    """
    node = backbone_node(cfg)
    if node.get("ARCH") == weights.PRETRAINED:
        network = weights.infer_architecture(weights.extract_backbone(file.state_dict))
        node.ARCH = load_config().MODEL.TOPONET.ARCH  # every hyper-parameter of it is replaced
        node.NODES, node.WIDTH = network["nodes"], network["width"]
        node.EDGES = [list(map(list, graph.edges)) for graph in network["topology"]]
        node.OUTPUT_STRIDE = node.OUTPUT_STRIDE or file.card.get("output_stride") or 0
    elif list(node.EDGES) == [weights.PRETRAINED]:
        node.EDGES = [[run, list(map(list, edges))] for run, edges in weights.run_edges(file.state_dict).items()]
    if "PRETRAINED" in node:
        node.PRETRAINED = ""


def _forget_weights(cfg: CfgNode, file: weights.WeightsFile) -> None:
    """Remove the initial weights from a config; if it refers to the network of a file, describe the network instead."""
    describe_network(cfg, file)
    cfg.MODEL.WEIGHTS = ""


def _load_yaml(config_file: str | os.PathLike) -> CfgNode:
    path = Path(config_file)
    if path.suffix == ".py" or (path.is_file() and "_target_:" in path.read_text()):
        raise ConfigError(
            f"{path} is a LazyConfig, which can call any function when it is built, so it is unsafe to share: give the "
            ".yaml config of the same detector (configs/detectron2 has both)"
        )
    return load_config(path)


def _published_config(file: weights.WeightsFile) -> CfgNode:
    """Return the config in a published detector's card, read as untrusted data."""
    cfg = load_config()
    try:
        # merge_from_file and load_cfg could construct Python objects or read other files (_BASE_).
        content = parse_yaml(file.card["config"], "it", WeightsError)
        if not isinstance(content, dict):
            raise ValueError(f"it is a {type(content).__name__}")
        weights.check_numbers(file.path, content.get("MODEL"), weights.MAX_NUMBER, "MODEL")
        weights.check_numbers(file.path, content.get("INPUT"), _MAX_PIXELS, "INPUT")
        cfg.merge_from_other_cfg(CfgNode(content))
    except (WeightsError, KeyError, ValueError, AssertionError, AttributeError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"the config in {file.path} cannot be read by this Detectron2 ({error}); it was published with "
            f"topodet {file.card.get('topodet')}: update topodet and Detectron2, or ask its author"
        ) from error
    node = cfg.MODEL.CONNECTED_TIMM
    weights.check_network(file.path, node.NAME, dict(node.OPTIONS), file.state_dict)
    return cfg


def _class_names(cfg: CfgNode, classes: Sequence[str] | str | os.PathLike, file: weights.WeightsFile) -> list[str]:
    names = given_names(classes, by_id=True) or classes_of({**file.checkpoint, "card": file.card})
    known = [name for name in cfg.DATASETS.TRAIN if name in DatasetCatalog.list()]
    if not names and known:
        names = list(MetadataCatalog.get(known[0]).get("thing_classes", ()))
    key = f"MODEL.{head_name(cfg)}.NUM_CLASSES"
    count = cfg.MODEL[head_name(cfg)].NUM_CLASSES
    if len(names) != count:
        given = f"{len(names)} given ({', '.join(names[:5])})" if names else "but no names are known"
        raise ConfigError(
            f"the detector has {count} classes ({key}), {given}; name them in the order of their ids with "
            "--classes NAME NAME ..., or give the training's COCO file: --classes train.json"
        )
    return names


def _register_classes(names: list[str]) -> str:
    """Add class names to Detectron2's catalog; return the name of the entry."""
    # The name is a hash of the content, because the catalog refuses to change the classes of an entry.
    dataset = f"topodet_{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}"
    colours = colormap(rgb=True).astype(int).tolist()
    MetadataCatalog.get(dataset).set(
        thing_classes=names, thing_colors=[colours[k % len(colours)] for k in range(len(names))]
    )
    return dataset


def _on_meta(cfg: CfgNode) -> CfgNode:
    """Return a copy of a config for a model without memory."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    return cfg


def _on(cfg: CfgNode, device: str) -> CfgNode:
    """Return a copy of a config for a device."""
    cfg = cfg.clone()
    cfg.defrost()
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown to torch: use cpu, cuda or cuda:0") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}, but torch finds no GPU: use cpu")
    cfg.MODEL.DEVICE = device
    return cfg
