# Table 5, "residual, l=2": a shortcut over every 2 nodes, edges fixed at 1. The paper's schedule, Detectron's 1x.
from .common.detectron import like_detectron
from .faster_rcnn_toponet50_residual2_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

like_detectron(model, dataloader)
