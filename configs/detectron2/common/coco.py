"""common/coco.yaml for LazyConfigs."""

from topodet.detectron2 import common_config

dataloader = common_config("common/data/coco.py").dataloader
dataloader.train.mapper.use_instance_mask = False

lr_multiplier = common_config("common/coco_schedule.py").lr_multiplier_1x

train = common_config("common/train.py").train
train.eval_period = 10000
train.checkpointer.period = 10000
