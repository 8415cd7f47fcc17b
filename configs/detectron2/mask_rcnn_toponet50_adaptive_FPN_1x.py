# Mask R-CNN with the adaptive backbone. Detectron2's 1x.
from topodet.detectron2 import common_config

from .common.coco import dataloader, lr_multiplier, train
from .common.toponet50 import optimizer, use_toponet50

model = common_config("common/models/mask_rcnn_fpn.py").model
use_toponet50(model, dataloader)
dataloader.train.mapper.use_instance_mask = True
optimizer.sparsity = "adaptive"
