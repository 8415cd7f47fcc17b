# Cascade R-CNN with the adaptive backbone. Detectron2's 1x.
from topodet.detectron2 import common_config

from .common.coco import dataloader, lr_multiplier, train
from .common.faster_rcnn import without_masks
from .common.toponet50 import optimizer, use_toponet50

model = without_masks(common_config("common/models/cascade_rcnn.py").model)
model.proposal_generator.post_nms_topk = (2000, 1000)
use_toponet50(model, dataloader)
optimizer.sparsity = "adaptive"
