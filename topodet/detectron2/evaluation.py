"""A detector's COCO scores as Detectron2 computes them, for `connectivity.remove_nodes` and `remove_edges`."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from torch import nn

from .data import check_datasets
from .trainer import Trainer


def coco_evaluation(cfg: CfgNode, dataset_name: str = "") -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that evaluates a detector on a dataset: {"bbox/AP": 41.0, ...}, in percent.

        model = build_model(cfg)
        TopoNetCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        damage = connectivity.remove_nodes(model, coco_evaluation(cfg))

    Args:
        cfg: config of the detector.
        dataset_name: name of the dataset; the first of DATASETS.TEST by default.

    Raises:
        ConfigError: a dataset that is unknown, not in COCO format, or has another number of classes than the detector.
        DataError: the dataset is missing.
    """
    name = dataset_name or next(iter(cfg.DATASETS.TEST), "")
    check_datasets(cfg, [name])
    loader = build_detection_test_loader(cfg, name)
    evaluator = Trainer.build_evaluator(cfg, name)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return flatten_results_dict(inference_on_dataset(model, loader, evaluator))

    return evaluate
