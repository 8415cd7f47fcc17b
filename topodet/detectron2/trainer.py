"""Detectron2's default trainer with topodet's additions: strict weights, sparsity, a record of the edges."""

from __future__ import annotations

import weakref
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn

from ..errors import ConfigError, unknown_name
from .check import check_detector
from .checkpoint import TopoNetCheckpointer
from .config import backbone_node
from .data import allows, check_datasets, skip_samples
from .hooks import AlphaLogHook, SparsityHook
from .optim import set_edge_weight_decay


class Trainer(DefaultTrainer):
    """`DefaultTrainer` for a config with topodet's nodes; other backbones train as without topodet.

    Raises:
        ConfigError: the detector does not fit its backbone's weights, or its datasets.
        DataError: a dataset is missing.
        WeightsError: weights that are damaged, unsafe or made for another network.
    """

    def __init__(self, cfg: CfgNode):
        # First, because reading a large dataset takes a minute, and a missing test set would only fail after hours.
        _check_solver(cfg)
        self.classes = check_datasets(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        for name in cfg.DATASETS.TEST:
            _require_coco(name)
        super().__init__(cfg)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the detector and check it."""
        model = super().build_model(cfg)
        check_detector(model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer that SOLVER.OPTIMIZER names, with a separate weight decay for edge weights.

        Raises:
            ConfigError: neither SGD nor AdamW.
        """
        name = cfg.SOLVER.OPTIMIZER.lower()
        if name not in ("sgd", "adamw"):
            raise ConfigError(unknown_name("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, ("SGD", "AdamW")))
        optimizer = super().build_optimizer(cfg, model) if name == "sgd" else _adamw(cfg, model)
        set_edge_weight_decay(optimizer, model, backbone_node(cfg).ALPHA_WEIGHT_DECAY)
        return optimizer

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """Return COCO's evaluation.

        Raises:
            ConfigError: a dataset of another kind.
        """
        _require_coco(dataset_name)
        return COCOEvaluator(dataset_name, output_dir=output_folder or str(Path(cfg.OUTPUT_DIR) / "inference"))

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint or `MODEL.WEIGHTS`; when resuming, also continue the sequence of images.

        Detectron2 itself restarts its seeded sequence, so it uses the images of the first iterations twice. (Random
        flips and sizes are not reproduced exactly.)
        """
        super().resume_or_load(resume)
        world_size = comm.get_world_size()
        skip_samples(self.data_loader, self.start_iter * (self.cfg.SOLVER.IMS_PER_BATCH // world_size))

    def build_hooks(self) -> list[HookBase | None]:
        """Return Detectron2's hooks with a strict checkpointer, sparsity and the record of the edges."""
        # Here, because the hooks below keep a reference, and DefaultTrainer has no other place to choose it.
        self.checkpointer = TopoNetCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            classes=self.classes,
            other_classes=allows(self.cfg.DATASETS.TRAIN, "classes_differ"),
            trainer=weakref.proxy(self),
        )
        hooks = super().build_hooks()
        node = backbone_node(self.cfg)
        own = [SparsityHook(node.SPARSITY, node.SPARSITY_WEIGHT)]
        if node.LOG_PERIOD > 0:
            own.append(AlphaLogHook(node.LOG_PERIOD))
        # Before the writers, which come last and write what the other hooks have stored.
        place = next((k for k, hook in enumerate(hooks) if isinstance(hook, PeriodicWriter)), len(hooks))
        return [*hooks[:place], *own, *hooks[place:]]


def _check_solver(cfg: CfgNode) -> None:
    """Refuse settings with which Detectron2 would fail in its first step, or train for none."""
    if cfg.SOLVER.AMP.ENABLED and not torch.cuda.is_available():
        raise ConfigError(
            "SOLVER.AMP.ENABLED is True, but Detectron2's mixed precision needs a GPU, and torch finds none: add "
            "SOLVER.AMP.ENABLED False"
        )
    if cfg.SOLVER.MAX_ITER < 1:
        raise ConfigError(
            f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}, but must be at least 1; for an evaluation without training, "
            "give --eval-only"
        )


def _adamw(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW with the parameter groups and the clipping that Detectron2 gives SGD."""
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.AdamW(params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, optimizer)


def _require_coco(dataset_name: str) -> None:
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind != "coco":
        raise ConfigError(
            f"dataset {dataset_name} needs the evaluator {kind!r}, but this trainer only has COCO's; use Detectron2's "
            "own train_net.py with `import topodet.detectron2` and `add_topodet_config(cfg)`"
        )
