# Cascade R-CNN with Detectron2's ResNet-50, connected; its wiring is learned in fine-tuning. Detectron2's 1x.
from topodet.detectron2 import common_config

from .common.coco import dataloader, lr_multiplier, train
from .common.connected_r50 import use_connected_r50
from .common.faster_rcnn import without_masks
from .common.toponet50 import optimizer

model = without_masks(common_config("common/models/cascade_rcnn.py").model)
model.proposal_generator.post_nms_topk = (2000, 1000)
use_connected_r50(model, train)
optimizer.sparsity = "adaptive"
