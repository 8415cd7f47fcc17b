# Table 5, "complete, alpha": complete graphs, learned edges, no penalty. The paper's schedule, Detectron's 1x.
from .common.detectron import like_detectron
from .faster_rcnn_toponet50_alpha_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

like_detectron(model, dataloader)
