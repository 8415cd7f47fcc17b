"""Detectron2's checkpointer, with what it lets pass made an error for a backbone of topodet."""

from __future__ import annotations

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathHandler, PathManager

from .. import weights
from ..errors import WeightsError
from .check import backbones, check_detector


class HubHandler(PathHandler):
    """hf-hub:USER/REPO[@revision] wherever Detectron2 takes a path to read, MODEL.WEIGHTS for one."""

    def _get_supported_prefixes(self) -> list[str]:
        return [weights.HUB]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(weights.fetch(path))


PathManager.register_handler(HubHandler(), allow_override=True)


class TopoNetCheckpointer(DetectionCheckpointer):
    """Loads a published backbone or a detector's checkpoint, and keeps the backbone's card in what it saves.

    That every tensor of the backbone is filled is seen to by the backbone itself, under any checkpointer. This one adds
    what stands beside the tensors: the hash in a published file's name, the card (other channel order, mean or std than
    the detector's is refused), and that no pickle of others is run.

    Raises:
        WeightsError: on `load`, a file that is damaged, unsafe or made for another network.
        ConfigError: on `load`, when the detector's preprocessing contradicts the file's card.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model and the checkpointables under `name`, with the card where there is one."""
        cards = [backbone.card for backbone in backbones(self.model) if backbone.card]
        super().save(name, **({"card": cards[0]} if cards else {}), **kwargs)

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
        if f.endswith(".safetensors"):
            file = weights.read(f)
            return {"model": file.state_dict, "card": file.card, "matching_heuristics": True}
        content = weights.read_checkpoint(f)
        return content if "model" in content else _as_detectron2(content)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        # A published detector's config and classes are not those of what is trained from it.
        card = weights.backbone_card(weights.card_of(checkpoint))
        if card:
            for backbone in backbones(self.model):
                problems = weights.other_network(backbone, card)
                if problems:
                    raise WeightsError(f"{card.get('name')} does not fit {backbone.arch}: {problems[0]}")
                backbone.card = card
            check_detector(self.model)
        return super()._load_model(checkpoint)


def _as_detectron2(content: dict[str, Any]) -> dict[str, Any]:
    """Return a training checkpoint of `topodet.pretrain`, or of others, with its tensors where Detectron2 looks."""
    held = next((key for key in ("state_dict_ema", "state_dict") if isinstance(content.get(key), dict)), None)
    if held is None:
        return content
    return {**content, "model": content[held], "matching_heuristics": True}
