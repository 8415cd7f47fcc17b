"""Faster R-CNN with toponet50 on COCO, Base-RCNN-TopoNet-FPN.yaml for LazyConfigs."""

from .coco import dataloader, lr_multiplier, train
from .faster_rcnn import model
from .toponet50 import optimizer, use_toponet50

use_toponet50(model, dataloader)
