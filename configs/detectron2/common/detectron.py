"""common/detectron.yaml for LazyConfigs."""

from omegaconf import DictConfig


def like_detectron(model: DictConfig, dataloader: DictConfig) -> None:
    """Give a Faster R-CNN the losses, RoIAlign and image size of Detectron, with which the paper trained."""
    model.proposal_generator.smooth_l1_beta = 0.1111
    model.roi_heads.box_predictor.smooth_l1_beta = 1.0
    model.roi_heads.box_pooler.sampling_ratio = 2
    model.roi_heads.box_pooler.pooler_type = "ROIAlign"
    dataloader.train.mapper.augmentations[0].short_edge_length = (800,)
