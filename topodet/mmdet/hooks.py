"""MMEngine hooks: check the detector, add the sparsity penalty in fine-tuning, record the edge weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.visualization import TensorboardVisBackend
from torch import nn
from torch.utils.hooks import RemovableHandle

from .. import connectivity, weights
from ..datasets.coco import check_checkpoint_classes
from ..datasets.images import read_image
from ..errors import ConfigError, WeightsError
from ..visualization import save_figures
from .base import CARD, TopodetBackbone, card_of_run, classes_of_run
from .check import backbones, check_detector
from .data import check_datasets
from .training import training_problems


@HOOKS.register_module()
class TopoNetCheckHook(Hook):
    """Stop before the first step, or the first test image, if `check_detector` or `check_datasets` finds an error.

    Datasets in COCO format are checked as by `topodet check-coco --config`, and their classes are compared with
    `metainfo` and the heads. Single boxes that MMDetection drops (at most one in a hundred of each kind) are a warning.

    Settings that are probably mistakes (weight decay on edge weights, a warm-up longer than the training) cause a
    warning at the start, with the line to write.

    The weights file's card is saved in every checkpoint (under `meta`) and loaded with it, so a test with other
    preprocessing than in training is refused even without the weights file. A test of a detector with unfilled tensors
    is refused. topodet checks the files that MMEngine loads first, see `mmdet.loader`.

    A checkpoint contains the class names of its head. A test or a resumed training with other classes is refused. So is
    training from it (`load_from`) with the same number of different classes, which would reuse the head.

    Args:
        allow: kinds of problem in a dataset that are not errors, see `check_coco`. "classes_differ" lets training
            start from a head of other classes.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self.allow = tuple(allow)
        self.classes: list[str] = []  # of the checkpoint that was loaded
        self.unfilled: list[str] = []  # parameters that it lacks

    def before_run(self, runner: Runner) -> None:
        check_detector(runner.model)
        check_datasets(runner, allow=self.allow)

    def before_train(self, runner: Runner) -> None:
        # Again: since before_run, the backbone has read its weights file and its card.
        check_detector(runner.model)
        self._compare_classes(runner, runner.train_dataloader.dataset, whole=runner.iter > 0)
        for problem in training_problems(runner):
            runner.logger.warning(f"topodet: {problem}")

    def before_val(self, runner: Runner) -> None:
        check_detector(runner.model)
        if not runner.iter:  # not during training
            self._check_whole(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        check_detector(runner.model)
        empty = [backbone for backbone in backbones(runner.model) if not backbone.has_weights]
        if empty and not runner.iter:  # a model trained in this run has weights
            raise ConfigError(
                f"the backbone {empty[0].arch} has no weights: a test would score random ones. Give the "
                "checkpoint of a detector (load_from=PATH, the second argument of tools/test.py)"
            )
        if not runner.iter:
            self._check_whole(runner, runner.test_dataloader.dataset)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        cards = [backbone.card for backbone in backbones(runner.model) if backbone.card]
        if cards:
            checkpoint["meta"][CARD] = cards[0]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        state_dict = checkpoint.get("state_dict")
        if isinstance(state_dict, Mapping) and backbones(runner.model):
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            prefix, checkpoint["state_dict"] = weights.without_wrappers(state_dict, model.state_dict())
            if prefix:
                print_log(
                    f"topodet: removed the prefix {prefix!r} of a wrapper from the checkpoint's names", logger="current"
                )
        # The card saved by this hook, or that of a published detector.
        card = card_of_run(checkpoint) or weights.backbone_card(weights.card_of(checkpoint))
        for backbone in backbones(runner.model) if card else ():
            problems = weights.other_network(backbone, card)
            if problems:
                raise WeightsError(f"{card.get('name')} does not fit {backbone.arch}: {problems[0]}")
            backbone.card = card
        check_detector(runner.model)
        self.classes = classes_of_run(checkpoint)
        self.unfilled = _unfilled(runner.model, checkpoint.get("state_dict", checkpoint))

    def _check_whole(self, runner: Runner, dataset: Any) -> None:
        self._compare_classes(runner, dataset, whole=True)
        if self.unfilled:
            raise WeightsError(
                "parameters of the detector are missing from the checkpoint or have another shape, "
                f"{len(self.unfilled)} in all ({', '.join(self.unfilled[:3])}): a test would score random ones. Give "
                "the checkpoint of this config"
            )

    def _compare_classes(self, runner: Runner, dataset: Any, *, whole: bool) -> None:
        ours = list(getattr(dataset, "metainfo", {}).get("classes") or ())
        if self.classes and ours and "classes_differ" not in self.allow and backbones(runner.model):
            check_checkpoint_classes(
                self.classes,
                ours,
                whole=whole,
                remedy="Change metainfo.classes and the categories to match the checkpoint's classes, or use another "
                "checkpoint" + ("" if whole else '; TopoNetCheckHook(allow=["classes_differ"]) starts from that head'),
            )


def _unfilled(model: nn.Module, state_dict: Mapping[str, Any]) -> list[str]:
    """Return the parameters that a checkpoint does not fill, except those of the backbones, which check their own."""
    names = {name.removeprefix("module."): getattr(tensor, "shape", None) for name, tensor in state_dict.items()}
    prefixes = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, TopodetBackbone))
    return [
        name.removeprefix("module.")
        for name, parameter in model.named_parameters()
        if prefixes and not name.startswith(prefixes) and names.get(name.removeprefix("module.")) != parameter.shape
    ]


@HOOKS.register_module()
class SparsityHook(Hook):
    """Add `weight * connectivity.penalty(model, kind)` to the objective of fine-tuning (Eqs. 6-8).

    The update is the same as for a penalty in the loss, also with mixed precision and gradient accumulation, except
    that gradient clipping does not include it. Frozen edges do not count. The log shows `sparsity_penalty`.

    Args:
        kind: "uniform" or "adaptive".
        weight: lambda; the paper's is 1e-4.

    Raises:
        ConfigError: when training starts, for an unknown kind, a negative weight, or a model without learned edges.
    """

    def __init__(self, kind: connectivity.PenaltyKind, weight: float = 1e-4):
        self.kind = kind
        self.weight = weight
        self._handle: RemovableHandle | None = None
        self._log_interval = 1

    def before_train(self, runner: Runner) -> None:
        optimizer = getattr(runner.optim_wrapper, "optimizer", None)
        if optimizer is None:
            raise ConfigError(
                f"SparsityHook needs one optimizer, but optim_wrapper is a {type(runner.optim_wrapper).__name__}; "
                "use OptimWrapper or AmpOptimWrapper"
            )
        self._handle = connectivity.penalize(optimizer, runner.model, self.kind, self.weight)
        self._log_interval = next((h.interval for h in runner.hooks if isinstance(h, LoggerHook)), 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        # Only when LoggerHook, which comes later, writes a line: reading the value synchronizes with the device.
        if self.every_n_inner_iters(batch_idx, self._log_interval) or self.end_of_epoch(
            runner.train_dataloader, batch_idx
        ):
            value = self.weight * connectivity.penalty(runner.model, self.kind).item()
            runner.message_hub.update_scalar("train/sparsity_penalty", value)

    def after_train(self, runner: Runner) -> None:
        if self._handle is not None:
            self._handle.remove()


@HOOKS.register_module()
class AlphaLogHook(Hook):
    """Record how sparse the edges are: before training, then every `interval` epochs.

    In iteration-based training, which has no epochs, it records every `interval` times `val_interval` iterations.

    Writes scalars `edges/below_0.01`, ... (shares in [0, 1]) where the visualizer writes (TensorBoard, scalars.json),
    to TensorBoard a histogram `alpha/NAME` for each wiring and the image `adjacency` of heat maps, and pictures to
    WORK_DIR/alpha: `adjacency_*.png` (a heat map for each stage) and `alpha_*.png` (a histogram).

    Args:
        interval: epochs between two records.
        thresholds: an edge counts as near zero if its |alpha| is below.
    """

    # After CheckpointHook, so that an error when writing a picture does not lose the checkpoint.
    priority = "LOWEST"

    def __init__(self, interval: int = 1, thresholds: Sequence[float] = connectivity.THRESHOLDS):
        self.interval = interval
        self.thresholds = tuple(thresholds)

    def before_train(self, runner: Runner) -> None:
        self._record(runner, epochs=runner.epoch, iterations=runner.iter)

    # The runner counts an epoch or iteration after these hooks have run.

    def after_train_epoch(self, runner: Runner) -> None:
        if _counts_epochs(runner) and self.every_n_epochs(runner, self.interval):
            self._record(runner, epochs=runner.epoch + 1, iterations=runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if not _counts_epochs(runner) and self.every_n_train_iters(runner, self.interval * runner.val_interval):
            self._record(runner, epochs=runner.epoch, iterations=runner.iter + 1)

    def _record(self, runner: Runner, *, epochs: int, iterations: int) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        shares = connectivity.sparsity(model, self.thresholds)
        if not shares or not is_main_process():
            return
        tag = f"epoch{epochs:03d}" if _counts_epochs(runner) else f"iter{iterations:06d}"
        runner.visualizer.add_scalars({f"edges/{name}": share for name, share in shares.items()}, step=iterations)
        runner.logger.info(f"edges with |alpha| at {tag}: {connectivity.describe_sparsity(shares)}")
        adjacency, _ = save_figures(model, Path(runner.work_dir) / "alpha", tag)
        for backend in runner.visualizer._vis_backends.values():
            if isinstance(backend, TensorboardVisBackend):
                for name, wiring in connectivity.wirings(model).items():
                    alpha = wiring.alpha.detach().float().cpu()
                    backend.experiment.add_histogram(f"alpha/{name}", alpha, iterations)
                backend.add_image("adjacency", read_image(adjacency), iterations)


def _counts_epochs(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)
