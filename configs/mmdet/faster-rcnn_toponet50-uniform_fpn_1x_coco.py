# Table 5, "complete, alpha, uniform": complete graphs, learned edges, uniform sparsity. MMDetection's 1x.
_base_ = "./faster-rcnn_toponet50-alpha_fpn_1x_coco.py"

custom_hooks = [*_base_.custom_hooks, dict(type="SparsityHook", kind="uniform", weight=1e-4)]
