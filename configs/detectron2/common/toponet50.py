"""common/toponet50.yaml for LazyConfigs: the paper's backbone for any detector, set up like Detectron2's ResNet-50."""

from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params
from omegaconf import DictConfig

from topodet.detectron2 import TopoNet, build_optimizer
from topodet.detectron2.optim import EDGE_WEIGHTS_WITHOUT_DECAY

from .rgb import use_rgb


def use_toponet50(model: DictConfig, dataloader: DictConfig) -> None:
    """Put toponet50 under a detector's FPN, and show it the RGB images that it was trained on."""
    model.backbone.bottom_up = L(TopoNet)(
        arch="toponet50",
        norm="FrozenBN",
        freeze_at=2,
        out_features=list(model.backbone.in_features),
        # A published backbone, as path or URL: model.backbone.bottom_up.pretrained=PATH
        pretrained=None,
    )
    use_rgb(model, dataloader)


# Detectron2's SGD, with what the stock training script has no other place for: the sparsity penalty, and the checks of
# the detector against its backbone's weights file and of the dataset.
optimizer = L(build_optimizer)(
    # The script sets `params.model`. It saves the config before, which must find something there.
    params=L(get_default_optimizer_params)(model=None, weight_decay_norm=0.0, overrides=EDGE_WEIGHTS_WITHOUT_DECAY),
    model="${.params.model}",
    image_format="${dataloader.train.mapper.image_format}",
    init_checkpoint="${train.init_checkpoint}",
    datasets="${dataloader.train.dataset.names}",
    optimizer="SGD",
    sparsity="none",
    sparsity_weight=1e-4,
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
)
