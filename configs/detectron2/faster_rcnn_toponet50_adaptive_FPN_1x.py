# Table 5, "complete, alpha, adaptive": complete graphs, learned edges, adaptive sparsity. Detectron2's 1x.
from .common.faster_rcnn_toponet50 import dataloader, lr_multiplier, model, optimizer, train

optimizer.sparsity = "adaptive"
