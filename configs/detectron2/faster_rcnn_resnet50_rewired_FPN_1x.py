# ResNet-50 rewired (topodet.models.rewire), which the paper does to ResNets of BasicBlocks only: another network than
# ResNet-50, which must be pretrained as such (topodet pretrain). Adaptive sparsity. Detectron2's 1x.
from .common.coco import dataloader, lr_multiplier, train
from .common.connected_timm import use_connected_timm
from .common.faster_rcnn import model
from .common.toponet50 import optimizer

use_connected_timm(model, dataloader, "resnet50")
model.backbone.bottom_up.rewire = True
optimizer.sparsity = "adaptive"
