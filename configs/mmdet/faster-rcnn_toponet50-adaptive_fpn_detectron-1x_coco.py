# Table 5, "complete, alpha, adaptive": complete graphs, learned edges, adaptive sparsity. The paper's schedule, Detectron's 1x.
_base_ = [
    "./_base_/faster-rcnn_toponet50_fpn.py",
    "./_base_/coco_detection_endless.py",
    "./_base_/schedule_detectron-1x.py",
    "./_base_/runtime_iterations.py",
    "./_base_/toponet_hooks_adaptive.py",
]

model = dict(backbone=dict(norm_cfg=dict(requires_grad=False)))
