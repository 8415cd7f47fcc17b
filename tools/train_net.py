#!/usr/bin/env python
"""Detectron2's train_net.py for configs with `MODEL.TOPONET` or `MODEL.CONNECTED_TIMM`.

The same command line: --config-file, --num-gpus, --num-machines, --dist-url, --resume, --eval-only and `KEY VALUE`
pairs at the end. In addition `--dataset NAME annotations.json images/` registers a COCO-format dataset of your own.
"""

import argparse
import sys

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, hooks, launch
from detectron2.evaluation import verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm

from topodet.detectron2 import TopoNetCheckpointer, Trainer, check_datasets, load_config, register_dataset
from topodet.detectron2.config import backbone_node
from topodet.errors import ConfigError, exit_status


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    options = {"num_machines": args.num_machines, "machine_rank": args.machine_rank, "dist_url": args.dist_url}
    return exit_status(lambda: launch(run, args.num_gpus, **options, args=(args,)))


def parser() -> argparse.ArgumentParser:
    made = default_argument_parser()
    made.description = __doc__
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
        help="kind of problem in a --dataset that is no error (see topodet check-coco); may be repeated",
    )
    return made


def run(args: argparse.Namespace) -> dict | None:
    """What each process does."""
    for name, annotations, images in args.dataset:
        if not (name and annotations and images):
            raise ConfigError(
                f"--dataset {name!r} {annotations!r} {images!r}: one of the three is empty (a shell variable that was "
                "not set?); give NAME ANN.json IMAGES/"
            )
        register_dataset(name, annotations, images, allow=args.allow)
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks([hooks.EvalHook(0, lambda: test_with_augmentation(cfg, trainer.model))])
    return trainer.train()


def setup(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, args.opts)
    if args.eval_only:
        backbone_node(cfg).PRETRAINED = ""  # what is evaluated comes from MODEL.WEIGHTS
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch finds no GPU here: add MODEL.DEVICE cpu")
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def evaluate(cfg: CfgNode, resume: bool) -> dict:
    check_datasets(cfg, cfg.DATASETS.TEST)
    model = Trainer.build_model(cfg)
    TopoNetCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(test_with_augmentation(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def test_with_augmentation(cfg: CfgNode, model) -> dict:
    results = Trainer.test(cfg, GeneralizedRCNNWithTTA(cfg, model))
    return {f"{name}_TTA": value for name, value in results.items()}


if __name__ == "__main__":
    sys.exit(main())
