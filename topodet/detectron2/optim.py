"""Optimizers for edge weights: no weight decay on them, and the sparsity penalty at each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from .. import connectivity, weights
from ..datasets.coco import check_checkpoint_classes
from ..errors import ConfigError, unknown_name
from .check import backbones, check_detector
from .checkpoint import classes_of
from .data import allows, check_sets, reading_of_model

# The `overrides` of `get_default_optimizer_params`, by parameter name.
EDGE_WEIGHTS_WITHOUT_DECAY = {"alpha": {"weight_decay": 0.0}}


def build_optimizer(
    params: Iterable[dict[str, Any]],
    *,
    model: nn.Module,
    optimizer: str = "SGD",
    sparsity: connectivity.PenaltyKind = "none",
    sparsity_weight: float = 1e-4,
    image_format: str | None = None,
    init_checkpoint: str = "",
    datasets: str | Sequence[str] = (),
    mask_format: str = "polygon",
    **options: Any,
) -> torch.optim.Optimizer:
    """Create the optimizer of a LazyConfig, the only place for a plugin in Detectron2's stock training script.

    The stock script calls this after building the model and before training, so a detector that does not fit its
    backbone is refused here too.

    Args:
        params: parameter groups, from `detectron2.solver.build.get_default_optimizer_params`.
        model: the detector; "${.params.model}" in a LazyConfig, which the script sets.
        optimizer: name of a class in `torch.optim`.
        sparsity, sparsity_weight: penalty on the edges (Eqs. 6-8) and its lambda, see `connectivity.penalize`.
        image_format: image format of the data loader, "${dataloader.train.mapper.image_format}" in a LazyConfig.
        init_checkpoint: "${train.init_checkpoint}" in a LazyConfig: if it is a file with a card, the detector must
            match the card.
        datasets: names of the training sets, "${dataloader.train.dataset.names}" in a LazyConfig, which are checked.
        mask_format: mask format of the data loader's mapper.
        options: arguments of the optimizer (lr, momentum, weight_decay, ...).

    Raises:
        ConfigError: an unknown optimizer or sparsity, a model without learned edges although the sparsity needs them,
            preprocessing that contradicts the weights' card, or classes that differ from the datasets'.
        DataError: datasets that are missing or cannot be trained on.
        WeightsError: `init_checkpoint` is damaged or unsafe.
    """
    known = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    if optimizer not in known:
        raise ConfigError(unknown_name("optimizer", optimizer, known - {"Optimizer"}))
    networks = backbones(model)
    theirs: list[str] = []
    if networks and init_checkpoint and PathManager.isfile(init_checkpoint):
        content = weights.read_checkpoint(PathManager.get_local_path(init_checkpoint))
        card, theirs = weights.backbone_card(weights.card_of(content)), classes_of(content)
        for backbone in networks:
            backbone.card = backbone.card or card
    check_detector(model, image_format=image_format)
    reading = reading_of_model(model, mask_format=mask_format)
    names = [datasets] if isinstance(datasets, str) else list(datasets)
    ours = check_sets(dict.fromkeys(names, reading))
    if theirs and ours and not allows(names, "classes_differ"):
        remedy = "Use another checkpoint, or change names and ids of the files' categories to match its classes"
        check_checkpoint_classes(theirs, ours, whole=False, remedy=remedy)
    made = getattr(torch.optim, optimizer)(params, **options)
    connectivity.penalize(made, model, sparsity, sparsity_weight)
    return made


def set_edge_weight_decay(optimizer: torch.optim.Optimizer, model: nn.Module, weight_decay: float) -> None:
    """Move the edge weights of an optimizer into a separate group with another weight decay, before any step."""
    own = {id(wiring.alpha) for wiring in connectivity.wirings(model).values() if wiring.learned}
    moved = []
    for group in optimizer.param_groups:
        moved += [parameter for parameter in group["params"] if id(parameter) in own]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    if moved:
        optimizer.add_param_group({"params": moved, "weight_decay": weight_decay})
