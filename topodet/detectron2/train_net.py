"""Detectron2's train_net.py for configs with topodet's nodes: the options, and the work of each process."""

from __future__ import annotations

import argparse
import math

import torch
from detectron2.checkpoint import Checkpointer
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import default_argument_parser, default_setup, hooks, launch
from detectron2.evaluation import verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from .. import weights
from ..errors import ConfigError
from .checkpoint import TopoNetCheckpointer
from .config import backbone_node, load_config
from .data import check_datasets, register_dataset
from .inference import describe_network
from .trainer import Trainer


def parser() -> argparse.ArgumentParser:
    """Return Detectron2's own options and those of topodet."""
    made = default_argument_parser()
    made.add_argument(
        "--dataset",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "ANN.json", "IMAGES/"),
        help="check and register a dataset in COCO format, for DATASETS.TRAIN or DATASETS.TEST; may be repeated",
    )
    made.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND",
        help="treat this kind of problem of a --dataset as a note, not an error; may be repeated",
    )
    made.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="number of epochs over DATASETS.TRAIN, instead of SOLVER.MAX_ITER; SOLVER.STEPS are scaled",
    )
    return made


def start(args: argparse.Namespace) -> None:
    """Call `run` in a process for each GPU."""
    options = {"num_machines": args.num_machines, "machine_rank": args.machine_rank, "dist_url": args.dist_url}
    launch(run, args.num_gpus, **options, args=(args,))


def run(args: argparse.Namespace) -> dict | None:
    """Train, or with --eval-only evaluate, as one of the processes."""
    for name, annotation_file, images in args.dataset:
        if not (name and annotation_file and images):
            raise ConfigError(
                f"--dataset {name!r} {annotation_file!r} {images!r}: one of the three is empty (an unset shell "
                "variable?); give NAME ANN.json IMAGES/"
            )
        register_dataset(name, annotation_file, images, allow=args.allow)
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks([hooks.EvalHook(0, lambda: test_with_augmentation(cfg, trainer.model))])
    return trainer.train()


def setup(args: argparse.Namespace) -> CfgNode:
    """Return the frozen config of the options, and start Detectron2's log.

    Raises:
        ConfigError: as `load_config`; a GPU is requested but missing; --eval-only without weights.
    """
    cfg = load_config(args.config_file, args.opts)
    if args.epochs is not None:
        set_epochs(cfg, args.epochs)
    if args.eval_only:
        take_network(cfg, args.resume)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch finds no GPU: add MODEL.DEVICE cpu")
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def take_network(cfg: CfgNode, resume: bool) -> None:
    """Set a config's network to that of the checkpoint to evaluate, which has all weights: no other file is read.

    Raises:
        ConfigError: there is no checkpoint.
        WeightsError: it is damaged, unsafe, or has no network although the config refers to that of a file.
    """
    last = Checkpointer(nn.Module(), cfg.OUTPUT_DIR)
    path = last.get_checkpoint_file() if resume and last.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not path:
        raise ConfigError(
            "--eval-only has no weights to evaluate: give the detector's checkpoint, MODEL.WEIGHTS RUN/model_final.pth "
            "(or --resume, for the last one in OUTPUT_DIR)"
        )
    node = backbone_node(cfg)
    if weights.PRETRAINED in (node.get("ARCH"), *node.EDGES):
        describe_network(cfg, weights.read(path))
    node.PRETRAINED = ""


def evaluate(cfg: CfgNode, resume: bool) -> dict:
    """Return the scores of MODEL.WEIGHTS, or with `resume` of the last checkpoint, on DATASETS.TEST."""
    classes = check_datasets(cfg, cfg.DATASETS.TEST)
    model = Trainer.build_model(cfg)
    checkpointer = TopoNetCheckpointer(model, cfg.OUTPUT_DIR, classes=classes, whole=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(test_with_augmentation(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def test_with_augmentation(cfg: CfgNode, model: nn.Module) -> dict:
    """Return the scores with test-time augmentation by flipped and resized images (TEST.AUG)."""
    results = Trainer.test(cfg, GeneralizedRCNNWithTTA(cfg, model))
    return {f"{name}_TTA": value for name, value in results.items()}


def set_epochs(cfg: CfgNode, epochs: int) -> None:
    """Set SOLVER.MAX_ITER to a number of epochs over DATASETS.TRAIN; STEPS are scaled, warm-up is at most a fifth.

    Raises:
        ConfigError: fewer than one epoch, or a dataset that is unknown or missing.
    """
    if epochs < 1:
        raise ConfigError(f"--epochs {epochs} must be at least 1")
    check_datasets(cfg, cfg.DATASETS.TRAIN)
    solver = cfg.SOLVER
    images = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    iterations = epochs * math.ceil(len(images) / solver.IMS_PER_BATCH)
    steps = sorted({round(step * iterations / solver.MAX_ITER) for step in solver.STEPS})
    solver.STEPS = tuple(step for step in steps if 0 < step < iterations)
    solver.MAX_ITER = iterations
    solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, max(1, iterations // 5))
