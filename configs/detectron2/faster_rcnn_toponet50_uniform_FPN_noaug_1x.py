# Table 5, "complete, alpha, uniform": complete graphs, learned edges, uniform sparsity. The paper's schedule, Detectron's 1x.
from .common.detectron import like_detectron
from .faster_rcnn_toponet50_uniform_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

like_detectron(model, dataloader)
