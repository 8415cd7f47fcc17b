# Table 5, "complete, alpha": complete graphs, learned edges, no penalty. Detectron2's 1x.
from .common.faster_rcnn_toponet50 import dataloader, lr_multiplier, model, optimizer, train
