"""common/rgb.yaml for LazyConfigs."""

from omegaconf import DictConfig

from topodet.detectron2 import common_config


def use_rgb(model: DictConfig, dataloader: DictConfig) -> None:
    """Show a detector RGB images, with ImageNet's mean and standard deviation."""
    constants = common_config("common/data/constants.py").constants
    model.pixel_mean = constants.imagenet_rgb256_mean
    model.pixel_std = constants.imagenet_rgb256_std
    model.input_format = dataloader.train.mapper.image_format = "RGB"
