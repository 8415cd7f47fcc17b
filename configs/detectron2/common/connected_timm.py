"""Base-RCNN-ConnectedTimm-FPN.yaml for LazyConfigs: a connected timm network under a detector's FPN."""

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from topodet.detectron2 import ConnectedTimm

from .rgb import use_rgb


def use_connected_timm(model: DictConfig, dataloader: DictConfig, name: str) -> None:
    """Put a network of timm under a detector's FPN, and show it the RGB images that it was trained on."""
    model.backbone.bottom_up = L(ConnectedTimm)(
        name=name,
        wiring="learned",
        rewire=False,
        norm="FrozenBN",
        freeze_at=2,
        out_features=list(model.backbone.in_features),
        # True: timm's weights; or a published backbone, plain or connected: model.backbone.bottom_up.pretrained=PATH
        pretrained=None,
        options={},
    )
    use_rgb(model, dataloader)
