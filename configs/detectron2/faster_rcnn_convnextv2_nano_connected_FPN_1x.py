# ConvNeXt V2 Nano from timm's ImageNet weights, its blocks connected, wiring learned with adaptive sparsity in
# fine-tuning. Detectron2's 1x with AdamW; nothing is frozen.
from .common.coco import dataloader, lr_multiplier, train
from .common.connected_timm import use_connected_timm
from .common.faster_rcnn import model
from .common.toponet50 import optimizer

use_connected_timm(model, dataloader, "convnextv2_nano")
model.backbone.bottom_up.pretrained = True
model.backbone.bottom_up.freeze_at = 0
model.backbone.bottom_up.options = {"drop_path_rate": 0.1}
optimizer.optimizer = "AdamW"
optimizer.pop("momentum")
optimizer.lr = 0.0001
optimizer.weight_decay = 0.05
optimizer.sparsity = "adaptive"
