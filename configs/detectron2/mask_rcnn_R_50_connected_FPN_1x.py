# Mask R-CNN with Detectron2's ResNet-50, connected; its wiring is learned in fine-tuning. Detectron2's 1x.
from topodet.detectron2 import common_config

from .common.coco import dataloader, lr_multiplier, train
from .common.connected_r50 import use_connected_r50
from .common.toponet50 import optimizer

model = common_config("common/models/mask_rcnn_fpn.py").model
use_connected_r50(model, train)
dataloader.train.mapper.use_instance_mask = True
optimizer.sparsity = "adaptive"
