# Faster R-CNN with the adaptive backbone. Detectron2's 3x.
from topodet.detectron2 import common_config

from .faster_rcnn_toponet50_adaptive_FPN_1x import dataloader, model, optimizer, train

lr_multiplier = common_config("common/coco_schedule.py").lr_multiplier_3x
train.max_iter = 270000
