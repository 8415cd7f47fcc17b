"""Detectron2 hooks: the sparsity penalty in fine-tuning, and a record of the edge weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from .. import connectivity
from ..datasets.images import read_image
from ..visualization import save_figures

logger = logging.getLogger("detectron2.topodet")


class SparsityHook(HookBase):
    """Add `weight * connectivity.penalty(model, kind)` to the objective of fine-tuning (Eqs. 6-8).

    The update is the same as for a penalty in the loss, also under AMP's loss scaling and DDP, except that gradient
    clipping does not include it. Frozen edges do not count. The log shows `sparsity_penalty`.

    Args:
        kind: "uniform" or "adaptive"; "none" does nothing.
        weight: lambda; the paper's is 1e-4.
        log_period: iterations between two log entries of the penalty.

    Raises:
        ConfigError: when training starts, for an unknown kind, a negative weight, or a model without learned edges.
    """

    def __init__(self, kind: connectivity.PenaltyKind, weight: float = 1e-4, *, log_period: int = 20):
        self.kind = kind
        self.weight = weight
        self.log_period = log_period
        self._handle: RemovableHandle | None = None

    def before_train(self) -> None:
        self._handle = connectivity.penalize(self.trainer.optimizer, self.trainer.model, self.kind, self.weight)

    def after_step(self) -> None:
        # Reading the value synchronizes with the device, so only when the writers need it.
        if self.kind != "none" and (self.trainer.iter + 1) % self.log_period == 0:
            value = self.weight * connectivity.penalty(self.trainer.model, self.kind).item()
            get_event_storage().put_scalar("sparsity_penalty", value, smoothing_hint=False)

    def after_train(self) -> None:
        if self._handle is not None:
            self._handle.remove()


class AlphaLogHook(HookBase):
    """Record the edge weights before training, every `interval` iterations and at the end.

    Writes to the event storage, and so to TensorBoard: scalars `edges/below_0.01`, ... (shares in [0, 1]), a histogram
    `alpha/NAME` for each wiring and the image `adjacency` of heat maps. Writes `adjacency_*.png` and `alpha_*.png` to
    `folder`. A model without wirings is ignored.

    Args:
        interval: iterations between two records.
        thresholds: an edge counts as near zero if its |alpha| is below.
        folder: folder for the pictures; `alpha` in the trainer's OUTPUT_DIR by default.
    """

    def __init__(
        self,
        interval: int = 1000,
        thresholds: Sequence[float] = connectivity.THRESHOLDS,
        *,
        folder: str | Path | None = None,
    ):
        self.interval = interval
        self.thresholds = tuple(thresholds)
        self.folder = folder

    def before_train(self) -> None:
        self._record(self.trainer.start_iter)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.interval == 0 or done == self.trainer.max_iter:
            self._record(done)

    def _record(self, iterations: int) -> None:
        model = self.trainer.model
        model = model.module if isinstance(model, DistributedDataParallel) else model
        shares = connectivity.sparsity(model, self.thresholds)
        if not shares or not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalars(smoothing_hint=False, **{f"edges/{name}": share for name, share in shares.items()})
        for name, wiring in connectivity.wirings(model).items():
            storage.put_histogram(f"alpha/{name}", wiring.alpha.detach().float().cpu(), bins=50)
        tag = f"iter{iterations:07d}"
        folder = Path(self.trainer.cfg.OUTPUT_DIR, "alpha") if self.folder is None else Path(self.folder)
        adjacency, _ = save_figures(model, folder, tag)
        storage.put_image("adjacency", read_image(adjacency).transpose(2, 0, 1))
        logger.info(f"edges with |alpha| at iteration {iterations}: {connectivity.describe_sparsity(shares)}")
