# Table 5, ResNet-50, the baseline of the TopoNets. Detectron2's 1x.
from topodet.detectron2 import common_config

from .common.coco import dataloader, lr_multiplier, train
from .common.faster_rcnn import model

optimizer = common_config("common/optim.py").SGD
model.backbone.bottom_up.freeze_at = 2
# Caffe's weights, whose images are BGR with no division by a standard deviation.
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
