# Table 5, ResNet-50, the baseline of the TopoNets. The paper's schedule, Detectron's 1x.
from .common.detectron import like_detectron
from .faster_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

like_detectron(model, dataloader)
