# Table 5, "residual, l=2": a shortcut over every 2 nodes, edges fixed at 1. The paper's schedule, Detectron's 1x.
_base_ = [
    "./_base_/faster-rcnn_toponet50_fpn.py",
    "./_base_/coco_detection_endless.py",
    "./_base_/schedule_detectron-1x.py",
    "./_base_/runtime_iterations.py",
    "./_base_/toponet_hooks.py",
]

model = dict(backbone=dict(arch="toponet50_residual2", norm_cfg=dict(requires_grad=False)))
