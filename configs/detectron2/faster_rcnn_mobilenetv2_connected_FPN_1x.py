# MobileNetV2 from timm's ImageNet weights, its residual blocks connected, wiring learned with adaptive sparsity in
# fine-tuning. Detectron2's 1x.
from .common.coco import dataloader, lr_multiplier, train
from .common.connected_timm import use_connected_timm
from .common.faster_rcnn import model
from .common.toponet50 import optimizer

use_connected_timm(model, dataloader, "mobilenetv2_100")
model.backbone.bottom_up.pretrained = True
optimizer.sparsity = "adaptive"
