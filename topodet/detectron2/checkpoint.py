"""Detectron2's checkpointer, with errors instead of warnings for topodet's backbones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathHandler, PathManager
from torch import nn

from .. import weights
from ..datasets.coco import check_checkpoint_classes
from ..errors import WeightsError
from .base import logger
from .check import backbones, check_detector


class HubHandler(PathHandler):
    """Support for hf-hub:USER/REPO[@revision] wherever Detectron2 reads a path, such as MODEL.WEIGHTS."""

    def _get_supported_prefixes(self) -> list[str]:
        return [weights.HUB]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(weights.fetch(path))


PathManager.register_handler(HubHandler(), allow_override=True)


class TopoNetCheckpointer(DetectionCheckpointer):
    """Loads a published backbone or a detector's checkpoint, and saves the backbone's card with its checkpoints.

    The backbone itself checks that all of its tensors are filled, under any checkpointer. This checkpointer also checks
    the hash in a published file's name, the card (a channel order, mean or std that differs from the detector's is
    refused) and the class names, and never runs untrusted pickles.

    Args:
        model, save_dir, checkpointables: as for `DetectionCheckpointer`.
        classes: class names of the datasets, by index; they are saved, and compared with those of loaded checkpoints.
        whole: whether the head is used as it was saved, for an evaluation: a checkpoint with other classes, or without
            some of the detector's parameters, is refused. Otherwise, training from a checkpoint with another number of
            classes starts with a new head, and one with the same number of different classes is refused.
        other_classes: let training start from a head with the same number of different classes.

    Raises:
        WeightsError: on `load`, a file that is damaged, unsafe or made for another network.
        ConfigError: on `load`, when the detector's preprocessing contradicts the file's card, or the classes differ.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        classes: Sequence[str] = (),
        whole: bool = False,
        other_classes: bool = False,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.classes = list(classes)
        self.whole = whole
        self.other_classes = other_classes

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model and the checkpointables under `name`, with card and classes, if any."""
        cards = [backbone.card for backbone in backbones(self.model) if backbone.card]
        beside = {**({"card": cards[0]} if cards else {}), **({"classes": self.classes} if self.classes else {})}
        super().save(name, **beside, **kwargs)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the last checkpoint, which must have the same classes, or load `path`."""
        whole, self.whole = self.whole, self.whole or (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self.whole = whole

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; "" loads nothing.

        Raises:
            WeightsError, ConfigError: see the class; or there is no such file.
        """
        if path and path.startswith("file://"):
            path = str(weights.fetch(path))
        file = urlparse(path)._replace(query="").geturl()  # Detectron2 accepts ?matching_heuristics=True at the end
        if path and "://" not in path and not path.startswith(weights.HUB) and not os.path.isfile(file):
            raise WeightsError(f"no checkpoint at {path} (working folder {os.getcwd()}); check MODEL.WEIGHTS")
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not backbones(self.model):
            return super()._load_file(filename)
        if filename.endswith((".pkl", ".pyth")):
            raise WeightsError(
                f"{filename} is a pickle for another backbone, and unpickling could run code; this detector starts "
                "from a published .pth (MODEL.WEIGHTS, or PRETRAINED of the backbone's node)"
            )
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        if not backbones(self.model):
            return super()._torch_load(f)
        if f.lower().endswith(".safetensors"):
            file = weights.read(f)
            return {"model": file.state_dict, "card": file.card, "matching_heuristics": True}
        content = weights.read_checkpoint(f)
        return content if "model" in content else _as_detectron2(content)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        # Without the config and classes of a published detector: they do not apply to a model that starts from it.
        card = weights.backbone_card(weights.card_of(checkpoint))
        if card:
            for backbone in backbones(self.model):
                problems = weights.other_network(backbone, card)
                if problems:
                    raise WeightsError(f"{card.get('name')} does not fit {backbone.arch}: {problems[0]}")
                backbone.card = card
            check_detector(self.model)
        if self.classes and backbones(self.model) and (self.whole or not self.other_classes):
            check_checkpoint_classes(
                classes_of(checkpoint) or self.classes,
                self.classes,
                whole=self.whole,
                remedy="Change names and ids of the files' categories to match the checkpoint's classes, or use "
                "another checkpoint" + ("" if self.whole else "; --allow classes_differ starts from that head"),
            )
        if isinstance(checkpoint.get("model"), Mapping) and backbones(self.model):
            prefix, state_dict = weights.without_wrappers(checkpoint["model"], self.model.state_dict())
            checkpoint = {**checkpoint, "model": state_dict}
            if prefix:
                logger.info(f"topodet: removed the prefix {prefix!r} of a wrapper from the checkpoint's names")
        found = super()._load_model(checkpoint)
        lost = [*found.missing_keys, *(name for name, *_ in found.incorrect_shapes)]
        lost = [name for name in lost if name in dict(self.model.named_parameters())]
        if self.whole and lost and backbones(self.model):
            raise WeightsError(
                f"parameters of the detector are missing from the checkpoint or have another shape, {len(lost)} in all "
                f"({', '.join(lost[:3])}): an evaluation would score random ones. Give the checkpoint of this config"
            )
        return found


def classes_of(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the class names of a checkpoint; [] if it has none."""
    card = checkpoint.get("card")
    names = checkpoint.get("classes") or (card.get("classes") if isinstance(card, Mapping) else None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def _as_detectron2(content: dict[str, Any]) -> dict[str, Any]:
    """Return a training checkpoint of `topodet.pretrain`, or of others, with its tensors under Detectron2's key."""
    held = next((key for key in ("state_dict_ema", "state_dict") if isinstance(content.get(key), dict)), None)
    if held is None:
        return content
    return {**content, "model": content[held], "matching_heuristics": True}
