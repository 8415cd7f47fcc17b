# Faster R-CNN with Detectron2's ResNet-50, connected; its wiring is learned in fine-tuning. Detectron2's 1x.
from .common.coco import dataloader, lr_multiplier, train
from .common.connected_r50 import use_connected_r50
from .common.faster_rcnn import model
from .common.toponet50 import optimizer

use_connected_r50(model, train)
optimizer.sparsity = "adaptive"
