# Table 5, "residual, l=2": a shortcut over every 2 nodes, edges fixed at 1. Detectron2's 1x.
from .common.faster_rcnn_toponet50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.arch = "toponet50_residual2"
