# Table 5, "complete, alpha, uniform": complete graphs, learned edges, uniform sparsity. Detectron2's 1x.
from .common.faster_rcnn_toponet50 import dataloader, lr_multiplier, model, optimizer, train

optimizer.sparsity = "uniform"
