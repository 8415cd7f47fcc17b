# Table 5, `complete, alpha, uniform sparsity`, with the paper's schedule: Detectron's 1x.
# Weights: --cfg-options model.backbone.pretrained=FILE
_base_ = [
    './_base_/faster-rcnn_toponet50_fpn.py',
    './_base_/coco_detection_iterations.py',
    './_base_/schedule_detectron_1x.py',
    './_base_/runtime_iterations.py',
    './_base_/toponet_hooks_uniform.py',
]
