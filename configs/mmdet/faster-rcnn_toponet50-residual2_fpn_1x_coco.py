# Table 5, "residual, l=2": a shortcut over every 2 nodes, edges fixed at 1. MMDetection's 1x.
_base_ = "./faster-rcnn_toponet50-alpha_fpn_1x_coco.py"

model = dict(backbone=dict(arch="toponet50_residual2"))
