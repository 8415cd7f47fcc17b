# A rewired ResNet-50 (topodet.models.rewire); the paper rewires only ResNets with BasicBlocks. It is a different
# network from ResNet-50 and must be pretrained itself (topodet pretrain). Adaptive sparsity. Detectron2's 1x.
from .common.coco import dataloader, lr_multiplier, train
from .common.connected_timm import use_connected_timm
from .common.faster_rcnn import model
from .common.toponet50 import optimizer

use_connected_timm(model, dataloader, "resnet50")
model.backbone.bottom_up.rewire = True
optimizer.sparsity = "adaptive"
