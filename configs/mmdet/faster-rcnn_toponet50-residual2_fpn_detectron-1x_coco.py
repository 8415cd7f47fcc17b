# Table 5, `residual, l=2`, with the paper's schedule: Detectron's 1x.
# Weights: --cfg-options model.backbone.pretrained=FILE
_base_ = [
    './_base_/faster-rcnn_toponet50_fpn.py',
    './_base_/coco_detection_iterations.py',
    './_base_/schedule_detectron_1x.py',
    './_base_/runtime_iterations.py',
    './_base_/toponet_hooks.py',
]
model = dict(backbone=dict(arch='toponet50_residual2'))
