# RetinaNet with the adaptive backbone. Detectron2's 1x, with its learning rate for RetinaNet.
from topodet.detectron2 import common_config

from .common.coco import dataloader, lr_multiplier, train
from .common.toponet50 import optimizer, use_toponet50

model = common_config("common/models/retinanet.py").model
use_toponet50(model, dataloader)
model.backbone.top_block.in_channels = 1024  # of toponet50's res5
optimizer.lr = 0.01
optimizer.sparsity = "adaptive"
