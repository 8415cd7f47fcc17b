"""The nodes that topodet adds to a Detectron2 config, and a config reader with helpful errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

import yaml
from detectron2.config import CfgNode, get_cfg

from ..errors import ConfigError, did_you_mean
from ..parse import read_yaml

# The node with the number of classes and the score threshold of each meta-architecture.
HEADS = {"GeneralizedRCNN": "ROI_HEADS", "PanopticFPN": "ROI_HEADS", "RetinaNet": "RETINANET"}
_UNKNOWN_KEY = re.compile(r"Non-existent (?:config )?key: ([\w.]+)")


def add_topodet_config(cfg: CfgNode) -> None:
    """Add `MODEL.TOPONET`, `MODEL.CONNECT`, `MODEL.CONNECTED_TIMM` and `SOLVER.OPTIMIZER`, with their defaults.

    Adding them again changes nothing.
    """
    for name, make in (("TOPONET", _toponet), ("CONNECT", _connect), ("CONNECTED_TIMM", _connected_timm)):
        if name not in cfg.MODEL:
            cfg.MODEL[name] = make()
    if "OPTIMIZER" not in cfg.SOLVER:
        cfg.SOLVER.OPTIMIZER = "SGD"  # or AdamW


def backbone_node(cfg: CfgNode) -> CfgNode:
    """Return the node of `MODEL` that describes the backbone and the training of its edges."""
    name = cfg.MODEL.BACKBONE.NAME
    if "connected_timm" in name:
        return cfg.MODEL.CONNECTED_TIMM
    return cfg.MODEL.CONNECT if name.startswith("build_connected_") else cfg.MODEL.TOPONET


def _toponet() -> CfgNode:
    """Return MODEL.TOPONET. An empty value ("", [], 0, and -1 for SEED) means the named network's default."""
    node = CfgNode()
    # A name of topodet.models.ARCHITECTURES (`topodet list` prints them), or "pretrained": the network of PRETRAINED,
    # graphs included, e.g. a pruned one.
    node.ARCH = "toponet50"
    node.NODES = []  # nodes of each stage
    node.WIDTH = 0  # channels of the stem
    # a generator of topodet.topology and its arguments, for all stages, e.g. {NAME: random, P: 0.8}
    node.TOPOLOGY = CfgNode({"NAME": ""}, new_allowed=True)
    node.EDGES = []  # instead of TOPOLOGY, the edges [[j, i], ...] of each stage, which has NODES nodes
    node.EDGE_WEIGHTS = ""  # "learned", or "fixed" at 1
    node.SEED = -1  # of random graphs
    node.OUTPUT_STRIDE = 0  # 8 or 16: later stages are dilated instead of striding further
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    node.NORM = "FrozenBN"  # FrozenBN, BN, SyncBN, GN
    node.USE_ACT_CHECKPOINT = False  # recompute nodes in the backward pass to save memory
    # A published backbone: path, URL or hf-hub:USER/REPO, loaded strictly when the model is built; or
    # "topodet" for the package's own weights of this network.
    node.PRETRAINED = ""
    _add_training_of_edges(node)
    return node


def _connect() -> CfgNode:
    node = CfgNode()
    node.BACKBONE = "build_resnet_backbone"  # any registered builder; it is configured by its own nodes
    node.NODES = "auto"  # residuals, blocks or auto, see topodet.models.connect
    node.WIRING = "learned"  # learned, or fixed at the start
    node.LEAVE_OUT = []  # names of blocks, or of modules that contain them, to leave unchanged
    node.EDGES = []  # remaining edges of pruned runs: [[run, [[j, i], ...]], ...]
    node.MISSING_OK = []  # patterns of tensors that a checkpoint may lack besides the wiring's, e.g. "*conv2_offset*"
    _add_training_of_edges(node)
    return node


def _connected_timm() -> CfgNode:
    node = CfgNode()
    node.NAME = "mobilenetv2_100"  # in timm, with or without the tag of its weights
    node.WIRING = "learned"  # learned, fixed, or none: timm's unchanged network
    node.CONNECT_NODES = "residuals"  # residuals, blocks (for ResNets too) or auto
    node.REWIRE = False  # apply topodet.models.rewire to a ResNet
    # Remaining edges of pruned runs: [[run, [[j, i], ...]], ...], or [pretrained] for those of PRETRAINED.
    node.EDGES = []
    node.OPTIONS = CfgNode(new_allowed=True)  # further arguments of timm.create_model, e.g. {DROP_PATH_RATE: 0.1}
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    node.NORM = "FrozenBN"  # replacement of batch normalization: FrozenBN, BN (unchanged), SyncBN
    node.USE_ACT_CHECKPOINT = False  # recompute blocks in the backward pass to save memory
    node.PRETRAINED = ""  # "timm" for the weights it publishes; a file's path, URL or hf-hub:USER/REPO; loaded strictly
    _add_training_of_edges(node)
    return node


def _add_training_of_edges(node: CfgNode) -> None:
    node.SPARSITY = "none"  # penalty continued in fine-tuning: none, uniform (Eq. 6-7), adaptive (Eq. 8)
    node.SPARSITY_WEIGHT = 1e-4  # lambda
    node.ALPHA_WEIGHT_DECAY = 0.0  # the paper does not decay the edge weights
    node.LOG_PERIOD = 1000  # iterations between two records of the edge weights; 0 for none


def load_config(config_file: str | os.PathLike = "", opts: Sequence[str] = ()) -> CfgNode:
    """Return Detectron2's config with topodet's nodes, merged with a YAML file and `KEY VALUE` pairs; not frozen.

    Raises:
        ConfigError: a missing file, an unknown key (with the closest ones), a value of another type, YAML with Python
            objects or without keys, or a LazyConfig.
    """
    cfg = get_cfg()
    add_topodet_config(cfg)
    path = os.fspath(config_file)
    if path and "://" not in path and not os.path.isfile(path):
        raise ConfigError(f"no config file at {path} (working folder {os.getcwd()}); check --config-file")
    if path.endswith(".py"):
        raise ConfigError(
            f"{path} is Python, not YAML: train a LazyConfig with Detectron2's tools/lazyconfig_train_net.py, and load "
            "its checkpoints with DetectionCheckpointer(instantiate(config.model))"
        )
    if path and "://" not in path:
        content = read_yaml(path, ConfigError)  # with limits, and errors that name the file
        if not isinstance(content, Mapping | None):
            raise ConfigError(f"{path} contains a {type(content).__name__}; a config has keys such as MODEL")
    # By default, Detectron2 executes YAML tags like !!python/object/apply.
    _merge(cfg, lambda: cfg.merge_from_file(path, allow_unsafe=False) if path else None, path)
    merge_options(cfg, opts)
    return cfg


def merge_options(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Merge `KEY VALUE` pairs into a config.

    Raises:
        ConfigError: an odd number of words, an unknown key (with the closest ones), or a value of another type.
    """
    if len(opts) % 2:
        raise ConfigError(f"options at the end must be KEY VALUE pairs, got {len(opts)} words: {' '.join(opts)}")
    _merge(cfg, lambda: cfg.merge_from_list(list(opts)), "the options at the end of the command")


def head_name(cfg: CfgNode) -> str:
    """Return the node of `MODEL` that holds a detector's NUM_CLASSES and SCORE_THRESH_TEST.

    Raises:
        ConfigError: a meta-architecture that does not predict boxes with classes.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in HEADS:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {name} does not predict boxes with classes; known: {', '.join(HEADS)}"
        )
    return HEADS[name]


def _merge(cfg: CfgNode, merge, place: str) -> None:
    try:
        merge()
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"{place} is refused: {error.problem}; such a tag could run code, nothing in it was executed"
        ) from error
    except Exception as error:  # yacs: an unknown key, a value of another type, text that is not a config
        match = _UNKNOWN_KEY.search(str(error))
        if match and isinstance(error, KeyError):
            raise ConfigError(f"unknown key {match[1]} in {place}.{did_you_mean(match[1], _keys(cfg))}") from error
        hint = did_you_mean(match[1], _keys(cfg)) if match else ""
        kind = "" if isinstance(error, ValueError | AssertionError) else f"{type(error).__name__}: "
        raise ConfigError(f"{place}: {kind}{error}{hint}") from error


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
