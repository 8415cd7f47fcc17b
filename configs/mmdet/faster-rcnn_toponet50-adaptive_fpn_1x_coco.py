# Table 5, "complete, alpha, adaptive": complete graphs, learned edges, adaptive sparsity. MMDetection's 1x.
_base_ = "./faster-rcnn_toponet50-alpha_fpn_1x_coco.py"

custom_hooks = [*_base_.custom_hooks, dict(type="SparsityHook", kind="adaptive", weight=1e-4)]
