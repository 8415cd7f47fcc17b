# Table 5, "residual, l=2": a shortcut over every 2 nodes, edges fixed at 1. MMDetection's 1x.
_base_ = [
    "./_base_/faster-rcnn_toponet50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "./_base_/schedule_1x.py",
    "./_base_/runtime.py",
    "./_base_/toponet_hooks.py",
]

model = dict(backbone=dict(arch="toponet50_residual2"))
